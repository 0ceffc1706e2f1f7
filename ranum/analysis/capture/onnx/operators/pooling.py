"""Pooling over moving windows, [N, C, ...]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import (
    filled,
    ints,
    sized,
    spatial_pads,
    torch_pads,
    vector_norm,
)
from ranum.analysis.capture.onnx.registry import Call, UnsupportedError, lowering

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _frame(
    x: Tensor,
    kernel: Sequence[int],
    step: Sequence[int],
    spread: Sequence[int],
    auto_pad: str,
    pads: Sequence[int] | None,
    ceil_mode: int,
) -> tuple[list[int], list[int], list[int]]:
    """Padding before, padding after that windows count, and further padding that they reach."""
    before, after = spatial_pads(auto_pad, pads, x.shape[2:], kernel, step, spread)
    beyond = []
    for i, size in enumerate(x.shape[2:]):
        reach = spread[i] * (kernel[i] - 1) + 1
        room = size + before[i] + after[i] - reach
        steps = -(-room // step[i]) if ceil_mode else room // step[i]
        if ceil_mode and steps * step[i] >= size + before[i]:
            steps -= 1  # no window starts in the padding at the end
        beyond.append(max(steps * step[i] + reach - (size + before[i] + after[i]), 0))
    sized([*x.shape[:2], *(n + a + b + c for n, a, b, c in
                           zip(x.shape[2:], before, after, beyond, strict=True))])  # fmt: skip
    return before, after, beyond


def _windows(
    x: Tensor, kernel: Sequence[int], step: Sequence[int], spread: Sequence[int]
) -> Tensor:
    """All windows, [N, C, out..., kernel...], as a view."""
    for i, (k, s, d) in enumerate(zip(kernel, step, spread, strict=True)):
        x = x.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
    return x


@lowering("MaxPool")
def max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    call: Call,
) -> tuple[Tensor, ...]:
    """The largest element of each window, and its place in the whole tensor."""
    rank = x.dim() - 2
    step, spread = filled(rank, strides), filled(rank, dilations)
    if rank not in _MAX:
        raise UnsupportedError(f"pooling in {rank} dimensions")
    before, after, beyond = _frame(x, kernel_shape, step, spread, auto_pad, pads, ceil_mode)
    end = [a + b for a, b in zip(after, beyond, strict=True)]
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    framed = x
    outside = [0] * rank
    small = all(2 * n <= k for n, k in zip(before, kernel_shape, strict=True))
    if x.is_floating_point() and before == end and small:
        outside = before
    elif any(before) or any(end):
        framed = F.pad(x, torch_pads(before, end), value=lowest)
    if not x.is_floating_point():
        windows = _windows(framed, kernel_shape, step, spread)
        if call.wants(1):
            raise UnsupportedError("places of integer maxima")
        return (windows.flatten(2 + rank).amax(-1),)
    if not call.wants(1):
        return (_MAX[rank](framed, list(kernel_shape), step, outside, spread),)
    values, places = _MAX[rank](
        framed, list(kernel_shape), step, outside, spread, return_indices=True
    )
    shift = [0] * rank if framed is x else before
    return values, _places(places, x, framed.shape[2:], shift, storage_order)


def _places(
    places: Tensor, x: Tensor, frame: Sequence[int], shift: Sequence[int], column_major: int
) -> Tensor:
    """Flat places in a padded window's frame as flat places in the whole tensor."""
    coordinates = []
    for size, low in zip(reversed(frame), reversed(shift), strict=True):
        coordinates.append(places % size - low)
        places = places // size
    coordinates.reverse()
    sizes = list(x.shape[2:])
    if column_major:
        sizes.reverse()
        coordinates.reverse()
    flat = torch.zeros_like(coordinates[0])
    for size, coordinate in zip(sizes, coordinates, strict=True):
        flat = flat * size + coordinate
    planes = torch.arange(x.shape[0] * x.shape[1]) * math.prod(sizes)
    return flat + planes.reshape(*x.shape[:2], *[1] * len(sizes))


@lowering("AveragePool")
def average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The mean of each window, padding counted or not."""
    rank = x.dim() - 2
    step, spread = filled(rank, strides), filled(rank, dilations)
    before, after, beyond = _frame(x, kernel_shape, step, spread, auto_pad, pads, ceil_mode)
    plain = rank in _MEAN and not any(beyond) and spread == [1] * rank and before == after
    small = all(2 * n <= k for n, k in zip(before, kernel_shape, strict=True))
    if plain and small:
        include = bool(count_include_pad)
        return _MEAN[rank](x, list(kernel_shape), step, before, False, include)
    end = [a + b for a, b in zip(after, beyond, strict=True)]
    framed = F.pad(x, torch_pads(before, end))
    total = _windows(framed, kernel_shape, step, spread).flatten(2 + rank).sum(-1)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    if count_include_pad:
        ones = F.pad(ones, torch_pads(before, after), value=1.0)
        ones = F.pad(ones, torch_pads([0] * rank, beyond))
    else:
        ones = F.pad(ones, torch_pads(before, end))
    return total / _windows(ones, kernel_shape, step, spread).flatten(2 + rank).sum(-1)


@lowering("LpPool")
def lp_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The p-norm of each window."""
    rank = x.dim() - 2
    step, spread = filled(rank, strides), filled(rank, dilations)
    before, after, beyond = _frame(x, kernel_shape, step, spread, auto_pad, pads, ceil_mode)
    end = [a + b for a, b in zip(after, beyond, strict=True)]
    framed = F.pad(x, torch_pads(before, end))
    windows = _windows(framed, kernel_shape, step, spread).flatten(2 + rank)
    return vector_norm(windows, p, -1)


@lowering("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """The largest element of each channel."""
    return torch.amax(x, tuple(range(2, x.dim())), True)


@lowering("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """The mean of each channel."""
    return x.mean(tuple(range(2, x.dim())), True)


@lowering("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """The p-norm of each channel."""
    return vector_norm(x, p, tuple(range(2, x.dim())), True)


@lowering("MaxUnpool")
def max_unpool(
    x: Tensor,
    places: Tensor,
    output_shape: Tensor | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Maxima put back where they came from, zeros elsewhere."""
    rank = x.dim() - 2
    step, given = filled(rank, strides), filled(2 * rank, pads, 0)
    natural = [
        (n - 1) * s - given[i] - given[i + rank] + kernel_shape[i]
        for i, (n, s) in enumerate(zip(x.shape[2:], step, strict=True))
    ]
    shape = sized([*x.shape[:2], *natural])
    flat = x.new_zeros(math.prod(shape))
    result = flat.scatter(0, places.reshape(-1), x.reshape(-1)).reshape(shape)
    if output_shape is None:
        return result
    wanted = sized(ints(output_shape))
    grow = [w - n for w, n in zip(wanted, shape, strict=True)]
    return F.pad(result, torch_pads([0] * len(grow), grow))
