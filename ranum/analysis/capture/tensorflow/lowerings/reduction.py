"""Sums, extremes, order and prefixes along dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.tensorflow.gradients import EuclideanNorm, applied
from ranum.analysis.capture.tensorflow.machine import Call
from ranum.analysis.capture.tensorflow.values import DTYPES, integers


def _dims(x: Tensor, axes: Tensor) -> list[int]:
    return sorted({axis % max(x.dim(), 1) for axis in integers(axes)}) if x.dim() else []


def reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    """A reduction over the dimensions that the second operand lists; none leaves x as it is."""

    def lower(call: Call, x: Tensor, axes: Tensor) -> Tensor:
        dims = _dims(x, axes)
        return function(x, dims, bool(call.get("keep_dims", False))) if dims else x

    return lower


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.sum(x, dims, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if x.dtype.is_floating_point or x.dtype.is_complex:
        return torch.mean(x, dims, keepdim=keep)
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    return torch.div(_sum(x, dims, keep), count, rounding_mode="trunc").to(x.dtype)


def _prod(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in reversed(dims):
        x = torch.prod(x, dim, keepdim=keep, dtype=x.dtype)
    return x


def _max(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.amax(x, dims, keepdim=keep)


def _min(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.amin(x, dims, keepdim=keep)


def _all(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.all(x, dim=tuple(dims), keepdim=keep)


def _any(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.any(x, dim=tuple(dims), keepdim=keep)


def euclidean_norm(call: Call, x: Tensor, axes: Tensor) -> Tensor:
    """sqrt(Σ x²); |x| over no dimension."""
    dims = _dims(x, axes)
    return _norm(x, dims, bool(call.get("keep_dims", False))) if dims else x.abs()


def _norm(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    norm = applied(EuclideanNorm, x, dims)
    return norm if keep else norm.squeeze(dims)


def l2_loss(call: Call, x: Tensor) -> Tensor:
    """Half the sum of squares `[]`."""
    return torch.sum(x * x) / 2


def extreme_index(function: Callable[..., Tensor]) -> Callable[[Call, Tensor, Tensor], Tensor]:
    """`ArgMax` and `ArgMin` along one dimension."""

    def lower(call: Call, x: Tensor, axis: Tensor) -> Tensor:
        dtype = DTYPES[call.get("output_type", 9)]
        values = x if x.dtype != torch.bool else x.to(torch.uint8)
        return function(values, dim=int(axis)).to(dtype)

    return lower


def prefix(function: Callable[..., Tensor], empty: float) -> Callable[..., Tensor]:
    """`Cumsum` and the like: inclusive or exclusive, from either end."""

    def lower(call: Call, x: Tensor, axis: Tensor) -> Tensor:
        dim = int(axis) % max(x.dim(), 1)
        backwards, exclusive = call.get("reverse", False), call.get("exclusive", False)
        if backwards:
            x = x.flip(dim)
        if exclusive:
            first = torch.full_like(x.narrow(dim, 0, 1), empty)
            x = torch.cat([first, x.narrow(dim, 0, x.shape[dim] - 1)], dim)
        x = function(x, dim) if function is torch.logcumsumexp else function(x, dim, dtype=x.dtype)
        return x.flip(dim) if backwards else x

    return lower


def top(call: Call, x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The largest elements of the last dimension and where they stand; earlier ones first."""
    indices = torch.argsort(x.detach(), dim=-1, descending=True, stable=True)
    indices = indices[..., : int(count)]
    return torch.gather(x, -1, indices), indices.to(DTYPES[call.get("index_type", 3)])


def in_top(call: Call, scores: Tensor, targets: Tensor, count: Tensor) -> Tensor:
    """Whether the target's score is among the largest, `[N]`."""
    chosen = torch.gather(scores, 1, targets.long()[:, None])
    finite = torch.isfinite(scores).all(1)
    return ((scores > chosen).sum(1) < count) & finite


def segment(reduce: str, *, sorted_ids: bool) -> Callable[..., Tensor]:
    """Rows with the same segment number reduced to one row each."""

    def lower(call: Call, x: Tensor, ids: Tensor, count: Tensor | None = None) -> Tensor:
        found = int(ids.max()) + 1 if count is None and ids.numel() else 0
        segments = found if count is None else int(count)
        rows = ids.reshape(-1).long()
        data = x.reshape(len(rows), *x.shape[ids.dim() :])
        keep = rows >= 0
        if not bool(keep.all()):
            rows, data = rows[keep], data[keep]
        if reduce == "sum":
            start = torch.zeros((segments, *data.shape[1:]), dtype=x.dtype)
            return start.index_add(0, rows, data)
        empty = {
            "prod": 1.0,
            "mean": 0.0,
            "amax": 0.0 if sorted_ids else _lowest(x.dtype),
            "amin": 0.0 if sorted_ids else _highest(x.dtype),
        }[reduce]
        start = torch.full((segments, *data.shape[1:]), empty, dtype=x.dtype)
        index = rows.reshape(-1, *[1] * (data.dim() - 1)).expand(data.shape)
        return start.scatter_reduce(0, index, data, reduce, include_self=False)

    return lower


def _lowest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).min if dtype.is_floating_point else torch.iinfo(dtype).min


def _highest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max


def count_bins(call: Call, values: Tensor, size: Tensor, weights: Tensor) -> Tensor:
    """`DenseBincount` of a vector."""
    bins = int(size)
    kept = (values >= 0) & (values < bins)
    if weights.numel() == 0:
        weights = torch.ones(values.shape, dtype=weights.dtype)
    counts = torch.zeros(bins, dtype=weights.dtype)
    return counts.index_add(0, values[kept].long(), weights[kept])


LOWERINGS: dict[str, Callable[..., Any]] = {
    "All": reduction(_all),
    "Any": reduction(_any),
    "ArgMax": extreme_index(torch.argmax),
    "ArgMin": extreme_index(torch.argmin),
    "Cumprod": prefix(torch.cumprod, 1.0),
    "Cumsum": prefix(torch.cumsum, 0.0),
    "CumulativeLogsumexp": prefix(torch.logcumsumexp, float("-inf")),
    "DenseBincount": count_bins,
    "EuclideanNorm": euclidean_norm,
    "InTopKV2": in_top,
    "L2Loss": l2_loss,
    "Max": reduction(_max),
    "Mean": reduction(_mean),
    "Min": reduction(_min),
    "Prod": reduction(_prod),
    "SegmentMax": segment("amax", sorted_ids=True),
    "SegmentMean": segment("mean", sorted_ids=True),
    "SegmentMin": segment("amin", sorted_ids=True),
    "SegmentProd": segment("prod", sorted_ids=True),
    "SegmentSum": segment("sum", sorted_ids=True),
    "Sum": reduction(_sum),
    "TopKV2": top,
    "UnsortedSegmentMax": segment("amax", sorted_ids=False),
    "UnsortedSegmentMin": segment("amin", sorted_ids=False),
    "UnsortedSegmentProd": segment("prod", sorted_ids=False),
    "UnsortedSegmentSum": segment("sum", sorted_ids=False),
}
