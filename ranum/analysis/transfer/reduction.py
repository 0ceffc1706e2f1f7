"""Reductions: sums, extremes, moments, norms, running sums, order statistics.

A merged dimension of size n stands for n elements that share one bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import (
    Box,
    broadcast_shapes,
    indices,
    largest,
    like,
    normal_dims,
    outward,
    reduced_shape,
    smallest,
    squeezed,
    sum_error,
    summed,
    unknown,
)
from ranum.analysis.transfer.registry import transfer

Dim = int | Sequence[int] | None


def _of_empty(operator: Callable[..., Any], x: Interval, *arguments: Any, **options: Any) -> Any:
    """The result on a tensor without elements: there is only one, so torch may say it."""
    nothing = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    result = operator(nothing, *arguments, **options)
    if isinstance(result, Tensor):
        return Interval.point(result)
    return tuple(Interval.point(item) for item in result)


def _cast(x: Interval, dtype: torch.dtype | None) -> Interval:
    if dtype is None or dtype == x.dtype:
        return x
    lower, upper = x.lower.to(dtype), x.upper.to(dtype)
    return Interval(lower, upper, x.shape, dtype, x.may_nan)


def _packed(
    box: Box, x: Interval, dims: Sequence[int], keepdim: bool, dtype: torch.dtype
) -> Interval:
    """A box with size 1 along `dims` as the result of a reduction."""
    lower, upper = squeezed(box.lower, dims, keepdim), squeezed(box.upper, dims, keepdim)
    return outward(lower, upper, reduced_shape(x.shape, dims, keepdim), dtype, box.may_nan)


# --- sums ----------------------------------------------------------------------------------


@transfer("sum")
def sum_(
    x: Interval, dim: Dim = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Interval:
    """Sum of n elements, in any order: [sum lower, sum upper] +- expm1(n u) sum |x|."""
    if dtype is None and not x.dtype.is_floating_point:
        dtype = torch.int64
    x = _cast(x, dtype)
    dims = normal_dims(dim, len(x.shape))
    if not x.dtype.is_floating_point:
        return _packed(_whole_sum(x, dims), x, dims, keepdim, x.dtype)
    return _packed(summed(x, dims), x, dims, keepdim, x.dtype)


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
    x = _cast(x, dtype)
    dims = normal_dims(dim, len(x.shape))
    count = math.prod(x.shape[d] for d in dims)
    if count == 0 or x.is_empty_tensor:
        return _of_empty(torch.mean, x, list(dims), keepdim)  # type: ignore[no-any-return]
    return _packed(_average(x, dims), x, dims, keepdim, x.dtype)


def _average(x: Interval, dims: Sequence[int]) -> Box:
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
    x = _cast(x, dtype)
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
    x = _cast(x, dtype)
    dims = normal_dims(dim, len(x.shape))
    count = math.prod(x.shape[d] for d in dims)
    if count == 0 or x.is_empty_tensor:
        return _of_empty(_prod, x, dim, keepdim)  # type: ignore[no-any-return]
    return _packed(_product(x, dims, prefixes=False), x, dims, keepdim, x.dtype)


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
    x = _cast(x, dtype)
    if x.is_empty_tensor or not x.shape:
        return x
    box = _product(x, (dim % len(x.shape),), prefixes=True)
    return outward(box.lower, box.upper, x.shape, x.dtype, box.may_nan)


# --- extremes and order --------------------------------------------------------------------


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


# --- moments -------------------------------------------------------------------------------


def variance_bound(x: Interval, dims: Sequence[int], correction: float | None) -> Box:
    """At most n / (n - c) ((w / 2) + e)^2, with w the width and e the error of the mean.

    References:
        T. Popoviciu, Sur les équations algébriques ayant toutes leurs racines réelles, 1935:
        the variance of numbers in an interval of width w is at most (w / 2)^2.
    """
    box = Box.of(x)
    count = math.prod(x.shape[d] for d in dims)
    low = box.lower.amin(tuple(dims), keepdim=True) if dims else box.lower
    high = box.upper.amax(tuple(dims), keepdim=True) if dims else box.upper
    size = torch.maximum(low.abs(), high.abs())
    error = sum_error(count, box.dtype)
    deviation = (high - low) / 2 + 2 * error * size
    freedom = count - (1.0 if correction is None else correction)
    zero = torch.zeros_like(low)
    limit = largest(box.dtype)
    if freedom <= 0:
        return Box(zero, torch.full_like(low, math.inf), box.dtype, may_nan=True)
    upper = deviation.square() * (count / freedom) * (1 + 4 * error) + smallest(box.dtype)
    # Kernels square the distance to a running mean: up to the whole width.
    overflow = count * (2 * size).square() * (1 + error) > limit
    upper = torch.where(overflow | upper.isnan(), math.inf, upper)
    may_nan = box.may_nan or bool(overflow.any())
    return Box(zero, upper, box.dtype, may_nan)


def _moments(
    x: Interval, dim: Dim, correction: float | None, keepdim: bool, root: bool = False
) -> tuple[Interval, Interval]:
    dims = normal_dims(dim, len(x.shape))
    if x.is_empty_tensor:
        nothing = unknown(reduced_shape(x.shape, dims, keepdim), x)
        return nothing, nothing
    spread = variance_bound(x, dims, correction)
    average = _average(x, dims)
    if not spread.is_finite:
        # The running mean of Welford's method is lost together with the variance.
        average = average.replaced(average.lower * math.nan, average.upper * math.nan)
    spread = spread.sqrt() if root else spread
    return (
        _packed(spread, x, dims, keepdim, x.dtype),
        _packed(average, x, dims, keepdim, x.dtype),
    )


@transfer("var")
def var(
    x: Interval, dim: Dim = None, correction: float | None = None, keepdim: bool = False
) -> Interval:
    """Between 0 and n / (n - correction) (width / 2)^2; NaN or inf if n <= correction."""
    return _moments(x, dim, correction, keepdim)[0]


@transfer("std")
def std(
    x: Interval, dim: Dim = None, correction: float | None = None, keepdim: bool = False
) -> Interval:
    """Square root of the variance."""
    return _moments(x, dim, correction, keepdim, root=True)[0]


@transfer("var_mean")
def var_mean(
    x: Interval, dim: Dim = None, correction: float | None = None, keepdim: bool = False
) -> tuple[Interval, Interval]:
    """Variance and mean."""
    return _moments(x, dim, correction, keepdim)


@transfer("std_mean")
def std_mean(
    x: Interval, dim: Dim = None, correction: float | None = None, keepdim: bool = False
) -> tuple[Interval, Interval]:
    """Standard deviation and mean."""
    return _moments(x, dim, correction, keepdim, root=True)


# --- norms and logsumexp -------------------------------------------------------------------


@transfer("linalg_vector_norm")
def linalg_vector_norm(
    x: Interval,
    ord: float = 2,
    dim: Dim = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Interval:
    """(sum |x|^p)^(1/p), increasing in every |x|; infinite once the sum overflows.

    p = inf: the largest |x|; p = -inf: the smallest; p = 0: the count of x != 0; other
    p < 0: anything that is not negative.
    """
    x = _cast(x, dtype)
    dims = normal_dims(dim, len(x.shape))
    if x.is_empty_tensor:
        shape = reduced_shape(x.shape, dims, keepdim)
        return (
            Interval.point(x.lower.new_zeros(shape)) if 0 <= ord < math.inf else unknown(shape, x)
        )
    return _packed(_norm(x, float(ord), dims), x, dims, keepdim, x.dtype)


@transfer("_cdist_forward")
def _cdist_forward(x1: Interval, x2: Interval, p: float, compute_mode: int | None) -> Interval:
    """Norms of the differences of all rows `[..., P, M]` and `[..., R, M]`.

    For p = 2 some kernels take the root of |a|^2 - 2 a.b + |b|^2, whose rounding error is
    that of the squares.
    """
    shape = (
        *broadcast_shapes(x1.shape[:-2], x2.shape[:-2]), x1.shape[-2], x2.shape[-2],
    )  # fmt: skip
    width = x1.shape[-1]
    if 0 in shape or width == 0:
        return like(0.0, 0.0, shape, x1)
    first, second = Box.of(x1).merged(), Box.of(x2).merged()
    difference = first - second
    row = Interval.full(0, difference.peak, (width,), torch.float64)
    total = _norm(row, float(p), (0,)).peak * (1 + 8 * sum_error(width + 8, first.dtype))
    if p == 2:
        squares = width * (first.peak * first.peak + second.peak * second.peak)
        total += math.sqrt(8 * sum_error(width + 8, first.dtype) * squares)
        if not squares < largest(first.dtype) / 8:
            return unknown(shape, x1)
    lost = difference.may_nan or not total * width < largest(x1.dtype) / 8
    return difference.constant(0.0, total).with_nan(lost).rounded().interval(shape, x1.dtype)


def _norm(x: Interval, p: float, dims: Sequence[int]) -> Box:
    size = Box.of(x).abs()
    if p < 0 and math.isfinite(p):
        layout = [1 if d in dims else n for d, n in enumerate(x.lower.shape)]
        zero = size.lower.new_zeros(layout)
        return Box(zero, zero + math.inf, size.dtype, may_nan=True)
    count = math.prod(x.shape[d] for d in dims)
    lower, upper = size.lower, size.upper
    if math.isinf(p):
        fold = "amax" if p > 0 else "amin"
        if dims:
            lower = getattr(lower, fold)(tuple(dims), keepdim=True)
            upper = getattr(upper, fold)(tuple(dims), keepdim=True)
        return Box(lower, upper, size.dtype, size.may_nan)
    if p == 0:
        lower, upper = (lower > 0).double(), (upper > 0).double()
        if size.may_nan:  # NaN counts as not zero
            lower, upper = torch.zeros_like(lower), torch.ones_like(upper)
    else:
        lower, upper = lower**p, upper**p
    powers = Box(lower, upper, size.dtype, size.may_nan)
    if p not in (0.0, 1.0):
        powers = powers.rounded(ulps=32 + 16 * p)
    full = [d for d in dims if x.lower.shape[d] == x.shape[d]]
    total = powers.sum(full, repeats=count / math.prod(x.shape[d] for d in full), terms=count)
    if p in (0.0, 1.0):
        return total
    slack = 32 * max(1.0, 1 / p)
    return Box(total.lower ** (1 / p), total.upper ** (1 / p), size.dtype, total.may_nan).rounded(
        slack
    )


@transfer("norm")
def norm(
    x: Interval,
    p: float | None = 2,
    dim: Dim = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Interval:
    """The vector norm over `dim`."""
    return linalg_vector_norm(x, 2 if p is None else p, dim, keepdim, dtype)


@transfer("logsumexp")
def logsumexp(x: Interval, dim: Dim, keepdim: bool = False) -> Interval:
    """Log sum exp(x), increasing in every x; -inf only if all are.

    Kernels take the maximum out first, so nothing overflows; the error is that of a sum in
    absolute terms, plus a few ulps of the maximum.
    """
    dims = normal_dims(dim, len(x.shape))
    if x.is_empty_tensor:
        return _of_empty(torch.logsumexp, x, list(dims), keepdim)  # type: ignore[no-any-return]
    return _packed(_logsumexp(x, dims), x, dims, keepdim, x.dtype)


def _logsumexp(x: Interval, dims: Sequence[int]) -> Box:
    box = Box.of(x)
    count = math.prod(x.shape[d] for d in dims)
    merged = math.prod(x.shape[d] for d in dims if x.lower.shape[d] != x.shape[d])
    lower, upper = box.lower, box.upper
    if dims:
        lower = torch.logsumexp(lower, tuple(dims), keepdim=True)
        upper = torch.logsumexp(upper, tuple(dims), keepdim=True)
    shift = math.log(merged)
    # Written out of exp, sum and log, each of which rounds to the tensor's own dtype.
    steps = 16 * unit_roundoff(x.dtype) * (1 + math.log(count))
    error = 2 * sum_error(count, box.dtype) + steps
    return Box(lower + shift, upper + shift, box.dtype, box.may_nan).rounded(absolute=error)


@transfer("logcumsumexp")
def logcumsumexp(x: Interval, dim: int) -> Interval:
    """Log of running sums of exp(x): from the smallest x to the logsumexp of all."""
    if x.is_empty_tensor or not x.shape:
        return x
    along = dim % len(x.shape)
    # One step of the kernel errs by a few ulps of the running value, n steps by n times that.
    total = _logsumexp(x, (along,)).rounded(ulps=8 * x.shape[along])
    one = Box.of(x.merged([d for d in range(len(x.shape)) if d != along]))
    lower = one.rounded(ulps=8 * x.shape[along], absolute=sum_error(x.shape[along], one.dtype))
    return outward(lower.lower, total.upper, x.shape, x.dtype, x.may_nan)
