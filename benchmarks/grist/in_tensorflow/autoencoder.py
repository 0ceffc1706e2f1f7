"""Variational autoencoders: an absorbed epsilon, and the root of what may be 0."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tensorflow as tf

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_tensorflow._build import UNIT, Weights, built, one_hot, pixels

LOG = Flaw(
    "log",
    "tf.math.log(1e-10 + 1 - m)",
    "1e-10 + 1 is 1, and m rounds to 1",
    {"out": Set(0), "out_bias": Set(60)},
).target()
ROOT = Flaw(
    "sqrt",
    "tf.sqrt(scale)",
    "exp(-88) and below is subnormal, which TensorFlow flushes to 0",
    {"spread": Set(0), "spread_bias": Set(-95)},
    gradient=True,
).target()
SUM = Flaw(
    "sum",
    "latent = tf.reduce_sum",
    "twenty times exp(87)",
    {"spread": Set(0), "spread_bias": Set(90)},
)
MEAN = Flaw(
    "mean",
    "tf.reduce_mean(data",
    "a hundred times exp(87), added up before they are divided",
    {"spread": Set(0), "spread_bias": Set(90, first=True), "dec1": Set(0)},
)
MEAN_TOO = replace(MEAN, why=f"{MEAN.why}; what tames the sum tames it too", is_required=False)
ADAM = Training("Adam", 0.001, 100)
NOISE = (-6.0, 6.0)
"""Beyond it a normal variable lies once in 5e8 draws."""


class _Autoencoder:
    """784-500-500 softplus to mean and log variance, 500-500 softplus and σ back.

    Args:
        weights: Makes the variables.
        latents: Size of the latent space.
        classes: Size of the label beside x and z; 0 without one.
        lowest: Lower end of the clip on the log variance.
    """

    def __init__(self, weights: Weights, latents: int, classes: int, lowest: float) -> None:
        self.lowest = lowest
        sizes = {
            "enc1": (784 + classes, 500),
            "enc2": (500, 500),
            "mean": (500, latents),
            "spread": (500, latents),
            "dec1": (latents + classes, 500),
            "dec2": (500, 500),
            "out": (500, 784),
        }
        self.layers = {
            name: (weights.xavier(name, size), weights.constant(f"{name}_bias", size[1:]))
            for name, size in sizes.items()
        }

    def dense(self, name: str, h: Any) -> Any:
        """One linear layer."""
        weight, bias = self.layers[name]
        return h @ weight + bias

    def encode(self, x: Any) -> tuple[Any, Any]:
        """Mean and log variance `[N, latents]`."""
        h = tf.nn.softplus(self.dense("enc2", tf.nn.softplus(self.dense("enc1", x))))
        return self.dense("mean", h), self.dense("spread", h)

    def scale(self, ls: Any) -> Any:
        """The variance, from its clipped logarithm."""
        return tf.exp(tf.clip_by_value(ls, self.lowest, 87.0))

    def draw(self, mu: Any, scale: Any, eps: Any) -> Any:
        """A latent vector."""
        return mu + tf.sqrt(scale) * eps

    def decode(self, z: Any) -> Any:
        """Pixel means in [0, 1], `[N, 784]`."""
        h = tf.nn.softplus(self.dense("dec2", tf.nn.softplus(self.dense("dec1", z))))
        return tf.sigmoid(self.dense("out", h))

    def total(self, data: Any, mu: Any, ls: Any, scale: Any) -> Any:
        """Reconstruction error `[N]` and KL term, averaged `[]`."""
        latent = tf.reduce_sum(1 + ls - tf.square(mu) - scale, 1)
        return tf.reduce_mean(data - 0.5 * latent)


def _with_eps(x: Any, m: Any) -> Any:
    hit = x * tf.math.log(m + 1e-10)
    rest = (1 - x) * tf.math.log(1e-10 + 1 - m)
    return -tf.reduce_sum(hit + rest, 1)


def _clipped(x: Any, m: Any) -> Any:
    hit = x * tf.math.log(tf.clip_by_value(m, 1e-6, 1.0))
    rest = (1 - x) * tf.math.log(tf.clip_by_value(1 - m, 1e-6, 1.0))
    return -tf.reduce_sum(hit + rest, 1)


def _autoencoder(
    seed: int, latents: int, *, clipped: bool, classes: int = 0, rows: int = 100
) -> Built:
    weights = Weights(seed)
    net = _Autoencoder(weights, latents, classes, -100.0 if clipped else -87.0)
    error = _clipped if clipped else _with_eps

    def loss(x: Any, eps: Any) -> Any:
        mu, ls = net.encode(x)
        scale = net.scale(ls)
        m = net.decode(net.draw(mu, scale, eps))
        return net.total(error(x, m), mu, ls, scale)

    def conditional(x: Any, eps: Any, y: Any) -> Any:
        mu, ls = net.encode(tf.concat([x, y], 1))
        scale = net.scale(ls)
        m = net.decode(tf.concat([net.draw(mu, scale, eps), y], 1))
        return net.total(error(x, m), mu, ls, scale)

    random = weights.random
    eps = random.normal(size=(rows, latents)).astype("float32")
    inputs = {"x": pixels(random, rows, 784), "eps": eps}
    ranges = {"x": UNIT, "eps": NOISE}
    if not classes:
        return built(loss, weights, inputs, ranges)
    inputs["y"] = one_hot(random, rows, classes)
    return built(conditional, weights, inputs, {**ranges, "y": UNIT})


@case("35a", LOG, SUM, MEAN_TOO, training=ADAM)
def case_35a(seed: int) -> Built:
    """VAE, 20 latents, l = clip(ls, ±87); -Σ x log(m + 1e-10) + (1-x) log(1e-10 + 1 - m)."""
    return _autoencoder(seed, 20, clipped=False)


@case("35b", ROOT, MEAN, training=ADAM)
def case_35b(seed: int) -> Built:
    """VAE, 2 latents, z = mu + sqrt(exp(clip(ls, -100, 87))) eps; logs of clipped means."""
    return _autoencoder(seed, 2, clipped=True)


@case("36a", LOG, MEAN, training=ADAM)
def case_36a(seed: int) -> Built:
    """VAE, 2 latents, l = clip(ls, ±87); -Σ x log(m + 1e-10) + (1-x) log(1e-10 + 1 - m)."""
    return _autoencoder(seed, 2, clipped=False)


@case("36b", ROOT, MEAN, training=ADAM)
def case_36b(seed: int) -> Built:
    """VAE, 2 latents, z = mu + sqrt(exp(clip(ls, -100, 87))) eps; logs of clipped means."""
    return _autoencoder(seed, 2, clipped=True)


@case("39a", LOG, MEAN, training=ADAM)
def case_39a(seed: int) -> Built:
    """VAE, 2 latents, l = clip(ls, ±87); -Σ x log(m + 1e-10) + (1-x) log(1e-10 + 1 - m)."""
    return _autoencoder(seed, 2, clipped=False)


@case("39b", ROOT, MEAN, training=ADAM)
def case_39b(seed: int) -> Built:
    """VAE, 2 latents, z = mu + sqrt(exp(clip(ls, -100, 87))) eps; logs of clipped means."""
    return _autoencoder(seed, 2, clipped=True)


@case("43a", LOG, MEAN, training=ADAM)
def case_43a(seed: int) -> Built:
    """Conditional VAE, y beside x and z; -Σ x log(m + 1e-10) + (1-x) log(1e-10 + 1 - m)."""
    return _autoencoder(seed, 2, clipped=False, classes=10)


@case("43b", ROOT, MEAN, training=ADAM)
def case_43b(seed: int) -> Built:
    """Conditional VAE, z = mu + sqrt(exp(clip(ls, -100, 87))) eps; logs of clipped means."""
    return _autoencoder(seed, 2, clipped=True, classes=10)


@case("49a", LOG, MEAN, training=ADAM)
def case_49a(seed: int) -> Built:
    """Conditional VAE, y beside x and z; -Σ x log(m + 1e-10) + (1-x) log(1e-10 + 1 - m)."""
    return _autoencoder(seed, 2, clipped=False, classes=10)


@case("49b", ROOT, MEAN, training=ADAM)
def case_49b(seed: int) -> Built:
    """Conditional VAE, z = mu + sqrt(exp(clip(ls, -100, 87))) eps; logs of clipped means."""
    return _autoencoder(seed, 2, clipped=True, classes=10)
