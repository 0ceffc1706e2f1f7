"""Networks that carry a scale beside every activation and divide by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tensorflow as tf

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_tensorflow._build import UNIT, Weights, built, digits

GAIN = (0.0, 16.0)
ADAM = Training("Adam", 0.1, 500)

BY_SUM = Flaw("div", "(x @ w) / total", "a column of weights is 0", {"w1": Set(0, first=True)})
BY_GAIN = Flaw("div", "(most * total) / gain", "a gain is 0", {"g2": Set(0, first=True)})
BY_MOST = Flaw("div", "s / most", "every scale is 0 behind weights of 0", {"w1": Set(0)})
BY_SCALE = Flaw("div", "b / s", "a scale is 0 behind a column of 0", {"w1": Set(0, first=True)})
BEYOND = replace(BY_GAIN, why="a gain is -1e-7", witness={"g2": Set(-1e-7)}).target()


def multiply(x: Any, w: Any, s: Any, g: Any, eps: float) -> tuple[Any, Any]:
    """A matrix product of what x stands for, and the scale of the result.

    Args:
        x: Activations in [-1, 1], `[N, D]`, which stand for x * s.
        w: Weights `[D, K]`.
        s: Scales `[D]`.
        g: Gains `[K]` or `[1]`.
        eps: Added to whatever is divided by; 0 in the unguarded versions.
    """
    most = tf.reduce_max(s)
    total = tf.reduce_sum(tf.abs(w), 0)
    gain = g
    if eps:
        most, total, gain = most + eps, total + eps, gain + eps
    x = x * (s / most)
    z = (x @ w) / total
    out = tf.clip_by_value(g * z, -1.0, 1.0)
    scale = (most * total) / gain
    return out, scale


def shift(x: Any, b: Any, s: Any) -> Any:
    """The sum x + b / s, clipped to [-1, 1]."""
    ratio = b / s
    return 2 * tf.clip_by_value(x / 2 + ratio / 2, -0.5, 0.5)


def _net(seed: int, *, eps: float = 0.0, zeros: bool = False, hinge: bool, single: bool) -> Built:
    """784-128-10.

    Args:
        seed: Of weights and batch.
        eps: Guards every division.
        zeros: The first weights start at 0.
        hinge: Penalty 0.25 Σ 2 max(|w| - 1, 0) in place of 0.0006 Σ w².
        single: One trained gain per layer; otherwise one per unit, the first layer's fixed.
    """
    weights = Weights(seed)
    first = (weights.constant if zeros else weights.normal)("w1", (784, 128))
    second = weights.normal("w2", (128, 10))
    b1, b2 = weights.normal("b1", (128,)), weights.normal("b2", (10,))
    g1 = weights.uniform("g1", (1,) if single else (128,), *GAIN, trainable=single)
    g2 = weights.uniform("g2", (1,) if single else (10,), *GAIN)

    def loss(x: Any, y: Any) -> Any:
        h, s = multiply(x, first, tf.ones([784]), g1, eps)
        h, s = multiply(shift(h, b1, s), second, s, g2, eps)
        logits = shift(h, b2, s) * s
        entropy = tf.nn.softmax_cross_entropy_with_logits(y, logits)
        penalty = [
            0.25 * tf.reduce_sum(2 * tf.maximum(tf.abs(w) - 1, 0.0))
            if hinge
            else 0.0006 * tf.reduce_sum(tf.square(w))
            for w in (first, second)
        ]
        return tf.reduce_mean(entropy) + sum(penalty)

    gains = {name: GAIN for name in ("g1", "g2") if name in weights.variables}
    return built(loss, weights, digits(weights, 500), {"x": UNIT, "y": UNIT}, gains)


@case("28a", training=ADAM, outside={"g2": (-1.0, 16.0)}, beyond=(BEYOND,))
def case_28a(seed: int) -> Built:
    """Self-scaling net with eps 1e-7 beside every divisor; a gain of -1e-7 makes one 0."""
    return _net(seed, eps=1e-7, zeros=True, hinge=True, single=False)


@case("28b", BY_SUM.target(), BY_GAIN, BY_MOST, BY_SCALE, training=ADAM)
def case_28b(seed: int) -> Built:
    """Self-scaling net without eps, z = xW / Σ|W|; published for the division by Σ|W|."""
    return _net(seed, hinge=True, single=False)


@case("28c", BY_GAIN.target(), BY_SUM, BY_MOST, BY_SCALE, training=ADAM)
def case_28c(seed: int) -> Built:
    """Self-scaling net without eps, s = m Σ|W| / g; published for the division by g."""
    return _net(seed, hinge=False, single=True)


@case("28d", BY_SUM.target(), BY_GAIN, BY_MOST, BY_SCALE, training=ADAM)
def case_28d(seed: int) -> Built:
    """Self-scaling net without eps, single gains; published for the division by Σ|W|."""
    return _net(seed, hinge=False, single=True)
