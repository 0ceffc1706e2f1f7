"""Images in other sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.tensorflow.machine import Call
from ranum.analysis.capture.tensorflow.values import integers


def _centres(call: Call, length: int, wanted: int) -> Tensor:
    """Where each new pixel lies among the old ones, `[wanted]`."""
    steps = torch.arange(wanted, dtype=torch.float32)
    if call.get("align_corners", False) and wanted > 1:
        return steps * ((length - 1) / (wanted - 1))
    if call.get("half_pixel_centers", False):
        return (steps + 0.5) * (length / wanted) - 0.5
    return steps * (length / wanted)


def closest(call: Call, length: int, wanted: int) -> Tensor:
    """For each new pixel along one side, the nearest old one, `[wanted]`."""
    place = _centres(call, length, wanted)
    if call.get("align_corners", False) or call.get("half_pixel_centers", False):
        place = torch.floor(place + 0.5)
    return torch.floor(place).long().clamp(0, length - 1)


def between(
    call: Call, x: Tensor, dim: int, length: int, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For each new pixel along one side, two old ones `[wanted]` and the share of the second.

    The share fits in with x along `dim`.
    """
    place = _centres(call, length, wanted)
    below = torch.floor(place)
    share = (place - below).reshape(-1, *[1] * (x.dim() - 1 - dim)).to(x.dtype)
    first = below.long()
    return first.clamp(0, length - 1), (first + 1).clamp(0, length - 1), share


def nearest(call: Call, x: Tensor, sizes: Tensor) -> Tensor:
    """Each new pixel is the nearest old one; x `[N, H, W, C]`."""
    for dim, wanted in enumerate(integers(sizes), start=1):
        x = torch.index_select(x, dim, closest(call, x.shape[dim], wanted))
    return x


def bilinear(call: Call, x: Tensor, sizes: Tensor) -> Tensor:
    """Each new pixel is interpolated between its neighbours; the result is float32."""
    x = x if x.dtype == torch.float64 else x.to(torch.float32)
    for dim, wanted in enumerate(integers(sizes), start=1):
        before, behind, share = between(call, x, dim, x.shape[dim], wanted)
        first, second = torch.index_select(x, dim, before), torch.index_select(x, dim, behind)
        x = first + (second - first) * share
    return x


LOWERINGS: dict[str, Callable[..., Any]] = {
    "ResizeBilinear": bilinear,
    "ResizeNearestNeighbor": nearest,
}
