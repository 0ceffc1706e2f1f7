"""Random numbers: drawn by torch, so that the analysis knows them as random.

The numbers differ from those TensorFlow would draw; their distribution is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.tensorflow.machine import Call
from ranum.analysis.capture.tensorflow.values import DTYPES, integers


def _dtype(call: Call) -> torch.dtype:
    return DTYPES[call.get("dtype", 1)]


def uniform(call: Call, sizes: Tensor, *seeds: Tensor) -> Tensor:
    """In [0, 1)."""
    return torch.rand(integers(sizes), dtype=_dtype(call))


def normal(call: Call, sizes: Tensor, *seeds: Tensor) -> Tensor:
    """Standard normal."""
    return torch.randn(integers(sizes), dtype=_dtype(call))


def truncated_normal(call: Call, sizes: Tensor, *seeds: Tensor) -> Tensor:
    """Standard normal, within two standard deviations."""
    mass = math.erf(2 / math.sqrt(2))
    level = torch.rand(integers(sizes), dtype=_dtype(call)) * (2 * mass) - mass
    return (torch.erfinv(level) * math.sqrt(2)).clamp(-2, 2)


def uniform_integers(call: Call, sizes: Tensor, *rest: Tensor) -> Tensor:
    """Integers in [lower, upper); the ends are the last operands."""
    lower, upper = rest[-2:]
    return torch.randint(int(lower), int(upper), integers(sizes)).to(lower.dtype)


def multinomial(call: Call, logits: Tensor, count: Tensor, *seeds: Tensor) -> Tensor:
    """Class numbers drawn by their logits `[N, C]`."""
    weights = torch.softmax(logits.detach(), -1)
    drawn = torch.multinomial(weights, int(count), replacement=True)
    return drawn.to(DTYPES[call.get("output_dtype", 9)])


def shuffle(call: Call, x: Tensor) -> Tensor:
    """Rows in another order."""
    return x[torch.randperm(x.shape[0])] if x.dim() else x


def key_and_counter(call: Call, seed: Tensor) -> tuple[Tensor, Tensor]:
    """What TensorFlow makes of a seed; nothing here depends on it."""
    return torch.zeros(1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)


def key(call: Call, seed: Tensor) -> Tensor:
    """`StatelessRandomGetKeyCounter`'s first result."""
    return torch.zeros(1, dtype=torch.int64)


def algorithm(call: Call) -> Tensor:
    """The number of the generator that TensorFlow would use."""
    return torch.tensor(1, dtype=torch.int32)


def skip(call: Call, generator: Any, *rest: Tensor) -> Tensor:
    """The state of a generator; nothing here depends on it."""
    return torch.zeros(3, dtype=torch.int64)


def from_generator(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Numbers of a `tf.random.Generator`: the sizes stand behind generator and algorithm."""

    def lower(call: Call, generator: Any, chosen: Tensor, sizes: Tensor, *rest: Tensor) -> Tensor:
        return draw(call, sizes, *rest)

    return lower


LOWERINGS: dict[str, Callable[..., Any]] = {
    "Multinomial": multinomial,
    "RandomShuffle": shuffle,
    "RandomStandardNormal": normal,
    "RandomUniform": uniform,
    "RandomUniformInt": uniform_integers,
    "RngReadAndSkip": skip,
    "StatefulStandardNormalV2": from_generator(normal),
    "StatefulTruncatedNormal": from_generator(truncated_normal),
    "StatefulUniform": from_generator(uniform),
    "StatefulUniformInt": from_generator(uniform_integers),
    "StatelessMultinomial": multinomial,
    "StatelessRandomGetAlg": algorithm,
    "StatelessRandomGetKey": key,
    "StatelessRandomGetKeyCounter": key_and_counter,
    "StatelessRandomGetKeyCounterAlg": lambda call, seed: (
        *key_and_counter(call, seed),
        algorithm(call),
    ),
    "StatelessRandomNormal": normal,
    "StatelessRandomNormalV2": normal,
    "StatelessRandomUniform": uniform,
    "StatelessRandomUniformInt": uniform_integers,
    "StatelessRandomUniformIntV2": uniform_integers,
    "StatelessRandomUniformV2": uniform,
    "StatelessTruncatedNormal": truncated_normal,
    "StatelessTruncatedNormalV2": truncated_normal,
    "TruncatedNormal": truncated_normal,
}
