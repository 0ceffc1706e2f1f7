"""What a witness is worth: TensorFlow itself is run on it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import ranum
from ranum.analysis.result import Witness


def _function(compiled: bool):
    weight = tf.Variable(tf.zeros((3, 4)), name="weight")

    def loss(x, y):
        p = tf.nn.softmax(x @ weight) / 2  # log(softmax) alone becomes LogSoftmax when compiled
        return -tf.reduce_mean(y * tf.math.log(p))

    return (tf.function(loss) if compiled else loss), weight


BATCH = (tf.constant(np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)), tf.eye(4)[:2])


@pytest.mark.parametrize("compiled", [False, True])
def test_a_witness_fails_in_tensorflow(compiled):
    loss, weight = _function(compiled)
    before = weight.numpy()
    (defect,) = ranum.analyze(loss, *BATCH, weights="anything").defects
    witness = ranum.confirm(defect)
    assert isinstance(witness, Witness)
    assert (weight.numpy() == before).all()
    batch = dict(zip("xy", BATCH, strict=True))
    batch |= {name: tf.constant(tensor.numpy()) for name, tensor in witness.inputs.items()}
    weight.assign(witness.weights["weight"].numpy())
    assert not np.isfinite(float(loss(**batch)))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_operator_is_watched_where_it_runs(compiled):
    loss, _ = _function(compiled)
    analysis = ranum.analyze(loss, *BATCH, weights="anything")
    (defect,) = analysis.defects
    program = analysis.context.program
    fine = program.origin.fails(program.inputs, {}, defect.source.node, gradient_only=False)
    assert fine is False
    bad = {"weight": program.parameters["weight"].detach() + 300}
    bad["weight"][:, 0] = -300
    assert program.origin.fails(program.inputs, bad, defect.source.node, gradient_only=False)
    assert program.origin.fails(program.inputs, bad, "no such node", gradient_only=False) is None


def test_gradients_are_taken_by_tensorflow():
    weight = tf.Variable(tf.ones((2,)), name="weight")

    def loss(x):
        return tf.reduce_sum(tf.sqrt(tf.square(x * weight)))

    analysis = ranum.analyze(loss, tf.ones((2,)), inputs={"x": (-1, 1)})
    origin = analysis.context.program.origin
    x = analysis.context.program.inputs["x"]
    assert origin.fails({"x": x}, {}, "Sqrt", gradient_only=True) is False
    assert origin.fails({"x": x * 0}, {}, "Sqrt", gradient_only=True) is True
