"""Shapes: reshaping, joining, cutting, padding, repeating."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import ints, number, positive, sized, torch_pads
from ranum.analysis.capture.onnx.registry import Call, UnsupportedError, lowering
from ranum.analysis.transfer._common import broadcast_shapes


@lowering("Identity")
def identity(x: Any) -> Any:
    """The value itself."""
    return x


@lowering("Shape")
def shape(x: Any, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes, as integers."""
    return torch.tensor(list(x.shape)[slice(*_ends(start, end, len(x.shape)))], dtype=torch.int64)


def _ends(start: int, end: int | None, rank: int) -> tuple[int, int]:
    first = start + rank if start < 0 else start
    last = rank if end is None else (end + rank if end < 0 else end)
    return min(max(first, 0), rank), min(max(last, 0), rank)


@lowering("Size")
def size(x: Any) -> Tensor:
    """How many elements."""
    return torch.tensor(math.prod(x.shape), dtype=torch.int64)


@lowering("Reshape", since=5)
def reshape(x: Any, shape: Tensor, *, allowzero: int = 0) -> Any:
    """Other sizes; 0 copies a size unless `allowzero`, -1 is worked out."""
    wanted = ints(shape)
    if not allowzero:
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


@lowering("Reshape")
def reshape_by_attribute(x: Tensor, *, shape: Sequence[int] = ()) -> Tensor:
    """Before opset 5 the sizes are an attribute."""
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)])


@lowering("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Two dimensions: those before the axis, and the others."""
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@lowering("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    """Dimensions in another order; reversed by default."""
    return x.permute(tuple(reversed(range(x.dim()))) if perm is None else tuple(perm))


@lowering("Squeeze", since=13)
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without the dimensions of size 1 (all, or those given)."""
    return squeeze_by_attribute(x, axes=None if axes is None else ints(axes))


@lowering("Squeeze")
def squeeze_by_attribute(x: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    """Before opset 13 the axes are an attribute."""
    if axes is None:
        return x.reshape([n for n in x.shape if n != 1])
    dropped = positive(axes, x.dim())
    if any(x.shape[axis] != 1 for axis in dropped):
        raise UnsupportedError(f"axes {list(axes)} of shape {list(x.shape)} are not all 1")
    return x.reshape([n for i, n in enumerate(x.shape) if i not in dropped])


@lowering("Unsqueeze", since=13)
def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    """With new dimensions of size 1."""
    return unsqueeze_by_attribute(x, axes=ints(axes))


@lowering("Unsqueeze")
def unsqueeze_by_attribute(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    """Before opset 13 the axes are an attribute."""
    rank = x.dim() + len(axes)
    added = set(positive(axes, rank))
    rest = iter(x.shape)
    return x.reshape([1 if i in added else next(rest) for i in range(rank)])


@lowering("Concat")
def concat(*parts: Tensor, axis: int = 1) -> Tensor:
    """Joined along a dimension."""
    length = sum(part.shape[axis] for part in parts if part.dim())
    sized([length if i == axis % parts[0].dim() else n for i, n in enumerate(parts[0].shape)])
    return torch.cat(parts, axis)


@lowering("Expand")
def expand(x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast to a shape, in both directions."""
    return x.expand(sized(broadcast_shapes(x.shape, tuple(ints(shape)))))


@lowering("Tile", since=6)
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Repeated along each dimension."""
    counts = ints(repeats)
    sized([n * count for n, count in zip(x.shape, counts, strict=True)])
    return x.repeat(counts)


@lowering("Split", since=18)
def split_into(
    x: Tensor,
    split: Tensor | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    call: Call,
) -> tuple[Tensor, ...]:
    """Cut along a dimension; the last part may be smaller."""
    if split is not None:
        return torch.split(x, ints(split), axis)
    count = len(call.outputs) if num_outputs is None else num_outputs
    return _chunks(x, count, axis)


@lowering("Split", since=13)
def split(
    x: Tensor, split: Tensor | None = None, *, axis: int = 0, call: Call
) -> tuple[Tensor, ...]:
    """Cut along a dimension, into equal parts unless sizes are given."""
    return split_into(x, split, axis=axis, call=call)


@lowering("Split")
def split_by_attribute(
    x: Tensor, *, axis: int = 0, split: Sequence[int] | None = None, call: Call
) -> tuple[Tensor, ...]:
    """Before opset 13 the sizes are an attribute."""
    return torch.split(x, list(split), axis) if split else _chunks(x, len(call.outputs), axis)


def _chunks(x: Tensor, count: int, axis: int) -> tuple[Tensor, ...]:
    length = x.shape[axis]
    each = -(-length // count)
    sizes = [max(min(each, length - i * each), 0) for i in range(count)]
    return torch.split(x, sizes, axis)


@lowering("Slice", since=10)
def slices(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Cut out along some dimensions, also backwards."""
    first, last = ints(starts), ints(ends)
    along = positive(ints(axes) if axes is not None else list(range(len(first))), x.dim())
    by = ints(steps) if steps is not None else [1] * len(first)
    for axis, start, end, step in zip(along, first, last, by, strict=True):
        x = _cut(x, axis, start, end, step)
    return x


@lowering("Slice")
def slices_by_attribute(
    x: Tensor, *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None
) -> Tensor:
    """Before opset 10 everything is an attribute."""
    along = list(range(len(starts))) if axes is None else positive(axes, x.dim())
    for axis, start, end in zip(along, starts, ends, strict=True):
        x = _cut(x, axis, start, end, 1)
    return x


def _cut(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    begin, stop, by = slice(start, end, step).indices(x.shape[axis])
    if by > 0:
        index = [slice(None)] * axis + [slice(begin, max(stop, begin), by)]
        return x[tuple(index)]
    steps = len(range(begin, stop, by))
    lowest = begin + (steps - 1) * by
    index = [slice(None)] * axis + [slice(lowest, begin + 1, -by) if steps else slice(0, 0)]
    return x[tuple(index)].flip(axis)


@lowering("Pad", since=11)
def pad(
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """Wider, filled with a value, the edge, the mirror image or the other end."""
    along = list(range(x.dim())) if axes is None else positive(ints(axes), x.dim())
    given = ints(pads)
    before, after = [0] * x.dim(), [0] * x.dim()
    for index, axis in enumerate(along):
        before[axis], after[axis] = given[index], given[index + len(along)]
    return padded(x, before, after, mode, value)


@lowering("Pad")
def pad_by_attribute(
    x: Tensor, *, pads: Sequence[int], mode: str = "constant", value: float = 0.0
) -> Tensor:
    """Before opset 11 everything is an attribute."""
    rank = x.dim()
    return padded(x, list(pads[:rank]), list(pads[rank:]), mode, torch.tensor(value))


def padded(
    x: Tensor, before: list[int], after: list[int], mode: str, value: Tensor | None = None
) -> Tensor:
    """Padding of any dimension in any mode; negative padding cuts."""
    sized([n + low + high for n, low, high in zip(x.shape, before, after, strict=True)])
    if mode == "constant":
        fill: Any = 0 if value is None else value.reshape(())
        if isinstance(fill, Tensor) and not fill.requires_grad:
            fill = fill.item()
        if not isinstance(fill, Tensor):
            return F.pad(x, torch_pads(before, after), value=fill)
        inside = F.pad(torch.ones_like(x, dtype=torch.bool), torch_pads(before, after))
        return torch.where(inside, F.pad(x, torch_pads(before, after)), fill)
    if mode not in ("reflect", "edge", "wrap"):
        raise UnsupportedError(f"mode {mode}")
    for axis in range(x.dim()):
        low, high = before[axis], after[axis]
        if low or high:
            x = x.index_select(axis, _places(x.shape[axis], low, high, mode))
    return x


def _places(length: int, low: int, high: int, mode: str) -> Tensor:
    places = torch.arange(-low, length + high)
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places.remainder(length)
    period = max(2 * (length - 1), 1)
    folded = places.remainder(period)
    return torch.where(folded < length, folded, period - folded)


@lowering("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels to blocks of pixels, [N, C, H, W]."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return F.pixel_shuffle(x, b)
    blocks = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // (b * b), h * b, w * b)


@lowering("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of pixels to channels, [N, C, H, W]."""
    n, c, h, w = x.shape
    b = blocksize
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.permute(order).reshape(n, c * b * b, h // b, w // b)


@lowering("CenterCropPad")
def center_crop_pad(x: Tensor, shape: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    """Cut or padded with zeros on both sides to the given sizes."""
    along = list(range(x.dim())) if axes is None else positive(axes, x.dim())
    before, after = [0] * x.dim(), [0] * x.dim()
    for axis, wanted in zip(along, ints(shape), strict=True):
        change = wanted - x.shape[axis]
        # A cut starts half way, rounded down; padding likewise.
        low = change // 2 if change >= 0 else -(-change // 2)
        before[axis], after[axis] = low, change - low
    return padded(x, before, after, "constant")


@lowering("Trilu")
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """The upper or lower triangle, zeros elsewhere."""
    diagonal = 0 if k is None else number(k)
    limit = max(x.shape[-2:]) + 1
    diagonal = max(-limit, min(limit, diagonal))
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@lowering("ReverseSequence")
def reverse_sequence(
    x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    """The first elements of each sequence in reverse order."""
    batch, steps = x.shape[batch_axis], x.shape[time_axis]
    time = torch.arange(steps).unsqueeze(0).expand(batch, steps)
    length = lengths.reshape(-1, 1)
    places = torch.where(time < length, length - 1 - time, time)  # [batch, steps]
    if batch_axis > time_axis:
        places = places.t()
    view = [1] * x.dim()
    view[batch_axis], view[time_axis] = batch, steps
    return x.gather(time_axis, places.reshape(view).expand(x.shape))


@lowering("ConcatFromSequence")
def concat_from_sequence(parts: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    """The tensors of a sequence, joined or stacked."""
    return torch.stack(parts, axis) if new_axis else torch.cat(parts, axis)


@lowering("SplitToSequence")
def split_to_sequence(
    x: Any, split: Tensor | None = None, *, axis: int = 0, keepdims: int = 1
) -> tuple[list[Any]]:
    """The parts of a tensor as a sequence."""
    if isinstance(x, np.ndarray):
        raise UnsupportedError("strings")
    if split is None:
        parts = list(torch.split(x, 1, axis))
        return (parts if keepdims else [part.squeeze(axis) for part in parts],)
    return (list(torch.split(x, ints(split) if split.dim() else number(split), axis)),)
