"""Vector norms, and log sum exp, whole and running.

A merged dimension of size n stands for n elements that share one bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import (
    Box,
    normal_dims,
    outward,
    reduced_shape,
    sum_error,
    unknown,
)
from ranum.analysis.transfer._reducing import Dim, in_dtype, of_empty, packed
from ranum.analysis.transfer.registry import transfer


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
    x = in_dtype(x, dtype)
    dims = normal_dims(dim, len(x.shape))
    if x.is_empty_tensor:
        shape = reduced_shape(x.shape, dims, keepdim)
        return (
            Interval.point(x.lower.new_zeros(shape)) if 0 <= ord < math.inf else unknown(shape, x)
        )
    return packed(norm_of(x, float(ord), dims), x, dims, keepdim, x.dtype)


def norm_of(x: Interval, p: float, dims: Sequence[int]) -> Box:
    """The p-norm over `dims`, which are kept with size 1."""
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
    root = Box(total.lower ** (1 / p), total.upper ** (1 / p), size.dtype, total.may_nan)
    root = root.rounded(32 * max(1.0, 1 / p))
    # Of a single number torch takes the size, which neither underflows nor overflows.
    return root.hull(size) if count == 1 else root


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
        return of_empty(torch.logsumexp, x, list(dims), keepdim)  # type: ignore[no-any-return]
    return packed(_logsumexp(x, dims), x, dims, keepdim, x.dtype)


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
