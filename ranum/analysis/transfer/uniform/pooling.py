"""Largest elements of windows, and their gradients, on one pair of bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.transfer.backward.pooling import overlap
from ranum.analysis.transfer.registry import uniform
from ranum.analysis.transfer.uniform._scalar import Bounds, pair, summed, with_zero

Outputs = tuple[Value, ...]


def _spatial(x: Interval, kernel_size: Sequence[int]) -> int:
    return 3 if len(x.shape) == 5 or len(kernel_size) == 3 else 2


@uniform("max_pool2d_with_indices", "max_pool3d_with_indices", moves=True, wide=True)
def max_pool2d_with_indices(
    out: Outputs, x: Interval, kernel_size: Sequence[int], *_: Any, **__: Any
) -> list[Bounds]:
    """Some elements of x, and their positions."""
    positions = math.prod(x.shape[len(x.shape) - _spatial(x, kernel_size) :])
    return [(x.low, x.high, x.may_nan), (0, max(positions - 1, 0), False)]


@uniform(
    "max_pool2d_with_indices_backward",
    "max_pool3d_with_indices_backward",
    aside=("x", "indices"),
    wide=True,
)
def max_pool2d_with_indices_backward(
    out: Outputs,
    grad_output: Interval,
    x: Interval,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Interval,
) -> Bounds:
    """The sum of the gradients of the windows that an element wins."""
    windows = overlap(kernel_size, stride, dilation, _spatial(x, kernel_size))
    # Half types are added up as they are.
    low, high, lost = summed(with_zero(pair(grad_output)), windows, grad_output.dtype)
    return low, high, lost or grad_output.may_nan
