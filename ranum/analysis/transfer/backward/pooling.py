"""Gradients of pooling, resampling and padding: sums over the outputs an element feeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box
from ranum.analysis.transfer.registry import transfer


def _overlap(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> int:
    """In how many windows an element can lie."""
    return math.prod(
        min(k, ((k - 1) * d) // s + 1) for k, s, d in zip(kernel, stride, dilation, strict=True)
    )


def _each(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def overlap(
    kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], spatial: int
) -> int:
    """In how many windows an element can lie, from ATen's arguments."""
    kernel = _each(kernel_size, spatial)
    strides = _each(stride, spatial) if stride else kernel
    return _overlap(kernel, strides, _each(dilation, spatial))


def _scattered(
    grad: Interval, shape: Sequence[int], spatial: int, count: int, factor: float = 1.0
) -> Interval:
    """Up to `count` gradients of the same channel, each times up to `factor`, added up."""
    flat = grad.merged(keep=tuple(range(len(grad.shape) - spatial)))
    if grad.is_empty_tensor:
        return Interval.full(0, 0, shape, grad.dtype, grad.device)
    # Half types are added up as they are.
    box = Box.native(flat).with_zero()
    box = box if factor == 1.0 else box * factor
    return box.times(count).interval(shape, grad.dtype)


@transfer("max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward", phase="backward")
def max_pool2d_with_indices_backward(
    grad_output: Interval,
    x: Interval,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Interval,
) -> Interval:
    """The sum of the gradients of the windows that an element wins."""
    spatial = 3 if len(kernel_size) == 3 or len(x.shape) == 5 else 2
    windows = overlap(kernel_size, stride, dilation, spatial)
    return _scattered(grad_output, x.shape, spatial, windows)


def _adaptive_overlap(inner: Sequence[int], outer: Sequence[int]) -> int:
    """In how many adaptive windows an element of `inner` can lie."""
    return math.prod(
        1 if i % o == 0 else (o + i - 1) // i + 1 for i, o in zip(inner, outer, strict=True) if o
    )


def _adaptive_dims(inner: Sequence[int], outer: Sequence[int]) -> int:
    """How many dimensions are pooled: four of them may be `[N, C, H, W]` or `[C, D, H, W]`."""
    return 3 if len(inner) == 5 or (len(inner) == 4 and inner[1] != outer[1]) else 2


@transfer("adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward", phase="backward")
def adaptive_max_pool2d_backward(grad_output: Interval, x: Interval, indices: Interval) -> Interval:
    """The sum of the gradients of the windows that an element wins."""
    spatial = _adaptive_dims(x.shape, grad_output.shape)
    count = _adaptive_overlap(x.shape[-spatial:], grad_output.shape[-spatial:])
    return _scattered(grad_output, x.shape, spatial, count)


@transfer("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", phase="backward")
def _adaptive_avg_pool2d_backward(grad_output: Interval, x: Interval) -> Interval:
    """The sum of grad / window size over the windows of an element."""
    spatial = _adaptive_dims(x.shape, grad_output.shape)
    inner, outer = x.shape[-spatial:], grad_output.shape[-spatial:]
    least = math.prod(max(i // o, 1) for i, o in zip(inner, outer, strict=True) if o)
    return _scattered(grad_output, x.shape, spatial, _adaptive_overlap(inner, outer), 1 / least)


@transfer("avg_pool2d_backward", "avg_pool3d_backward", phase="backward")
def avg_pool2d_backward(
    grad_output: Interval,
    x: Interval,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Interval:
    """The sum of grad / divisor over the windows of an element."""
    spatial = 3 if len(kernel_size) == 3 or len(x.shape) == 5 else 2
    kernel = _each(kernel_size, spatial)
    strides = _each(stride, spatial) if stride else kernel
    whole = not any(_each(padding, spatial)) and not ceil_mode
    divisor = divisor_override or (math.prod(kernel) if whole else 1)
    count = _overlap(kernel, strides, (1,) * spatial)
    return _scattered(grad_output, x.shape, spatial, count, 1 / divisor)


def _copies(inner: Sequence[int], outer: Sequence[int], reach: int) -> int:
    """How many outputs an input can feed, each reading `reach` inputs along a dimension."""
    return math.prod(reach * ((o + i - 1) // i + 1) for i, o in zip(inner, outer, strict=True) if i)


@transfer(
    "upsample_nearest1d_backward",
    "upsample_nearest2d_backward",
    "upsample_nearest3d_backward",
    "_upsample_nearest_exact1d_backward",
    "_upsample_nearest_exact2d_backward",
    "_upsample_nearest_exact3d_backward",
    phase="backward",
)
def upsample_nearest2d_backward(
    grad_output: Interval, output_size: Sequence[int], input_size: Sequence[int], **_: Any
) -> Interval:
    """The sum of the gradients of an element's copies."""
    spatial = len(output_size)
    count = _copies(input_size[2:], output_size, 1)
    return _scattered(grad_output, tuple(input_size), spatial, count)


@transfer(
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_trilinear3d_backward",
    "upsample_bicubic2d_backward",
    phase="backward",
)
def upsample_bilinear2d_backward(
    grad_output: Interval,
    output_size: Sequence[int],
    input_size: Sequence[int],
    align_corners: bool,
    **_: Any,
) -> Interval:
    """The sum of grad times weights in [-1, 1] over the outputs an element feeds."""
    spatial = len(output_size)
    count = _copies(input_size[2:], output_size, 4)
    flat = grad_output.merged(keep=tuple(range(len(grad_output.shape) - spatial)))
    # Wide kernels can run past the border, and inf times a weight of 0 is NaN.
    box = Box.native(flat)
    both = box * box.constant(-1.0, 1.0)
    return both.times(count).interval(tuple(input_size), grad_output.dtype)


@transfer(
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    phase="backward",
)
def reflection_pad2d_backward(
    grad_output: Interval, x: Interval, padding: Sequence[int]
) -> Interval:
    """An element collects the gradients of itself and up to two images a dimension."""
    spatial = len(padding) // 2
    return _scattered(grad_output, x.shape, spatial, 3**spatial)


@transfer(
    "replication_pad1d_backward",
    "replication_pad2d_backward",
    "replication_pad3d_backward",
    phase="backward",
)
def replication_pad2d_backward(
    grad_output: Interval, x: Interval, padding: Sequence[int]
) -> Interval:
    """An element at the border collects the gradients of all its copies."""
    pairs = zip(padding[::2], padding[1::2], strict=True)
    count = math.prod(1 + max(before, 0) + max(after, 0) for before, after in pairs)
    return _scattered(grad_output, x.shape, len(padding) // 2, count)
