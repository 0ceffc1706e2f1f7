"""Variances and standard deviations.

A merged dimension of size n stands for n elements that share one bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import (
    Box,
    largest,
    normal_dims,
    reduced_shape,
    smallest,
    sum_error,
    unknown,
)
from ranum.analysis.transfer._reducing import Dim, packed
from ranum.analysis.transfer.reduction import average_of
from ranum.analysis.transfer.registry import transfer


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
    average = average_of(x, dims)
    if not spread.is_finite:
        # The running mean of Welford's method is lost together with the variance.
        average = average.replaced(average.lower * math.nan, average.upper * math.nan)
    spread = spread.sqrt() if root else spread
    return (
        packed(spread, x, dims, keepdim, x.dtype),
        packed(average, x, dims, keepdim, x.dtype),
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
