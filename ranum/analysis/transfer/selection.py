"""Transfer functions that pick, cut or round values: clamp, where, casts, rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ranum.analysis.interval import Interval
from ranum.analysis.transfer.combinators import (
    Operand,
    converted,
    increasing,
    is_known,
    is_possible,
    lower,
    monotone,
    shape_of,
    upper,
)
from ranum.analysis.transfer.registry import transfer

# --- limits --------------------------------------------------------------------------------


@transfer("clamp", "clip")
def clamp(x: Interval, min: Operand | None = None, max: Operand | None = None) -> Interval:
    """min(max(x, min), max), rising in all three; NaN passes."""
    if min is None and max is None:
        return x
    if min is None or max is None:
        least = torch.clamp_max if min is None else torch.clamp_min
        return monotone(least, x, max if min is None else min)  # type: ignore[arg-type]
    return monotone(torch.clamp, x, min, max)


@transfer("clamp_min")
def clamp_min(x: Interval, min: Operand) -> Interval:
    """max(x, min); NaN passes."""
    return clamp(x, min=min)


@transfer("clamp_max")
def clamp_max(x: Interval, max: Operand) -> Interval:
    """min(x, max); NaN passes."""
    return clamp(x, max=max)


@transfer("maximum")
def maximum(x: Interval, other: Interval) -> Interval:
    """The larger one, NaN if either is: rising in both."""
    return monotone(torch.maximum, x, other)


@transfer("minimum")
def minimum(x: Interval, other: Interval) -> Interval:
    """The smaller one, NaN if either is: rising in both."""
    return monotone(torch.minimum, x, other)


@transfer("nan_to_num")
def nan_to_num(
    x: Interval,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Interval:
    """Finite values pass; NaN becomes `nan` (0), infinities the given or largest numbers."""
    if not x.dtype.is_floating_point:
        return x
    info = torch.finfo(x.dtype)
    low, high = x.lower.clamp(info.min, info.max), x.upper.clamp(info.min, info.max)
    above = info.max if posinf is None else posinf
    below = info.min if neginf is None else neginf
    everywhere = torch.full_like(low, x.may_nan, dtype=torch.bool)
    for reached, value in (
        (x.upper == math.inf, above),
        (x.lower == -math.inf, below),
        (everywhere, nan or 0.0),
    ):
        low = torch.where(reached, low.clamp(max=value), low)
        high = torch.where(reached, high.clamp(min=value), high)
    return Interval.between(low, high, x.shape, x.dtype)


# --- rounding to integers ------------------------------------------------------------------


@transfer("floor")
def floor(x: Interval) -> Interval:
    """Rising."""
    return increasing(torch.floor, x, ulps=0)


@transfer("ceil")
def ceil(x: Interval) -> Interval:
    """Rising."""
    return increasing(torch.ceil, x, ulps=0)


@transfer("trunc", "fix")
def trunc(x: Interval) -> Interval:
    """Rising."""
    return increasing(torch.trunc, x, ulps=0)


@transfer("round")
def round(x: Interval, decimals: int = 0) -> Interval:
    """Half to even, at a number of decimals: rising; NaN where 10^decimals x overflows."""
    if decimals == 0:
        return increasing(torch.round, x, ulps=0)
    return increasing(lambda data: torch.round(data, decimals=decimals), x)


# --- choosing ------------------------------------------------------------------------------


@transfer("where")
def where(condition: Interval, x: Operand, other: Operand) -> Interval:
    """`x where the condition holds`, else other; their hull where it may or may not hold.

    NaN comes only from a branch that can be taken.
    """
    if is_known(condition, x, other):
        return Interval.point(torch.where(condition.lower.bool(), lower(x), lower(other)))
    dtype = torch.result_type(lower(x), lower(other))
    surely, possibly = condition.lower.bool(), condition.upper.bool()

    def choose(first: Tensor, second: Tensor, merge: object) -> Tensor:
        return torch.where(surely, first, torch.where(possibly, merge(first, second), second))  # type: ignore[operator]

    low = choose(_tensor(lower(x), dtype), _tensor(lower(other), dtype), torch.minimum)
    high = choose(_tensor(upper(x), dtype), _tensor(upper(other), dtype), torch.maximum)
    nan = (_may_nan(x) and is_possible(possibly)) or (_may_nan(other) and is_possible(~surely))
    return Interval.between(low, high, shape_of(condition, x, other), dtype, nan)


def _tensor(bound: Tensor | float, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(bound).to(dtype)


def _may_nan(operand: Operand) -> bool:
    return operand.may_nan if isinstance(operand, Interval) else math.isnan(operand)


@transfer("masked_fill")
def masked_fill(x: Interval, mask: Interval, value: Operand) -> Interval:
    """`value` where the mask holds, else x."""
    if isinstance(value, Interval):
        value = cast(value, x.dtype)
    else:
        value = Interval.point(torch.full((), value, dtype=x.dtype))
    return where(mask, value, x)


# --- copies and casts ----------------------------------------------------------------------


@transfer("identity")
def identity(x: Interval) -> Interval:
    """The value itself."""
    return x


@transfer("copy")
def copy(x: Interval, src: Interval) -> Interval:
    """`src`, broadcast to the shape of x and cast to its dtype."""
    result = cast(src, x.dtype)
    lead = (1,) * (len(x.shape) - len(src.shape))
    if result.is_point:
        return Interval.point(result.lower.expand(x.shape))
    low = result.lower.reshape(lead + tuple(result.lower.shape))
    high = result.upper.reshape(lead + tuple(result.upper.shape))
    return Interval(low, high, x.shape, x.dtype, result.may_nan)


@transfer("cast")
def cast(x: Interval, dtype: torch.dtype) -> Interval:
    """Rising: rounds to floats, truncates to integers, tests for bool.

    Integers that float values do not fit into are undefined: anything.
    """
    if x.dtype == dtype:
        return x
    if dtype.is_complex or x.dtype.is_complex:
        return Interval.top(x.shape, dtype)
    if dtype == torch.bool:
        return truth(x)
    if dtype.is_floating_point:
        return converted(x, dtype)
    limits = torch.iinfo(dtype)
    outside = (x.lower.double() < limits.min) | (x.upper.double() > limits.max)
    if x.may_nan or is_possible(outside):
        return Interval.top(x.shape, dtype)
    return increasing(lambda data: data.to(dtype), x, ulps=0)


def truth(x: Interval) -> Interval:
    """Whether x is not 0; NaN counts as true."""
    if x.is_point:
        return x if x.dtype == torch.bool else Interval.point(x.lower.bool())
    surely = (x.lower > 0) | (x.upper < 0)
    possibly = (x.lower != 0) | (x.upper != 0) | x.may_nan
    return Interval.between(surely, possibly, x.shape, torch.bool)
