"""Gradients of activations on one pair of bounds."""

from __future__ import annotations

import math

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import largest
from ranum.analysis.transfer.backward import activations as slopes
from ranum.analysis.transfer.registry import uniform
from ranum.analysis.transfer.uniform._scalar import (
    Bounds,
    Pair,
    Unsure,
    outward,
    pair,
    peak,
    product,
    settled,
    tainted,
    with_zero,
    working,
)

Outputs = tuple[Value, ...]


def _sloped(grad: Interval, slope: Pair, x: Interval) -> Bounds:
    low, high = settled(product(pair(grad), slope), grad.dtype, 48)
    return low, high, grad.may_inf or tainted(grad, x)


@uniform("threshold_backward", wide=True)
def threshold_backward(
    out: Outputs, grad_output: Interval, x: Interval, threshold: float
) -> Bounds:
    """Grad where x > threshold, else 0; NaN lets grad through."""
    return _gated(grad_output, x, opened=x.low > threshold, closed=x.high <= threshold)


@uniform("hardtanh_backward", wide=True)
def hardtanh_backward(
    out: Outputs, grad_output: Interval, x: Interval, min_val: float, max_val: float
) -> Bounds:
    """Grad inside (min_val, max_val), else 0."""
    opened = min_val < x.low and x.high < max_val and not x.may_nan
    return _gated(grad_output, x, opened, closed=x.high <= min_val or x.low >= max_val)


def _gated(grad: Interval, x: Interval, opened: bool, closed: bool) -> Bounds:
    if opened:
        return grad.low, grad.high, grad.may_nan
    if closed and not x.may_nan:
        return 0.0, 0.0, grad.may_nan
    return *with_zero(pair(grad)), grad.may_nan


@uniform("softplus_backward", wide=True)
def softplus_backward(
    out: Outputs, grad_output: Interval, x: Interval, beta: float, threshold: float
) -> Bounds:
    """Grad times a slope in [0, 1]; kernels multiply by exp(beta x) first, and may overflow."""
    if threshold >= math.log(largest(working(x))):
        raise Unsure
    low, high, lost = _sloped(grad_output, (0.0, 1.0), x)
    numerator = settled(
        product(pair(grad_output), (0.0, math.exp(threshold))), working(grad_output)
    )
    low = -math.inf if numerator[0] == -math.inf else low
    high = math.inf if numerator[1] == math.inf else high
    return low, high, lost


@uniform("gelu_backward", wide=True)
def gelu_backward(
    out: Outputs, grad_output: Interval, x: Interval, approximate: str = "none"
) -> Bounds:
    """Grad times a slope in [-0.13, 1.13]; NaN once x is infinite or x^2 overflows (tanh)."""
    exact = approximate == "none"
    limit = math.inf if exact else math.sqrt(largest(working(x))) / 16
    slope = slopes.GELU_SLOPE if exact else slopes.GELU_TANH_SLOPE
    low, high, lost = _sloped(grad_output, slope, x)
    return low, high, lost or not peak(x) < limit


@uniform("silu_backward", wide=True)
def silu_backward(out: Outputs, grad_output: Interval, x: Interval) -> Bounds:
    """Grad times a slope in [-0.1, 1.1]; NaN for infinite x."""
    low, high, lost = _sloped(grad_output, slopes.SILU_SLOPE, x)
    return low, high, lost or x.may_inf


@uniform("sigmoid_backward", wide=True)
def sigmoid_backward(out: Outputs, grad_output: Interval, output: Interval) -> Bounds:
    """Grad y (1 - y), which is least at the ends and at most 1/4."""
    low, high = pair(output)
    if low < 0 or high > 1:
        raise Unsure
    slope = outward((min(low * (1 - low), high * (1 - high)), high * (1 - low)), output.dtype)
    return _sloped(grad_output, (slope[0], min(slope[1], 0.26)), output)


@uniform("tanh_backward", spreads=True, wide=True)
def tanh_backward(out: Outputs, grad_output: Interval, output: Interval) -> Bounds:
    """Grad (1 - y^2)."""
    low, high = pair(output)
    least, most = max(low, -high, 0.0), max(high, -low)
    square = outward((least * least, most * most), output.dtype)
    slope = outward((1 - square[1], 1 - square[0]), output.dtype)
    return _sloped(grad_output, slope, output)
