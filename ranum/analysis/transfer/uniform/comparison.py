"""Comparisons of two pairs of bounds; see `transfer.comparison`."""

from __future__ import annotations

import torch

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.transfer.registry import uniform
from ranum.analysis.transfer.uniform._scalar import Operand, Pair, Unsure, seen, tainted

Outputs = tuple[Value, ...]


def _both(out: Outputs, x: Interval, other: Operand) -> tuple[Pair, Pair, bool]:
    """Both operands as the kernel sees them, and whether either may be NaN."""
    if out[0].dtype is not torch.bool or not x.dtype.is_floating_point:
        raise Unsure
    return seen(x, x.dtype), seen(other, x.dtype), tainted(x, other)


@uniform("lt", wide=True)
def lt(out: Outputs, x: Interval, other: Operand) -> Pair:
    """Surely if all of x lies below, possibly if some of it does."""
    (a, b), (c, d), nan = _both(out, x, other)
    return b < c and not nan, a < d


@uniform("le", wide=True)
def le(out: Outputs, x: Interval, other: Operand) -> Pair:
    """`x <= other`."""
    (a, b), (c, d), nan = _both(out, x, other)
    return b <= c and not nan, a <= d


@uniform("gt", wide=True)
def gt(out: Outputs, x: Interval, other: Operand) -> Pair:
    """`x > other`."""
    (a, b), (c, d), nan = _both(out, x, other)
    return a > d and not nan, b > c


@uniform("ge", wide=True)
def ge(out: Outputs, x: Interval, other: Operand) -> Pair:
    """`x >= other`."""
    (a, b), (c, d), nan = _both(out, x, other)
    return a >= d and not nan, b >= c


@uniform("eq", wide=True)
def eq(out: Outputs, x: Interval, other: Operand) -> Pair:
    """Surely for two equal numbers, possibly if the intervals meet."""
    (a, b), (c, d), nan = _both(out, x, other)
    return a == b == c == d and not nan, a <= d and b >= c


@uniform("ne", wide=True)
def ne(out: Outputs, x: Interval, other: Operand) -> Pair:
    """Not `eq`, and true for NaN."""
    (a, b), (c, d), nan = _both(out, x, other)
    return not (a <= d and b >= c), not (a == b == c == d) or nan
