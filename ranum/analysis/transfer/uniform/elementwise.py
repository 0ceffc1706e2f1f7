"""Arithmetic on one pair of bounds; correctly rounded operators, so no widening."""

from __future__ import annotations

import torch

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.transfer.registry import uniform
from ranum.analysis.transfer.uniform._scalar import (
    ULPS,
    Lost,
    Operand,
    Pair,
    Unsure,
    nearest,
    outward,
    product,
    seen,
)

Outputs = tuple[Value, ...]

_LARGEST_EXPONENT = 8


def _floating(out: Outputs) -> torch.dtype:
    dtype = out[0].dtype
    if not dtype.is_floating_point:
        raise Unsure
    return dtype


@uniform("add", spreads=True)
def add(out: Outputs, x: Operand, other: Operand, alpha: float = 1) -> Pair:
    """Rising in both."""
    dtype = _floating(out)
    if alpha != 1:
        raise Unsure
    (a, b), (c, d) = seen(x, dtype), seen(other, dtype)
    return nearest(a + c, b + d, dtype)


@uniform("sub", spreads=True)
def sub(out: Outputs, x: Operand, other: Operand, alpha: float = 1) -> Pair:
    """Rising in x, falling in `other`."""
    dtype = _floating(out)
    if alpha != 1:
        raise Unsure
    (a, b), (c, d) = seen(x, dtype), seen(other, dtype)
    return nearest(a - d, b - c, dtype)


@uniform("rsub", spreads=True)
def rsub(out: Outputs, x: Operand, other: Operand, alpha: float = 1) -> Pair:
    """`other - x`."""
    return sub(out, other, x, alpha)


@uniform("mul", spreads=True)
def mul(out: Outputs, x: Operand, other: Operand) -> Pair:
    """Extremes at the corners."""
    dtype = _floating(out)
    return nearest(*product(seen(x, dtype), seen(other, dtype)), dtype)


@uniform("div", spreads=True)
def div(out: Outputs, x: Operand, other: Operand, rounding_mode: str | None = None) -> Pair:
    """Extremes at the corners, for a divisor that keeps its sign; anything for others."""
    dtype = _floating(out)
    (a, b), (c, d) = seen(x, dtype), seen(other, dtype)
    if rounding_mode is not None or c == d == 0:
        raise Unsure
    if c <= 0 <= d:
        raise Lost(may_nan=a <= 0 <= b)
    try:
        corners = (a / c, a / d, b / c, b / d)
    except OverflowError as error:
        raise Unsure from error
    return nearest(min(corners), max(corners), dtype)


@uniform("neg", spreads=True)
def neg(out: Outputs, x: Interval) -> Pair:
    """Falling."""
    _floating(out)
    return -x.high, -x.low


@uniform("abs")
def absolute(out: Outputs, x: Interval) -> Pair:
    """Turning at 0."""
    _floating(out)
    return max(x.low, -x.high, 0.0), max(x.high, -x.low)


@uniform("pow", spreads=True)
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
    return outward((low, high), dtype, 2 * ULPS)


@uniform("square", spreads=True)
def square(out: Outputs, x: Interval) -> Pair:
    """x^2."""
    return power(out, x, 2)


@uniform("relu")
def relu(out: Outputs, x: Interval) -> Pair:
    """max(x, 0)."""
    _floating(out)
    return max(x.low, 0.0), max(x.high, 0.0)


@uniform("hardtanh")
def hardtanh(out: Outputs, x: Interval, min_val: float = -1, max_val: float = 1) -> Pair:
    """min(max(x, min_val), max_val)."""
    return clamp(out, x, min_val, max_val)


@uniform("relu6")
def relu6(out: Outputs, x: Interval) -> Pair:
    """min(max(x, 0), 6)."""
    return clamp(out, x, 0, 6)


@uniform("clamp", "clip")
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


@uniform("clamp_min")
def clamp_min(out: Outputs, x: Interval, min: Operand) -> Pair:
    """max(x, min)."""
    return clamp(out, x, min, None)


@uniform("clamp_max")
def clamp_max(out: Outputs, x: Interval, max: Operand) -> Pair:
    """min(x, max)."""
    return clamp(out, x, None, max)


@uniform("maximum")
def maximum(out: Outputs, x: Interval, other: Interval) -> Pair:
    """The larger one."""
    return clamp(out, x, other, None)


@uniform("minimum")
def minimum(out: Outputs, x: Interval, other: Interval) -> Pair:
    """The smaller one."""
    return clamp(out, x, None, other)


@uniform("where", hulls=True)
def where(out: Outputs, condition: Interval, x: Operand, other: Operand) -> Pair:
    """The hull, unless the condition is known."""
    dtype = _floating(out)
    (a, b), (c, d) = seen(x, dtype), seen(other, dtype)
    if condition.low > 0:
        return a, b
    if condition.high == 0:
        return c, d
    return min(a, c), max(b, d)


@uniform("cast")
def cast(out: Outputs, x: Interval, dtype: torch.dtype) -> Pair:
    """Rounded to another floating dtype."""
    _floating(out)
    if abs(x.low) > 2.0**53 and not x.dtype.is_floating_point:
        raise Unsure
    return nearest(x.low, x.high, dtype)
