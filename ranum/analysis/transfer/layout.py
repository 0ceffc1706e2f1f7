"""Transfer functions that move elements: views, joins, pads.

Bounds are moved like the data they bound. A merged dimension stays merged where the
operator treats all its elements alike, and is expanded where it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.interval import MERGE_ABOVE, Interval
from ranum.analysis.transfer.combinators import is_known, may_nan, union
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


def unmerged(x: Interval) -> Interval:
    """All dimensions in full (a view)."""
    return expanded(x, range(len(x.shape)))


def resized(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    """A shape with another size along one dimension."""
    sizes = list(shape)
    sizes[dim] = size
    return tuple(sizes)


# --- views ---------------------------------------------------------------------------------


@transfer("reshape")
def reshape(x: Interval, shape: Sequence[int]) -> Interval:
    """The same elements in the same order.

    Dimensions that are split or joined together form a group. A group that was wholly
    merged stays merged; one that was partly merged is expanded, or merged if it is large.
    """
    if x.is_empty_tensor:
        return moved(lambda bound: bound.reshape(shape), unmerged(x), shape)
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
    shape = resized(x.shape, dim, len(chosen))
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


@transfer("diagonal", "diagonal_copy")
def diagonal(x: Interval, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Interval:
    """Elements with equal index in two dimensions, as a new last dimension."""
    shape = shape_after(torch.diagonal, x, offset, dim1, dim2)
    x = expanded(x, (dim1, dim2))
    return moved(lambda bound: torch.diagonal(bound, offset, dim1, dim2), x, shape)


@transfer("diagonal_backward", phase="backward")
def diagonal_backward(
    grad_output: Interval, input_sizes: Sequence[int], offset: int, dim1: int, dim2: int
) -> Interval:
    """The gradient on the diagonal, 0 elsewhere."""
    merged = grad_output.merged()
    low, high = merged.lower.clamp(max=0), merged.upper.clamp(min=0)
    if grad_output.is_empty_tensor:
        low = high = grad_output.lower.new_zeros(())
    ones = (1,) * len(input_sizes)
    shape = tuple(input_sizes)
    return Interval(
        low.reshape(ones), high.reshape(ones), shape, grad_output.dtype, grad_output.may_nan
    )


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


# --- joining and repeating -----------------------------------------------------------------


@transfer("cat")
def cat(tensors: Sequence[Interval], dim: int = 0) -> Interval:
    """One after the other along a dimension, which is expanded; empty vectors are skipped."""
    dtype = reduce(torch.promote_types, [item.dtype for item in tensors])
    parts = [cast(item, dtype) for item in tensors if item.shape != (0,)] or [*tensors[:1]]
    parts = [expanded(item, (dim,)) for item in parts]
    shape = resized(parts[0].shape, dim, sum(item.shape[dim] for item in parts))
    if is_known(*parts):
        return Interval.point(torch.cat([item.lower for item in parts], dim))
    blocks = zip(*(item.lower.shape for item in parts), strict=True)
    sizes = [0 if 0 in column else max(column) for column in blocks]

    def joined(bounds: list[Tensor]) -> Tensor:
        aligned = [b.expand(resized(sizes, dim, b.shape[dim])) for b in bounds]
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
        return moved(lambda bound: bound.repeat(tuple(repeats)), unmerged(x), shape)
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
        x = unmerged(x)
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
