"""Extremes, sorted elements, and counts of them.

A merged dimension of size n stands for n elements that share one bound.
"""

from __future__ import annotations

import math
from typing import Any

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import (
    indices,
    normal_dims,
    reduced_shape,
    squeezed,
)
from ranum.analysis.transfer._reducing import Dim
from ranum.analysis.transfer.registry import transfer


def _extreme(x: Interval, dim: Dim, keepdim: bool, fold: str) -> Interval:
    """Max and min are monotone in every element, so they apply to the bounds."""
    dims = normal_dims(dim, len(x.shape))
    shape = reduced_shape(x.shape, dims, keepdim)
    if x.is_empty_tensor:
        ones = x.lower.new_zeros([min(n, 1) for n in shape])
        return Interval(ones, ones, shape, x.dtype, x.may_nan)
    lower, upper = x.lower, x.upper
    if dims:
        lower = getattr(lower, fold)(dims, keepdim=True)
        upper = getattr(upper, fold)(dims, keepdim=True)
    lower, upper = squeezed(lower, dims, keepdim), squeezed(upper, dims, keepdim)
    return Interval(lower, upper, shape, x.dtype, x.may_nan)


def _count(x: Interval, dim: Dim) -> int:
    return math.prod(x.shape[d] for d in normal_dims(dim, len(x.shape)))


@transfer("amax")
def amax(x: Interval, dim: Dim = None, keepdim: bool = False) -> Interval:
    """Largest element: [max lower, max upper]; NaN if any element is."""
    return _extreme(x, dim, keepdim, "amax")


@transfer("amin")
def amin(x: Interval, dim: Dim = None, keepdim: bool = False) -> Interval:
    """Smallest element: [min lower, min upper]; NaN if any element is."""
    return _extreme(x, dim, keepdim, "amin")


@transfer("max")
def max_(x: Interval, dim: int | None = None, keepdim: bool = False) -> Any:
    """Like amax; with `dim` also the position, 0 .. n - 1."""
    values = _extreme(x, dim, keepdim, "amax")
    return values if dim is None else (values, indices(_count(x, dim), values.shape, x))


@transfer("min")
def min_(x: Interval, dim: int | None = None, keepdim: bool = False) -> Any:
    """Like amin; with `dim` also the position, 0 .. n - 1."""
    values = _extreme(x, dim, keepdim, "amin")
    return values if dim is None else (values, indices(_count(x, dim), values.shape, x))


@transfer("aminmax")
def aminmax(
    x: Interval, dim: int | None = None, keepdim: bool = False
) -> tuple[Interval, Interval]:
    """Both extremes."""
    return _extreme(x, dim, keepdim, "amin"), _extreme(x, dim, keepdim, "amax")


@transfer("argmax", "argmin")
def argmax(x: Interval, dim: int | None = None, keepdim: bool = False) -> Interval:
    """A position: 0 .. n - 1."""
    dims = normal_dims(dim, len(x.shape))
    return indices(_count(x, dim), reduced_shape(x.shape, dims, keepdim), x)


@transfer("sort")
def sort(
    x: Interval, dim: int = -1, descending: bool = False, stable: bool | None = None
) -> tuple[Interval, Interval]:
    """The k-th smallest element is monotone in every element: sort both bounds.

    A NaN shifts the ranks of the others, so where one can occur the bounds are merged.
    """
    if not x.shape:
        return x, indices(1, x.shape, x)
    along = dim % len(x.shape)
    if x.may_nan:
        values = x.merged([d for d in range(len(x.shape)) if d != along])
    else:
        lower = x.lower.sort(along, descending).values
        upper = x.upper.sort(along, descending).values
        values = Interval(lower, upper, x.shape, x.dtype)
    return values, indices(x.shape[along], x.shape, x)


@transfer("topk")
def topk(
    x: Interval,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
) -> tuple[Interval, Interval]:
    """The first k of the sorted elements; one bound for them if they may come unsorted."""
    if not x.shape:
        return x, indices(1, x.shape, x)
    along = dim % len(x.shape)
    shape = tuple(k if d == along else n for d, n in enumerate(x.shape))
    values, _ = sort(x, along, largest)
    lower, upper = values.lower, values.upper
    if lower.shape[along] > 1:
        lower, upper = lower.narrow(along, 0, k), upper.narrow(along, 0, k)
    result = Interval(lower, upper, shape, x.dtype, x.may_nan)
    if not sorted:
        result = result.merged([d for d in range(len(shape)) if d != along])
    return result, indices(x.shape[along], shape, x)


@transfer("median", "nanmedian")
def median(x: Interval, dim: int | None = None, keepdim: bool = False) -> Any:
    """One of the elements, so between the smallest lower and the largest upper bound."""
    low, high = _extreme(x, dim, keepdim, "amin"), _extreme(x, dim, keepdim, "amax")
    values = Interval(low.lower, high.upper, low.shape, x.dtype, x.may_nan)
    if dim is None:
        return values.with_nan(x.may_nan or x.is_empty_tensor)
    return values, indices(_count(x, dim), values.shape, x)


@transfer("kthvalue", "mode")
def kthvalue(
    x: Interval, k: int = 1, dim: int = -1, keepdim: bool = False
) -> tuple[Interval, Interval]:
    """One of the elements, and its position."""
    result: tuple[Interval, Interval] = median(x, dim, keepdim)
    return result


@transfer("cummax", "cummin")
def cummax(x: Interval, dim: int) -> tuple[Interval, Interval]:
    """One of the elements before, and its position."""
    if not x.shape:
        return x, indices(1, x.shape, x)
    along = dim % len(x.shape)
    values = x.merged([d for d in range(len(x.shape)) if d != along])
    return values, indices(x.shape[along], x.shape, x)


@transfer("count_nonzero")
def count_nonzero(x: Interval, dim: Dim = None) -> Interval:
    """A count: 0 .. n."""
    dims = normal_dims(dim, len(x.shape))
    return indices(_count(x, dims or None) + 1, reduced_shape(x.shape, dims, False), x)
