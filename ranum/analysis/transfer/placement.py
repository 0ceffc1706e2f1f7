"""Transfer functions that put values at places: diagonals, takes, copies, reductions by index.

Coarse on purpose: where a place is not followed, any of the values may be there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import Box, broadcast_shapes, indices, largest
from ranum.analysis.transfer.combinators import Operand
from ranum.analysis.transfer.indexing import scatter_add
from ranum.analysis.transfer.layout import moved, unmerged
from ranum.analysis.transfer.registry import transfer

_EXACT = 2.0**53


def any_of(shape: Sequence[int], dtype: torch.dtype, *sources: Operand) -> Interval:
    """Each element is one of the sources' elements, in whatever place."""
    low, high, nan = math.inf, -math.inf, False
    for source in sources:
        if isinstance(source, Interval):
            low, high = min(low, source.low), max(high, source.high)
            nan = nan or source.may_nan
        else:
            low, high = min(low, float(source)), max(high, float(source))
            nan = nan or math.isnan(source)
    if nan or low > high or (not dtype.is_floating_point and max(-low, high) > _EXACT):
        return Interval.top(shape, dtype)
    return Interval.full(low, high, shape, dtype)


def _size(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    place = dim % len(shape) if shape else 0
    return tuple(size if d == place else n for d, n in enumerate(shape))


# --- diagonals -----------------------------------------------------------------------------


@transfer("diag_embed")
def diag_embed(x: Interval, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Interval:
    """X on a diagonal, 0 elsewhere."""
    shape = torch.diag_embed(torch.empty(x.shape, device="meta"), offset, dim1, dim2).shape
    full = unmerged(x)
    return moved(lambda bound: torch.diag_embed(bound, offset, dim1, dim2), full, shape)


@transfer("diagonal_scatter")
def diagonal_scatter(
    x: Interval, src: Interval, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Interval:
    """`src` written over a diagonal of x."""
    x, src = unmerged(x), unmerged(src)
    low, high = (
        torch.diagonal_scatter(into, part.to(x.dtype), offset, dim1, dim2)
        for into, part in ((x.lower, src.lower), (x.upper, src.upper))
    )
    return Interval(low, high, x.shape, x.dtype, x.may_nan or src.may_nan)


@transfer("block_diag")
def block_diag(tensors: Sequence[Interval]) -> Interval:
    """Matrices along a diagonal, 0 elsewhere."""
    sizes = [(1, 1) if not t.shape else (1, *t.shape)[-2:] for t in tensors]
    shape = (sum(rows for rows, _ in sizes), sum(columns for _, columns in sizes))
    dtype = torch.empty(0, dtype=tensors[0].dtype).dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return any_of(shape, dtype, 0.0, *tensors)


# --- views as copies -----------------------------------------------------------------------


@transfer("narrow_copy")
def narrow_copy(x: Interval, dim: int, start: int, length: int) -> Interval:
    """A part of x along one dimension."""
    return any_of(_size(x.shape, dim, length), x.dtype, x)


@transfer("unfold_copy")
def unfold_copy(x: Interval, dimension: int, size: int, step: int) -> Interval:
    """Windows of x along one dimension."""
    probe = torch.empty(x.shape, device="meta").unfold(dimension, size, step)
    return any_of(probe.shape, x.dtype, x)


@transfer("rot90")
def rot90(x: Interval, k: int = 1, dims: Sequence[int] = (0, 1)) -> Interval:
    """Turned by k right angles."""
    shape = torch.rot90(torch.empty(x.shape, device="meta"), k, tuple(dims)).shape
    return any_of(shape, x.dtype, x)


@transfer("as_strided_copy")
def as_strided_copy(
    x: Interval, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Interval | None:
    """Elements of the memory behind x, which may be more than x."""
    return None


@transfer("as_strided_scatter")
def as_strided_scatter(
    x: Interval,
    src: Interval,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> Interval:
    """`src` written to elements of x."""
    return any_of(x.shape, x.dtype, x, src)


# --- by index ------------------------------------------------------------------------------


@transfer("take")
def take(x: Interval, index: Interval) -> Interval:
    """Elements by their position in the flattened tensor."""
    if index.is_point and x.lower.shape == x.shape:
        return moved(lambda bound: bound.take(index.lower), x, index.shape)
    return any_of(index.shape, x.dtype, x)


@transfer("put")
def put(x: Interval, index: Interval, source: Interval, accumulate: bool = False) -> Interval:
    """`source` written to positions of the flattened x, or added there."""
    if accumulate:
        return _summed_into(x, source, math.prod(index.shape))
    return any_of(x.shape, x.dtype, x, source)


@transfer("index_fill")
def index_fill(x: Interval, dim: int, index: Interval, value: Operand) -> Interval:
    """A number written to chosen positions along one dimension."""
    return any_of(x.shape, x.dtype, x, value)


@transfer("index_copy")
def index_copy(x: Interval, dim: int, index: Interval, source: Interval) -> Interval:
    """`source` written to chosen positions along one dimension."""
    return any_of(x.shape, x.dtype, x, source)


@transfer("masked_scatter_backward", phase="backward")
def masked_scatter_backward(
    grad_output: Interval, mask: Interval, sizes: Sequence[int]
) -> Interval:
    """The gradients of the written elements, and 0 for what was not used."""
    return any_of(tuple(sizes), grad_output.dtype, grad_output, 0.0)


@transfer("_unsafe_masked_index")
def unsafe_masked_index(
    x: Interval, mask: Interval, indices: Sequence[Interval | None], fill: float
) -> Interval | None:
    """x[indices] where a mask holds, else a number."""
    if any(item is None for item in indices):
        return None
    shape = broadcast_shapes(mask.shape, *(item.shape for item in indices if item))
    if len(indices) != len(x.shape):
        return None
    return any_of(shape, x.dtype, x, fill)


@transfer("_unsafe_masked_index_put_accumulate", phase="backward")
def unsafe_masked_index_put_accumulate(
    x: Interval, mask: Interval, indices: Sequence[Interval | None], values: Interval
) -> Interval:
    """Values where a mask holds, added to x at indices."""
    return _summed_into(x, values, math.prod(values.shape))


def _summed_into(x: Interval, source: Interval, count: int) -> Interval:
    """Up to `count` elements of `source` added to each element of x."""
    if not x.dtype.is_floating_point:
        return Interval.top(x.shape, x.dtype)
    if x.is_empty_tensor or source.is_empty_tensor or count == 0:
        return x
    part = Box.native(source.merged()).merged().with_zero()
    total = Box.native(x.merged()).merged() + part.times(count)
    slack = math.expm1((count + 8) * unit_roundoff(x.dtype)) * 2
    total = total.replaced(
        total.lower - slack * total.magnitude, total.upper + slack * total.magnitude
    )
    return total.rounded().interval(x.shape, x.dtype)


# --- reductions by index -------------------------------------------------------------------


@transfer("scatter_reduce")
def scatter_reduce(
    x: Interval, dim: int, index: Interval, src: Interval, reduce: str, include_self: bool = True
) -> Interval | None:
    """What is sent to a position, reduced there: sum, mean or extremes; products have no bound.

    Positions that get nothing keep x.
    """
    if reduce == "sum":
        return any_of(x.shape, x.dtype, x, scatter_add(x, dim, index, src), _sum(x, src, index))
    return _reduced_by(x, src, reduce, math.prod(index.shape))


def _sum(x: Interval, src: Interval, index: Interval) -> Interval:
    return _summed_into(any_of(x.shape, x.dtype, x, 0.0), src, math.prod(index.shape))


@transfer("index_reduce")
def index_reduce(
    x: Interval, dim: int, index: Interval, source: Interval, reduce: str, include_self: bool = True
) -> Interval | None:
    """Slices sent to positions along a dimension, reduced there."""
    return _reduced_by(x, source, reduce, math.prod(index.shape))


def _reduced_by(x: Interval, source: Interval, reduce: str, count: int) -> Interval | None:
    hull = any_of(x.shape, x.dtype, x, source)
    if reduce in ("amax", "amin"):
        return hull
    if reduce != "mean" or not x.dtype.is_floating_point or x.is_empty_tensor:
        return None
    box = Box.native(hull.merged()).merged()
    total = box.times(count + 1)
    if not total.is_finite or box.peak * (count + 1) > largest(x.dtype) / 2:
        return None
    slack = 4 * math.expm1((count + 8) * unit_roundoff(x.dtype)) * box.magnitude
    widened = box.replaced(box.lower - slack, box.upper + slack)
    return widened.rounded().interval(x.shape, x.dtype)


# --- positions and counts ------------------------------------------------------------------


@transfer("searchsorted", "bucketize")
def searchsorted(
    x: Operand,
    sorted_sequence: Interval | None = None,
    boundaries: Interval | None = None,
    out_int32: bool = False,
    **_: Any,
) -> Interval:
    """A position among the boundaries: 0 to their number."""
    edges = boundaries if sorted_sequence is None else sorted_sequence
    shape = x.shape if isinstance(x, Interval) else ()
    count = edges.shape[-1] if edges is not None and edges.shape else 1
    dtype = torch.int32 if out_int32 else torch.int64
    return Interval.full(0, count, shape, dtype)


@transfer(
    "nonzero", "nonzero_static", "_unique2", "unique_consecutive", "segment_reduce",
    "_segment_reduce_backward", "hash_tensor", "histogram", "_histogramdd_bin_edges",
    "_histogramdd_from_bin_cts",
)  # fmt: skip
def by_data(**_: Any) -> None:
    """Results whose very shape follows from the data: no bound."""


@transfer("max_unpool2d", "max_unpool3d")
def max_unpool(x: Interval, indices: Interval, output_size: Sequence[int], **_: Any) -> Interval:
    """Elements put back to where they were taken from, 0 elsewhere."""
    lead = len(x.shape) - len(output_size)
    return any_of((*x.shape[:lead], *output_size), x.dtype, x, 0.0)


# --- random numbers ------------------------------------------------------------------------


@transfer("randint_like")
def randint_like(
    x: Interval, high: int, low: int = 0, dtype: torch.dtype | None = None
) -> Interval:
    """An integer in [low, high - 1]."""
    return Interval.full(low, high - 1, x.shape, dtype or x.dtype)


@transfer("exponential", "geometric")
def exponential(x: Interval, **_: Any) -> Interval:
    """Not negative."""
    return any_of(x.shape, x.dtype, 0.0, math.inf)


@transfer("log_normal", "cauchy")
def log_normal(x: Interval, **_: Any) -> Interval:
    """Any number."""
    return any_of(x.shape, x.dtype, -math.inf, math.inf)


@transfer("fractional_max_pool2d", "fractional_max_pool3d")
def fractional_max_pool(
    x: Interval, kernel_size: Sequence[int], output_size: Sequence[int], random_samples: Interval
) -> tuple[Interval, Interval]:
    """The largest element of windows at random places."""
    spatial = len(output_size)
    lead = x.shape[: len(x.shape) - spatial]
    shape = (*lead, *output_size)
    flat = x.merged(keep=tuple(range(len(lead))))
    found = indices(math.prod(x.shape[len(lead) :]), shape, x)
    return Interval(flat.lower, flat.upper, shape, x.dtype, x.may_nan), found


@transfer("fractional_max_pool2d_backward", "fractional_max_pool3d_backward", phase="backward")
def fractional_max_pool_backward(
    grad_output: Interval,
    x: Interval,
    kernel_size: Sequence[int],
    output_size: Sequence[int],
    indices: Interval,
) -> Interval:
    """The sum of the gradients of the windows that an element wins, at most of all."""
    zero = Interval.full(0.0, 0.0, x.shape, x.dtype)
    return _summed_into(zero, grad_output, math.prod(output_size))
