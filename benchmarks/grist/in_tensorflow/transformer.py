"""A spatial transformer in front of a small network."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_tensorflow._build import UNIT, Weights, built, conv, one_hot, pixels

LOG = Flaw(
    "log", "tf.math.log(p)", "the softmax underflows to 0", {"b6": Set(200, first=True)}
).target()
SIDE = 40


def resample(image: Any, theta: Any) -> Any:
    """An affine map's image, bilinear: `image [N, 40, 40, 1]`, `theta [N, 6]`."""
    line = np.linspace(-1, 1, SIDE, dtype=np.float32)
    u, v = np.meshgrid(line, line)
    grid = np.stack([u.ravel(), v.ravel(), np.ones(SIDE * SIDE, np.float32)])
    there = tf.reshape(theta, [-1, 2, 3]) @ grid
    x, y = (there[:, 0] + 1) * SIDE / 2, (there[:, 1] + 1) * SIDE / 2
    left, top = tf.cast(tf.floor(x), tf.int32), tf.cast(tf.floor(y), tf.int32)
    x0, x1 = (tf.clip_by_value(c, 0, SIDE - 1) for c in (left, left + 1))
    y0, y1 = (tf.clip_by_value(c, 0, SIDE - 1) for c in (top, top + 1))
    flat = tf.reshape(image, [-1, SIDE * SIDE])
    places = [row * SIDE + column for row in (y0, y1) for column in (x0, x1)]
    corners = [tf.gather(flat, place, batch_dims=1) for place in places]
    right, down = x - tf.cast(x0, tf.float32), y - tf.cast(y0, tf.float32)
    left_share, top_share = tf.cast(x1, tf.float32) - x, tf.cast(y1, tf.float32) - y
    shares = [top_share * left_share, top_share * right, down * left_share, down * right]
    blended = tf.add_n([c * share for c, share in zip(corners, shares, strict=True)])
    return tf.reshape(blended, [-1, SIDE, SIDE, 1])


@case("1", LOG, training=Training("Adam", 0.001, 100))
def case_1(seed: int) -> Built:
    """Affine θ = tanh(tanh(xW + b) W + b), x resampled by θ, two convs; -Σ y log softmax."""
    weights = Weights(seed)
    locate, b1 = weights.constant("locate", (1600, 20)), weights.normal("b1", (20,), 0.01)
    affine = weights.constant("affine", (20, 6))
    b2 = weights.given("b2", [1, 0, 0, 0, 1, 0])
    first = weights.constant("conv1", (3, 3, 1, 16)), weights.normal("b3", (16,), 0.01)
    second = weights.constant("conv2", (3, 3, 16, 16)), weights.normal("b4", (16,), 0.01)
    dense, b5 = weights.constant("dense", (1600, 1024)), weights.normal("b5", (1024,), 0.01)
    output, b6 = weights.constant("output", (1024, 10)), weights.normal("b6", (10,), 0.01)

    def loss(x: Any, y: Any, keep: Any) -> Any:
        h = tf.nn.dropout(tf.tanh(x @ locate + b1), 1 - keep)
        theta = tf.tanh(h @ affine + b2)
        h = resample(tf.reshape(x, [-1, SIDE, SIDE, 1]), theta)
        h = conv(conv(h, *first, stride=2), *second, stride=2)
        h = tf.nn.relu(tf.reshape(h, [-1, 1600]) @ dense + b5)
        p = tf.nn.softmax(tf.nn.dropout(h, 1 - keep) @ output + b6)
        return -tf.reduce_sum(y * tf.math.log(p))

    rows = 100
    inputs = {
        "x": pixels(weights.random, rows, SIDE * SIDE),
        "y": one_hot(weights.random, rows, 10),
        "keep": 0.8,
    }
    return built(loss, weights, inputs, {"x": UNIT, "y": UNIT, "keep": (0.8, 1.0)})
