"""Gradients of activations on one pair of bounds."""

from __future__ import annotations

import math

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import largest
from ranum.analysis.transfer.backward import activations as slopes
from ranum.analysis.transfer.registry import uniform
from ranum.analysis.transfer.uniform._scalar import (
    Pair,
    Unsure,
    outward,
    pair,
    peak,
    product,
    with_zero,
    working,
)

Outputs = tuple[Value, ...]


def _sloped(grad: Interval, slope: Pair) -> Pair:
    return outward(product(pair(grad), slope), grad.dtype, 48)


@uniform("threshold_backward")
def threshold_backward(out: Outputs, grad_output: Interval, x: Interval, threshold: float) -> Pair:
    """Grad where x > threshold, else 0."""
    if x.low > threshold:
        return pair(grad_output)
    return (0.0, 0.0) if x.high <= threshold else with_zero(pair(grad_output))


@uniform("hardtanh_backward")
def hardtanh_backward(
    out: Outputs, grad_output: Interval, x: Interval, min_val: float, max_val: float
) -> Pair:
    """Grad inside (min_val, max_val), else 0."""
    if min_val < x.low and x.high < max_val:
        return pair(grad_output)
    closed = x.high <= min_val or x.low >= max_val
    return (0.0, 0.0) if closed else with_zero(pair(grad_output))


@uniform("gelu_backward", spreads=True)
def gelu_backward(
    out: Outputs, grad_output: Interval, x: Interval, approximate: str = "none"
) -> Pair:
    """Grad times a slope in [-0.13, 1.13]."""
    if approximate == "none":
        return _sloped(grad_output, slopes.GELU_SLOPE)
    if not peak(x) < math.sqrt(largest(working(x))) / 16:
        raise Unsure
    return _sloped(grad_output, slopes.GELU_TANH_SLOPE)


@uniform("silu_backward", spreads=True)
def silu_backward(out: Outputs, grad_output: Interval, x: Interval) -> Pair:
    """Grad times a slope in [-0.1, 1.1]."""
    return _sloped(grad_output, slopes.SILU_SLOPE)


@uniform("sigmoid_backward")
def sigmoid_backward(out: Outputs, grad_output: Interval, output: Interval) -> Pair:
    """Grad y (1 - y), which is least at the ends and at most 1/4."""
    low, high = pair(output)
    if low < 0 or high > 1:
        raise Unsure
    slope = outward((min(low * (1 - low), high * (1 - high)), high * (1 - low)), output.dtype)
    return _sloped(grad_output, (slope[0], min(slope[1], 0.26)))


@uniform("tanh_backward", spreads=True)
def tanh_backward(out: Outputs, grad_output: Interval, output: Interval) -> Pair:
    """Grad (1 - y^2)."""
    low, high = pair(output)
    least, most = max(low, -high, 0.0), max(high, -low)
    square = outward((least * least, most * most), output.dtype)
    slope = outward((1 - square[1], 1 - square[0]), output.dtype)
    return _sloped(grad_output, slope)
