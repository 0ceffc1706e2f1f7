"""Transfer functions that move elements: views, joins, pads, indexing, scattering.

Bounds are moved like the data they bound. A merged dimension stays merged where the
operator treats all its elements alike, and is expanded where it does not. Indices that are
exact data are followed; others may pick any element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.interval import MERGE_ABOVE, Interval, unit_roundoff
from ranum.analysis.transfer.combinators import Operand, is_known, may_nan, shape_of, union
from ranum.analysis.transfer.registry import transfer
from ranum.analysis.transfer.selection import cast

aten = torch.ops.aten


def moved(move: Callable[[Tensor], Tensor], x: Interval, shape: Sequence[int]) -> Interval:
    """Both bounds taken through the same movement; exact data stays exact."""
    if x.lower is x.upper:
        bound = move(x.lower)
        return Interval(bound, bound, tuple(shape), x.dtype, x.may_nan)
    return Interval(move(x.lower), move(x.upper), tuple(shape), x.dtype, x.may_nan)


def expanded(x: Interval, dims: Sequence[int]) -> Interval:
    """The given dimensions in full (a view); the others as they are."""
    chosen = {dim % max(len(x.shape), 1) for dim in dims}
    sizes = [
        full if dim in chosen else block
        for dim, (full, block) in enumerate(zip(x.shape, x.lower.shape, strict=True))
    ]
    if sizes == list(x.lower.shape):
        return x
    return moved(lambda bound: bound.expand(sizes), x, x.shape)


def shape_after(function: Callable[..., Tensor], x: Interval, *rest: Any) -> tuple[int, ...]:
    """The shape torch gives, found without computing anything."""
    return tuple(function(torch.empty(x.shape, dtype=x.dtype, device="meta"), *rest).shape)


def _whole(x: Interval) -> Interval:
    return expanded(x, range(len(x.shape)))


# --- views ---------------------------------------------------------------------------------


@transfer("reshape")
def reshape(x: Interval, shape: Sequence[int]) -> Interval:
    """The same elements in the same order.

    Dimensions that are split or joined together form a group. A group that was wholly
    merged stays merged; one that was partly merged is expanded, or merged if it is large.
    """
    if x.is_empty_tensor:
        return moved(lambda bound: bound.reshape(shape), _whole(x), shape)
    target: list[int] = []
    for dims, sizes in _groups(x.shape, shape):
        is_full = all(x.lower.shape[dim] == x.shape[dim] for dim in dims)
        is_merged = all(x.lower.shape[dim] == 1 for dim in dims)
        if not is_full and (is_merged or math.prod(sizes) > MERGE_ABOVE):
            x = x.merged([dim for dim in range(len(x.shape)) if dim not in dims])
            target += [1] * len(sizes)
        else:
            x = expanded(x, dims)
            target += sizes
    return moved(lambda bound: bound.reshape(target), x, shape)


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Shortest runs of dimensions of equal product: (dimensions before, sizes after)."""
    groups: list[tuple[list[int], list[int]]] = []
    first = second = 0
    while first < len(before) or second < len(after):
        dims, sizes, left, right = [], [], 1, 1
        while True:
            if first < len(before) and (left <= right or second == len(after)):
                dims.append(first)
                left *= before[first]
                first += 1
            elif second < len(after):
                sizes.append(after[second])
                right *= after[second]
                second += 1
            else:
                raise ValueError(f"cannot reshape {tuple(before)} to {tuple(after)}")
            if left == right and (sizes or second == len(after)):
                break
        groups.append((dims, sizes))
    return groups


@transfer("permute")
def permute(x: Interval, dims: Sequence[int]) -> Interval:
    """Dimensions in another order."""
    return moved(lambda bound: bound.permute(tuple(dims)), x, [x.shape[dim] for dim in dims])


@transfer("expand")
def expand(x: Interval, shape: Sequence[int]) -> Interval:
    """Repeated along new dimensions and those of size 1, which come out merged."""
    if x.is_point:
        return moved(lambda bound: bound.expand(shape), x, shape)
    lead = (1,) * (len(shape) - len(x.shape))
    return moved(lambda bound: bound.reshape(lead + tuple(bound.shape)), x, shape)


@transfer("slice")
def slice_(
    x: Interval, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Interval:
    """Every `step`-th element from start to end along one dimension."""
    chosen = range(*slice(start, end, step).indices(x.shape[dim]))
    shape = _resized(x.shape, dim, len(chosen))
    if x.lower.shape[dim] != x.shape[dim]:
        return moved(lambda bound: bound, x, shape)
    return moved(lambda bound: aten.slice(bound, dim, start, end, step), x, shape)


@transfer("select")
def select(x: Interval, dim: int, index: int) -> Interval:
    """One position along a dimension, which disappears."""
    dim %= len(x.shape)
    merged = x.lower.shape[dim] != x.shape[dim]
    shape = x.shape[:dim] + x.shape[dim + 1 :]
    return moved(lambda bound: bound.select(dim, 0 if merged else index), x, shape)


@transfer("diagonal")
def diagonal(x: Interval, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Interval:
    """Elements with equal index in two dimensions, as a new last dimension."""
    shape = shape_after(torch.diagonal, x, offset, dim1, dim2)
    x = expanded(x, (dim1, dim2))
    return moved(lambda bound: torch.diagonal(bound, offset, dim1, dim2), x, shape)


@transfer("unfold")
def unfold(x: Interval, dimension: int, size: int, step: int) -> Interval:
    """Sliding windows along one dimension, as a new last dimension."""
    shape = shape_after(aten.unfold, x, dimension, size, step)
    if not x.shape or x.lower.shape[dimension] == x.shape[dimension]:
        return moved(lambda bound: aten.unfold(bound, dimension, size, step), x, shape)
    return moved(lambda bound: bound.unsqueeze(-1), x, shape)


@transfer("as_strided")
def as_strided(
    x: Interval, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Interval:
    """Any elements of x: the hull. Storage outside x, if x is itself a view, is not seen."""
    if x.is_empty_tensor:
        return Interval.full(0, 0, size, x.dtype)
    return moved(lambda bound: bound.reshape([1] * len(size)), x.merged(), size)


def _resized(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    sizes = list(shape)
    sizes[dim] = size
    return tuple(sizes)


# --- joining and repeating -----------------------------------------------------------------


@transfer("cat")
def cat(tensors: Sequence[Interval], dim: int = 0) -> Interval:
    """One after the other along a dimension, which is expanded; empty vectors are skipped."""
    dtype = reduce(torch.promote_types, [item.dtype for item in tensors])
    parts = [cast(item, dtype) for item in tensors if item.shape != (0,)] or [*tensors[:1]]
    parts = [expanded(item, (dim,)) for item in parts]
    shape = _resized(parts[0].shape, dim, sum(item.shape[dim] for item in parts))
    if is_known(*parts):
        return Interval.point(torch.cat([item.lower for item in parts], dim))
    blocks = zip(*(item.lower.shape for item in parts), strict=True)
    sizes = [0 if 0 in column else max(column) for column in blocks]

    def joined(bounds: list[Tensor]) -> Tensor:
        aligned = [b.expand(_resized(sizes, dim, b.shape[dim])) for b in bounds]
        return torch.cat(aligned, dim)

    low, high = joined([item.lower for item in parts]), joined([item.upper for item in parts])
    return Interval(low, high, shape, dtype, may_nan(*parts))


@transfer("stack")
def stack(tensors: Sequence[Interval], dim: int = 0) -> Interval:
    """Along a new dimension."""
    dim %= len(tensors[0].shape) + 1
    shape = (*tensors[0].shape[:dim], 1, *tensors[0].shape[dim:])
    return cat([moved(lambda b: b.unsqueeze(dim), item, shape) for item in tensors], dim)


@transfer("repeat")
def repeat(x: Interval, repeats: Sequence[int]) -> Interval:
    """Copies side by side; merged dimensions stay merged."""
    lead = (1,) * (len(repeats) - len(x.shape))
    shape = [size * times for size, times in zip(lead + x.shape, repeats, strict=True)]
    if x.is_point or 0 in shape:
        return moved(lambda bound: bound.repeat(*repeats), _whole(x), shape)
    blocks = lead + tuple(x.lower.shape)
    times = [1 if block == 1 else n for block, n in zip(blocks, repeats, strict=True)]
    return moved(lambda bound: bound.reshape(blocks).repeat(times), x, shape)


@transfer("flip")
def flip(x: Interval, dims: Sequence[int]) -> Interval:
    """Backwards along some dimensions."""
    return moved(lambda bound: torch.flip(bound, list(dims)), x, x.shape)


@transfer("roll")
def roll(x: Interval, shifts: Sequence[int], dims: Sequence[int] = ()) -> Interval:
    """Shifted round; along all elements in order if no dimension is given."""
    if not dims:
        x = _whole(x)
    return moved(lambda bound: torch.roll(bound, list(shifts), list(dims)), x, x.shape)


@transfer("tril")
def tril(x: Interval, diagonal: int = 0) -> Interval:
    """0 above a diagonal."""
    return moved(lambda bound: torch.tril(bound, diagonal), expanded(x, (-2, -1)), x.shape)


@transfer("triu")
def triu(x: Interval, diagonal: int = 0) -> Interval:
    """0 below a diagonal."""
    return moved(lambda bound: torch.triu(bound, diagonal), expanded(x, (-2, -1)), x.shape)


# --- padding -------------------------------------------------------------------------------


@transfer("constant_pad_nd")
def constant_pad_nd(x: Interval, pad: Sequence[int], value: float = 0) -> Interval:
    """`value` around x (or less of x); merged dimensions stay merged, with it among them."""
    shape = shape_after(aten.constant_pad_nd, x, list(pad), value)
    rank, full, hidden = len(x.shape), list(pad), False
    if not x.is_point:
        for side in range(len(pad)):
            dim = rank - 1 - side // 2
            if x.lower.shape[dim] == 1:
                hidden |= full[side] > 0 or x.shape[dim] == 0
                full[side] = 0
    if hidden:
        x = union(x, Interval.full(value, value, (1,) * rank, x.dtype)).with_nan(x.may_nan)
    return moved(lambda bound: aten.constant_pad_nd(bound, full, value), x, shape)


@transfer(
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "replication_pad1d", "replication_pad2d", "replication_pad3d",
)  # fmt: skip
def pad_from_inside(x: Interval, padding: Sequence[int]) -> Interval:
    """Elements of x repeated around it: the padded dimensions come out merged."""
    dims = range(len(x.shape) - len(padding) // 2, len(x.shape))
    shape = list(x.shape)
    for side, width in enumerate(padding):
        shape[len(shape) - 1 - side // 2] += width
    kept = [dim for dim in range(len(x.shape)) if dim not in dims]
    return moved(lambda bound: bound, x.merged(kept), shape)


# --- picking by index ----------------------------------------------------------------------


@transfer("index")
def index(x: Interval, indices: Sequence[Interval | None]) -> Interval:
    """x[indices]; an unknown index may pick any element along its dimension.

    Raises:
        ValueError: For an unknown boolean mask, whose result has no known shape.
    """
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
    shape = _resized(x.shape, dim, math.prod(index.shape))
    if index.is_point and x.lower.shape[dim] == x.shape[dim]:
        return moved(lambda bound: bound.index_select(dim, index.lower), x, shape)
    kept = [other for other in range(len(x.shape)) if other != dim % len(x.shape)]
    return moved(lambda bound: bound, x.merged(kept), shape)


@transfer("gather")
def gather(x: Interval, dim: int, index: Interval, sparse_grad: bool = False) -> Interval:
    """Elements at given positions along one dimension, the same place in the others."""
    if x.shape == () or index.shape == ():
        return _reshaped_hull(x, index.shape)
    if index.is_point and (x.is_point or x.lower.shape[dim] > 1):
        return moved(lambda bound: bound.gather(dim, index.lower), _whole(x), index.shape)
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
def masked_select(x: Interval, mask: Interval) -> Interval:
    """Elements where a mask holds, as a vector.

    Raises:
        ValueError: For an unknown mask, whose result has no known shape.
    """
    if not mask.is_point:
        raise ValueError("masked_select by an unknown mask has no known shape")
    shape = shape_of(x, mask)
    chosen = mask.lower.expand(shape)
    count = int(chosen.sum())
    return moved(lambda bound: bound[chosen], _whole(expand(x, shape)), (count,))


# --- writing by index ----------------------------------------------------------------------


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
    x, src = _whole(x), _whole(cast(src, x.dtype))
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
    whole, known = _whole(x), index.lower
    corner = tuple(slice(size) for size in index.shape)
    source = moved(lambda bound: bound[corner], _whole(written), index.shape)
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
        source = moved(lambda bound: bound[corner], _whole(src), index.shape)
        return _accumulated(lambda a, b: a.scatter_add(dim, index.lower, b), x, source)
    return _accumulated_somewhere(x, src, index.shape[dim])


@transfer("index_add")
def index_add(
    x: Interval, dim: int, index: Interval, source: Interval, alpha: float = 1
) -> Interval:
    """Slices of `source` added to x, each at its position along one dimension."""
    if alpha != 1 or not x.shape:
        return Interval.top(x.shape, x.dtype)
    if index.is_point:
        source = _whole(source)
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

    Where positions repeat, any of the values written there may stay.
    """
    picks = _picks(indices)
    known = [None if pick is None else pick.lower for pick in picks]
    shape = _indexed_shape(x.shape, picks)
    if not all(pick is None or pick.is_point for pick in picks):
        if accumulate:
            return _accumulated_somewhere(x, values, math.prod(shape))
        return union(x, _reshaped_hull(values, (1,) * len(x.shape)))
    source = _whole(expand(values, shape))
    if accumulate:
        return _accumulated(lambda a, b: aten.index_put(a, known, b, True), x, source)
    return _put(x, known, source)


def _put(x: Interval, indices: list[Tensor | None], values: Interval) -> Interval:
    one = torch.ones((), dtype=torch.int64, device=x.lower.device)
    hits = torch.zeros(x.shape, dtype=torch.int64, device=x.lower.device)
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
    x = _whole(x)
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
