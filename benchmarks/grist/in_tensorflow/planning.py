"""A value-iteration network."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_tensorflow._build import Weights, built

LOG = Flaw(
    "log",
    "tf.math.log(p)",
    "the softmax underflows to 0",
    {
        "bias": Set(1),
        "reward": Set(1),
        "value_r": Set(1),
        "output": Set(1, first=True),
    },
).target()
STATES = 10


def _convolve(x: Any, kernel: Any) -> Any:
    """A true convolution: the kernel flipped."""
    return tf.nn.conv2d(x, tf.reverse(kernel, [0, 1]), 1, "SAME")


@case("15", LOG, training=Training("RMSProp", 0.001, 12))
def case_15(seed: int) -> Built:
    """Planner r = conv1(conv3(X)), nine times v = max q, q = conv3([r; v]); -mean log softmax."""
    weights = Weights(seed)
    hidden = weights.normal("hidden", (3, 3, 2, 150), 0.01)
    bias = weights.normal("bias", (1, 1, 1, 150), 0.01)
    reward = weights.normal("reward", (1, 1, 150, 1), 0.01)
    value_r = weights.normal("value_r", (3, 3, 1, 10), 0.01)
    value_v = weights.normal("value_v", (3, 3, 1, 10), 0.01)
    output = weights.normal("output", (10, 8), 0.01)

    def loss(x: Any, row: Any, column: Any, label: Any) -> Any:
        r = _convolve(_convolve(x, hidden) + bias, reward)
        q = _convolve(r, value_r)
        both = tf.concat([value_r, value_v], 2)
        for _ in range(9):
            v = tf.reduce_max(q, 3, keepdims=True)
            q = _convolve(tf.concat([r, v], 3), both)
        v = tf.reduce_max(q, 3, keepdims=True)
        q = _convolve(tf.concat([r, v], 3), both)
        batch = tf.repeat(tf.range(x.shape[0]), STATES)
        here = tf.gather_nd(
            q, tf.stack([batch, tf.reshape(row, [-1]), tf.reshape(column, [-1])], 1)
        )
        share = tf.nn.softmax(here @ output)
        p = tf.gather(share, label, batch_dims=1)
        return -tf.reduce_mean(tf.math.log(p))

    random = weights.random
    walls = random.integers(2, size=(12, 8, 8, 1)).astype(np.float32)
    prior = random.uniform(0, 10, (12, 8, 8, 1)).astype(np.float32)
    inputs = {
        "x": np.concatenate([walls, prior], 3),
        "row": random.integers(1, 7, (12, STATES)).astype(np.int32),
        "column": random.integers(1, 7, (12, STATES)).astype(np.int32),
        "label": random.integers(8, size=12 * STATES).astype(np.int32),
    }
    return built(loss, weights, inputs, {"x": (0.0, 10.0)})
