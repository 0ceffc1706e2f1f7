"""Transfer functions about the make of numbers: sign, parts, neighbours, membership."""

from __future__ import annotations

import math

import torch

from ranum.analysis.interval import Interval
from ranum.analysis.transfer.combinators import (
    Operand,
    bent,
    coarsened,
    converted,
    dtype_of,
    floating,
    has_infinity,
    increasing,
    inexact,
    is_possible,
    lower,
    may_nan,
    seen,
    shape_of,
    union,
    upper,
    working,
)
from ranum.analysis.transfer.elementwise import mul
from ranum.analysis.transfer.registry import transfer


@transfer("copysign")
def copysign(x: Interval, other: Operand) -> Interval:
    """|x| with the sign of `other`; a bound of 0 stands for both zeros, NaN has a sign."""
    size = bent(torch.abs, floating(x), [(0, 0)], ulps=0)
    size = converted(size, torch.result_type(size.lower, lower(other)))
    if not size.dtype.is_floating_point:
        size = converted(floating(x), torch.get_default_dtype())
    shape = shape_of(x, other)
    unsure = may_nan(other)
    positive = torch.as_tensor(lower(other) > 0) & (not unsure)
    negative = torch.as_tensor(upper(other) < 0) & (not unsure)
    low = torch.where(positive, size.lower, -size.upper)
    high = torch.where(negative, -size.lower, size.upper)
    return Interval.between(low, high, shape, size.dtype, x.may_nan)


@transfer("fmax")
def fmax(x: Interval, other: Interval) -> Interval:
    """The larger one; the other one where one is NaN."""
    return _beside_nan(x, other, torch.maximum)


@transfer("fmin")
def fmin(x: Interval, other: Interval) -> Interval:
    """The smaller one; the other one where one is NaN."""
    return _beside_nan(x, other, torch.minimum)


def _beside_nan(x: Interval, other: Interval, choose: object) -> Interval:
    dtype = dtype_of(x, other)
    first, second = _as(x, dtype), _as(other, dtype)
    shape = shape_of(x, other)
    low = choose(first.lower, second.lower)  # type: ignore[operator]
    high = choose(first.upper, second.upper)  # type: ignore[operator]
    if not (x.may_nan or other.may_nan):
        return Interval.between(low, high, shape, dtype)
    either = union(first, second)
    return Interval.between(either.lower, either.upper, shape, dtype, x.may_nan and other.may_nan)


def _as(x: Interval, dtype: torch.dtype) -> Interval:
    return Interval(x.lower.to(dtype), x.upper.to(dtype), x.shape, dtype, x.may_nan)


@transfer("frac")
def frac(x: Interval) -> Interval:
    """X - trunc(x): in (-1, 1), with the sign of x; NaN for infinities."""
    low = torch.where(x.lower < 0, x.lower.clamp(min=-1), 0)
    high = torch.where(x.upper > 0, x.upper.clamp(max=1), 0)
    nan = x.may_nan or is_possible(has_infinity(x))
    return Interval.between(low, high, x.shape, x.dtype, nan)


@transfer("frexp")
def frexp(x: Interval) -> tuple[Interval, Interval]:
    """X = mantissa 2^exponent with the mantissa in (-1, -1/2], 0 or [1/2, 1)."""
    low = -1.0 if x.low < 0 else 0.0
    high = 1.0 if x.high > 0 else 0.0
    exact = x.is_finite
    mantissa = Interval.full(
        low if exact else -math.inf, high if exact else math.inf, x.shape, x.dtype
    )
    info = torch.finfo(x.dtype)
    most = math.frexp(info.max)[1]
    least = math.frexp(info.smallest_normal * info.eps)[1]
    exponent = Interval.full(least, most, x.shape, torch.int32)
    if not exact:
        exponent = Interval.top(x.shape, torch.int32)
    return mantissa.with_nan(x.may_nan), exponent


@transfer("ldexp")
def ldexp(x: Interval, other: Interval) -> Interval:
    """X 2^other."""
    power = increasing(torch.exp2, floating(other), image=(0.0, math.inf))
    dtype = floating(x).dtype if not x.dtype.is_floating_point else dtype_of(x, other)
    product = inexact(mul(working(floating(x)), working(power)), 4)
    return converted(coarsened(product, dtype), dtype)


@transfer("heaviside")
def heaviside(x: Interval, values: Interval) -> Interval:
    """0 below 0 and for NaN, 1 above 0, `values` at 0."""
    dtype = x.dtype
    shape = shape_of(x, values)
    low = torch.where(x.lower > 0, 1, 0).to(dtype)
    high = torch.where(x.upper > 0, 1, 0).to(dtype)
    if x.may_nan:
        low = torch.zeros_like(low)
    zero = (x.lower <= 0) & (x.upper >= 0)
    low = torch.where(zero, torch.minimum(low, values.lower.to(dtype)), low)
    high = torch.where(zero, torch.maximum(high, values.upper.to(dtype)), high)
    return Interval.between(low, high, shape, dtype, may_nan(values))


@transfer("angle")
def angle(x: Interval) -> Interval:
    """0 for real numbers that are not negative, pi for negative ones; NaN passes."""
    x = floating(x)
    zero, pi = torch.zeros((), dtype=x.dtype), torch.full((), math.pi, dtype=x.dtype)
    low = torch.where(x.upper < 0, pi, zero)
    high = torch.where(x.lower < 0, pi, zero)
    return inexact(Interval.between(low, high, x.shape, x.dtype, x.may_nan), 2)


@transfer("signbit")
def signbit(x: Interval) -> Interval:
    """Whether the sign is minus; -0.0 has one, and NaN may."""
    if x.is_point and not x.may_nan:
        return Interval.point(torch.signbit(x.lower))
    surely = (x.upper < 0) & (not x.may_nan)
    possibly = (x.lower <= 0) | x.may_nan
    return Interval.between(surely, possibly, x.shape, torch.bool)


@transfer("isposinf", "isneginf", "isin")
def is_member(
    x: Interval | None = None,
    elements: Operand | None = None,
    element: Operand | None = None,
    test_elements: Interval | None = None,
    test_element: float | None = None,
    assume_unique: bool = False,
    invert: bool = False,
) -> Interval:
    """True or false."""
    asked = [item for item in (x, elements, element) if isinstance(item, Interval)]
    return Interval.full(0, 1, asked[0].shape if asked else (), torch.bool)


@transfer("nextafter")
def nextafter(x: Interval, other: Interval) -> Interval:
    """The neighbour of x on the side of `other`."""
    dtype, shape = dtype_of(x, other), shape_of(x, other)
    x, other = seen(x, dtype), seen(other, dtype)
    low = torch.nextafter(x.lower, torch.full_like(x.lower, -math.inf))
    high = torch.nextafter(x.upper, torch.full_like(x.upper, math.inf))
    low = torch.where(other.lower >= x.upper, x.lower, low)
    high = torch.where(other.upper <= x.lower, x.upper, high)
    return Interval.between(low, high, shape, dtype, may_nan(x, other))
