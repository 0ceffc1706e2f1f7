"""A U-Net whose softmax takes exp of an unbounded ReLU."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_tensorflow._build import UNIT, Weights, built, halved

EXP = Flaw(
    "exp",
    "part = tf.exp(z)",
    "a ReLU output exceeds 88.7",
    {"out": Set(0), "out_bias": Set(100)},
).target()
SUM = Flaw(
    "sum",
    "whole = tf.reduce_sum",
    "two large terms; taking off the maximum cures it together with exp",
    {"out": Set(0), "out_bias": Set(88.6)},
    is_required=False,
)


class _Net:
    """Three levels of 16, 32 and 64 features; every convolution 3x3, VALID, with dropout."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.layers: dict[str, tuple[Any, Any]] = {}
        for name, size, inputs, outputs in [
            ("down0a", 3, 1, 16),
            ("down0b", 3, 16, 16),
            ("down1a", 3, 16, 32),
            ("down1b", 3, 32, 32),
            ("down2a", 3, 32, 64),
            ("down2b", 3, 64, 64),
            ("up1", 2, 32, 64),
            ("up1a", 3, 64, 32),
            ("up1b", 3, 32, 32),
            ("up0", 2, 16, 32),
            ("up0a", 3, 32, 16),
            ("up0b", 3, 16, 16),
            ("out", 1, 16, 2),
        ]:
            deviation = (2 / (size * size * max(inputs, 1))) ** 0.5
            kernel = weights.truncated(name, (size, size, inputs, outputs), deviation)
            width = inputs if name in ("up1", "up0") else outputs
            self.layers[name] = kernel, weights.constant(f"{name}_bias", (width,), 0.1)

    def conv(self, x: Any, name: str, keep: Any) -> Any:
        """Convolution, dropout, bias, ReLU."""
        kernel, bias = self.layers[name]
        x = tf.nn.conv2d(x, kernel, 1, "VALID")
        return tf.nn.relu(tf.nn.dropout(x, 1 - keep) + bias)

    def up(self, x: Any, skip: Any, name: str) -> Any:
        """Doubled in size, beside the centre of what came down at that size."""
        kernel, bias = self.layers[name]
        rows, size, width = x.shape[0], 2 * x.shape[1], kernel.shape[2]
        x = tf.nn.conv2d_transpose(x, kernel, [rows, size, size, width], 2, "VALID")
        edge = (skip.shape[1] - size) // 2
        centre = skip[:, edge : edge + size, edge : edge + size, :]
        return tf.concat([centre, tf.nn.relu(x + bias)], 3)

    def __call__(self, x: Any, keep: Any) -> Any:
        """Scores `[N, 532, 532, 2]` of an image `[N, 572, 572, 1]`, none below 0."""
        top = self.conv(self.conv(x, "down0a", keep), "down0b", keep)
        middle = self.conv(self.conv(halved(top), "down1a", keep), "down1b", keep)
        low = self.conv(self.conv(halved(middle), "down2a", keep), "down2b", keep)
        h = self.up(low, middle, "up1")
        h = self.up(self.conv(self.conv(h, "up1a", keep), "up1b", keep), top, "up0")
        h = self.conv(self.conv(h, "up0a", keep), "up0b", keep)
        kernel, bias = self.layers["out"]
        return tf.nn.relu(tf.nn.conv2d(h, kernel, 1, "VALID") + bias)


@case("17", EXP, SUM, training=Training("Momentum", 0.2, 1))
def case_17(seed: int) -> Built:
    """U-Net: z = relu(U-Net(x)), P = exp(z) / tile(Σ exp(z)); -2 Σ P y / (1e-5 + Σ P + Σ y)."""
    weights = Weights(seed)
    net = _Net(weights)

    def loss(x: Any, y: Any, keep: Any) -> Any:
        z = net(x, keep)
        part = tf.exp(z)
        whole = tf.reduce_sum(part, 3, keepdims=True)
        p = part / tf.tile(whole, [1, 1, 1, 2])
        overlap = tf.reduce_sum(p * y)
        union = 1e-5 + tf.reduce_sum(p) + tf.reduce_sum(y)
        entropy = -tf.reduce_mean(y * tf.math.log(tf.clip_by_value(p, 1e-10, 1.0)))
        return {"loss": -2 * overlap / union, "entropy": entropy}

    mask = (weights.random.uniform(size=(1, 532, 532)) > 0.5).astype(np.int64)
    inputs = {
        "x": weights.random.uniform(0.01, 1, (1, 572, 572, 1)).astype(np.float32),
        "y": np.eye(2, dtype=np.float32)[mask],
        "keep": 0.75,
    }
    return built(loss, weights, inputs, {"x": UNIT, "y": UNIT, "keep": (0.75, 1.0)})
