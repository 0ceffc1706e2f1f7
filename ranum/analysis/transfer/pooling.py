"""Pooling and resampling.

Maxima and copies are exact; averages and interpolations are convex combinations, so they
stay between the extremes of a channel, up to rounding. Where bounds are known per position
a maximum is taken of the bounds; elsewhere one bound per channel is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box, indices, largest, sum_error
from ranum.analysis.transfer.registry import transfer

BICUBIC_NORM = 1.375
"""Largest sum of |weights| of Keys' cubic kernel with a = -0.75, at the middle of a cell."""


def _each(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """A size per dimension, from one number or a list of one or all."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def _without_positions(x: Interval, spatial: int) -> Interval:
    rank = len(x.shape)
    return x.merged(keep=tuple(range(rank - spatial)))


def _resized(x: Interval, size: Sequence[int]) -> tuple[int, ...]:
    return (*x.shape[: len(x.shape) - len(size)], *size)


def _output_sizes(
    x: Interval,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[int, ...]:
    sizes = []
    spatial = x.shape[len(x.shape) - len(kernel) :]
    for n, k, s, p, d in zip(spatial, kernel, stride, padding, dilation, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        size = (room + s - 1 if ceil_mode else room) // s + 1
        if ceil_mode and (size - 1) * s >= n + p:  # the last window must start inside
            size -= 1
        sizes.append(size)
    return tuple(sizes)


# --- maxima --------------------------------------------------------------------------------


@transfer("max_pool2d_with_indices", "max_pool3d_with_indices")
def max_pool2d_with_indices(
    x: Interval,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> tuple[Interval, Interval]:
    """Largest element of each window; monotone, so the windows of the bounds are pooled."""
    kernel_size = tuple(kernel_size)
    spatial = 3 if len(x.shape) == 5 or len(kernel_size) == 3 else 2
    kernel = _each(kernel_size, spatial)
    strides = _each(stride, spatial) if not isinstance(stride, int) and stride else kernel
    pads, gaps = _each(padding, spatial), _each(dilation, spatial)
    shape = _resized(x, _output_sizes(x, kernel, strides, pads, gaps, ceil_mode))
    positions = math.prod(x.shape[len(x.shape) - spatial :])
    found = indices(positions, shape, x)
    layout = x.lower.shape[len(x.shape) - spatial :]
    if layout != x.shape[len(x.shape) - spatial :] or x.is_empty_tensor:
        flat = _without_positions(x, spatial)
        return Interval(flat.lower, flat.upper, shape, x.dtype, x.may_nan), found
    pool = getattr(torch.nn.functional, f"max_pool{spatial}d")
    arguments = (kernel, strides, pads, gaps, ceil_mode)
    lower, upper = pool(x.lower, *arguments), pool(x.upper, *arguments)
    return Interval(lower, upper, shape, x.dtype, x.may_nan), found


@transfer("adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max_pool2d(x: Interval, output_size: Sequence[int]) -> tuple[Interval, Interval]:
    """Largest element of each window, at most of the channel."""
    spatial = len(output_size)
    flat = _without_positions(x, spatial)
    shape = _resized(x, output_size)
    positions = math.prod(x.shape[len(x.shape) - spatial :])
    result = Interval(flat.lower, flat.upper, shape, x.dtype, x.may_nan)
    return result, indices(positions, shape, x)


# --- averages ------------------------------------------------------------------------------


def _averaged(x: Interval, spatial: int, count: int, shape: Sequence[int]) -> Interval:
    """A mean of one to `count` elements of a channel."""
    flat = _without_positions(x, spatial)
    # The kernels for volumes add half types up as they are.
    box = Box.native(flat) if spatial == 3 else Box.of(flat)
    if not count or x.is_empty_tensor:
        return box.interval(shape, x.dtype)
    total = box.times(count)
    mean = Box(total.lower / count, total.upper / count, box.dtype, total.may_nan)
    return mean.hull(box).rounded().interval(shape, x.dtype)


def _avg_pool(
    x: Interval,
    spatial: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: int | Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Interval:
    kernel = _each(kernel_size, spatial)
    strides = _each(stride, spatial) if stride else kernel
    pads = _each(padding, spatial)
    sizes = _output_sizes(x, kernel, strides, pads, (1,) * spatial, ceil_mode)
    shape, count = _resized(x, sizes), math.prod(kernel)
    borders = any(pads) or ceil_mode
    if borders and (count_include_pad or divisor_override):
        lower, upper = x.lower.clamp(max=0), x.upper.clamp(min=0)
        x = Interval(lower, upper, x.shape, x.dtype, x.may_nan)
    if divisor_override is None:
        return _averaged(x, spatial, count, shape)
    total = Box.of(_without_positions(x, spatial)).times(count)
    return (total / float(divisor_override)).interval(shape, x.dtype)


@transfer("avg_pool1d")
def avg_pool1d(
    x: Interval,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Interval:
    """Mean of each window."""
    return _avg_pool(x, 1, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


@transfer("avg_pool2d")
def avg_pool2d(
    x: Interval,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Interval:
    """Mean of each window, zeros of the padding included if they count."""
    return _avg_pool(
        x, 2, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


@transfer("avg_pool3d")
def avg_pool3d(
    x: Interval,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Interval:
    """Mean of each window, zeros of the padding included if they count."""
    return _avg_pool(
        x, 3, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


@transfer(
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"
)
def _adaptive_avg_pool2d(x: Interval, output_size: Sequence[int]) -> Interval:
    """Mean of each window."""
    spatial = len(output_size)
    count = math.prod(x.shape[len(x.shape) - spatial :])
    return _averaged(x, spatial, count, _resized(x, output_size))


# --- resampling ----------------------------------------------------------------------------


@transfer(
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
)
def upsample_nearest2d(x: Interval, output_size: Sequence[int], **_: Any) -> Interval:
    """Copies of elements; one bound per channel."""
    flat = _without_positions(x, len(output_size))
    return Interval(flat.lower, flat.upper, _resized(x, output_size), x.dtype, x.may_nan)


@transfer("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")
def upsample_bilinear2d(
    x: Interval, output_size: Sequence[int], align_corners: bool, **_: Any
) -> Interval:
    """Convex combinations of elements of a channel. 0 * inf is NaN: a weight may be 0."""
    box = Box.of(_without_positions(x, len(output_size)))
    infinite = math.isinf(box.peak)
    slack = 2 * sum_error(32, box.dtype) * box.magnitude
    result = box.replaced(box.lower - slack, box.upper + slack).with_nan(infinite)
    return result.rounded().interval(_resized(x, output_size), x.dtype)


@transfer("upsample_bicubic2d")
def upsample_bicubic2d(
    x: Interval, output_size: Sequence[int], align_corners: bool, **_: Any
) -> Interval:
    """Weights add up to 1 and their sizes to at most 1.375 a dimension: radius times 1.9."""
    box = Box.of(_without_positions(x, 2))
    centre = box.lower / 2 + box.upper / 2
    radius = (box.upper / 2 - box.lower / 2) * BICUBIC_NORM**2
    slack = 4 * sum_error(64, box.dtype) * BICUBIC_NORM**2 * box.magnitude
    result = box.replaced(centre - radius - slack, centre + radius + slack)
    if box.peak * BICUBIC_NORM**2 > largest(box.dtype) / 2:  # one dimension after the other
        result = box.replaced(box.lower * math.nan, box.upper)
    return result.rounded().interval(_resized(x, output_size), x.dtype)


@transfer("im2col")
def im2col(
    x: Interval,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Interval:
    """Patches as columns, zeros where they pass the border; one bound per sample."""
    kernel, gaps, pads, strides = (_each(v, 2) for v in (kernel_size, dilation, padding, stride))
    sizes = _output_sizes(x, kernel, strides, pads, gaps, False)
    channels = x.shape[-3] * math.prod(kernel)
    shape = (*x.shape[:-3], channels, math.prod(sizes))
    flat = _without_positions(x, 3)
    lower, upper = flat.lower[..., 0], flat.upper[..., 0]
    if any(pads):
        lower, upper = lower.clamp(max=0), upper.clamp(min=0)
    return Interval(lower, upper, shape, x.dtype, x.may_nan)


@transfer("col2im")
def col2im(
    x: Interval,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Interval:
    """Each position sums what the patches over it hold: none to one a tap."""
    taps = math.prod(_each(kernel_size, 2))
    shape = (*x.shape[:-2], x.shape[-2] // taps, *output_size)
    box = Box.native(_without_positions(x, 2)).with_zero().times(taps)
    return box.replaced(box.lower.unsqueeze(-1), box.upper.unsqueeze(-1)).interval(shape, x.dtype)


@transfer("pixel_shuffle")
def pixel_shuffle(x: Interval, upscale_factor: int) -> Interval:
    """Channels to positions: `[..., C r r, H, W]` to `[..., C, H r, W r]`."""
    *batch, channels, height, width = x.shape
    r = upscale_factor
    shape = (*batch, channels // (r * r), height * r, width * r)
    flat = _without_positions(x, 3)
    return Interval(flat.lower, flat.upper, shape, x.dtype, x.may_nan)


@transfer("pixel_unshuffle")
def pixel_unshuffle(x: Interval, downscale_factor: int) -> Interval:
    """Positions to channels, the inverse of pixel_shuffle."""
    *batch, channels, height, width = x.shape
    r = downscale_factor
    shape = (*batch, channels * r * r, height // r, width // r)
    flat = _without_positions(x, 3)
    return Interval(flat.lower, flat.upper, shape, x.dtype, x.may_nan)


@transfer("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(x: Interval, groups: int) -> Interval:
    """Channels `[N, C, ...]` in another order."""
    return x.merged([dim for dim in range(len(x.shape)) if dim != 1])
