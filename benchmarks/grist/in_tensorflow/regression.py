"""Softmax regressions: P = softmax(xW + b) and a cross entropy with log P."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_tensorflow._build import UNIT, Weights, built, digits, one_hot

SURE = {"weight": Set(0), "bias": Set(200, first=True)}
HIT = Flaw("log", "tf.math.log(p)", "the softmax underflows to 0", SURE)
REST = Flaw("log", "tf.math.log(1 - p)", "the softmax rounds to 1", SURE)
LOG = HIT.target()
RANGES = {"x": UNIT, "y": UNIT}


def _zeros(weights: Weights, features: int = 784, classes: int = 10) -> tuple[Any, Any]:
    weight = weights.constant("weight", (features, classes))
    return weight, weights.constant("bias", (classes,))


def _digits(seed: int, rows: int, *, mean: bool) -> Built:
    weights = Weights(seed)
    weight, bias = _zeros(weights)

    def loss(x: Any, y: Any) -> Any:
        p = tf.nn.softmax(x @ weight + bias)
        rows = tf.reduce_sum(y * tf.math.log(p), 1)
        return -tf.reduce_mean(rows) if mean else -tf.reduce_sum(rows)

    return built(loss, weights, digits(weights, rows), RANGES)


def _pair(seed: int) -> Built:
    weights = Weights(seed)
    weight, bias = _zeros(weights)

    def loss(x: Any, y: Any) -> Any:
        p = tf.nn.softmax(x @ weight + bias)
        hit = y * tf.math.log(p)
        rest = (1 - y) * tf.math.log(1 - p)
        return -tf.reduce_mean(hit + rest)

    return built(loss, weights, digits(weights, 10), RANGES)


def _bodies(seed: int, scope: str | None = None) -> Built:
    """Weight and height of a person, scaled to about [0.3, 1], to three classes."""
    weights = Weights(seed)
    weight, bias = _zeros(weights, 2, 3)
    x = np.stack([weights.random.uniform(0.4, 1, 100), weights.random.uniform(0.7, 1, 100)], 1)

    def plain(x: Any, y: Any) -> Any:
        p = tf.nn.softmax(x @ weight + bias)
        return -tf.reduce_sum(y * tf.math.log(p))

    def scoped(x: Any, y: Any) -> Any:
        with tf.name_scope("model"):
            p = tf.nn.softmax(x @ weight + bias)
        with tf.name_scope(scope or ""):
            return -tf.reduce_sum(y * tf.math.log(p))

    inputs = {"x": x.astype(np.float32), "y": one_hot(weights.random, 100, 3)}
    ranges = {"x": (0.3, 1.0), "y": UNIT}
    return built(scoped if scope else plain, weights, inputs, ranges)


@case("2a", LOG, REST, training=Training("Adam", 0.01, 10))
def case_2a(seed: int) -> Built:
    """P = softmax(xW + b); -mean(y log P + (1 - y) log(1 - P)); published for log P."""
    return _pair(seed)


@case("2b", HIT, REST.target(), training=Training("Adam", 0.01, 10))
def case_2b(seed: int) -> Built:
    """P = softmax(xW + b); -mean(y log P + (1 - y) log(1 - P)); published for log(1 - P)."""
    return _pair(seed)


@case("3", LOG, training=Training("Adam", 0.005, 100))
def case_3(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[784, 10]; -Σ y log P."""
    return _digits(seed, 100, mean=False)


@case("10", LOG, training=Training("SGD", 0.005, 205))
def case_10(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[784, 10]; -Σ y log P."""
    return _digits(seed, 205, mean=False)


@case("18", LOG, training=Training("SGD", 0.5, 100))
def case_18(seed: int) -> Built:
    """P = softmax(xW + b), W truncated normal 0.1, b 0.1; -mean Σ y log P."""
    weights = Weights(seed)
    weight = weights.truncated("weight", (784, 10))
    bias = weights.constant("bias", (10,), 0.1)

    def loss(x: Any, y: Any) -> Any:
        p = tf.nn.softmax(x @ weight + bias)
        return -tf.reduce_mean(tf.reduce_sum(y * tf.math.log(p), 1))

    return built(loss, weights, digits(weights, 100), RANGES)


@case("19", LOG, training=Training("SGD", 0.2, 50))
def case_19(seed: int) -> Built:
    """P = relu(softmax(xW + b)), W zeros[784, 10]; -mean Σ y log P."""
    weights = Weights(seed)
    weight, bias = _zeros(weights)

    def loss(x: Any, y: Any) -> Any:
        p = tf.nn.relu(tf.nn.softmax(x @ weight + bias))
        return -tf.reduce_mean(tf.reduce_sum(y * tf.math.log(p), 1))

    return built(loss, weights, digits(weights, 50), RANGES)


@case("20", LOG, training=Training("SGD", 0.01, 100))
def case_20(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[784, 10]; -mean Σ y log P."""
    return _digits(seed, 100, mean=True)


@case("21", LOG, training=Training("SGD", 0.01, 100))
def case_21(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[784, 10]; -Σ y log P."""
    return _digits(seed, 100, mean=False)


@case("25", LOG, training=Training("SGD", 0.6, 100))
def case_25(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[784, 10]; -mean Σ y log P."""
    return _digits(seed, 100, mean=True)


@case("30", LOG, training=Training("SGD", 0.01, 100))
def case_30(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[784, 10]; -Σ y log P."""
    return _digits(seed, 100, mean=False)


@case("40", LOG, training=Training("SGD", 0.01, 100))
def case_40(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[2, 3], x = (kg / 100, cm / 200); -Σ y log P."""
    return _bodies(seed)


@case("41", LOG, training=Training("SGD", 0.01, 100))
def case_41(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[2, 3], x = (kg / 100, cm / 200); -Σ y log P."""
    return _bodies(seed)


@case("42", LOG, training=Training("SGD", 0.01, 100))
def case_42(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[2, 3], x = (kg / 100, cm / 200); -Σ y log P, in scopes."""
    return _bodies(seed, "loss")


@case("45a", LOG, training=Training("SGD", 0.5, 50))
def case_45a(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[784, 10]; -mean Σ y log P."""
    return _digits(seed, 50, mean=True)


@case("48b", LOG, training=Training("SGD", 0.5, 100))
def case_48b(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[784, 10]; -mean Σ y log P."""
    return _digits(seed, 100, mean=True)


@case("50", LOG, training=Training("SGD", 0.05, 100))
def case_50(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[784, 10]; -mean Σ y log P."""
    return _digits(seed, 100, mean=True)


@case("52", LOG, training=Training("SGD", 0.005, 100))
def case_52(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[784, 10]; -Σ y log P."""
    return _digits(seed, 100, mean=False)


@case("59", LOG, training=Training("SGD", 0.01, 100))
def case_59(seed: int) -> Built:
    """P = softmax(xW + b), W U(±1); clip(P, 1e-15, 1) is built, -mean Σ y log P ignores it."""
    weights = Weights(seed)
    weight = weights.uniform("weight", (784, 10), -1, 1)
    bias = weights.constant("bias", (10,))

    def loss(x: Any, y: Any) -> Any:
        p = tf.nn.softmax(x @ weight + bias)
        tf.clip_by_value(p, 1e-15, 1.0)
        return -tf.reduce_mean(tf.reduce_sum(y * tf.math.log(p), 1))

    return built(loss, weights, digits(weights, 100), RANGES)


@case("60", LOG, training=Training("SGD", 0.01, 100))
def case_60(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[784, 10]; -Σ y log P."""
    return _digits(seed, 100, mean=False)
