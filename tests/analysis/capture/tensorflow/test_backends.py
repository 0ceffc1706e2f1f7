"""Keras on other backends than TensorFlow; TensorFlow missing."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from ranum.analysis import analyze
from ranum.errors import ArgumentError, MissingExtraError

MODEL = """
import sys
import keras, numpy as np
from keras import layers
from ranum.analysis import analyze
model = keras.Sequential([keras.Input((784,)), layers.Dense(10, activation="softmax", name="head")])
def log_loss(y, p):
    return -keras.ops.mean(keras.ops.sum(y * keras.ops.log(p), -1))
x, y = np.random.rand(8, 784).astype("f"), np.eye(10, dtype="f")[:8]
"""
ON_TORCH = """
model.compile(loss=log_loss)
before = [v.numpy().copy() for v in model.variables]
analysis = analyze(model, x, y)
assert all((v.numpy() == old).all() for v, old in zip(model.variables, before))
assert "tensorflow" not in sys.modules
(defect,) = analysis.defects
assert defect.code == "RN101" and "ops.log(p)" in defect.source.expression
assert set(analysis.ranges) == {"x", "y", "sequential/head/kernel", "sequential/head/bias"}
assert "head" in {node.source.module for node in analysis.graph.nodes}
norm = keras.Sequential([
    keras.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.BatchNormalization(name="norm"),
    layers.ReLU(), layers.Dropout(0.5), layers.Flatten(), layers.Dense(3),
])
norm.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
before = [v.numpy().copy() for v in norm.variables]
analysis = analyze(norm, np.random.rand(4, 8, 8, 1), np.array([0, 1, 2, 1]))
assert analysis.unknowns == (), analysis
# Keras' variance on torch is E[x^2] - E[x]^2, which may come out below 0.
assert {defect.source.module for defect in analysis.defects} <= {"norm"}, analysis
assert all((v.numpy() == old).all() for v, old in zip(norm.variables, before))
class OwnStep(keras.Model):
    def __init__(self):
        super().__init__()
        self.head, self.seen = layers.Dense(10), keras.metrics.Mean()

    def call(self, x):
        return keras.ops.softmax(self.head(x))

    def train_step(self, data):
        x, y = data
        self.zero_grad()
        loss = log_loss(y, self(x, training=True))
        loss.backward()
        weights = self.trainable_weights
        self.seen.update_state(loss)
        self.optimizer.apply([weight.value.grad for weight in weights], weights)
        return {"loss": self.seen.result()}


own = OwnStep()
own.compile()
own(x)
own.optimizer.build(own.trainable_variables)
watched = own.variables + own.optimizer.variables + own.seen.variables
before = [keras.ops.convert_to_numpy(v).copy() for v in watched]
analysis = analyze(own, x, y)
(defect,) = analysis.defects
assert defect.code == "RN101" and "ops.log(p)" in defect.source.expression
assert any(node.phase == "backward" for node in analysis.graph.nodes)
assert all((keras.ops.convert_to_numpy(v) == old).all() for v, old in zip(watched, before))
print("passed")
"""


@pytest.mark.slow  # 15 s: another process imports Keras
def test_on_torch_the_model_itself_is_recorded(tmp_path):
    script = tmp_path / "model.py"
    script.write_text(MODEL.strip() + "\n" + ON_TORCH)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "torch"},
        check=False,
    )
    assert done.stdout.endswith("passed\n"), done.stderr


def compiled() -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(loss="mse")
    return model


def test_other_backends_are_named(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ArgumentError, match="runs on Keras' backend 'jax'"):
        analyze(compiled(), np.ones((2, 4), "f"), np.ones((2, 2), "f"))


def test_a_missing_tensorflow_is_named(monkeypatch):
    model = compiled()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ranum\[tensorflow\]'"):
        analyze(model, np.ones((2, 4), "f"), np.ones((2, 2), "f"))
