"""Reductions: sums, means and products, whole and running.

A merged dimension of size n stands for n elements that share one bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box, normal_dims, outward, summed
from ranum.analysis.transfer._reducing import Dim, in_dtype, of_empty, packed
from ranum.analysis.transfer.registry import transfer

# --- sums ----------------------------------------------------------------------------------


@transfer("sum")
def sum_(
    x: Interval, dim: Dim = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Interval:
    """Sum of n elements, in any order: [sum lower, sum upper] +- expm1(n u) sum |x|."""
    if dtype is None and not x.dtype.is_floating_point:
        dtype = torch.int64
    x = in_dtype(x, dtype)
    dims = normal_dims(dim, len(x.shape))
    if not x.dtype.is_floating_point:
        return packed(_whole_sum(x, dims), x, dims, keepdim, x.dtype)
    return packed(summed(x, dims), x, dims, keepdim, x.dtype)


def _whole_sum(x: Interval, dims: Sequence[int]) -> Box:
    """Integers are added exactly; float64 holds them up to 2^53."""
    box = summed(x, dims)
    slack = torch.where(box.magnitude > 2.0**50, math.inf, 0.0)
    return Box(box.lower.round() - slack, box.upper.round() + slack, box.dtype)


@transfer("mean")
def mean(
    x: Interval, dim: Dim = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Interval:
    """Sum of n elements over n; NaN for n = 0. Infinite if the sum overflows."""
    x = in_dtype(x, dtype)
    dims = normal_dims(dim, len(x.shape))
    count = math.prod(x.shape[d] for d in dims)
    if count == 0 or x.is_empty_tensor:
        return of_empty(torch.mean, x, list(dims), keepdim)  # type: ignore[no-any-return]
    return packed(average_of(x, dims), x, dims, keepdim, x.dtype)


def average_of(x: Interval, dims: Sequence[int]) -> Box:
    """The mean over `dims`, which are kept with size 1."""
    total = summed(x, dims)
    count = math.prod(x.shape[d] for d in dims)
    return Box(total.lower / count, total.upper / count, total.dtype, total.may_nan).rounded()


@transfer("cumsum")
def cumsum(x: Interval, dim: int, dtype: torch.dtype | None = None) -> Interval:
    """Sums of the first k elements, k = 1 .. n; one bound along `dim`.

    min(lower, sum of negative parts) below, max(upper, sum of positive parts) above.
    """
    if dtype is None and not x.dtype.is_floating_point:
        dtype = torch.int64
    x = in_dtype(x, dtype)
    if x.is_empty_tensor or not x.shape:
        return x
    along = dim % len(x.shape)
    parts = Interval(x.lower.clamp(max=0), x.upper.clamp(min=0), x.shape, x.dtype, x.may_nan)
    total = summed(parts, (along,)) if x.dtype.is_floating_point else _whole_sum(parts, (along,))
    one = Box.of(x.merged([d for d in range(len(x.shape)) if d != along]))
    lower = torch.where(one.lower > 0, one.lower, total.lower)
    upper = torch.where(one.upper < 0, one.upper, total.upper)
    if x.dtype.is_floating_point:
        # Adding a number that is not negative never lowers a rounded sum: no widening there.
        return outward(lower, upper, x.shape, x.dtype, total.may_nan)
    return outward(lower, upper, x.shape, x.dtype)


# --- products ------------------------------------------------------------------------------


@transfer("prod")
def prod(
    x: Interval, dim: Dim = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Interval:
    """Product of magnitudes bounds both ends; the lower end is that of |x| if all x >= 0."""
    if dtype is None and not x.dtype.is_floating_point:
        dtype = torch.int64
    x = in_dtype(x, dtype)
    dims = normal_dims(dim, len(x.shape))
    count = math.prod(x.shape[d] for d in dims)
    if count == 0 or x.is_empty_tensor:
        return of_empty(_prod, x, dim, keepdim)  # type: ignore[no-any-return]
    return packed(_product(x, dims, prefixes=False), x, dims, keepdim, x.dtype)


def _prod(x: Tensor, dim: Dim, keepdim: bool) -> Tensor:
    return torch.prod(x) if dim is None else torch.prod(x, normal_dims(dim, x.dim())[0], keepdim)


def _product(x: Interval, dims: Sequence[int], *, prefixes: bool) -> Box:
    """Products over all of `dims`, or of every prefix along them."""
    box = Box.of(x)
    powers = math.prod(x.shape[d] for d in dims if x.lower.shape[d] != x.shape[d])
    count = math.prod(x.shape[d] for d in dims)

    def fold(bound: Tensor) -> Tensor:
        for d in dims:
            bound = bound.prod(d, keepdim=True)
        return bound**powers

    partial = fold(box.magnitude.clamp(min=1.0))  # of any subset, in any order
    size = partial if prefixes else fold(box.magnitude)
    positive = fold((box.lower >= 0).double()) > 0
    smallest_product = fold(box.lower.clamp(min=0.0, max=1.0 if prefixes else None))
    limit, error, underflow = math.inf, 0.0, 0.0 * partial
    if x.dtype.is_floating_point:  # half types are not accumulated in float32 here
        info = torch.finfo(x.dtype)
        limit, error = info.max, math.expm1(count * info.eps)
        underflow = count * info.smallest_normal * partial
    upper = size * (1 + error) + underflow
    lower = torch.where(positive, (smallest_product * (1 - error) - underflow).clamp(min=0), -upper)
    overflow = (partial * (1 + error) > limit) | ~partial.isfinite()
    may_nan = box.may_nan or (x.dtype.is_floating_point and bool(overflow.any()))
    lower = torch.where(overflow, -math.inf, lower)
    upper = torch.where(overflow, math.inf, upper)
    return Box(lower, upper, box.dtype, may_nan)


@transfer("cumprod")
def cumprod(x: Interval, dim: int, dtype: torch.dtype | None = None) -> Interval:
    """Products of the first k elements; one bound along `dim`: prod max(|x|, 1) in size."""
    if dtype is None and not x.dtype.is_floating_point:
        dtype = torch.int64
    x = in_dtype(x, dtype)
    if x.is_empty_tensor or not x.shape:
        return x
    box = _product(x, (dim % len(x.shape),), prefixes=True)
    return outward(box.lower, box.upper, x.shape, x.dtype, box.may_nan)
