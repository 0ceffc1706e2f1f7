"""Small convolutional networks under -Σ y log softmax."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_tensorflow._build import (
    KEEP,
    UNIT,
    Weights,
    built,
    conv,
    digits,
    halved,
    one_hot,
    pixels,
)


def _log(bias: str) -> Flaw:
    witness = {"output": Set(0), bias: Set(200, first=True)}
    return Flaw("log", "tf.math.log(p)", "the softmax underflows to 0", witness).target()


LOG = _log("b4")


def _two_layers(
    seed: int, rows: int, *, mean: bool, dropout: bool = True, images: bool = False
) -> Built:
    """Conv 5x5x32, pool, conv 5x5x64, pool, dense 1024, dropout, dense 10, softmax.

    Args:
        seed: Of weights and batch.
        rows: Batch size.
        mean: Mean over the batch; otherwise the sum.
        dropout: With dropout, whose kept share is an input.
        images: x is `[N, 28, 28, 1]` in place of `[N, 784]`.
    """
    weights = Weights(seed)
    first = weights.truncated("conv1", (5, 5, 1, 32)), weights.constant("b1", (32,), 0.1)
    second = weights.truncated("conv2", (5, 5, 32, 64)), weights.constant("b2", (64,), 0.1)
    dense, b3 = weights.truncated("dense", (3136, 1024)), weights.constant("b3", (1024,), 0.1)
    output, b4 = weights.truncated("output", (1024, 10)), weights.constant("b4", (10,), 0.1)

    def hidden(x: Any) -> Any:
        h = halved(conv(tf.reshape(x, [-1, 28, 28, 1]), *first))
        h = tf.reshape(halved(conv(h, *second)), [-1, 3136])
        return tf.nn.relu(h @ dense + b3)

    def entropy(h: Any, y: Any) -> Any:
        p = tf.nn.softmax(h @ output + b4)
        rows = -tf.reduce_sum(y * tf.math.log(p), 1)
        return tf.reduce_mean(rows) if mean else tf.reduce_sum(rows)

    def loss(x: Any, y: Any) -> Any:
        return entropy(hidden(x), y)

    def dropped(x: Any, y: Any, keep: Any) -> Any:
        return entropy(tf.nn.dropout(hidden(x), 1 - keep), y)

    inputs = digits(weights, rows)
    ranges = {"x": UNIT, "y": UNIT}
    if images:
        inputs["x"] = inputs["x"].reshape(-1, 28, 28, 1)
    if not dropout:
        return built(loss, weights, inputs, ranges)
    return built(dropped, weights, {**inputs, "keep": 0.5}, {**ranges, "keep": KEEP})


@case("6", LOG, training=Training("Adam", 1e-4, 50))
def case_6(seed: int) -> Built:
    """Two-layer CNN with dropout, P = softmax; -Σ y log P."""
    return _two_layers(seed, 50, mean=False)


@case("7", LOG, training=Training("Adam", 1e-4, 50))
def case_7(seed: int) -> Built:
    """Two-layer CNN with dropout, P = softmax; -Σ y log P."""
    return _two_layers(seed, 50, mean=False)


@case("8", LOG, training=Training("Adam", 1e-4, 50))
def case_8(seed: int) -> Built:
    """Two-layer CNN with dropout, P = softmax; -Σ y log P."""
    return _two_layers(seed, 50, mean=False)


@case("14", _log("output_bias"), training=Training("SGD", 0.001, 64))
def case_14(seed: int) -> Built:
    """LeNet-5 with ReLU on 32x32, P = softmax; -Σ y log P."""
    weights = Weights(seed)
    shapes = {"conv1": (5, 5, 1, 6), "conv2": (5, 5, 6, 16), "conv3": (5, 5, 16, 120)}
    layers = [
        (weights.truncated(name, shape), weights.constant(f"{name}_bias", shape[-1:]))
        for name, shape in shapes.items()
    ]
    dense, b1 = weights.truncated("dense", (120, 84)), weights.constant("dense_bias", (84,))
    output, b2 = weights.truncated("output", (84, 10)), weights.constant("output_bias", (10,))

    def loss(x: Any, y: Any) -> Any:
        h = halved(conv(x, *layers[0], padding="VALID"))
        h = halved(conv(h, *layers[1], padding="VALID"))
        h = tf.reshape(conv(h, *layers[2], padding="VALID"), [-1, 120])
        h = tf.nn.relu(h @ dense + b1)
        p = tf.nn.softmax(h @ output + b2)
        return -tf.reduce_sum(y * tf.math.log(p))

    x = tf.pad(pixels(weights.random, 64, 28, 28, 1), [[0, 0], [2, 2], [2, 2], [0, 0]]).numpy()
    inputs = {"x": x, "y": one_hot(weights.random, 64, 10)}
    return built(loss, weights, inputs, {"x": UNIT, "y": UNIT})


@case("24", LOG, training=Training("Adam", 1e-4, 50))
def case_24(seed: int) -> Built:
    """Two-layer CNN, P = softmax; -Σ y log P."""
    return _two_layers(seed, 50, mean=False, dropout=False)


@case("29", LOG, training=Training("Adam", 5e-4, 50))
def case_29(seed: int) -> Built:
    """Two-layer CNN with dropout on [N, 28, 28, 1], P = softmax; -Σ y log P."""
    return _two_layers(seed, 50, mean=False, images=True)


@case("44", _log("b3"), training=Training("Adagrad", 0.001, 50))
def case_44(seed: int) -> Built:
    """Conv 5x5x16, pool, dense 128, dropout, dense 10, P = softmax; -Σ y log P."""
    weights = Weights(seed)
    first = weights.truncated("conv", (5, 5, 1, 16)), weights.constant("b1", (16,), 0.1)
    dense, b2 = weights.truncated("dense", (3136, 128)), weights.constant("b2", (128,), 0.1)
    output, b3 = weights.truncated("output", (128, 10)), weights.constant("b3", (10,), 0.1)

    def loss(x: Any, y: Any, keep: Any) -> Any:
        h = tf.reshape(halved(conv(tf.reshape(x, [-1, 28, 28, 1]), *first)), [-1, 3136])
        h = tf.nn.dropout(tf.nn.relu(h @ dense + b2), 1 - keep)
        p = tf.nn.softmax(h @ output + b3)
        return -tf.reduce_sum(y * tf.math.log(p))

    inputs = {**digits(weights, 50), "keep": 0.5}
    return built(loss, weights, inputs, {"x": UNIT, "y": UNIT, "keep": KEEP})


@case("45b", LOG, training=Training("Adam", 1e-4, 50))
def case_45b(seed: int) -> Built:
    """Two-layer CNN with dropout, P = softmax; -mean Σ y log P."""
    return _two_layers(seed, 50, mean=True)


@case("55", LOG, training=Training("Adam", 1e-4, 50))
def case_55(seed: int) -> Built:
    """Two-layer CNN with dropout, P = softmax; -mean Σ y log P; an unused head left out."""
    return _two_layers(seed, 50, mean=True)


@case("58", LOG, training=Training("Adam", 1e-4, 50))
def case_58(seed: int) -> Built:
    """Two-layer CNN with dropout, P = softmax; -Σ y log P."""
    return _two_layers(seed, 50, mean=False)
