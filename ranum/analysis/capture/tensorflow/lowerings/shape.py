"""Shapes, constants and layout: what moves elements without computing with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ranum.analysis.capture.tensorflow.machine import Call
from ranum.analysis.capture.tensorflow.values import DTYPES, integers
from ranum.analysis.transfer._common import broadcast_shapes


def identity(call: Call, x: Any) -> Any:
    """The operand itself."""
    return x


def identities(call: Call, *operands: Any) -> tuple[Any, ...]:
    """The operands themselves."""
    return operands


def nothing(call: Call, *operands: Any) -> tuple[Any, ...]:
    """An operator run for a side effect that is no part of the numbers."""
    return ()


def stop_gradient(call: Call, x: Tensor) -> Tensor:
    """The operand, cut off from the backward pass."""
    return x.detach()


def shape(call: Call, x: Tensor) -> Tensor:
    """Sizes `[rank]`."""
    return torch.tensor(x.shape, dtype=DTYPES[call.get("out_type", 3)])


def shapes(call: Call, *operands: Tensor) -> tuple[Tensor, ...]:
    """`ShapeN`."""
    return tuple(shape(call, operand) for operand in operands)


def size(call: Call, x: Tensor) -> Tensor:
    """Number of elements `[]`."""
    return torch.tensor(x.numel(), dtype=DTYPES[call.get("out_type", 3)])


def rank(call: Call, x: Tensor) -> Tensor:
    """Number of dimensions `[]`."""
    return torch.tensor(x.dim(), dtype=torch.int32)


def fill(call: Call, dims: Tensor, value: Tensor) -> Tensor:
    """One number everywhere."""
    return value.expand(integers(dims))


def filled_like(number: int) -> Callable[[Call, Tensor], Tensor]:
    """`ZerosLike` and `OnesLike`."""
    return lambda call, x: torch.full(x.shape, number, dtype=x.dtype)


def sequence(call: Call, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    """`Range`."""
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def line(call: Call, start: Tensor, stop: Tensor, count: Tensor) -> Tensor:
    """`LinSpace`: evenly spaced numbers, both ends included."""
    steps = torch.arange(int(count), dtype=start.dtype)
    return start + (stop - start) * steps / max(int(count) - 1, 1)


def reshape(call: Call, x: Tensor, sizes: Tensor) -> Tensor:
    """Other sizes for the same elements."""
    return torch.reshape(x, integers(sizes))


def expand_dims(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """One more dimension."""
    return x.unsqueeze(int(axis))


def squeeze(call: Call, x: Tensor) -> Tensor:
    """Without dimensions of size 1: those named, or all."""
    dims = call.get("squeeze_dims", [])
    return x.squeeze(tuple(dims)) if dims else x.squeeze()


def transpose(call: Call, x: Tensor, order: Tensor) -> Tensor:
    """Dimensions in another order."""
    return x.permute(integers(order))


def concatenate(call: Call, *operands: Tensor) -> Tensor:
    """`ConcatV2`: the axis comes last."""
    return torch.cat(operands[:-1], int(operands[-1]))


def concatenate_from(call: Call, axis: Tensor, *operands: Tensor) -> Tensor:
    """`Concat`: the axis comes first."""
    return torch.cat(operands, int(axis))


def pack(call: Call, *operands: Tensor) -> Tensor:
    """Stacked along a new dimension."""
    return torch.stack(operands, call.get("axis", 0))


def unpack(call: Call, x: Tensor) -> tuple[Tensor, ...]:
    """The slices along one dimension."""
    return torch.unbind(x, call.get("axis", 0))


def split(call: Call, axis: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Equal parts."""
    dim = int(axis)
    return torch.split(x, x.shape[dim] // call["num_split"], dim)


def split_sizes(call: Call, x: Tensor, sizes: Tensor, axis: Tensor) -> tuple[Tensor, ...]:
    """`SplitV`: parts of given sizes, of which one may be -1."""
    dim, parts = int(axis), integers(sizes)
    if -1 in parts:
        parts[parts.index(-1)] = x.shape[dim] - (sum(parts) + 1)
    return torch.split(x, parts, dim)


def tile(call: Call, x: Tensor, multiples: Tensor) -> Tensor:
    """Repeated along every dimension."""
    return x.repeat(integers(multiples))


def broadcast_to(call: Call, x: Tensor, sizes: Tensor) -> Tensor:
    """Repeated by broadcasting."""
    return x.broadcast_to(integers(sizes))


def broadcast_shape(call: Call, first: Tensor, second: Tensor) -> Tensor:
    """`BroadcastArgs`: the shape of an elementwise result."""
    result = broadcast_shapes(integers(first), integers(second))
    return torch.tensor(result, dtype=first.dtype)


def broadcast_gradient(call: Call, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """`BroadcastGradientArgs`: over which dimensions each operand's gradient is summed."""
    sizes = [integers(first), integers(second)]
    most = max(len(one) for one in sizes)
    padded = [[1] * (most - len(one)) + one for one in sizes]
    reduced = [
        [dim for dim in range(most) if own[dim] == 1 and sizes[0] != sizes[1]] for own in padded
    ]
    return tuple(torch.tensor(dims, dtype=first.dtype) for dims in reduced)  # type: ignore[return-value]


def pad(call: Call, x: Tensor, paddings: Tensor, value: Tensor | None = None) -> Tensor:
    """A constant around x; paddings `[rank, 2]`."""
    number = 0 if value is None else value.item()
    return pad_by(x, paddings.tolist(), number)


def pad_by(x: Tensor, paddings: Sequence[Sequence[int]], number: float = 0) -> Tensor:
    """A constant around x; for each dimension how much before and behind."""
    flat = [side for pair in reversed([*paddings]) for side in pair]
    return F.pad(x, flat, value=number) if any(flat) else x


def mirror_pad(call: Call, x: Tensor, paddings: Tensor) -> Tensor:
    """X mirrored beyond its edges, with or without the edge itself."""
    for dim, (before, behind) in enumerate(paddings.tolist()):
        if before or behind:
            x = torch.index_select(x, dim, mirrored(call, x.shape[dim], before, behind))
    return x


def mirrored(call: Call, length: int, before: int, behind: int) -> Tensor:
    """For each place along a padded dimension, the place of its original."""
    skip = 1 if call["mode"] == "REFLECT" else 0
    head = range(before - 1 + skip, skip - 1, -1)
    tail = range(length - 1 - skip, length - 1 - skip - behind, -1)
    return torch.tensor([*head, *range(length), *tail])


def reverse(call: Call, x: Tensor, axes: Tensor) -> Tensor:
    """Backwards along some dimensions."""
    return torch.flip(x, integers(axes))


def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """The first elements of each example backwards, as many as its length says."""
    batch, along = call.get("batch_dim", 0), call["seq_dim"]
    steps = torch.arange(x.shape[along])[None]
    own = lengths.long()[:, None]
    order = torch.where(steps < own, own - 1 - steps, steps)
    moved = x.movedim((batch, along), (0, 1))
    index = order.reshape(*order.shape, *[1] * (x.dim() - 2)).expand(moved.shape)
    return torch.gather(moved, 1, index).movedim((0, 1), (batch, along))


def roll(call: Call, x: Tensor, shift: Tensor, axis: Tensor) -> Tensor:
    """Moved along dimensions, with what falls off put in front."""
    return torch.roll(x, integers(shift), integers(axis))


def slice_(call: Call, x: Tensor, begin: Tensor, sizes: Tensor) -> Tensor:
    """A block; a size of -1 reaches to the end."""
    for dim, (start, length) in enumerate(zip(integers(begin), integers(sizes), strict=True)):
        count = x.shape[dim] - start if length == -1 else length
        if count != x.shape[dim]:
            x = x.narrow(dim, start, count)
    return x


def band(call: Call, x: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """`MatrixBandPart`: the diagonals near the main one; negative numbers keep all."""
    if int(below) >= 0:
        x = torch.triu(x, -int(below))
    return torch.tril(x, int(above)) if int(above) >= 0 else x


def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Channels `[N, H, W, b b C]` spread over blocks `[N, H b, W b, C]`."""
    block = call["block_size"]
    n, height, width, channels = x.shape
    x = x.reshape(n, height, width, block, block, channels // block**2)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, height * block, width * block, -1)


def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """The inverse of `depth_to_space`."""
    block = call["block_size"]
    n, height, width, channels = x.shape
    x = x.reshape(n, height // block, block, width // block, block, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, height // block, width // block, -1)


def space_to_batch(call: Call, x: Tensor, blocks: Tensor, paddings: Tensor) -> Tensor:
    """`SpaceToBatchND`: interleaved grids become examples; for dilated convolutions."""
    steps = integers(blocks)
    count = len(steps)
    x = pad_by(x, [[0, 0], *paddings.tolist(), *[[0, 0]] * (x.dim() - 1 - count)])
    sizes = [x.shape[0]]
    for step, length in zip(steps, x.shape[1:], strict=False):
        sizes += [length // step, step]
    rest = list(x.shape[1 + count :])
    x = x.reshape(sizes + rest)
    order = [2 * dim + 2 for dim in range(count)] + [0]
    order += [2 * dim + 1 for dim in range(count)]
    order += range(1 + 2 * count, x.dim())
    x = x.permute(order)
    return x.reshape([-1, *x.shape[count + 1 : 2 * count + 1], *rest])


def batch_to_space(call: Call, x: Tensor, blocks: Tensor, crops: Tensor) -> Tensor:
    """The inverse of `space_to_batch`, without the padding."""
    steps = integers(blocks)
    count = len(steps)
    total = 1
    for step in steps:
        total *= step
    inner, rest = list(x.shape[1 : 1 + count]), list(x.shape[1 + count :])
    x = x.reshape([*steps, x.shape[0] // total, *inner, *rest])
    order = [count]
    for dim in range(count):
        order += [count + 1 + dim, dim]
    order += range(2 * count + 1, x.dim())
    x = x.permute(order).reshape(
        [-1, *[length * step for length, step in zip(inner, steps, strict=True)], *rest]
    )
    for dim, (before, behind) in enumerate(crops.tolist(), start=1):
        if before or behind:
            x = x.narrow(dim, before, x.shape[dim] - before - behind)
    return x


def concatenation_offsets(call: Call, axis: Tensor, *shapes: Tensor) -> tuple[Tensor, ...]:
    """`ConcatOffset`: where each operand of a concatenation begins, one vector each."""
    dim, offset, found = int(axis), 0, []
    for sizes in shapes:
        start = torch.zeros_like(sizes)
        start[dim] = offset
        found.append(start)
        offset += int(sizes[dim])
    return tuple(found)


LOWERINGS: dict[str, Callable[..., Any]] = {
    "Assert": nothing,
    "BatchToSpaceND": batch_to_space,
    "BroadcastArgs": broadcast_shape,
    "BroadcastGradientArgs": broadcast_gradient,
    "BroadcastTo": broadcast_to,
    "CheckNumerics": identity,
    "CheckNumericsV2": identity,
    "Concat": concatenate_from,
    "ConcatOffset": concatenation_offsets,
    "ConcatV2": concatenate,
    "ControlTrigger": nothing,
    "DepthToSpace": depth_to_space,
    "EnsureShape": identity,
    "ExpandDims": expand_dims,
    "Fill": fill,
    "Identity": identity,
    "IdentityN": identities,
    "LinSpace": line,
    "MatrixBandPart": band,
    "MirrorPad": mirror_pad,
    "NoOp": nothing,
    "OnesLike": filled_like(1),
    "Pack": pack,
    "Pad": pad,
    "PadV2": pad,
    "PlaceholderWithDefault": identity,
    "PreventGradient": identity,
    "Print": lambda call, x, *shown: x,
    "PrintV2": nothing,
    "Range": sequence,
    "Rank": rank,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "ReverseV2": reverse,
    "Roll": roll,
    "Shape": shape,
    "ShapeN": shapes,
    "Size": size,
    "Slice": slice_,
    "Snapshot": identity,
    "SpaceToBatchND": space_to_batch,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "SplitV": split_sizes,
    "Squeeze": squeeze,
    "StopGradient": stop_gradient,
    "Tile": tile,
    "Transpose": transpose,
    "Unpack": unpack,
    "ZerosLike": filled_like(0),
}
