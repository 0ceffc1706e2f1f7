"""Distances between points, products of three tensors, sums without NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import (
    Box,
    broadcast_shapes,
    largest,
    like,
    sum_error,
    unknown,
)
from ranum.analysis.transfer._reducing import Dim
from ranum.analysis.transfer.elementwise import sub
from ranum.analysis.transfer.norms import linalg_vector_norm, norm_of
from ranum.analysis.transfer.reduction import sum_
from ranum.analysis.transfer.registry import transfer

_RATIO = 2.0
"""How much larger a difference may be than a distance that holds it, by underflow."""


def _distance(a: Interval, b: Interval, p: float, shape: Sequence[int]) -> Interval:
    """From 0 to count^(1/p) times the largest difference, for p > 0; a count for p = 0."""
    count = a.shape[-1] if a.shape else 1
    if a.is_empty_tensor or b.is_empty_tensor or count == 0:
        return like(0.0, 0.0, shape, a)
    difference = Box.native(a.merged()).merged() - Box.native(b.merged()).merged()
    if p == 0:
        return like(0.0, float(count), shape, a).with_nan(difference.may_nan)
    # The product form of the Euclidean distance cancels: sizes count, not differences.
    size = Box.native(a.merged()).peak + Box.native(b.merged()).peak
    try:
        overflow = p != math.inf and not count * size ** max(p, 1.0) < largest(a.dtype) / 8
        reach = 1.0 if p == math.inf else float(count) ** (1 / p)
    except OverflowError:
        overflow, reach = True, math.inf
    if overflow or not difference.is_finite or not math.isfinite(reach):
        return like(0.0, math.inf, shape, a).with_nan()
    most = size if p == 2 else difference.peak
    slack = 1 + (count + 64) * (1 + max(p if math.isfinite(p) else 1.0, 1 / p)) * (
        2 * unit_roundoff(a.dtype)
    )
    tiny = torch.finfo(a.dtype).smallest_normal ** min(1.0, 1 / p if p != math.inf else 1.0)
    top = most * reach * slack + count * tiny
    return like(0.0, top, shape, a)


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
    error = 8 * sum_error(width + 8, x1.dtype)  # half types keep the squares in half
    total = norm_of(row, float(p), (0,)).peak * (1 + error)
    if p == 2:
        squares = width * (first.peak * first.peak + second.peak * second.peak)
        total += math.sqrt(error * squares)
        if not squares < largest(x1.dtype) / 8:
            return unknown(shape, x1)
    lost = difference.may_nan or not total * width < largest(x1.dtype) / 8
    return difference.constant(0.0, total).with_nan(lost).rounded().interval(shape, x1.dtype)


@transfer("_pdist_forward")
def pdist(x: Interval, p: float = 2) -> Interval:
    """Distances between all pairs of rows of `[N, D]`."""
    rows = x.shape[0]
    return _distance(x, x, p, (max(rows * (rows - 1) // 2, 0),))


@transfer("_cdist_backward", "_pdist_backward", phase="backward")
def distance_backward(
    grad: Interval,
    p: float,
    x: Interval | None = None,
    x1: Interval | None = None,
    x2: Interval | None = None,
    cdist: Interval | None = None,
    pdist: Interval | None = None,
) -> Interval | None:
    """Grad times (|d| / distance)^(p - 1), 0 where the distance is: at most 2 |grad| per pair.

    Both distances are made by the kernels that add up |d|^p: what they lose of a difference by
    underflow is half of it at most. Nothing bounds the ratio for p < 1, and where |d|^p
    overflows it can be Inf / Inf.
    """
    own = x if x1 is None else x1
    if own is None or not own.is_finite or (x2 is not None and not x2.is_finite):
        return None
    if 0 < p < 1 or not _is_far_from_overflow(own, own if x2 is None else x2, p):
        return None
    pairs = math.prod(grad.shape) or 1
    ratio = 1.0 if p in (0, 1, math.inf) else _RATIO
    shape = own.shape  # also where x2 is empty, whatever its batch
    if x2 is not None and 0 not in (*x2.shape, *grad.shape):
        shape = (*broadcast_shapes(own.shape[:-2], x2.shape[:-2]), *own.shape[-2:])
    size = ratio * Box.native(grad.merged()).peak
    return _symmetric(size, pairs, Interval.top(shape, own.dtype), grad.may_nan)


def _is_far_from_overflow(a: Interval, b: Interval, p: float) -> bool:
    """True if the sum of |d|^p over a row stays finite."""
    reach = Box.native(a.merged()).peak + Box.native(b.merged()).peak
    if p in (0, 1):
        return True
    if p == math.inf:
        return reach < largest(a.dtype) / 8
    try:
        return bool(max(a.shape[-1], 1) * reach**p < largest(a.dtype) / 8)
    except OverflowError:
        return False


def _symmetric(size: float, count: int, like_x: Interval, may_nan: bool) -> Interval:
    """Sums of `count` numbers no larger than `size`, for anything of the shape of `like_x`."""
    bound = size * count * math.exp(4 * (count + 8) * unit_roundoff(like_x.dtype))
    if not bound <= largest(like_x.dtype):
        return Interval.top(like_x.shape, like_x.dtype)
    return like(-bound, bound, like_x.shape, like_x).with_nan(may_nan)


@transfer("dist")
def dist(x: Interval, other: Interval, p: float = 2) -> Interval:
    """The p-norm of the difference."""
    return linalg_vector_norm(sub(x, other), p)


@transfer("_trilinear")
def trilinear(
    i1: Interval,
    i2: Interval,
    i3: Interval,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Interval:
    """Products of three tensors with new dimensions at `expand*`, summed over `sumdim`."""
    shapes: list[tuple[int, ...]] = []
    for item, dims in ((i1, expand1), (i2, expand2), (i3, expand3)):
        sizes = list(item.shape)
        for dim in dims:
            sizes.insert(dim, 1)
        shapes.append(tuple(sizes))
    whole = broadcast_shapes(*shapes)
    shape = tuple(n for d, n in enumerate(whole) if d not in sumdim)
    count = math.prod(whole[d] for d in sumdim)
    if 0 in whole:
        return like(0.0, 0.0, shape, i1)
    one, two, three = (Box.native(item.merged()).merged() for item in (i1, i2, i3))
    # Kernels multiply in either order, and add up some products before the last factor.
    product = (one * two * three).hull(one * (two * three)).hull((one * three) * two)
    total = product.with_zero().times(count)
    reach = one.peak * max(two.peak, three.peak, two.peak * three.peak) * count
    if not reach < largest(i1.dtype) / 8:
        return Interval.top(shape, i1.dtype)
    spread = 8 * (count + 8) * unit_roundoff(i1.dtype) * product.peak * count
    return total.replaced(total.lower - spread, total.upper + spread).interval(shape, i1.dtype)


@transfer("linalg_cross")
def cross(x: Interval, other: Interval, dim: int = -1) -> Interval:
    """x_i y_j - x_j y_i along a dimension of three."""
    shape = broadcast_shapes(x.shape, other.shape)
    if 0 in shape:
        return like(0.0, 0.0, shape, x)
    product = Box.native(x.merged()).merged() * Box.native(other.merged()).merged()
    return (product - product).rounded(16).interval(shape, x.dtype)


@transfer("nansum")
def nansum(
    x: Interval, dim: Dim = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Interval:
    """Sum with 0 in place of NaN."""
    if x.may_nan:
        low, high = x.lower.clamp(max=0), x.upper.clamp(min=0)
        x = Interval(low, high, x.shape, x.dtype)
    return sum_(x, dim, keepdim, dtype)


@transfer("renorm")
def renorm(x: Interval, p: float, dim: int, maxnorm: float) -> Interval:
    """x, or x scaled down by a factor below 1 where a slice's norm exceeds `maxnorm`."""
    if x.may_nan or x.may_inf:
        return Interval.top(x.shape, x.dtype)
    box = Box.native(x)
    return (box * box.constant(0.0, 1.0)).hull(box).with_nan(p <= 0).interval(x.shape, x.dtype)
