"""Gathering and scattering."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import sized
from ranum.analysis.capture.onnx.registry import UnsupportedError, lowering


def _inside(indices: Tensor, length: int) -> Tensor:
    """Negative indices counted from the end; others must lie inside."""
    indices = indices.to(torch.int64)
    if indices.numel() and bool(((indices < -length) | (indices >= length)).any()):
        raise UnsupportedError(f"an index outside of {length} elements")
    return torch.where(indices < 0, indices + length, indices)


@lowering("Gather")
def gather(x: Any, indices: Tensor, *, axis: int = 0) -> Any:
    """Slices along an axis."""
    if isinstance(x, np.ndarray):
        return np.take(x, indices.numpy(), axis=axis)
    axis %= x.dim()
    chosen = _inside(indices, x.shape[axis])
    sized((*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :]))
    if axis == 0 and x.dim() == 2 and x.is_floating_point():
        return torch.nn.functional.embedding(chosen, x)
    picked = x.index_select(axis, chosen.reshape(-1))
    return picked.reshape((*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :]))


@lowering("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Elements along an axis, one index each."""
    return x.gather(axis, _inside(indices, x.shape[axis]))


@lowering("GatherND")
def gather_nd(x: Any, indices: Tensor, *, batch_dims: int = 0) -> Any:
    """Slices at index tuples, the last dimension of the indices."""
    if isinstance(x, np.ndarray):
        raise UnsupportedError("strings")
    depth = indices.shape[-1]
    sized((*indices.shape[:-1], *x.shape[batch_dims + depth :]))
    batch = indices.shape[:batch_dims]
    count = math.prod(batch)
    flat = x.reshape((count, *x.shape[batch_dims:])) if batch_dims else x.unsqueeze(0)
    places = indices.reshape(max(count, 1) if not batch_dims else count, -1, depth)
    rows = torch.arange(flat.shape[0]).reshape(-1, 1).expand(places.shape[:2])
    columns = [_inside(places[..., i], flat.shape[i + 1]) for i in range(depth)]
    picked = flat[(rows, *columns)]
    return picked.reshape((*indices.shape[:-1], *x.shape[batch_dims + depth :]))


@lowering("Scatter", "ScatterElements")
def scatter(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0) -> Tensor:
    """Elements replaced along an axis."""
    return x.scatter(axis, _inside(indices, x.shape[axis]), updates)


_REDUCTIONS = {"mul": "prod", "max": "amax", "min": "amin"}


@lowering("ScatterElements", since=16)
def scatter_reduce(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """Elements replaced, or joined with what was there."""
    places = _inside(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    if reduction == "add":
        return x.scatter_add(axis, places, updates)
    if reduction not in _REDUCTIONS:
        raise UnsupportedError(f"reduction {reduction}")
    return x.scatter_reduce(axis, places, updates, _REDUCTIONS[reduction], include_self=True)


@lowering("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """Slices at index tuples replaced, or joined with what was there."""
    depth = indices.shape[-1]
    columns = tuple(_inside(indices[..., i], x.shape[i]) for i in range(depth))
    if reduction in ("none", "add"):
        return x.index_put(columns, updates, accumulate=reduction == "add")
    if reduction not in _REDUCTIONS:
        raise UnsupportedError(f"reduction {reduction}")
    inner = math.prod(x.shape[depth:])
    row = torch.zeros_like(columns[0])
    for size, column in zip(x.shape[:depth], columns, strict=False):
        row = row * size + column
    places = row.reshape(-1, 1).expand(-1, inner)
    flat = x.reshape(-1, inner)
    joined = flat.scatter_reduce(
        0, places, updates.reshape(-1, inner), _REDUCTIONS[reduction], include_self=True
    )
    return joined.reshape(x.shape)


@lowering("TensorScatter")
def tensor_scatter(
    cache: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    """New steps written into a cache, at a place of its own for each sample."""
    axis %= cache.dim()
    batch, length, steps = cache.shape[0], cache.shape[axis], update.shape[axis]
    start = torch.zeros(batch, dtype=torch.int64) if write_indices is None else write_indices
    places = start.reshape(-1, 1) + torch.arange(steps)
    if mode == "circular":
        places = places.remainder(length)
    elif mode != "linear":
        raise UnsupportedError(f"mode {mode}")
    view = [1] * cache.dim()
    view[0], view[axis] = batch, steps
    return cache.scatter(axis, _inside(places, length).reshape(view).expand(update.shape), update)


@lowering("OneHot")
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    """The second value at the index, the first elsewhere."""
    count = int(depth.reshape(-1)[0])
    chosen = indices.to(torch.int64)
    chosen = torch.where(chosen < 0, chosen + count, chosen)
    rank = chosen.dim() + 1
    view = [1] * rank
    view[axis % rank] = count
    sized((*chosen.shape, count))
    hit = chosen.unsqueeze(axis % rank) == torch.arange(count).reshape(view)
    return torch.where(hit, values[1], values[0])


@lowering("NonZero")
def non_zero(x: Tensor) -> Tensor:
    """Indices of the elements that are not 0, [rank, count]."""
    return torch.nonzero(x).t()


@lowering("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices whose condition holds."""
    chosen = torch.nonzero(condition).reshape(-1)
    return x.reshape(-1).index_select(0, chosen) if axis is None else x.index_select(axis, chosen)


@lowering("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(x: Tensor, indices: Tensor) -> Tensor:
    """Columns of the last dimension."""
    picked = x.index_select(-1, indices.reshape(-1))
    return picked.reshape(1, -1) if x.dim() == 1 else picked


@lowering("Binarizer", domain="ai.onnx.ml")
def binarizer(x: Tensor, *, threshold: float = 0.0) -> Tensor:
    """1 above the threshold, else 0."""
    return (x > threshold).to(x.dtype)
