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


def nearest(call: Call, x: Tensor, sizes: Tensor) -> Tensor:
    """Each new pixel is the nearest old one; x `[N, H, W, C]`."""
    for dim, wanted in enumerate(integers(sizes), start=1):
        length = x.shape[dim]
        place = _centres(call, length, wanted)
        if call.get("align_corners", False) or call.get("half_pixel_centers", False):
            place = torch.floor(place + 0.5)
        index = torch.floor(place).long().clamp(0, length - 1)
        x = torch.index_select(x, dim, index)
    return x


def bilinear(call: Call, x: Tensor, sizes: Tensor) -> Tensor:
    """Each new pixel is interpolated between its neighbours; the result is float32."""
    x = x if x.dtype == torch.float64 else x.to(torch.float32)
    for dim, wanted in enumerate(integers(sizes), start=1):
        length = x.shape[dim]
        place = _centres(call, length, wanted)
        below = torch.floor(place)
        share = (place - below).reshape(-1, *[1] * (x.dim() - 1 - dim)).to(x.dtype)
        first = torch.index_select(x, dim, below.long().clamp(0, length - 1))
        second = torch.index_select(x, dim, (below.long() + 1).clamp(0, length - 1))
        x = first + (second - first) * share
    return x


LOWERINGS: dict[str, Callable[..., Any]] = {
    "ResizeBilinear": bilinear,
    "ResizeNearestNeighbor": nearest,
}
