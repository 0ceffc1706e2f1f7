"""Transfer functions of tensors made from nothing: constants, random numbers, dropout, joins."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ranum.analysis.interval import Interval
from ranum.analysis.transfer.combinators import (
    Operand,
    dtype_of,
    has_infinity,
    inexact,
    is_possible,
    shape_of,
    union,
)
from ranum.analysis.transfer.elementwise import add, mul
from ranum.analysis.transfer.registry import transfer
from ranum.analysis.transfer.selection import cast

NORMAL_LIMIT = 8.6
"""No generator draws a standard normal number beyond it.

Box-Muller on 53 random bits ends at sqrt(2 * 53 * log(2)) = 8.572; generators with fewer
bits, and CUDA's, end earlier."""


# --- constants -----------------------------------------------------------------------------


@transfer("full")
def full(value: Operand, shape: Sequence[int], dtype: torch.dtype) -> Interval:
    """One value everywhere: a number, or a tensor of one element."""
    if not isinstance(value, Interval):
        return Interval.point(torch.full((), value, dtype=dtype).expand(tuple(shape)))
    value = cast(value, dtype)
    if value.is_point:
        return Interval.point(value.lower.reshape(()).expand(tuple(shape)))
    ones = (1,) * len(shape)
    low, high = value.lower.reshape(ones), value.upper.reshape(ones)
    return Interval(low, high, tuple(shape), dtype, value.may_nan)


@transfer("arange")
def arange(
    end: float, start: float = 0, step: float = 1, dtype: torch.dtype | None = None
) -> Interval:
    """start, start + step, ... before end: exact."""
    return Interval.point(torch.arange(start, end, step, dtype=dtype))


@transfer("linspace")
def linspace(start: float, end: float, steps: int, dtype: torch.dtype | None = None) -> Interval:
    """Evenly from start to end, each of which is reached: exact but for the last place."""
    return inexact(Interval.point(torch.linspace(start, end, steps, dtype=dtype)), 1)


@transfer("join")
def join(values: Sequence[Interval], shape: Sequence[int], dtype: torch.dtype) -> Interval:
    """Each element is an element of one of the values, at its own place if shapes agree."""
    shape = tuple(shape)
    parts = [cast(value, dtype) for value in values if not value.is_empty_tensor]
    if not parts or 0 in shape:
        return Interval.full(0, 0, shape, dtype)
    ones = (1,) * len(shape)
    aligned = [part if part.shape == shape else _hull(part, ones) for part in parts]
    whole = union(*aligned)
    return Interval(whole.lower, whole.upper, shape, dtype, whole.may_nan)


def _hull(x: Interval, ones: tuple[int, ...]) -> Interval:
    merged = x.merged()
    return Interval(
        merged.lower.reshape(ones), merged.upper.reshape(ones), ones, x.dtype, x.may_nan
    )


# --- random numbers ------------------------------------------------------------------------


@transfer("uniform")
def uniform(low: float, high: float, shape: Sequence[int], dtype: torch.dtype) -> Interval:
    """In [low, high]: rounding may reach the upper end."""
    return Interval.full(low, high, shape, dtype)


@transfer("normal")
def normal(
    mean: Operand,
    std: Operand,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Interval:
    """Within `NORMAL_LIMIT` standard deviations of the mean, numbers or tensors."""
    if shape is None:
        shape, dtype = shape_of(mean, std), dtype_of(mean, std)
    standard = Interval.full(-NORMAL_LIMIT, NORMAL_LIMIT, shape, dtype)
    return inexact(add(inexact(mul(standard, std), 2), mean), 2)


@transfer("bernoulli")
def bernoulli(shape: Sequence[int], dtype: torch.dtype) -> Interval:
    """0 or 1."""
    return Interval.full(0, 1, shape, dtype)


@transfer("randint")
def randint(
    high: int, size: Sequence[int], low: int = 0, dtype: torch.dtype | int = torch.int64
) -> Interval:
    """An integer in [low, high - 1]; the schema writes its default dtype as a number."""
    kind = dtype if isinstance(dtype, torch.dtype) else torch.int64
    return Interval.full(low, high - 1, size, kind)


@transfer("randperm")
def randperm(n: int, dtype: torch.dtype | None = None) -> Interval:
    """0 ... n - 1 in any order."""
    return Interval.full(0, max(n - 1, 0), (n,), dtype or torch.int64)


@transfer("multinomial")
def multinomial(x: Interval, num_samples: int, replacement: bool = False) -> Interval:
    """Column numbers of x `[N, C]` or `[C]`."""
    shape = (*x.shape[:-1], num_samples)
    return Interval.full(0, x.shape[-1] - 1, shape, torch.int64)


@transfer("native_dropout")
def native_dropout(
    input: Interval,
    p: float,
    train: bool | None = True,
) -> tuple[Interval, Interval]:
    """0 or x / (1 - p), and the mask; x itself when not training."""
    mask = Interval.full(0, 1, input.shape, torch.bool)
    if input.is_empty_tensor:
        return input, cast(mask, input.dtype)
    if train is False or p == 0:
        return input, mask
    scaled = inexact(mul(input, 0.0 if p == 1 else 1 / (1 - p)), 2)
    kept = union(scaled, Interval.full(0, 0, (1,) * len(input.shape), input.dtype))
    return kept.with_nan(kept.may_nan or is_possible(has_infinity(input))), mask
