"""The discriminator's loss of a generative adversarial network."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_tensorflow._build import Weights, built

LOG = Flaw(
    "log",
    "tf.math.log(real)",
    "the sigmoid underflows to 0",
    {"D4": Set(0), "D4_bias": Set(-200)},
).target()
GUARDED = Flaw(
    "log",
    "tf.math.log(1 - fake + 1e-8)",
    "TensorFlow's graph optimiser folds 1 + 1e-8 into 1; guarded as written",
    {"D4": Set(0), "D4_bias": Set(60)},
    compiled=True,
    is_required=False,
)


def _layers(weights: Weights, name: str, sizes: list[int]) -> list[tuple[Any, Any]]:
    return [
        (
            weights.truncated(f"{name}{number}", (m, n), 0.02),
            weights.constant(f"{name}{number}_bias", (n,)),
        )
        for number, (m, n) in enumerate(pairwise(sizes), 1)
    ]


@case("31", LOG, GUARDED, training=Training("Adam", 2e-4, 100))
def case_31(seed: int) -> Built:
    """GAN, G 100-...-784 tanh, D 784-...-1 σ; -mean(log D(x) + log(1 - D(G(z)) + 1e-8))."""
    weights = Weights(seed)
    generator = _layers(weights, "G", [100, 256, 512, 1024, 784])
    discriminator = _layers(weights, "D", [784, 1024, 512, 256, 1])

    def generate(h: Any) -> Any:
        for weight, bias in generator[:-1]:
            h = tf.nn.relu(h @ weight + bias)
        return tf.tanh(h @ generator[-1][0] + generator[-1][1])

    def judge(h: Any, keep: Any) -> Any:
        for weight, bias in discriminator[:-1]:
            h = tf.nn.dropout(tf.nn.relu(h @ weight + bias), 1 - keep)
        return tf.sigmoid(h @ discriminator[-1][0] + discriminator[-1][1])

    def loss(x: Any, z: Any, keep: Any) -> Any:
        real, fake = judge(x, keep), judge(generate(z), keep)
        found = tf.math.log(real)
        caught = tf.math.log(1 - fake + 1e-8)
        return -tf.reduce_mean(found + caught)

    random = weights.random
    inputs = {
        "x": random.uniform(-1, 1, (100, 784)).astype(np.float32),
        "z": random.normal(size=(100, 100)).astype(np.float32),
        "keep": 0.3,
    }
    return built(loss, weights, inputs, {"x": (-1.0, 1.0), "z": (-6.0, 6.0), "keep": (0.3, 1.0)})
