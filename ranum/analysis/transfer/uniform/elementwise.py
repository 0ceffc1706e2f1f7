"""Arithmetic on one pair of bounds; correctly rounded operators, so no widening."""

from __future__ import annotations

import math

import torch

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.transfer.registry import uniform
from ranum.analysis.transfer.uniform._scalar import (
    ULPS,
    Bounds,
    Lost,
    Operand,
    Pair,
    Unsure,
    is_bounded,
    nearest,
    product,
    seen,
    settled,
    tainted,
)

Outputs = tuple[Value, ...]

_LARGEST_EXPONENT = 8


def _floating(out: Outputs) -> torch.dtype:
    dtype = out[0].dtype
    if not dtype.is_floating_point:
        raise Unsure
    return dtype


@uniform("add", spreads=True, wide=True)
def add(out: Outputs, x: Operand, other: Operand, alpha: float = 1) -> Pair | Bounds:
    """Rising in both; NaN from inf - inf."""
    dtype = _floating(out)
    if alpha != 1:
        raise Unsure
    (a, b), (c, d) = seen(x, dtype), seen(other, dtype)
    least, most = nearest(a + c, b + d, dtype)
    if most - least < math.inf:
        return least, most
    return least, most, tainted(x, other) or (b == math.inf == -c) or (a == -math.inf == -d)


@uniform("sub", spreads=True, wide=True)
def sub(out: Outputs, x: Operand, other: Operand, alpha: float = 1) -> Pair | Bounds:
    """Rising in x, falling in `other`; NaN from inf - inf."""
    dtype = _floating(out)
    if alpha != 1:
        raise Unsure
    (a, b), (c, d) = seen(x, dtype), seen(other, dtype)
    least, most = nearest(a - d, b - c, dtype)
    if most - least < math.inf:
        return least, most
    return least, most, tainted(x, other) or (b == math.inf == d) or (a == -math.inf == c)


@uniform("rsub", spreads=True, wide=True)
def rsub(out: Outputs, x: Operand, other: Operand, alpha: float = 1) -> Pair | Bounds:
    """`other - x`."""
    return sub(out, other, x, alpha)


@uniform("mul", spreads=True, wide=True)
def mul(out: Outputs, x: Operand, other: Operand) -> Pair | Bounds:
    """Extremes at the corners; NaN from 0 * inf, which counts as 0 there."""
    dtype = _floating(out)
    first, second = seen(x, dtype), seen(other, dtype)
    low, high = nearest(*product(first, second), dtype)
    if is_bounded(first) and is_bounded(second):
        return low, high
    lost = (_has_zero(first) and not is_bounded(second)) or (
        _has_zero(second) and not is_bounded(first)
    )
    return low, high, lost or tainted(x, other)


def _has_zero(a: Pair) -> bool:
    return a[0] <= 0 <= a[1]


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


@uniform("div", spreads=True, wide=True)
def div(
    out: Outputs, x: Operand, other: Operand, rounding_mode: str | None = None
) -> Pair | Bounds:
    """Extremes at the corners, for a divisor that keeps its sign; anything for others."""
    dtype = _floating(out)
    (a, b), (c, d) = seen(x, dtype), seen(other, dtype)
    if rounding_mode is not None or c == d == 0:
        raise Unsure
    endless = not is_bounded((a, b)) and not is_bounded((c, d))
    if c <= 0 <= d:
        raise Lost(may_nan=a <= 0 <= b or endless or tainted(x, other))
    try:
        corners = [_or_zero(each) for each in (a / c, a / d, b / c, b / d)]
    except OverflowError as error:
        raise Unsure from error
    return *nearest(min(corners), max(corners), dtype), endless or tainted(x, other)


@uniform("neg", spreads=True, wide=True)
def neg(out: Outputs, x: Interval) -> Pair:
    """Falling."""
    _floating(out)
    return -x.high, -x.low


@uniform("abs", wide=True)
def absolute(out: Outputs, x: Interval) -> Pair:
    """Turning at 0."""
    _floating(out)
    return max(x.low, -x.high, 0.0), max(x.high, -x.low)


@uniform("pow", wide=True)
def power(out: Outputs, x: Operand, exponent: Operand) -> Pair:
    """Small whole exponents; squares are correctly rounded."""
    if isinstance(exponent, Interval) or not isinstance(x, Interval):
        raise Unsure
    dtype, times = _floating(out), int(exponent)
    if times != exponent or not 1 <= times <= _LARGEST_EXPONENT:
        raise Unsure
    low, high = absolute(out, x) if times % 2 == 0 else seen(x, dtype)
    seen(x, dtype)
    low, high = low**times, high**times
    if times <= 2:
        return nearest(low, high, dtype)
    return settled((low, high), dtype, 2 * ULPS)


@uniform("square", spreads=True, wide=True)
def square(out: Outputs, x: Interval) -> Pair:
    """x^2."""
    return power(out, x, 2)


@uniform("relu", wide=True)
def relu(out: Outputs, x: Interval) -> Pair:
    """max(x, 0)."""
    _floating(out)
    return max(x.low, 0.0), max(x.high, 0.0)


@uniform("hardtanh", wide=True)
def hardtanh(out: Outputs, x: Interval, min_val: float = -1, max_val: float = 1) -> Pair:
    """min(max(x, min_val), max_val)."""
    return clamp(out, x, min_val, max_val)


@uniform("relu6", wide=True)
def relu6(out: Outputs, x: Interval) -> Pair:
    """min(max(x, 0), 6)."""
    return clamp(out, x, 0, 6)


@uniform("clamp", "clip", wide=True)
def clamp(
    out: Outputs, x: Interval, min: Operand | None = None, max: Operand | None = None
) -> Pair:
    """Rising in all three."""
    dtype = _floating(out)
    low, high = seen(x, dtype)
    for bound, is_least in ((min, True), (max, False)):
        if bound is None:
            continue
        least, most = seen(bound, dtype)
        if is_least:
            low, high = (least if low < least else low), (most if high < most else high)
        else:
            low, high = (least if low > least else low), (most if high > most else high)
    return low, high


@uniform("clamp_min", wide=True)
def clamp_min(out: Outputs, x: Interval, min: Operand) -> Pair:
    """max(x, min)."""
    return clamp(out, x, min, None)


@uniform("clamp_max", wide=True)
def clamp_max(out: Outputs, x: Interval, max: Operand) -> Pair:
    """min(x, max)."""
    return clamp(out, x, None, max)


@uniform("maximum", wide=True)
def maximum(out: Outputs, x: Interval, other: Interval) -> Pair:
    """The larger one."""
    return clamp(out, x, other, None)


@uniform("minimum", wide=True)
def minimum(out: Outputs, x: Interval, other: Interval) -> Pair:
    """The smaller one."""
    return clamp(out, x, None, other)


@uniform("where", hulls=True, wide=True)
def where(out: Outputs, condition: Interval, x: Operand, other: Operand) -> Bounds:
    """The hull, unless the condition is known."""
    dtype = _floating(out)
    (a, b), (c, d) = seen(x, dtype), seen(other, dtype)
    if condition.low > 0:
        return a, b, tainted(x)
    if condition.high == 0:
        return c, d, tainted(other)
    return min(a, c), max(b, d), tainted(x, other)


@uniform("cast", wide=True)
def cast(out: Outputs, x: Interval, dtype: torch.dtype) -> Pair:
    """Rounded to another floating dtype."""
    _floating(out)
    if abs(x.low) > 2.0**53 and not x.dtype.is_floating_point:
        raise Unsure
    return nearest(x.low, x.high, dtype)
