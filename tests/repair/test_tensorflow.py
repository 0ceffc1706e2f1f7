"""Cures of TensorFlow and Keras programs: in their own words, live, traced once anew."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import ranum
from ranum.errors import PatchError
from ranum.repair._places import placed
from ranum.repair.clipping import Clip, Rewrite

X = tf.constant(np.linspace(0, 1, 20, dtype="f").reshape(5, 4))
Y = tf.constant(np.eye(3, dtype="f")[[0, 1, 2, 0, 1]])
WEIGHT = tf.Variable(np.zeros((4, 3), "f"), name="weight")
TRACED: list[int] = []


class Shares(layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")

    def call(self, x):
        TRACED.append(1)
        return ops.log(ops.softmax(ops.matmul(x, self.kernel)))


class Plain(Shares):
    def call(self, x):
        return tf.nn.softmax(x @ self.kernel)


def likelihood(y, logs):
    return -tf.reduce_mean(tf.reduce_sum(y * logs, -1))


def entropy(y, p):
    TRACED.append(1)
    return -tf.reduce_mean(tf.reduce_sum(y * tf.math.log(p * 0.5), -1))


def pair(x, y):
    p = tf.nn.softmax(x @ WEIGHT)
    return -tf.reduce_mean(y * tf.math.log(p) + (1 - y) * tf.math.log(1 - p))


def gates(x, y):
    p = tf.sigmoid(tf.matmul(x, WEIGHT))
    return tf.reduce_mean(-(y * tf.math.log(p) + (1 - y) * tf.math.log(1 - p)))


def shares_by_hand(x, y):
    powers = tf.exp(x @ WEIGHT)
    p = powers / tf.reduce_sum(powers, axis=-1, keepdims=True)
    return -tf.reduce_sum(y * tf.math.log(p))


def tiled(x, y):
    powers = tf.exp(x @ WEIGHT)
    p = powers / tf.tile(tf.reduce_sum(powers, 1, keepdims=True), [1, 3])
    return tf.reduce_sum(p * y)


def roots(x, y):
    return tf.reduce_sum(tf.sqrt(tf.reduce_sum(tf.square(x @ WEIGHT), -1)))


def units(x, y):
    h = x @ WEIGHT
    return tf.reduce_sum(y * (h / tf.norm(h, axis=-1, keepdims=True)))


def mixed(x, y):
    p, log = tf.nn.softmax(x @ WEIGHT), tf.math.log
    return tf.reduce_sum(sum(log(one) for one in (p, 2 * p)) + log(p * p))


def model_of(layer, loss):
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(1e-3), loss=loss)
    return model


def analysed(target, **options):
    return ranum.analyze(target, X, Y, weights="anything", **options)


WRITTEN = {
    "two on a line": (pair, "y * tf.nn.log_softmax(x @ WEIGHT) + (1 - y) * tf.math.log(tf.maximum"),
    "entropy": (gates, "sigmoid_cross_entropy_with_logits(labels=y, logits=tf.matmul(x, WEIGHT))"),
    "by hand": (shares_by_hand, "y * tf.nn.log_softmax(x @ WEIGHT, -1))"),
    "tiled": (tiled, "p = tf.nn.softmax(x @ WEIGHT, 1)"),
    "root": (roots, "tf.sqrt(tf.reduce_sum(tf.square(x @ WEIGHT), -1) + 1e-12)"),
}


SLOW = ("by hand", "tiled", "root")  # seconds each, and the two that stay show the same


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in WRITTEN],
)
def test_a_function_is_cured_in_its_own_words(name):
    step, expected = WRITTEN[name]
    analysis = analysed(step)
    assert analysis.defects
    cures = ranum.fix(analysis)
    added = [line for line in cures.diff().splitlines() if line.startswith("+")]
    assert any(expected in line for line in added), cures.diff()
    found = cures.verify()
    assert found.is_clean
    assert found.remaining == ()
    with cures.apply():
        assert analysed(step).defects == ()
    assert len(analysed(step).defects) == len(analysis.defects)


def test_operators_that_cannot_be_told_apart_are_refused():
    analysis = analysed(mixed)
    logs = [node for node in analysis.graph.nodes if node.op == "log"]
    assert len(logs) == 3
    with pytest.raises(PatchError, match="runs log 3 times and does not show which is which"):
        placed(analysis.graph, logs[0])
    assert {clip.edit for clip in ranum.fix(analysis)} == {None}


def test_a_layer_of_keras_is_traced_once_more_and_put_back():
    model = model_of(Shares(), likelihood)
    model.fit(X, Y, verbose=0)
    analysis = analysed(model)
    (cure,) = cures = ranum.fix(analysis)
    assert isinstance(cure, Rewrite)
    assert "return ops.log_softmax(ops.matmul(x, self.kernel))" in cures.diff()
    kernel = model.trainable_variables[0]
    kernel.assign([[500.0, -500.0, 0.0]] * 4)
    with cures.apply():
        TRACED.clear()
        first, second = (model.fit(X, Y, verbose=0).history["loss"][0] for _ in range(2))
        assert np.isfinite([first, second]).all()
        assert len(TRACED) == 1
        assert np.isfinite(model.evaluate(X, Y, verbose=0))
        assert np.isfinite(model.predict(X, verbose=0)).all()
    kernel.assign([[500.0, -500.0, 0.0]] * 4)
    for run in (model.fit, model.evaluate):
        TRACED.clear()
        run(X, Y, verbose=0)
        assert len(TRACED) == 1
    TRACED.clear()
    assert not np.isfinite(model.predict(X, verbose=0)).all()
    assert len(TRACED) == 1


def test_a_custom_loss_is_clipped_in_tensorflows_words(tmp_path, monkeypatch):
    model = model_of(Plain(), entropy)
    model.fit(X, Y, verbose=0)
    (cure,) = cures = ranum.fix(analysed(model))
    assert isinstance(cure, Clip)
    assert "y * tf.math.log(tf.maximum(p * 0.5, 1.2e-38)), -1))" in cures.diff()
    assert cures.verify().remaining == ()
    assert cures.verify().change == 0.0
    kernel = model.trainable_variables[0]
    kernel.assign([[500.0, -500.0, 0.0]] * 4)
    with cures.apply():
        assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()
    kernel.assign([[500.0, -500.0, 0.0]] * 4)
    assert not np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()


def test_a_tf_function_is_traced_once_more_and_put_back():
    @tf.function
    def step(x, y):
        TRACED.append(1)
        p = tf.nn.softmax(x @ WEIGHT) / 2
        return -tf.reduce_sum(y * tf.math.log(p))

    def twice(step=step):
        TRACED.clear()
        return [float(step(X, Y)) for _ in range(2)], len(TRACED)

    twice()
    cures = ranum.fix(analysed(step))
    before = WEIGHT.numpy()
    WEIGHT.assign([[500.0, -500.0, 0.0]] * 4)
    try:
        assert not np.isfinite(twice()[0]).any()
        with cures.apply():
            losses, traced = twice()
            assert np.isfinite(losses).all()
            assert traced == 1
            later = tf.function(step.python_function)
            assert np.isfinite(twice(later)[0]).all()
        for one in (step, later):
            losses, traced = twice(one)
            assert not np.isfinite(losses).any()
            assert traced == 1
    finally:
        WEIGHT.assign(before)


def test_a_cure_that_changes_what_tensorflow_computes_is_seen(monkeypatch):
    from ranum.analysis.capture.tensorflow.origin import TensorFlowOrigin

    plain = TensorFlowOrigin.results
    runs: list[int] = []

    def changed(self, inputs):
        runs.append(1)
        return [one + len(runs) for one in plain(self, inputs)]

    cures = ranum.fix(analysed(gates), rewrite=False)
    monkeypatch.setattr(TensorFlowOrigin, "results", changed)
    assert not cures.verify().is_clean


ON_TORCH = """
import keras, numpy as np, ranum
from keras import layers, ops

def entropy(y, p):
    return -ops.mean(ops.sum(y * ops.log(ops.relu(p)), -1))

def shares(y, z):
    return -ops.mean(ops.sum(ops.convert_to_tensor(y) * ops.log(ops.softmax(z)), -1))

x, y = np.random.rand(8, 20).astype("f"), np.eye(10, dtype="f")[:8]
model = keras.Sequential([keras.Input((20,)), layers.Dense(10, activation="softmax")])
for loss, words in (
    (entropy, "y * ops.log(ops.maximum(ops.relu(p), 1.2e-38))"),
    (shares, "* ops.log_softmax(z)"),
):
    model.compile("sgd", loss=loss)
    own = (lambda z: shares(y, 1000 * z)) if loss is shares else None
    analysis = ranum.analyze(model, x, y, weights="anything", loss=own)
    assert analysis.defects, loss
    cures = ranum.fix(analysis)
    assert words in cures.diff(), cures.diff()
    assert cures.verify().is_clean and cures.verify().remaining == ()
    with cures.apply():
        assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()
"""


@pytest.mark.slow  # about 15 s: another process with another backend
def test_keras_on_torch(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ON_TORCH)
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, str(script)], env=environment, check=True)
