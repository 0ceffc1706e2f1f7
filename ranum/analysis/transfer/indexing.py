"""Transfer functions that read or write by index: gathers, embeddings, scatters.

Indices that are exact data are followed; others may pick any element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ranum.analysis.interval import MERGE_ABOVE, Interval, unit_roundoff
from ranum.analysis.transfer._common import broadcast_shapes
from ranum.analysis.transfer.combinators import (
    Operand,
    coarsened,
    is_known,
    may_nan,
    shape_of,
    union,
)
from ranum.analysis.transfer.elementwise import mul
from ranum.analysis.transfer.layout import expand, expanded, moved, reshape, resized, unmerged
from ranum.analysis.transfer.registry import transfer
from ranum.analysis.transfer.selection import cast

aten = torch.ops.aten


# --- picking by index ----------------------------------------------------------------------


@transfer("index")
def index(
    x: Interval, indices: Sequence[Interval | None], shape: Sequence[int] | None = None
) -> Interval:
    """x[indices]; an unknown index may pick any element along its dimension.

    What an unknown mask picks has the shape of the recorded step, `shape`.

    Raises:
        ValueError: For an unknown boolean mask, if `shape` is not given.
    """
    if shape is not None and any(_is_unknown_mask(item) for item in indices):
        return _reshaped_hull(x, shape)
    picks = _picks(indices)
    dims = [dim for dim, pick in enumerate(picks) if pick is not None]
    shape = _indexed_shape(x.shape, picks)
    if all(pick is None or pick.is_point for pick in picks):
        known = [None if pick is None else pick.lower for pick in picks]
        if x.is_point or any(x.lower.shape[dim] > 1 for dim in dims) or 0 in shape:
            return moved(lambda bound: _index(bound, known), expanded(x, dims), shape)
    merged = x.merged([dim for dim in range(len(x.shape)) if dim not in dims])
    first = [None if pick is None else _first(pick) for pick in picks]
    return moved(lambda bound: _index(bound, first), merged, shape)


def _is_unknown_mask(item: Interval | None) -> bool:
    return item is not None and item.dtype in (torch.bool, torch.uint8) and not item.is_point


def _picks(indices: Sequence[Interval | None]) -> list[Interval | None]:
    """Integer indices; a known mask becomes one index per dimension it covers."""
    picks: list[Interval | None] = []
    for item in indices:
        if item is None or item.dtype not in (torch.bool, torch.uint8):
            picks.append(item)
        elif item.is_point:
            picks += [Interval.point(place) for place in item.lower.bool().nonzero().unbind(1)]
        else:
            raise ValueError("index by an unknown mask has no known shape")
    return picks


def _index(bound: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    result: Tensor = aten.index(bound, indices)
    return result


def _indexed_shape(shape: Sequence[int], picks: Sequence[Interval | None]) -> tuple[int, ...]:
    """Index shapes broadcast; they take the place of adjacent dimensions, else come first."""
    dims = [dim for dim, pick in enumerate(picks) if pick is not None]
    chosen = shape_of(*(pick for pick in picks if pick is not None))
    adjacent = dims == list(range(dims[0], dims[0] + len(dims)))
    place = dims[0] if adjacent else 0
    rest = [size for dim, size in enumerate(shape) if dim not in dims]
    return (*rest[:place], *chosen, *rest[place:])


def _first(pick: Interval) -> Tensor:
    return torch.zeros((1,) * len(pick.shape), dtype=torch.int64, device=pick.lower.device)


@transfer("index_select")
def index_select(x: Interval, dim: int, index: Interval) -> Interval:
    """Chosen positions along one dimension."""
    if not x.shape:
        return x
    shape = resized(x.shape, dim, math.prod(index.shape))
    if index.is_point and x.lower.shape[dim] == x.shape[dim]:
        return moved(lambda bound: bound.index_select(dim, index.lower), x, shape)
    kept = [other for other in range(len(x.shape)) if other != dim % len(x.shape)]
    return moved(lambda bound: bound, x.merged(kept), shape)


@transfer("gather")
def gather(x: Interval, dim: int, index: Interval, sparse_grad: bool = False) -> Interval:
    """Elements at given positions along one dimension, the same place in the others."""
    if len(index.shape) != len(x.shape) and 0 in index.shape:  # torch allows it
        return Interval.full(0, 0, index.shape, x.dtype)
    if x.shape == () or index.shape == ():
        return _reshaped_hull(x, index.shape)
    if index.is_point and (x.is_point or x.lower.shape[dim] > 1):
        return moved(lambda bound: bound.gather(dim, index.lower), unmerged(x), index.shape)
    kept = [other for other in range(len(x.shape)) if other != dim % len(x.shape)]
    corner = tuple(slice(size) for size in index.shape)
    return moved(lambda bound: bound[corner], x.merged(kept), index.shape)


def _reshaped_hull(x: Interval, shape: Sequence[int]) -> Interval:
    return moved(lambda bound: bound.reshape((1,) * len(shape)), x.merged(), shape)


@transfer("embedding")
def embedding(
    weight: Interval,
    indices: Interval,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Interval:
    """Rows of a table `[C, D]`; any row, column by column, for unknown indices."""
    shape = indices.shape + weight.shape[1:]
    rows = math.prod(indices.shape) * math.prod(weight.lower.shape[1:])
    has_rows = weight.lower.shape[0] == weight.shape[0]
    if indices.is_point and has_rows and (weight.is_point or rows <= MERGE_ABOVE):
        return moved(lambda bound: bound[indices.lower], weight, shape)
    merged = weight.merged(keep=range(1, len(weight.shape)))
    lead = (1,) * len(indices.shape)
    return moved(lambda bound: bound.reshape(lead + tuple(bound.shape[1:])), merged, shape)


@transfer("masked_select")
def masked_select(x: Interval, mask: Interval, shape: Sequence[int] | None = None) -> Interval:
    """Elements where a mask holds, as a vector; for an unknown mask, of the recorded length.

    Raises:
        ValueError: For an unknown mask, if `shape` is not given.
    """
    if not mask.is_point and shape is not None:
        return _reshaped_hull(x, shape)
    if not mask.is_point:
        raise ValueError("masked_select by an unknown mask has no known shape")
    full = shape_of(x, mask)
    chosen = mask.lower.expand(full)
    count = int(chosen.sum())
    return moved(lambda bound: bound[chosen], unmerged(expand(x, full)), (count,))


# --- writing by index ----------------------------------------------------------------------


@transfer("masked_scatter")
def masked_scatter(x: Interval, mask: Interval, source: Interval) -> Interval:
    """Elements of the source, in order, where the mask holds; x elsewhere, both broadcast."""
    shape = broadcast_shapes(x.shape, mask.shape)
    if shape != x.shape:
        x = Interval.between(x.lower, x.upper, shape, x.dtype, x.may_nan)
    if source.is_empty_tensor:
        return x
    return union(x, _reshaped_hull(source, (1,) * len(shape)))


@transfer("slice_scatter")
def slice_scatter(
    x: Interval,
    src: Interval,
    *,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Interval:
    """`src` written over a slice of x."""
    return _overwritten(lambda a, b: aten.slice_scatter(a, b, dim, start, end, step), x, src)


@transfer("select_scatter")
def select_scatter(x: Interval, src: Interval, dim: int, index: int) -> Interval:
    """`src` written over one position of x along a dimension."""
    return _overwritten(lambda a, b: aten.select_scatter(a, b, dim, index), x, src)


def _overwritten(write: Callable[[Tensor, Tensor], Tensor], x: Interval, src: Interval) -> Interval:
    x, src = unmerged(x), unmerged(cast(src, x.dtype))
    if is_known(x, src):
        return Interval.point(write(x.lower, src.lower))
    low, high = write(x.lower, src.lower), write(x.upper, src.upper)
    return Interval(low, high, x.shape, x.dtype, may_nan(x, src))


@transfer("scatter")
def scatter(
    x: Interval,
    dim: int,
    index: Interval,
    *,
    src: Interval | None = None,
    value: Operand | None = None,
    reduce: str | None = None,
) -> Interval:
    """`src` or `value` written at given positions of x along one dimension.

    Where positions repeat, any of the values written there may stay.
    """
    written = _written(x, index, src, value)
    if reduce is not None:
        return Interval.top(x.shape, x.dtype)
    if index.is_empty_tensor:
        return x
    if not index.is_point:
        return union(x, _reshaped_hull(written, (1,) * len(x.shape)))
    whole, known = unmerged(x), index.lower
    corner = tuple(slice(size) for size in index.shape)
    source = moved(lambda bound: bound[corner], unmerged(written), index.shape)
    if is_known(x, source) and value is not None:
        return Interval.point(whole.lower.scatter(dim, known, source.lower))
    low = _extreme(whole.lower, dim, known, source.lower, "amin")
    high = _extreme(whole.upper, dim, known, source.upper, "amax")
    return Interval.between(low, high, x.shape, x.dtype, may_nan(x, written))


def _written(x: Interval, index: Interval, src: Interval | None, value: Operand | None) -> Interval:
    if src is not None:
        return src
    if isinstance(value, Interval):
        return expand(cast(value, x.dtype), index.shape)
    data = torch.full((), value, dtype=x.dtype)  # type: ignore[arg-type]
    return Interval.point(data.expand(index.shape))


def _extreme(x: Tensor, dim: int, index: Tensor, src: Tensor, reduction: str) -> Tensor:
    if x.dtype == torch.bool:
        return _extreme(x.byte(), dim, index, src.byte(), reduction).bool()
    return x.scatter_reduce(dim, index, src, reduction, include_self=False)


@transfer("scatter_add")
def scatter_add(x: Interval, dim: int, index: Interval, src: Interval) -> Interval:
    """Everything of `src` added to x at the position it is sent to."""
    if not x.shape:
        x, index, src = (_as_vector(item) for item in (x, index, src))
        return reshape(scatter_add(x, 0, index, src), ())
    corner = tuple(slice(size) for size in index.shape)
    if index.is_point:
        source = moved(lambda bound: bound[corner], unmerged(src), index.shape)
        return _accumulated(lambda a, b: a.scatter_add(dim, index.lower, b), x, source)
    return _accumulated_somewhere(x, src, index.shape[dim])


@transfer("index_add")
def index_add(
    x: Interval, dim: int, index: Interval, source: Interval, alpha: float = 1
) -> Interval:
    """Slices of `source` added to x, each at its position along one dimension."""
    if not x.shape:
        return reshape(
            index_add(_as_vector(x), 0, _as_vector(index), _as_vector(source), alpha), ()
        )
    if alpha != 1 and not x.dtype.is_floating_point:
        return Interval.top(x.shape, x.dtype)
    if alpha != 1:
        source = coarsened(mul(source, alpha), source.dtype)
    if index.is_point:
        source = unmerged(source)
        return _accumulated(lambda a, b: a.index_add(dim, index.lower, b), x, source)
    return _accumulated_somewhere(x, source, math.prod(index.shape))


def _as_vector(x: Interval) -> Interval:
    return reshape(x, (1,)) if x.shape == () else x


@transfer("index_put", "_unsafe_index_put")
def index_put(
    x: Interval,
    indices: Sequence[Interval | None],
    values: Interval,
    accumulate: bool = False,
) -> Interval:
    """x[indices] = values, or += with `accumulate`.

    Where positions repeat, any of the values written there may stay. A mask has no position
    twice.
    """
    if any(_is_unknown_mask(item) for item in indices):
        if accumulate:
            return _accumulated_somewhere(x, values, 1)
        return union(x, _reshaped_hull(values, (1,) * len(x.shape)))
    picks = _picks(indices)
    known = [None if pick is None else pick.lower for pick in picks]
    shape = _indexed_shape(x.shape, picks)
    if not all(pick is None or pick.is_point for pick in picks):
        if accumulate:
            return _accumulated_somewhere(x, values, math.prod(shape))
        return union(x, _reshaped_hull(values, (1,) * len(x.shape)))
    source = unmerged(expand(values, shape))
    if accumulate:
        return _accumulated(lambda a, b: aten.index_put(a, known, b, True), x, source)
    return _put(x, known, source)


def _put(x: Interval, indices: list[Tensor | None], values: Interval) -> Interval:
    one = torch.ones((), dtype=torch.int64, device=x.device)
    hits = torch.zeros(x.shape, dtype=torch.int64, device=x.device)
    hits = aten.index_put(hits, indices, one, True)
    if bool((hits <= 1).all()):
        return _overwritten(lambda a, b: aten.index_put(a, indices, b), x, values)
    any_value = _reshaped_hull(values, (1,) * len(x.shape))
    low = torch.where(hits > 0, any_value.lower, x.lower)
    high = torch.where(hits > 0, any_value.upper, x.upper)
    return Interval.between(low, high, x.shape, x.dtype, may_nan(x, values))


def _accumulated(
    add: Callable[[Tensor, Tensor], Tensor], x: Interval, source: Interval
) -> Interval:
    """Sums at known positions, in any order; positions that get nothing stay as they are."""
    x = unmerged(x)
    if not x.dtype.is_floating_point:
        return Interval.top(x.shape, x.dtype)
    low = add(x.lower.double(), source.lower.double())
    high = add(x.upper.double(), source.upper.double())
    magnitude = add(x.magnitude.double(), source.magnitude.double())
    terms = add(torch.ones_like(low), torch.ones_like(source.lower, dtype=torch.float64))
    result = _rounded_sum(x, source, low=low, high=high, magnitude=magnitude, terms=terms)
    untouched = terms == 1
    return Interval.between(
        torch.where(untouched, x.lower, result.lower),
        torch.where(untouched, x.upper, result.upper),
        x.shape,
        x.dtype,
        result.may_nan,
    )


def _accumulated_somewhere(x: Interval, source: Interval, count: int) -> Interval:
    """Sums at unknown positions: up to `count` terms of either sign anywhere."""
    if not x.dtype.is_floating_point:
        return Interval.top(x.shape, x.dtype)
    if source.is_empty_tensor:
        return x
    term = _reshaped_hull(source, (1,) * len(x.shape))
    low = x.lower.double() + term.lower.double().clamp(max=0) * count
    high = x.upper.double() + term.upper.double().clamp(min=0) * count
    magnitude = x.magnitude.double() + term.magnitude.double() * count
    terms = torch.full_like(magnitude, count + 1)
    return _rounded_sum(x, source, low=low, high=high, magnitude=magnitude, terms=terms)


def _rounded_sum(
    x: Interval, source: Interval, *, low: Tensor, high: Tensor, magnitude: Tensor, terms: Tensor
) -> Interval:
    """Sums of `terms` numbers, rounded to the dtype of x after each addition.

    n roundings multiply by at most (1 + u)^n <= exp(n u); twice that for our own. Where the
    sum of magnitudes overflows, so may a partial sum, and infinities of both signs may meet.
    """
    slack = magnitude * torch.expm1(2 * (terms + 1) * unit_roundoff(x.dtype))
    overflow = ~(magnitude + slack < torch.finfo(x.dtype).max)
    nan = may_nan(x, source) or bool((overflow & (terms > 1)).any())
    return Interval.between(
        (low - slack).masked_fill(overflow, -math.inf),
        (high + slack).masked_fill(overflow, math.inf),
        x.shape,
        x.dtype,
        nan,
    )
