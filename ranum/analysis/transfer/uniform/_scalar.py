"""Interval arithmetic on one pair of Python numbers, for rules that see one bound per tensor.

Most of it is for the ordinary case: finite bounds, no NaN, results inside the dtype.
Whatever leaves it raises `Unsure`, and the transfer function of the operator decides. What is
for infinite bounds too (`settled`, `summed`) follows `_common.Box`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch

from ranum.analysis.interval import Interval, round_nearest, unit_roundoff
from ranum.analysis.transfer._common import accumulator, largest, smallest, sum_error

Pair: TypeAlias = tuple[float, float]
"""Lower and upper bound of every element."""

Bounds: TypeAlias = tuple[float, float, bool]
"""The same, and whether an element can be NaN."""

ANYTHING: Bounds = (-math.inf, math.inf, True)
"""Nothing is known."""

Operand: TypeAlias = Interval | float | int | bool

ULPS = 8
"""Units of roundoff that one operation of a kernel may lose, as in `_common.Box`."""


class Unsure(Exception):  # noqa: N818 - a way out, not a fault
    """The case is not ordinary; the transfer function decides."""


class Lost(Unsure):
    """The transfer function would give [-inf, inf], with NaN or not, for every result.

    Attributes:
        may_nan: If elements can be NaN.
    """

    def __init__(self, *, may_nan: bool = True) -> None:
        super().__init__()
        self.may_nan = may_nan


def tainted(*operands: Operand | None) -> bool:
    """True if an operand can be NaN."""
    return any(isinstance(operand, Interval) and operand.may_nan for operand in operands)


def pair(x: Interval) -> Pair:
    """Both bounds."""
    return x.low, x.high


def peak(x: Interval | None) -> float:
    """Largest magnitude; 1 for an absent factor."""
    return 1.0 if x is None else max(abs(x.low), abs(x.high))


def count(x: Interval) -> int:
    """Number of elements."""
    return math.prod(x.shape)


def with_zero(a: Pair) -> Pair:
    """Joined with 0."""
    return min(a[0], 0.0), max(a[1], 0.0)


def is_bounded(a: Pair) -> bool:
    """True if both ends are finite."""
    return a[1] - a[0] < math.inf


def product(a: Pair, b: Pair) -> Pair:
    """Extremes of x y, not rounded; 0 * inf, which is NaN as well, counts as 0."""
    corners = [a[0] * b[0], a[0] * b[1], a[1] * b[0], a[1] * b[1]]
    if not (is_bounded(a) and is_bounded(b)):
        corners = [0.0 if math.isnan(corner) else corner for corner in corners]
    return min(corners), max(corners)


def size(a: Pair) -> float:
    """Largest magnitude."""
    return max(abs(a[0]), abs(a[1]))


def outward(a: Pair, dtype: torch.dtype, ulps: float = ULPS, absolute: float = 0.0) -> Pair:
    """What a kernel in `dtype` makes of it: a few ulps and underflow. A bound of 0 stays.

    Raises:
        Unsure: If the result may overflow.
    """
    low, high = a
    relative, floor = ulps * unit_roundoff(dtype), smallest(dtype) + absolute
    least = low - (abs(low) * relative + floor)
    most = high + (abs(high) * relative + floor)
    if absolute == 0.0:
        least = max(least, 0.0) if low >= 0 else least
        most = min(most, 0.0) if high <= 0 else most
    limit = largest(dtype)
    if not (least >= -limit and most <= limit):
        raise Unsure
    return least, most


def settled(a: Pair, dtype: torch.dtype, ulps: float = ULPS) -> Pair:
    """As `outward`, but what overflows becomes infinite; see `Box.rounded`."""
    relative, floor, limit = ulps * unit_roundoff(dtype), smallest(dtype), largest(dtype)
    low, high = a
    if low - low == 0.0:
        least = low - (abs(low) * relative + floor)
        least = max(least, 0.0) if low >= 0 else least
        low = -math.inf if least < -limit else min(least, limit)
    if high - high == 0.0:
        most = high + (abs(high) * relative + floor)
        most = min(most, 0.0) if high <= 0 else most
        high = math.inf if most > limit else max(most, -limit)
    return low, high


def summed(a: Pair, terms: float, dtype: torch.dtype) -> Bounds:
    """As `times`, for bounds and sums of any size; see `Box.sum`."""
    if terms <= 0:
        raise Unsure
    error, limit, floor = sum_error(terms, dtype), largest(dtype), terms * smallest(dtype)
    low, high = a[0] * terms, a[1] * terms
    negative, positive = min(low, 0.0), max(high, 0.0)
    if (low == math.inf) > (a[0] == math.inf) or (high == -math.inf) > (a[1] == -math.inf):
        raise Unsure
    if error < 0.25:
        least = low - (2 * error * (abs(low) - 2 * negative) + floor)
        most = high + (2 * error * (abs(high) + 2 * positive) + floor)
    else:
        least = low - (2 * error * (positive - negative) + floor)
        most = high + (2 * error * (positive - negative) + floor)
    least = -math.inf if math.isnan(least) else least
    most = math.inf if math.isnan(most) else most
    least = max(least, 0.0) if negative == 0 else least
    most = min(most, 0.0) if positive == 0 else most
    above, below = positive * (1 + error) > limit, -negative * (1 + error) > limit
    if low != math.inf:
        least = -math.inf if below else min(least, limit)
    if high != -math.inf:
        most = math.inf if above else max(most, -limit)
    return low if low == math.inf else least, high if high == -math.inf else most, above and below


def averaged(a: Pair, terms: float, dtype: torch.dtype, ulps: float = ULPS) -> Bounds:
    """As `average`, for bounds and sums of any size."""
    low, high, lost = summed(a, terms, dtype)
    return *settled((low / terms, high / terms), dtype, ulps), lost


def times(a: Pair, terms: float, dtype: torch.dtype) -> Pair:
    """Sum of `terms` numbers in any order, each rounded to `dtype`; see `Box.sum`."""
    if terms <= 0:
        raise Unsure
    error = sum_error(terms, dtype)
    low, high = a[0] * terms, a[1] * terms
    if not (error < 0.25 and size((low, high)) * (1 + error) <= largest(dtype)):
        raise Unsure
    floor = terms * smallest(dtype)
    least = low - (2 * error * (abs(low) - 2 * min(low, 0.0)) + floor)
    most = high + (2 * error * (abs(high) + 2 * max(high, 0.0)) + floor)
    least = max(least, 0.0) if low >= 0 else least
    most = min(most, 0.0) if high <= 0 else most
    if not size((least, most)) <= largest(dtype):
        raise Unsure
    return least, most


def average(a: Pair, terms: float, dtype: torch.dtype, ulps: float = ULPS) -> Pair:
    """Mean of `terms` numbers."""
    total = times(a, terms, dtype)
    return outward((total[0] / terms, total[1] / terms), dtype, ulps)


def seen(operand: Operand, dtype: torch.dtype) -> Pair:
    """The operand as an elementwise kernel for `dtype` sees it.

    Raises:
        Unsure: For other dtypes, and numbers that kernels may round or not.
    """
    if isinstance(operand, Interval):
        if operand.dtype is not dtype:
            raise Unsure
        return operand.low, operand.high
    number = float(operand)
    rounded = round_nearest(number, dtype)
    if rounded != number and dtype is not torch.float32:
        raise Unsure
    return rounded, rounded


def nearest(low: float, high: float, dtype: torch.dtype) -> Pair:
    """Rounded as a correctly rounded operator does.

    Sums, products, quotients and roots of numbers with p bits that are rounded to 53 bits
    first come out the same, as 53 >= 2 p + 2.

    References:
        S. Figueroa, When is double rounding innocuous?, SIGNUM Newsletter 30(3), 1995.
    """
    return round_nearest(low, dtype), round_nearest(high, dtype)


def working(x: Interval) -> torch.dtype:
    """The type in which kernels accumulate elements of x."""
    return accumulator(x.dtype)


def same_dtype(*operands: Interval | None) -> torch.dtype:
    """The one floating dtype of all operands.

    Raises:
        Unsure: If there are several, or it is not floating.
    """
    dtypes = {operand.dtype for operand in operands if operand is not None}
    dtype = dtypes.pop()
    if dtypes or not dtype.is_floating_point:
        raise Unsure
    return dtype


def chosen(pairs: Sequence[Pair | Bounds], mask: Sequence[bool]) -> list[Pair | Bounds | None]:
    """The gradients that were asked for."""
    return [item if wanted else None for item, wanted in zip(pairs, mask, strict=True)]
