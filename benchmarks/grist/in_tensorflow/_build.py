"""What the TensorFlow cases share: seeded weights, batches, layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.grist.case import Built

Loss = Callable[..., Any]

UNIT = (0.0, 1.0)
KEEP = (0.5, 1.0)
"""Share that dropout keeps: the programs train with 0.5 and evaluate with 1."""


class Weights:
    """Makes trained variables from one seed and remembers them by name."""

    def __init__(self, seed: int) -> None:
        self.variables: dict[str, Any] = {}
        self.random = np.random.default_rng(seed)

    def _add(self, name: str, values: Any, trainable: bool = True) -> Any:
        variable = tf.Variable(np.asarray(values, np.float32), name=name, trainable=trainable)
        if trainable:
            self.variables[name] = variable
        return variable

    def constant(self, name: str, shape: tuple[int, ...], value: float = 0.0) -> Any:
        """All elements equal."""
        return self._add(name, np.full(shape, value))

    def truncated(self, name: str, shape: tuple[int, ...], deviation: float = 0.1) -> Any:
        """Normal, drawn again beyond two deviations."""
        draws = self.random.normal(0, deviation, shape)
        while (outside := np.abs(draws) > 2 * deviation).any():
            draws[outside] = self.random.normal(0, deviation, int(outside.sum()))
        return self._add(name, draws)

    def normal(self, name: str, shape: tuple[int, ...], deviation: float = 1.0) -> Any:
        """Normal."""
        return self._add(name, self.random.normal(0, deviation, shape))

    def uniform(
        self, name: str, shape: tuple[int, ...], low: float, high: float, trainable: bool = True
    ) -> Any:
        """Uniform."""
        return self._add(name, self.random.uniform(low, high, shape), trainable)

    def xavier(self, name: str, shape: tuple[int, int]) -> Any:
        """Uniform within sqrt(6 / (inputs + outputs))."""
        reach = (6 / sum(shape)) ** 0.5
        return self.uniform(name, shape, -reach, reach)

    def given(self, name: str, values: Any) -> Any:
        """Written out."""
        return self._add(name, values)


def built(
    loss: Loss,
    weights: Weights,
    inputs: Mapping[str, Any],
    ranges: Mapping[str, tuple[float, float]],
    weight_ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Built:
    """A loss function with its weights, and inputs as tensors."""
    tensors = {name: tf.constant(array) for name, array in inputs.items()}
    return Built(loss, tensors, ranges, weights.variables, weight_ranges or {})


def pixels(random: Any, *shape: int) -> Any:
    """Images in [0, 1]; about a fifth of them is ink."""
    ink = random.uniform(size=shape)
    return np.where(ink > 0.8, random.uniform(size=shape), 0).astype(np.float32)


def one_hot(random: Any, rows: int, classes: int) -> Any:
    """Random labels `[rows, classes]`."""
    return np.eye(classes, dtype=np.float32)[random.integers(classes, size=rows)]


def digits(weights: Weights, rows: int) -> dict[str, Any]:
    """Images `[rows, 784]` and one-hot labels `[rows, 10]`."""
    return {"x": pixels(weights.random, rows, 784), "y": one_hot(weights.random, rows, 10)}


def conv(x: Any, kernel: Any, bias: Any, padding: str = "SAME", stride: int = 1) -> Any:
    """Convolution, bias, ReLU."""
    return tf.nn.relu(tf.nn.conv2d(x, kernel, stride, padding) + bias)


def halved(x: Any) -> Any:
    """Maximum over squares of 2 x 2."""
    return tf.nn.max_pool2d(x, 2, 2, "SAME")
