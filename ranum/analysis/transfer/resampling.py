"""Resampling at places that are data themselves, and with wide kernels.

A bilinear or nearest sample is a convex combination of elements of its channel, of 0 too
where it may lie outside; a cubic one exceeds it by at most the sum of the kernel's sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import Box, largest, like
from ranum.analysis.transfer.pooling import BICUBIC_NORM
from ranum.analysis.transfer.registry import transfer

BICUBIC = 2
CUBIC_SLOPE_NORM = 3.5
"""Largest sum of sizes of the derivatives of Keys' cubic kernel with a = -0.75, rounded up."""

FAR = 1e6
"""Beyond it, positions on the grid lose their fraction, and some kernels their index."""


def _placed(grid: Interval, image: Interval) -> bool:
    """True if every place on the grid is a number that kernels can index by."""
    return image.is_finite and not grid.may_nan and max(-grid.low, grid.high) <= FAR


@transfer("grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(
    input: Interval, grid: Interval, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Interval | None:
    """`[N, C, ...]` sampled at a grid `[N, ..., 2 or 3]`; NaN and far places say nothing."""
    if input.is_empty_tensor or grid.is_empty_tensor or not _placed(grid, input):
        return None
    shape = (*input.shape[:2], *grid.shape[1:-1])
    box = Box.native(input.merged(keep=(0, 1))).with_zero()
    # The weights are 1 - t and t for a place that is itself rounded.
    slack = 64 * unit_roundoff(input.dtype)
    norm = BICUBIC_NORM**2 if interpolation_mode == BICUBIC else 1.0
    sizes = box.magnitude * (norm * (1 + slack))
    if interpolation_mode == BICUBIC:
        return box.replaced(-sizes, sizes).rounded().interval(shape, input.dtype)
    spread = box.magnitude * slack
    widened = box.replaced(box.lower - spread, box.upper + spread)
    return widened.rounded().interval(shape, input.dtype)


@transfer("grid_sampler_2d_backward", "grid_sampler_3d_backward", phase="backward")
def grid_sampler_backward(
    grad_output: Interval,
    input: Interval,
    grid: Interval,
    interpolation_mode: int,
    padding_mode: int,
    align_corners: bool,
    output_mask: Sequence[bool],
) -> tuple[Interval | None, Interval | None]:
    """Grad times weights, over all places; grad times differences of neighbours, over channels."""
    if grad_output.is_empty_tensor or input.is_empty_tensor or not _placed(grid, input):
        return None, None
    if not grad_output.is_finite:
        return None, None
    size = Box.native(grad_output.merged()).peak
    places = math.prod(grid.shape[1:-1])
    cubic = interpolation_mode == BICUBIC
    # The four weights of one place add up to 1, but places may share an element.
    to_input = size * places * (BICUBIC_NORM**2 if cubic else 1.0)
    slope = CUBIC_SLOPE_NORM * BICUBIC_NORM if cubic else 2.0
    channels, spatial = input.shape[1], max(input.shape[2:])
    to_grid = size * channels * slope * Box.native(input.merged()).peak * max(spatial, 2) / 2
    terms = max(places, 8 * channels)
    return (
        _within(to_input, terms, input.shape, input),
        _within(to_grid, terms, grid.shape, grid),
    )


def _within(size: float, terms: int, shape: Sequence[int], x: Interval) -> Interval:
    bound = size * math.exp(8 * (terms + 16) * unit_roundoff(x.dtype))
    if not bound < largest(x.dtype) / 2:
        return Interval.top(shape, x.dtype)
    floor = terms * torch.finfo(x.dtype).smallest_normal
    return like(-bound - floor, bound + floor, shape, x)


@transfer("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
def upsample_aa(x: Interval, output_size: Sequence[int], **_: Any) -> Interval:
    """Weighted means over wide windows; cubic weights below 0 are a third of those above."""
    shape = (*x.shape[:2], *output_size)
    if x.is_empty_tensor or not x.is_finite:
        return Interval.top(shape, x.dtype)
    box = Box.native(x.merged(keep=(0, 1)))
    size = box.magnitude * 2.25
    result = box.replaced(-size, size).rounded(64).interval(shape, x.dtype)
    # Weights of both signs: what overflows on the way may meet its opposite.
    return result if result.is_finite else Interval.top(shape, x.dtype)


@transfer("_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward", phase="backward")
def upsample_aa_backward(
    grad_output: Interval, output_size: Sequence[int], input_size: Sequence[int], **_: Any
) -> Interval:
    """The sum of grad times weights in [-1, 1.5] over at most all outputs."""
    shape = tuple(input_size)
    if grad_output.is_empty_tensor:
        return like(0.0, 0.0, shape, grad_output)
    if not grad_output.is_finite:
        return Interval.top(shape, grad_output.dtype)
    count = math.prod(output_size)
    size = Box.native(grad_output.merged()).peak * 2.25 * count
    return _within(size, count, shape, grad_output)
