"""Reading and writing by index."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ranum.analysis.capture.tensorflow.machine import Call
from ranum.analysis.capture.tensorflow.values import DTYPES, integers


def gather(call: Call, x: Tensor, indices: Tensor, axis: Tensor | None = None) -> Tensor:
    """`GatherV2`: slices of x along an axis, for each example where there are batch dimensions."""
    batch = call.get("batch_dims", 0)
    dim = 0 if axis is None else int(axis)
    dim %= x.dim()
    batch %= max(indices.dim(), 1) if batch < 0 else x.dim() + 1
    index = indices.long()
    if batch == 0:
        if dim == 0 and x.dim() == 2 and x.dtype.is_floating_point:
            return F.embedding(index, x)
        picked = torch.index_select(x, dim, index.reshape(-1))
        return picked.reshape(*x.shape[:dim], *index.shape, *x.shape[dim + 1 :])
    lead, tail = x.shape[:batch], x.shape[dim + 1 :]
    middle = x.shape[batch:dim]
    count = math.prod(lead)
    rows = x.reshape(count, *middle, x.shape[dim], *tail).movedim(1 + len(middle), 1)
    own = index.reshape(count, -1)
    width = own.shape[1]
    flat = own.reshape(count, width, *[1] * (rows.dim() - 2)).expand(count, width, *rows.shape[2:])
    picked = torch.gather(rows, 1, flat).movedim(1, 1 + len(middle))
    return picked.reshape(*lead, *middle, *index.shape[batch:], *tail)


def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Elements or slices of x at the places `[..., depth]`."""
    return x[_places(indices)]


def _places(indices: Tensor) -> tuple[Tensor, ...]:
    return tuple(indices.long().unbind(-1))


def scatter_nd(call: Call, indices: Tensor, updates: Tensor, sizes: Tensor) -> Tensor:
    """Zeros with the updates added at their places."""
    start = torch.zeros(integers(sizes), dtype=updates.dtype)
    return start.index_put(_places(indices), updates, accumulate=True)


def scatter_update(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """X with other values at some places."""
    return x.index_put(_places(indices), updates)


def scatter_add(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """X with the updates added at their places."""
    return x.index_put(_places(indices), updates, accumulate=True)


def scatter_sub(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """X with the updates taken away at their places."""
    return x.index_put(_places(indices), -updates, accumulate=True)


def strided_slice(call: Call, x: Tensor, begin: Tensor, end: Tensor, strides: Tensor) -> Tensor:
    """Python slicing, with the bits of TensorFlow's masks in place of missing ends."""
    return _sliced(call, x, begin, end, strides) if x.dim() else _zero_d(call, x, begin)


def _zero_d(call: Call, x: Tensor, begin: Tensor) -> Tensor:
    for position in range(begin.numel()):
        if call.get("new_axis_mask", 0) >> position & 1:
            x = x.unsqueeze(0)
    return x


def _sliced(call: Call, x: Tensor, begin: Tensor, end: Tensor, strides: Tensor) -> Tensor:
    masks = {
        name: call.get(f"{name}_mask", 0)
        for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    starts, ends, steps = integers(begin), integers(end), integers(strides)
    selection: list[Any] = []
    used = sum(
        1
        for position in range(len(starts))
        if not (masks["new_axis"] | masks["ellipsis"]) >> position & 1
    )
    dim = 0
    for position, (start, stop, step) in enumerate(zip(starts, ends, steps, strict=True)):

        def is_set(name: str, position: int = position) -> bool:
            return bool(masks[name] >> position & 1)

        if is_set("ellipsis"):
            selection.append(Ellipsis)
            dim += x.dim() - used
        elif is_set("new_axis"):
            selection.append(None)
        elif is_set("shrink_axis"):
            selection.append(start)
            dim += 1
        else:
            first = None if is_set("begin") else start
            last = None if is_set("end") else stop
            if step > 0:
                selection.append(slice(first, last, step))
            else:
                x = _backwards(x, dim, slice(first, last, step))
                selection.append(slice(None))
            dim += 1
    return x[tuple(selection)]


def _backwards(x: Tensor, dim: int, part: slice) -> Tensor:
    """A slice with a negative step, which torch does not have."""
    places = range(*part.indices(x.shape[dim]))
    if not places:
        return x.narrow(dim, 0, 0)
    kept = x.narrow(dim, places[-1], places[0] - places[-1] + 1)
    forwards = [slice(None)] * dim + [slice(None, None, -part.step)]
    return kept[tuple(forwards)].flip(dim)


def strided_slice_gradient(
    call: Call, sizes: Tensor, begin: Tensor, end: Tensor, strides: Tensor, gradient: Tensor
) -> Tensor:
    """`StridedSliceGrad`: zeros with the gradient where the slice was."""
    target = torch.zeros(integers(sizes), dtype=gradient.dtype)
    count = target.numel()
    places = torch.arange(count).reshape(target.shape)
    chosen = _sliced(call, places, begin, end, strides).reshape(-1)
    flat = target.reshape(-1).index_put((chosen,), gradient.reshape(-1))
    return flat.reshape(target.shape)


def one_hot(call: Call, indices: Tensor, depth: Tensor, on: Tensor, off: Tensor) -> Tensor:
    """`on` at the index along a new axis, `off` elsewhere and for indices out of range."""
    axis = call.get("axis", -1)
    axis = indices.dim() if axis < 0 else axis
    classes = torch.arange(int(depth)).reshape(-1, *[1] * (indices.dim() - axis))
    return torch.where(indices.unsqueeze(axis) == classes, on, off)


def where(call: Call, condition: Tensor) -> Tensor:
    """`Where`: the places `[n, rank]` of what is not zero."""
    return torch.nonzero(condition)


def invert_permutation(call: Call, order: Tensor) -> Tensor:
    """The permutation that undoes this one."""
    return torch.argsort(order).to(order.dtype)


def unique(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct elements in order of first appearance, and each element's number."""
    values, inverse = torch.unique(x, return_inverse=True)
    first = torch.full(values.shape, x.numel()).scatter_reduce(
        0, inverse, torch.arange(x.numel()), "amin"
    )
    order = torch.argsort(first)
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order))
    return values[order], position[inverse].to(DTYPES[call.get("out_idx", 3)])


def dynamic_stitch(call: Call, *operands: Tensor) -> Tensor:
    """Rows put where their indices say; later ones win."""
    count = call["N"]
    indices, rows = operands[:count], operands[count:]
    length = max(int(index.max()) + 1 for index in indices if index.numel())
    inner = rows[0].shape[indices[0].dim() :]
    result = torch.zeros((length, *inner), dtype=rows[0].dtype)
    for index, row in zip(indices, rows, strict=True):
        flat = index.reshape(-1).long()
        result = result.index_put((flat,), row.reshape(len(flat), *inner))
    return result


def dynamic_partition(call: Call, x: Tensor, parts: Tensor) -> tuple[Tensor, ...]:
    """Rows sorted into groups by their part number."""
    flat = parts.reshape(-1)
    rows = x.reshape(len(flat), *x.shape[parts.dim() :])
    return tuple(rows[flat == part] for part in range(call["num_partitions"]))


def search_sorted(*, right: bool) -> Callable[..., Tensor]:
    """Where values would be put into sorted rows."""

    def lower(call: Call, rows: Tensor, values: Tensor) -> Tensor:
        found = torch.searchsorted(rows.detach().contiguous(), values.detach(), right=right)
        return found.to(DTYPES[call.get("out_type", 3)])

    return lower


def bucketize(call: Call, x: Tensor) -> Tensor:
    """The number of boundaries that are not above each element."""
    boundaries = torch.tensor(call["boundaries"], dtype=torch.float32)
    return torch.bucketize(x.float(), boundaries, out_int32=True, right=True)


LOWERINGS: dict[str, Callable[..., Any]] = {
    "Bucketize": bucketize,
    "DynamicPartition": dynamic_partition,
    "DynamicStitch": dynamic_stitch,
    "Gather": gather,
    "GatherNd": gather_nd,
    "GatherV2": gather,
    "InvertPermutation": invert_permutation,
    "LowerBound": search_sorted(right=False),
    "OneHot": one_hot,
    "ParallelDynamicStitch": dynamic_stitch,
    "ScatterNd": scatter_nd,
    "StridedSlice": strided_slice,
    "StridedSliceGrad": strided_slice_gradient,
    "TensorScatterAdd": scatter_add,
    "TensorScatterSub": scatter_sub,
    "TensorScatterUpdate": scatter_update,
    "Unique": unique,
    "UpperBound": search_sorted(right=True),
    "Where": where,
}
