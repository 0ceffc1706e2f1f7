"""Softmaxes written as exp(z) / Σ exp(z), without the maximum taken off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import tensorflow as tf

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_tensorflow._build import UNIT, Weights, built, one_hot

SGD = Training("SGD", 0.01, 100)


def _logits(bias: Set) -> dict[str, Set]:
    return {"weight3": Set(0), "bias3": bias}


TERMS = Flaw("exp", "terms = tf.exp(z)", "a logit exceeds 88.7", _logits(Set(100)))
PART = replace(TERMS, text="part = tf.exp(")
RATIO = Flaw("div", "p = part / whole", "every exp underflows, 0 / 0", _logits(Set(-200)))
SUM = Flaw(
    "sum",
    "whole = tf.reduce_sum",
    "ten large terms; taking off the maximum cures it together with exp",
    _logits(Set(88)),
    is_required=False,
)
LOG = Flaw("log", "tf.math.log(", "a small exp underflows", _logits(Set(-200, first=True)))


def _images(weights: Weights) -> dict[str, Any]:
    x = weights.random.uniform(-1, 1, (100, 28, 28, 1)).astype("float32")
    return {"x": x, "y": one_hot(weights.random, 100, 10)}


def _perceptron(seed: int, entropy: Callable[[Any, Any], Any]) -> Built:
    """784-200-100-10 with ReLU, W ~ U(±0.25), and a loss of logits and labels."""
    weights = Weights(seed)
    sizes = [784, 200, 100, 10]
    layers = [
        (
            weights.uniform(f"weight{number}", (m, n), -0.25, 0.25),
            weights.constant(f"bias{number}", (n,)),
        )
        for number, (m, n) in enumerate(pairwise(sizes), 1)
    ]

    def loss(x: Any, y: Any) -> Any:
        h = tf.reshape(x, [-1, 784])
        for weight, bias in layers[:-1]:
            h = tf.nn.relu(h @ weight + bias)
        return entropy(h @ layers[-1][0] + layers[-1][1], y)

    return built(loss, weights, _images(weights), {"x": (-1.0, 1.0), "y": UNIT})


def _half_clipped(z: Any, y: Any) -> Any:
    part = tf.exp(tf.clip_by_value(z, -87.0, 87.0))
    terms = tf.exp(z)
    whole = tf.reduce_sum(terms, 1, keepdims=True)
    p = part / whole
    return tf.reduce_mean(-tf.reduce_sum(y * tf.math.log(tf.clip_by_value(p, 1e-6, 1.0)), 1))


def _half_clipped_abs(z: Any, y: Any) -> Any:
    part = tf.exp(tf.clip_by_value(z, -87.0, 87.0))
    terms = tf.exp(z)
    whole = tf.reduce_sum(terms, 1, keepdims=True)
    p = part / whole
    sure = tf.abs(tf.clip_by_value(p, 1e-6, 1.0))
    return tf.reduce_mean(-tf.reduce_sum(y * tf.math.log(sure), 1))


def _plain(z: Any, y: Any) -> Any:
    part = tf.exp(z)
    whole = tf.reduce_sum(part, 1, keepdims=True)
    p = part / whole
    return tf.reduce_mean(-tf.reduce_sum(y * tf.math.log(p), 1))


def _clipped_above(z: Any, y: Any) -> Any:
    part = tf.exp(tf.clip_by_value(z, tf.reduce_min(z), 87.0))
    whole = tf.reduce_sum(part, 1, keepdims=True)
    p = part / whole
    return tf.reduce_mean(-tf.reduce_sum(y * tf.math.log(tf.abs(p)), 1))


def _clipped_above_eps(z: Any, y: Any) -> Any:
    part = tf.exp(tf.clip_by_value(z, tf.reduce_min(z), 87.0))
    whole = tf.reduce_sum(part, 1, keepdims=True)
    p = part / whole
    return tf.reduce_mean(-tf.reduce_sum(y * tf.math.log(tf.abs(p) + 1e-6), 1))


@case("11a", RATIO.target(), TERMS, SUM, training=SGD)
def case_11a(seed: int) -> Built:
    """P = exp(clip(z, ±87)) / Σ exp(z); mean(-Σ y log clip(P, 1e-6, 1)); for the division."""
    return _perceptron(seed, _half_clipped)


@case("11b", RATIO, TERMS.target(), SUM, training=SGD)
def case_11b(seed: int) -> Built:
    """P = exp(clip(z, ±87)) / Σ exp(z); mean(-Σ y log clip(P, 1e-6, 1)); for exp(z)."""
    return _perceptron(seed, _half_clipped)


@case("11c", RATIO, PART, SUM, LOG.target(), training=SGD)
def case_11c(seed: int) -> Built:
    """P = exp(z) / Σ exp(z); mean(-Σ y log P); for the logarithm."""
    return _perceptron(seed, _plain)


@case("16a", RATIO, TERMS.target(), SUM, training=SGD)
def case_16a(seed: int) -> Built:
    """P = exp(clip(z, ±87)) / Σ exp(z); mean(-Σ y log |clip(P, 1e-6, 1)|); for exp(z)."""
    return _perceptron(seed, _half_clipped_abs)


@case("16b", RATIO, PART, SUM, LOG.target(), training=SGD)
def case_16b(seed: int) -> Built:
    """P = exp(c) / Σ exp(c), c = clip(z, min z, 87); mean(-Σ y log |P|); for the logarithm."""
    return _perceptron(seed, _clipped_above)


@case("16c", RATIO.target(), PART, SUM, training=SGD)
def case_16c(seed: int) -> Built:
    """P = exp(c) / Σ exp(c), c = clip(z, min z, 87); mean(-Σ y log(|P| + 1e-6)); division."""
    return _perceptron(seed, _clipped_above_eps)
