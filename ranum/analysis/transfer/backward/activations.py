"""Gradients of activations and dropout."""

from __future__ import annotations

import math

import torch

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box, accumulator, broadcast_shapes, largest
from ranum.analysis.transfer.backward._common import overflowing
from ranum.analysis.transfer.registry import transfer

# Ranges of derivatives over all numbers, rounded outward in the fourth decimal.
GELU_SLOPE = (-0.1291, 1.1291)
GELU_TANH_SLOPE = (-0.1295, 1.1295)
SILU_SLOPE = (-0.0999, 1.0999)
MISH_SLOPE = (-0.1134, 1.0885)


def _sloped(
    grad: Interval, x: Interval, lower: float, upper: float, may_nan: bool = False
) -> Interval:
    """Grad times a derivative in [lower, upper]."""
    box = Box.native(grad)
    result = (box * box.constant(lower, upper)).rounded(32)
    shape = broadcast_shapes(grad.shape, x.shape)
    return result.with_nan(may_nan or x.may_nan).interval(shape, grad.dtype)


def _gated(grad: Interval, opened: torch.Tensor, closed: torch.Tensor, x: Interval) -> Interval:
    """Grad where the gate is surely open, 0 where surely closed, else either."""
    box = Box.of(grad)
    lower = torch.where(opened, box.lower, box.lower.clamp(max=0))
    upper = torch.where(opened, box.upper, box.upper.clamp(min=0))
    if not x.may_nan:
        lower = torch.where(closed, torch.zeros_like(lower), lower)
        upper = torch.where(closed, torch.zeros_like(upper), upper)
    shape = broadcast_shapes(grad.shape, x.shape)
    return Box(lower, upper, box.dtype, grad.may_nan).interval(shape, grad.dtype)


@transfer("threshold_backward", phase="backward")
def threshold_backward(grad_output: Interval, x: Interval, threshold: float) -> Interval:
    """Grad where x > threshold, else 0; NaN lets grad through."""
    return _gated(grad_output, x.lower > threshold, x.upper <= threshold, x)


@transfer("hardtanh_backward", phase="backward")
def hardtanh_backward(
    grad_output: Interval, x: Interval, min_val: float, max_val: float
) -> Interval:
    """Grad inside (min_val, max_val), else 0."""
    opened = (x.lower > min_val) & (x.upper < max_val)
    closed = (x.upper <= min_val) | (x.lower >= max_val)
    return _gated(grad_output, opened & (not x.may_nan), closed, x)


@transfer("softshrink_backward", phase="backward")
def softshrink_backward(grad_output: Interval, x: Interval, lambd: float) -> Interval:
    """0 where |x| <= lambd, else grad."""
    outside = (x.lower > lambd) | (x.upper < -lambd)
    inside = (x.lower >= -lambd) & (x.upper <= lambd)
    return _gated(grad_output, outside & (not x.may_nan), inside, x)


@transfer("hardshrink_backward", phase="backward")
def hardshrink_backward(grad_out: Interval, x: Interval, lambd: float) -> Interval:
    """0 where |x| <= lambd, else grad."""
    return softshrink_backward(grad_out, x, lambd)


@transfer("leaky_relu_backward", phase="backward")
def leaky_relu_backward(
    grad_output: Interval, x: Interval, negative_slope: float, self_is_result: bool
) -> Interval:
    """Grad where x > 0, else negative_slope grad."""
    grad = Box.native(grad_output)
    below = grad * float(negative_slope)
    either = grad.hull(below)
    positive, negative = x.lower > 0, x.upper <= 0
    if x.may_nan:
        positive, negative = positive & False, negative & False
    lower = torch.where(positive, grad.lower, torch.where(negative, below.lower, either.lower))
    upper = torch.where(positive, grad.upper, torch.where(negative, below.upper, either.upper))
    result = Box(lower, upper, grad.dtype, either.may_nan)
    shape = broadcast_shapes(grad_output.shape, x.shape)
    return result.interval(shape, grad_output.dtype)


@transfer("_prelu_kernel_backward", phase="backward")
def _prelu_kernel_backward(
    grad_output: Interval, x: Interval, weight: Interval
) -> tuple[Interval, Interval]:
    """Grad times 1 or weight; and grad times 0 or x, per element, to be summed later."""
    grad, slope = Box.native(grad_output), Box.native(weight)
    to_x = grad.hull(grad * slope)
    to_weight = (grad * Box.native(x)).with_zero()
    shape = grad_output.shape
    return to_x.interval(shape, x.dtype), to_weight.interval(shape, weight.dtype)


@transfer("rrelu_with_noise_backward", phase="backward")
def rrelu_with_noise_backward(
    grad_output: Interval,
    x: Interval,
    noise: Interval,
    lower: float,
    upper: float,
    training: bool,
    self_is_result: bool,
) -> Interval:
    """Grad times the noise; in eval, or for a fixed slope, times 1 or the middle slope."""
    grad = Box.native(grad_output)
    middle = (lower + upper) / 2
    slopes = grad.constant(min(middle, 1.0), max(middle, 1.0))
    if training and upper - lower > 1e-6:
        slopes = Box.native(noise)
    return (grad * slopes).rounded().interval(grad_output.shape, grad_output.dtype)


@transfer("elu_backward", phase="backward")
def elu_backward(
    grad_output: Interval,
    alpha: float,
    scale: float,
    input_scale: float,
    is_result: bool,
    self_or_result: Interval,
) -> Interval:
    """Grad scale above 0; grad input_scale (result + alpha scale) below.

    Without the result, alpha scale exp(input_scale x) stands for the bracket.
    """
    grad = Box.native(grad_output)
    x = Box.native(self_or_result)
    above = grad * scale
    below = x.clamped(-math.inf, 0.0)
    left = grad * input_scale
    if is_result:
        left = left * (below + alpha * scale)
    else:
        left = left * (alpha * scale) * (below * input_scale).increasing(torch.exp)
    result = above.hull(left) if x.high > 0 or self_or_result.may_nan else left
    shape = broadcast_shapes(grad_output.shape, self_or_result.shape)
    return result.rounded(16).interval(shape, grad_output.dtype)


@transfer("gelu_backward", phase="backward")
def gelu_backward(grad_output: Interval, x: Interval, approximate: str = "none") -> Interval:
    """Grad times a slope in [-0.13, 1.13]; NaN once x is infinite or x^2 overflows (tanh)."""
    slope = GELU_SLOPE if approximate == "none" else GELU_TANH_SLOPE
    peak = Box.of(x).peak
    # The tanh form multiplies 1 - tanh^2 = 0 with 1 + 3 k x^2.
    limit = largest(accumulator(x.dtype))
    lost = math.isinf(peak) if approximate == "none" else not peak < math.sqrt(limit) / 16
    return _sloped(grad_output, x, *slope, may_nan=lost)


@transfer("silu_backward", phase="backward")
def silu_backward(grad_output: Interval, x: Interval) -> Interval:
    """Grad times a slope in [-0.1, 1.1]; NaN for infinite x."""
    return _sloped(grad_output, x, *SILU_SLOPE, may_nan=math.isinf(Box.of(x).peak))


@transfer("mish_backward", phase="backward")
def mish_backward(grad_output: Interval, x: Interval) -> Interval:
    """Grad times a slope in [-0.12, 1.09]; NaN for infinite x."""
    return _sloped(grad_output, x, *MISH_SLOPE, may_nan=math.isinf(Box.of(x).peak))


@transfer("hardswish_backward", phase="backward")
def hardswish_backward(grad_output: Interval, x: Interval) -> Interval:
    """Grad times 0 below -3, x / 3 + 1/2 up to 3, 1 above: in [-0.5, 1.5]."""
    return _sloped(grad_output, x, -0.5, 1.5)


@transfer("hardsigmoid_backward", phase="backward")
def hardsigmoid_backward(grad_output: Interval, x: Interval) -> Interval:
    """Grad / 6 inside (-3, 3), else 0."""
    box = Box.native(grad_output)
    # The constant is a float32, in float64 too.
    grad = box * box.constant((1 - 1e-7) / 6, (1 + 1e-7) / 6)
    shape = broadcast_shapes(grad_output.shape, x.shape)
    return grad.with_zero().interval(shape, grad_output.dtype)


@transfer("log_sigmoid_backward", phase="backward")
def log_sigmoid_backward(grad_output: Interval, x: Interval, buffer: Interval) -> Interval:
    """Grad times sigmoid(-x), in [0, 1]; the buffer holds exp(-|x|)."""
    return _sloped(grad_output, x, 0.0, 1.0, may_nan=buffer.may_nan)


@transfer("softplus_backward", phase="backward")
def softplus_backward(
    grad_output: Interval, x: Interval, beta: float, threshold: float
) -> Interval:
    """Grad times z / (z + 1), z = exp(beta x), in [0, 1]; NaN if z may overflow."""
    grad = Box.native(grad_output)
    overflow = threshold >= math.log(largest(accumulator(x.dtype)))
    result = grad * grad.constant(0.0, 1.0)
    if not overflow:
        # Kernels multiply grad by z first, in float32 at least.
        wide = Box.of(grad_output)
        result = overflowing(result, wide * wide.constant(0.0, math.exp(threshold)))
    shape = broadcast_shapes(grad_output.shape, x.shape)
    result = result.with_nan(overflow or x.may_nan)
    return result.rounded(32).interval(shape, grad_output.dtype)


@transfer("sigmoid_backward", phase="backward")
def sigmoid_backward(grad_output: Interval, output: Interval) -> Interval:
    """Grad y (1 - y): concave in y, so least at the ends, at most 1/4."""
    y = Box.native(output)
    slope = y * (-y + 1.0)
    upper = torch.minimum(slope.upper, torch.full_like(slope.upper, 0.26))
    ends = [y.replaced(end, end) for end in (y.lower, y.upper)]
    low = torch.minimum(*((end * (-end + 1.0)).lower for end in ends))
    slope = Box(torch.minimum(low, upper), upper, slope.dtype, slope.may_nan)
    product = (Box.native(grad_output) * slope).rounded(32)
    # Kernels multiply grad (1 - y) first, which overflows for large |y| only.
    lost = output.low < 0 or output.high > 1
    if lost:
        product = Box.native(grad_output) * (-y + 1.0) * y
        product = product.hull(product.constant(0.0)).rounded(32)
    shape = broadcast_shapes(grad_output.shape, output.shape)
    return product.interval(shape, grad_output.dtype)


@transfer("tanh_backward", phase="backward")
def tanh_backward(grad_output: Interval, output: Interval) -> Interval:
    """Grad (1 - y^2)."""
    y = Box.native(output)
    slope = -y.square() + 1.0
    product = (Box.native(grad_output) * slope).rounded(32)
    shape = broadcast_shapes(grad_output.shape, output.shape)
    return product.interval(shape, grad_output.dtype)


@transfer("logit_backward", phase="backward")
def logit_backward(grad_output: Interval, x: Interval, eps: float | None = None) -> Interval:
    """Grad / (x (1 - x)); outside [eps, 1 - eps] 0, or without eps NaN, infinite at the ends."""
    grad, low, high = Box.native(grad_output), 0.0 if eps is None else eps, 1.0
    high = 1.0 - low
    inside = Box.native(x).clamped(low, high)
    quotient = (grad / (inside * (-inside + 1.0))).rounded(32)
    outside = x.low < low or x.high > high
    if eps is None:
        quotient = quotient.with_nan(outside)
    elif outside or x.may_nan:
        quotient = quotient.with_zero()
    shape = broadcast_shapes(grad_output.shape, x.shape)
    return quotient.with_nan(x.may_nan).interval(shape, grad_output.dtype)


@transfer("glu_backward", phase="backward")
def glu_backward(grad_output: Interval, x: Interval, dim: int) -> Interval:
    """Grad sigmoid(b), and grad a sigmoid(b) (1 - sigmoid(b)): hull of both halves."""
    grad = Box.native(grad_output.merged())
    first = grad * grad.constant(0.0, 1.0)
    second = grad * Box.native(x.merged()) * grad.constant(0.0, 0.25)
    infinite = math.isinf(Box.of(x).peak)
    result = first.hull(second).rounded(32).with_nan(infinite)
    return result.interval(x.shape, grad_output.dtype)


@transfer("native_dropout_backward", phase="backward")
def native_dropout_backward(grad_output: Interval, mask: Interval, scale: float) -> Interval:
    """Grad scale where kept, 0 where dropped."""
    grad = Box.native(grad_output)
    result = (grad * grad.constant(0.0, 1.0) * scale).rounded()
    return result.interval(grad_output.shape, grad_output.dtype)
