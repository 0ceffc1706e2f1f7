"""Fully connected networks under a logarithm of probabilities."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_tensorflow._build import KEEP, UNIT, Weights, built, digits

LOG = Flaw(
    "log",
    "tf.math.log(p)",
    "the softmax underflows to 0",
    {"output": Set(0), "b2": Set(200, first=True)},
).target()
HIT = Flaw(
    "log", "tf.math.log(p)", "the sigmoid underflows to 0", {"first": Set(0), "second": Set(-1)}
)
REST = Flaw(
    "log", "tf.math.log(1 - p)", "the sigmoid rounds to 1", {"first": Set(0), "second": Set(1)}
)


def _sigmoids(seed: int) -> Built:
    weights = Weights(seed)
    first = weights.constant("first", (784, 512))
    second = weights.constant("second", (512, 10))

    def loss(x: Any, y: Any) -> Any:
        p = tf.sigmoid(tf.sigmoid(x @ first) @ second)
        hit = -y * tf.math.log(p)
        rest = (1 - y) * tf.math.log(1 - p)
        return tf.reduce_mean(tf.reduce_sum(hit - rest, 1))

    return built(loss, weights, digits(weights, 100), {"x": UNIT, "y": UNIT})


def _hidden(seed: int, *, mean: bool, noise: float) -> Built:
    """x, with noise, through 300 ReLU units, dropout, 10 outputs, softmax."""
    weights = Weights(seed)
    dense, b1 = weights.truncated("dense", (784, 300)), weights.constant("b1", (300,))
    output, b2 = weights.constant("output", (300, 10)), weights.constant("b2", (10,))

    def loss(x: Any, y: Any, keep: Any) -> Any:
        if noise:
            x = x + noise * tf.random.normal(tf.shape(x))
        h = tf.nn.dropout(tf.nn.relu(x @ dense + b1), 1 - keep)
        p = tf.nn.softmax(h @ output + b2)
        rows = -tf.reduce_sum(y * tf.math.log(p), 1)
        return tf.reduce_mean(rows) if mean else tf.reduce_sum(rows)

    inputs = {**digits(weights, 100), "keep": 0.75}
    return built(loss, weights, inputs, {"x": UNIT, "y": UNIT, "keep": KEEP})


@case("9a", HIT, REST.target(), training=Training("SGD", 0.5, 100))
def case_9a(seed: int) -> Built:
    """Units p = σ(σ(x W1) W2), zeros; mean Σ(-y log p - (1 - y) log(1 - p)); for log(1 - p)."""
    return _sigmoids(seed)


@case("9b", HIT.target(), REST, training=Training("SGD", 0.5, 100))
def case_9b(seed: int) -> Built:
    """Units p = σ(σ(x W1) W2), zeros; mean Σ(-y log p - (1 - y) log(1 - p)); for log p."""
    return _sigmoids(seed)


@case("48a", LOG, training=Training("Adagrad", 0.3, 100))
def case_48a(seed: int) -> Built:
    """Noise: x + 0.01 N(0, 1), dense 300, ReLU, dropout, dense 10, P = softmax; -mean Σ y log P."""
    return _hidden(seed, mean=True, noise=0.01)


@case("61", LOG, training=Training("Adagrad", 0.01, 100))
def case_61(seed: int) -> Built:
    """Dense 300, ReLU, dropout, dense 10, P = softmax; -Σ y log P."""
    return _hidden(seed, mean=False, noise=0.0)
