"""Sorting and choosing: arg max, top k, unique elements."""

from __future__ import annotations

import torch
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import number
from ranum.analysis.capture.onnx.registry import UnsupportedError, lowering


@lowering("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Place of the largest element, the first or the last of equals."""
    if not select_last_index:
        return x.argmax(axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - x.flip(axis).argmax(axis, keepdim=bool(keepdims))


@lowering("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Place of the smallest element, the first or the last of equals."""
    if not select_last_index:
        return x.argmin(axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - x.flip(axis).argmin(axis, keepdim=bool(keepdims))


@lowering("TopK", since=10)
def top_k(
    x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) elements and their places; of equals the first."""
    values, places = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = number(k)
    if not 0 <= count <= x.shape[axis]:
        raise UnsupportedError(f"k = {count} of {x.shape[axis]} elements")
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


@lowering("TopK")
def top_k_by_attribute(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """Before opset 10 k is an attribute."""
    return top_k(x, torch.tensor([k]), axis=axis)


@lowering("Unique")
def unique(
    x: Tensor, *, axis: int | None = None, sorted: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Elements (or slices) once each, where they first stood, where they went, how many."""
    if x.is_floating_point() and axis is not None:
        x = x + 0.0  # no negative zeros
    values, inverse, counts = torch.unique(
        x, sorted=True, return_inverse=True, return_counts=True, dim=axis
    )
    places = inverse.reshape(-1)
    first = torch.full((len(counts),), len(places), dtype=torch.int64)
    first = first.scatter_reduce(0, places, torch.arange(len(places)), "amin")
    if not sorted:
        order = first.argsort()
        rank = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))
        values = values.index_select(0 if axis is None else axis, order)
        first, counts, places = first[order], counts[order], rank[places]
    return values, first, places, counts
