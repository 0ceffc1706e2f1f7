"""Transfer functions with boolean results: comparisons, logic, tests, any and all.

A boolean interval is [False, False], [True, True] or [False, True]: `lower` says that it
surely holds, `upper` that it possibly does. Comparisons with NaN are false, but for `ne`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.interval import Interval
from ranum.analysis.transfer.combinators import (
    Operand,
    dtype_of,
    is_known,
    lower,
    may_nan,
    monotone,
    shape_of,
    upper,
)
from ranum.analysis.transfer.registry import transfer
from ranum.analysis.transfer.selection import truth

# --- comparisons ---------------------------------------------------------------------------


@transfer("lt")
def lt(x: Interval, other: Operand) -> Interval:
    """`x < other`: surely if all of x lies below, possibly if some of it does."""
    return _ordered(torch.lt, x, other, below=True)


@transfer("le")
def le(x: Interval, other: Operand) -> Interval:
    """`x <= other`."""
    return _ordered(torch.le, x, other, below=True)


@transfer("gt")
def gt(x: Interval, other: Operand) -> Interval:
    """`x > other`."""
    return _ordered(torch.gt, x, other, below=False)


@transfer("ge")
def ge(x: Interval, other: Operand) -> Interval:
    """`x >= other`."""
    return _ordered(torch.ge, x, other, below=False)


@transfer("eq")
def eq(x: Interval, other: Operand) -> Interval:
    """`x == other`: surely for two equal numbers, possibly if the intervals meet."""
    if is_known(x, other):
        return monotone(torch.eq, x, other)
    surely, possibly = _meeting(x, other)
    return _decided(surely & (not may_nan(x, other)), possibly, x, other)


@transfer("ne")
def ne(x: Interval, other: Operand) -> Interval:
    """`x != other`: not `eq`, and true for NaN."""
    if is_known(x, other):
        return monotone(torch.ne, x, other)
    surely, possibly = _meeting(x, other)
    return _decided(~possibly, ~surely | may_nan(x, other), x, other)


def _ordered(
    compare: Callable[[Any, Any], Tensor], x: Interval, other: Operand, *, below: bool
) -> Interval:
    if is_known(x, other):
        return monotone(compare, x, other)
    first, last = (upper, lower) if below else (lower, upper)
    surely = compare(first(x), last(other)) & (not may_nan(x, other))
    return _decided(surely, compare(last(x), first(other)), x, other)


def _meeting(x: Interval, other: Operand) -> tuple[Tensor, Tensor]:
    """Whether both are one and the same number, and whether they have a number in common."""
    meet = torch.le(x.lower, upper(other)) & torch.ge(x.upper, lower(other))
    single = torch.eq(x.lower, upper(other)) & torch.eq(x.upper, lower(other))
    return single, meet


def _decided(surely: Tensor, possibly: Tensor, *operands: Operand) -> Interval:
    return Interval.between(surely, possibly, shape_of(*operands), torch.bool)


# --- logic ---------------------------------------------------------------------------------


@transfer("logical_not")
def logical_not(x: Interval) -> Interval:
    """True where x is 0."""
    x = truth(x)
    return monotone(torch.logical_not, x, falling=(0,))


@transfer("logical_and")
def logical_and(x: Interval, other: Interval) -> Interval:
    """Both are not 0."""
    return monotone(torch.logical_and, truth(x), truth(other))


@transfer("logical_or")
def logical_or(x: Interval, other: Interval) -> Interval:
    """One or both are not 0."""
    return monotone(torch.logical_or, truth(x), truth(other))


@transfer("logical_xor")
def logical_xor(x: Interval, other: Interval) -> Interval:
    """Exactly one is not 0: known only where both are."""
    return ne(truth(x), truth(other))


@transfer("bitwise_not")
def bitwise_not(x: Interval) -> Interval:
    """Falling: `not` on booleans, -1 - x on integers, max - x on unsigned ones."""
    return monotone(torch.bitwise_not, x, falling=(0,))


@transfer("bitwise_and", "__and__")
def bitwise_and(x: Operand, other: Operand) -> Interval:
    """`and` on booleans; on non-negative integers, at most the smaller one."""
    if dtype_of(x, other) == torch.bool or is_known(x, other):
        return monotone(torch.bitwise_and, x, other)
    return _bits(x, other, torch.minimum(*_tops(x, other)))


@transfer("bitwise_or", "__or__")
def bitwise_or(x: Operand, other: Operand) -> Interval:
    """`or` on booleans; on non-negative integers, below the next power of two."""
    if dtype_of(x, other) == torch.bool or is_known(x, other):
        return monotone(torch.bitwise_or, x, other)
    return _bits(x, other, _filled(torch.maximum(*_tops(x, other))))


@transfer("bitwise_xor", "__xor__")
def bitwise_xor(x: Operand, other: Operand) -> Interval:
    """`xor` on booleans; on non-negative integers, below the next power of two."""
    if is_known(x, other):
        return monotone(torch.bitwise_xor, x, other)
    if isinstance(x, Interval) and dtype_of(x, other) == torch.bool:
        return ne(x, other)
    return _bits(x, other, _filled(torch.maximum(*_tops(x, other))))


def _tops(x: Operand, other: Operand) -> list[Tensor]:
    dtype = dtype_of(x, other)
    return [torch.as_tensor(upper(operand)).to(dtype) for operand in (x, other)]


def _filled(top: Tensor) -> Tensor:
    """All bits set below and at the highest one."""
    for shift in (1, 2, 4, 8, 16, 32):
        if shift < torch.iinfo(top.dtype).bits:
            top = top | (top >> shift)
    return top


def _bits(x: Operand, other: Operand, most: Tensor) -> Interval:
    dtype, shape = dtype_of(x, other), shape_of(x, other)
    negative = torch.as_tensor(lower(x) < 0) | torch.as_tensor(lower(other) < 0)
    limits = torch.iinfo(dtype)
    low = torch.zeros_like(most).masked_fill(negative, limits.min)
    return Interval.between(low, most.masked_fill(negative, limits.max), shape, dtype)


# --- tests of single elements --------------------------------------------------------------


@transfer("isnan")
def isnan(x: Interval) -> Interval:
    """Possible where NaN is."""
    return _decided(torch.zeros_like(x.lower).bool(), torch.full_like(x.lower, x.may_nan).bool(), x)


@transfer("isinf")
def isinf(x: Interval) -> Interval:
    """Possible where a bound is infinite, sure where the interval is one infinity."""
    if not x.dtype.is_floating_point:
        return _decided(torch.zeros_like(x.lower).bool(), torch.zeros_like(x.lower).bool(), x)
    surely = (x.lower == math.inf) | (x.upper == -math.inf)
    return _decided(surely & (not x.may_nan), x.lower.isinf() | x.upper.isinf(), x)


@transfer("isfinite")
def isfinite(x: Interval) -> Interval:
    """Sure between finite bounds, impossible where the interval is one infinity."""
    surely = x.lower.isfinite() & x.upper.isfinite() & (not x.may_nan)
    return _decided(surely, ~((x.lower == math.inf) | (x.upper == -math.inf)), x)


# --- any and all ---------------------------------------------------------------------------


@transfer("any")
def any_(x: Interval, dim: Any = None, keepdim: bool = False) -> Interval:
    """Some element is not 0: rising in every element; False for none."""
    return _over_elements(torch.any, x, dim, keepdim)


@transfer("all")
def all_(x: Interval, dim: Any = None, keepdim: bool = False) -> Interval:
    """Every element is not 0: rising in every element; True for none."""
    return _over_elements(torch.all, x, dim, keepdim)


def _over_elements(reduce: Callable[..., Tensor], x: Interval, dim: Any, keepdim: bool) -> Interval:
    """A merged bound stands for equal elements, so reducing it gives the same answer."""
    dtype = torch.uint8 if x.dtype == torch.uint8 else torch.bool
    x = truth(x)
    bounds = x.expanded() if x.is_empty_tensor else (x.lower, x.upper)
    surely, possibly = (reduce(b) if dim is None else reduce(b, dim, keepdim) for b in bounds)
    if x.is_point:
        return Interval.point(surely.to(dtype))
    return Interval.between(surely, possibly, _reduced(x.shape, dim, keepdim), dtype)


def _reduced(shape: Sequence[int], dim: Any, keepdim: bool) -> tuple[int, ...]:
    rank = max(len(shape), 1)
    chosen = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {number % rank for number in chosen}
    sizes = [(1 if number in gone else size) for number, size in enumerate(shape)]
    return tuple(size for number, size in enumerate(sizes) if keepdim or number not in gone)
