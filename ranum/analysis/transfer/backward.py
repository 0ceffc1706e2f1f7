"""Backward operators: what ATen calls to differentiate the others.

The incoming gradient is an operand like any other. Bounds are kept loose and cheap, one per
feature at most: what counts is where a gradient stops being finite. Operators that receive
both an input and something the forward pass made of it (a mean, a softmax, a log sum exp)
rely on the two belonging together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import (
    Box,
    accumulator,
    largest,
    sum_error,
    summed,
    unknown,
)
from ranum.analysis.transfer.attention import _logits
from ranum.analysis.transfer.contraction import per_channel, product_error
from ranum.analysis.transfer.loss import MEAN
from ranum.analysis.transfer.recurrent import LSTM
from ranum.analysis.transfer.registry import transfer

Mask = Sequence[bool]

BCE_EPSILON = 0.9999999e-12
"""ATen's floor of x (1 - x) in the gradient of binary cross entropy: 1e-12 as a float32."""

# Ranges of derivatives over all numbers, rounded outward in the fourth decimal.
GELU_SLOPE = (-0.1291, 1.1291)
GELU_TANH_SLOPE = (-0.1295, 1.1295)
SILU_SLOPE = (-0.0999, 1.0999)
MISH_SLOPE = (-0.1134, 1.0885)


# --- activations ---------------------------------------------------------------------------


def _sloped(
    grad: Interval, x: Interval, lower: float, upper: float, may_nan: bool = False
) -> Interval:
    """Grad times a derivative in [lower, upper]."""
    box = Box.native(grad)
    result = (box * box.constant(lower, upper)).rounded(32)
    shape = torch.broadcast_shapes(grad.shape, x.shape)
    return result.with_nan(may_nan or x.may_nan).interval(shape, grad.dtype)


def _gated(grad: Interval, opened: torch.Tensor, closed: torch.Tensor, x: Interval) -> Interval:
    """Grad where the gate is surely open, 0 where surely closed, else either."""
    box = Box.of(grad)
    lower = torch.where(opened, box.lower, box.lower.clamp(max=0))
    upper = torch.where(opened, box.upper, box.upper.clamp(min=0))
    if not x.may_nan:
        lower = torch.where(closed, torch.zeros_like(lower), lower)
        upper = torch.where(closed, torch.zeros_like(upper), upper)
    shape = torch.broadcast_shapes(grad.shape, x.shape)
    return Box(lower, upper, box.dtype, grad.may_nan).interval(shape, grad.dtype)


def _overflowing(result: Box, numerator: Box) -> Box:
    """A quotient that is infinite wherever its numerator can be."""
    lower = torch.where(numerator.lower == -math.inf, numerator.lower, result.lower)
    upper = torch.where(numerator.upper == math.inf, numerator.upper, result.upper)
    return result.replaced(lower, upper)


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
    shape = torch.broadcast_shapes(grad_output.shape, x.shape)
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
    shape = torch.broadcast_shapes(grad_output.shape, self_or_result.shape)
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
    shape = torch.broadcast_shapes(grad_output.shape, x.shape)
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
        # Kernels multiply grad by z first.
        result = _overflowing(result, grad * grad.constant(0.0, math.exp(threshold)))
    shape = torch.broadcast_shapes(grad_output.shape, x.shape)
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
    shape = torch.broadcast_shapes(grad_output.shape, output.shape)
    return product.interval(shape, grad_output.dtype)


@transfer("tanh_backward", phase="backward")
def tanh_backward(grad_output: Interval, output: Interval) -> Interval:
    """Grad (1 - y^2)."""
    y = Box.native(output)
    slope = -y.square() + 1.0
    product = (Box.native(grad_output) * slope).rounded(32)
    shape = torch.broadcast_shapes(grad_output.shape, output.shape)
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
    shape = torch.broadcast_shapes(grad_output.shape, x.shape)
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


# --- softmax -------------------------------------------------------------------------------


@transfer("_softmax_backward_data", phase="backward")
def _softmax_backward_data(
    grad_output: Interval, output: Interval, dim: int, input_dtype: torch.dtype
) -> Interval:
    """Y (grad - sum grad y) for y = softmax: the sum is a mean of grads, weighted by y."""
    grad, y = Box.of(grad_output), Box.of(output)
    count = grad_output.shape[dim] if grad_output.shape else 1
    along = () if not grad_output.shape else (dim % len(grad_output.shape),)
    if grad_output.is_empty_tensor:
        return Box.of(grad_output.merged()).interval(output.shape, input_dtype)
    row = grad
    for d in along:
        row = Box(
            row.lower.amin(d, keepdim=True),
            row.upper.amax(d, keepdim=True),
            row.dtype,
            row.may_nan,
        )
    error = 2 * sum_error(count, grad.dtype) + 8 * unit_roundoff(output.dtype) * min(count, 2)
    error += count * unit_roundoff(output.dtype)
    weighted = row.with_zero() * grad.constant(1.0 - error if error < 1 else 0.0, 1.0 + error)
    weighted = weighted.hull(row).with_zero()
    if not weighted.is_finite or not y.is_finite:
        return (
            unknown(output.shape, grad_output.merged())
            if input_dtype == grad_output.dtype
            else (
                Box.of(grad_output)
                .constant(-math.inf, math.inf)
                .with_nan()
                .interval(output.shape, input_dtype)
            )
        )
    # Vectorised kernels form grad y and y sum separately; both are at most y |grad|.
    result = y * (grad - weighted)
    slack = 16 * unit_roundoff(grad.dtype) * (y * grad).magnitude
    slack = slack + 16 * unit_roundoff(grad.dtype) * (y * weighted).magnitude
    result = result.replaced(result.lower - slack, result.upper + slack)
    return result.rounded(16).interval(output.shape, input_dtype)


@transfer("_log_softmax_backward_data", phase="backward")
def _log_softmax_backward_data(
    grad_output: Interval, output: Interval, dim: int, input_dtype: torch.dtype
) -> Interval:
    """Grad - exp(output) sum grad."""
    grad, y = Box.of(grad_output), Box.of(output)
    along = () if not grad_output.shape else (dim % len(grad_output.shape),)
    total = summed(grad_output, along)
    share = y.increasing(torch.exp, ulps=64)
    result = (grad - share * total).rounded()
    shape = torch.broadcast_shapes(grad_output.shape, output.shape)
    return result.interval(shape, input_dtype)


# --- losses --------------------------------------------------------------------------------


def _mean_factor(reduction: int, count: int) -> float:
    return 1 / count if reduction == MEAN and count else 1.0


def _nll_backward(
    grad_output: Interval,
    x: Interval,
    weight: Interval | None,
    reduction: int,
    total_weight: Interval,
) -> Interval:
    grad = -Box.native(grad_output.merged()).merged()
    if grad_output.is_empty_tensor or x.is_empty_tensor:
        grad = grad.constant(0.0)
    if reduction == MEAN:
        grad = grad / Box.native(total_weight).merged()
    if weight is not None:
        grad = grad * Box.native(weight.merged()).merged()
    return grad.with_zero().rounded(16).interval(x.shape, x.dtype)


@transfer("nll_loss_backward", phase="backward")
def nll_loss_backward(
    grad_output: Interval,
    x: Interval,
    target: Interval,
    weight: Interval | None,
    reduction: int,
    ignore_index: int,
    total_weight: Interval,
) -> Interval:
    """-grad weight [/ total weight] at the target, 0 elsewhere."""
    return _nll_backward(grad_output, x, weight, reduction, total_weight)


@transfer("nll_loss2d_backward", phase="backward")
def nll_loss2d_backward(
    grad_output: Interval,
    x: Interval,
    target: Interval,
    weight: Interval | None,
    reduction: int,
    ignore_index: int,
    total_weight: Interval,
) -> Interval:
    """As nll_loss_backward, per position."""
    return _nll_backward(grad_output, x, weight, reduction, total_weight)


def _distance_backward(
    grad_output: Interval, x: Interval, slope: Box, reduction: int, factor: float = 1.0
) -> Interval:
    shape = x.shape
    grad = Box.native(grad_output)
    scale = factor * _mean_factor(reduction, math.prod(shape))
    # Kernels may fold the factor into either side: whichever overflows first.
    products = grad * scale * slope, grad * (slope * scale)
    result = products[0].hull(products[1]).rounded(16)
    if bool((result.upper == math.inf).any() or (result.lower == -math.inf).any()):
        result = result.with_nan()
    return result.interval(shape, grad_output.dtype)


@transfer("mse_loss_backward", phase="backward")
def mse_loss_backward(
    grad_output: Interval, x: Interval, target: Interval, reduction: int
) -> Interval:
    """2 (x - t) grad, over n for the mean."""
    slope = Box.native(x) - Box.native(target)
    return _distance_backward(grad_output, x, slope, reduction, 2.0)


@transfer("smooth_l1_loss_backward", phase="backward")
def smooth_l1_loss_backward(
    grad_output: Interval, x: Interval, target: Interval, reduction: int, beta: float
) -> Interval:
    """clamp((x - t) / beta, -1, 1) grad, over n for the mean."""
    distance = Box.native(x) - Box.native(target)
    slope = distance.constant(-1.0, 1.0) if beta == 0 else (distance / beta).clamped(-1.0, 1.0)
    return _distance_backward(grad_output, x, slope.with_nan(distance.may_nan), reduction)


@transfer("huber_loss_backward", phase="backward")
def huber_loss_backward(
    grad_output: Interval, x: Interval, target: Interval, reduction: int, delta: float
) -> Interval:
    """clamp(x - t, -delta, delta) grad, over n for the mean."""
    slope = (Box.native(x) - Box.native(target)).clamped(-delta, delta)
    return _distance_backward(grad_output, x, slope, reduction)


@transfer("binary_cross_entropy_backward", phase="backward")
def binary_cross_entropy_backward(
    grad_output: Interval,
    x: Interval,
    target: Interval,
    weight: Interval | None = None,
    reduction: int = MEAN,
) -> Interval:
    """Grad (x - t) / max(x (1 - x), 1e-12): up to 1e12 grad where x reaches 0 or 1."""
    p, grad = Box.native(x), Box.native(grad_output)
    # Concave in x, so least at an end.
    ends = [p.replaced(end, end) for end in (p.lower, p.upper)]
    least = torch.minimum(*((end * (-end + 1.0)).lower for end in ends))
    floor = BCE_EPSILON if torch.finfo(x.dtype).smallest_normal < BCE_EPSILON else 0.0
    product = Box(least.clamp(min=floor), least.clamp(min=0.26), p.dtype, p.may_nan)
    result = grad * (p - Box.native(target)) / product
    if weight is not None:
        result = result * Box.native(weight)
    scale = _mean_factor(reduction, math.prod(x.shape))
    return (result * scale).rounded(16).interval(x.shape, grad_output.dtype)


@transfer("soft_margin_loss_backward", phase="backward")
def soft_margin_loss_backward(
    grad_output: Interval, x: Interval, target: Interval, reduction: int
) -> Interval:
    """-t z / (z + 1) grad, z = exp(-t x), over n for the mean; NaN once z overflows."""
    t = Box.native(target)
    z = (-(t * Box.native(x))).increasing(torch.exp)
    slope = _overflowing(-t * t.constant(0.0, 1.0), -t * z)
    lost = z.may_nan or z.high == math.inf or math.isinf(t.peak)
    return _distance_backward(grad_output, x, slope.with_nan(lost), reduction)


@transfer("multi_margin_loss_backward", phase="backward")
def multi_margin_loss_backward(
    grad_output: Interval,
    x: Interval,
    target: Interval,
    p: float,
    margin: float,
    weight: Interval | None = None,
    reduction: int = MEAN,
) -> Interval:
    """P weight max(0, margin - x[t] + x[j])^(p - 1) / C for j, minus the sum for the target."""
    box = Box.native(x.merged())
    classes = max(x.shape[-1], 1)
    hinge = (box - box + float(margin)).clamped(0.0, math.inf)
    slope = hinge * 2.0 if p == 2 else hinge.constant(0.0, 1.0).with_nan(hinge.may_nan)
    if weight is not None:
        slope = slope * Box.native(weight.merged()).merged()
    each = slope.with_zero() / float(classes)
    slopes = each.hull(-each.times(classes)).with_zero()
    samples = math.prod(target.shape)
    grad = Box.native(grad_output.merged()) * _mean_factor(reduction, samples)
    return (grad * slopes).with_zero().rounded(32).interval(x.shape, x.dtype)


# --- normalisation -------------------------------------------------------------------------


def _norm_backward(
    grad: Interval,
    x: Interval,
    rstd: Interval,
    weight: Interval | None,
    count: int,
    samples: int,
    *,
    expanded: bool,
) -> tuple[Box, Box, Box]:
    """Gradients for input, weight and bias of a layer that centres and scales, one block each.

    With |z| <= sqrt(n) and mean |z| <= 1 for the normalised z, the input's gradient
    rstd (g - mean g - z mean(g z)) is at most rstd |g| (2 + sqrt(n)).

    Args:
        grad: The incoming gradient.
        x: The layer's input.
        rstd: 1 / sqrt(var + eps) of it.
        weight: Scale, if any.
        count: Number of elements n that share a mean.
        samples: Number of elements that share a weight.
        expanded: True for kernels that expand the products, sum g x - mean sum g, and so
            lose (|x| rstd)^2 units where the exact result is of order 1.
    """
    g = Box.of(grad.merged()).merged()
    size = g.peak * (1.0 if weight is None else Box.of(weight).peak)
    scale, peak = Box.of(rstd).peak, Box.of(x).peak
    error = sum_error(count + 32, g.dtype)
    z = min(math.sqrt(count), 2 * peak * scale) * (1 + error) + 16 * error * peak * scale
    loss = 8 * error * (1 + peak * scale) * (1 + peak * scale) if expanded else 0.0
    to_x = scale * size * (2 + z + z * min(z, 2.0) + loss) * (1 + 4 * error)
    total = sum_error(samples + 32, g.dtype)
    to_weight = samples * g.peak * (z + 8 * total * peak * scale) * (1 + 4 * total)
    limit = largest(g.dtype)
    intermediate = count * size * max(peak, 1.0) * max(scale, scale * scale * scale)
    lost = not (max(to_x, to_weight, intermediate) < limit / 4)
    lost = lost or not peak < math.sqrt(limit / max(count, 1)) / 4
    lost = lost or not (x.is_finite and rstd.is_finite and grad.is_finite)
    lost = lost or (weight is not None and not weight.is_finite)
    if lost:
        top = g.constant(-math.inf, math.inf).with_nan()
        return top, top, top
    to_bias = g.times(samples)
    return g.constant(-to_x, to_x).rounded(), g.constant(-to_weight, to_weight).rounded(), to_bias


def _masked(
    boxes: Sequence[Box],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[torch.dtype],
    mask: Mask,
) -> tuple[Interval | None, ...]:
    return tuple(
        box.interval(shape, dtype) if wanted else None
        for box, shape, dtype, wanted in zip(boxes, shapes, dtypes, mask, strict=True)
    )


@transfer("native_layer_norm_backward", phase="backward")
def native_layer_norm_backward(
    grad_out: Interval,
    input: Interval,
    normalized_shape: Sequence[int],
    mean: Interval,
    rstd: Interval,
    weight: Interval | None,
    bias: Interval | None,
    output_mask: Mask,
) -> tuple[Interval | None, ...]:
    """At most rstd |grad weight| (2 + sqrt(n)), plus rounding; sums over rows for the rest."""
    count = math.prod(normalized_shape)
    samples = math.prod(input.shape) // max(count, 1)
    shape = tuple(normalized_shape)
    boxes = _norm_backward(grad_out, input, rstd, weight, count, samples, expanded=True)
    dtype = input.dtype if weight is None else weight.dtype
    return _masked(boxes, (input.shape, shape, shape), (input.dtype, dtype, dtype), output_mask)


@transfer("native_group_norm_backward", phase="backward")
def native_group_norm_backward(
    grad_out: Interval,
    input: Interval,
    mean: Interval,
    rstd: Interval,
    weight: Interval | None,
    N: int,  # noqa: N803 - the schema's own names
    C: int,  # noqa: N803
    HxW: int,  # noqa: N803
    group: int,
    output_mask: Mask,
) -> tuple[Interval | None, ...]:
    """As layer_norm, per group; sums over batch and positions for weight and bias."""
    boxes = _norm_backward(grad_out, input, rstd, weight, C // group * HxW, N * HxW, expanded=True)
    dtype = input.dtype if weight is None else weight.dtype
    return _masked(boxes, (input.shape, (C,), (C,)), (input.dtype, dtype, dtype), output_mask)


@transfer("_fused_rms_norm_backward", phase="backward")
def _fused_rms_norm_backward(
    grad_out: Interval,
    input: Interval,
    normalized_shape: Sequence[int],
    rstd: Interval,
    weight: Interval | None,
    output_mask: Mask,
) -> tuple[Interval | None, ...]:
    """Rstd (g - z mean(g z)), within the bounds of layer_norm's gradient."""
    count = math.prod(normalized_shape)
    samples = math.prod(input.shape) // max(count, 1)
    shape = tuple(normalized_shape)
    boxes = _norm_backward(grad_out, input, rstd, weight, count, samples, expanded=True)
    dtype = input.dtype if weight is None else weight.dtype
    return _masked(boxes[:2], (input.shape, shape), (input.dtype, dtype), output_mask)


def _batch_norm_backward(
    grad_out: Interval,
    input: Interval,
    weight: Interval | None,
    running_mean: Interval | None,
    running_var: Interval | None,
    save_invstd: Interval | None,
    train: bool,
    eps: float,
    output_mask: Mask,
) -> tuple[Interval | None, ...]:
    channels = input.shape[1]
    count = math.prod(input.shape) // max(channels, 1)
    dtype = input.dtype if weight is None else weight.dtype
    shapes = (input.shape, (channels,), (channels,))
    if train and save_invstd is not None:
        boxes = _norm_backward(grad_out, input, save_invstd, weight, count, count, expanded=False)
        return _masked(boxes, shapes, (input.dtype, dtype, dtype), output_mask)
    grad = Box.of(grad_out.merged()).merged()
    if running_mean is None or running_var is None:
        top = grad.constant(-math.inf, math.inf).with_nan()
        return _masked((top, top, top), shapes, (input.dtype, dtype, dtype), output_mask)
    rstd = (Box.of(running_var.merged()).merged() + eps).sqrt().reciprocal()
    rstd = rstd.replaced(rstd.lower.clamp(min=0), rstd.upper)
    to_x = grad * rstd
    if weight is not None:
        to_x = to_x * Box.of(weight.merged()).merged()
    centred = Box.of(input.merged()).merged() - Box.of(running_mean.merged()).merged()
    to_weight = (grad * centred).times(count) * rstd
    infinite = math.isinf(to_weight.peak)
    boxes = (to_x.rounded(32), to_weight.rounded(32).with_nan(infinite), grad.times(count))
    return _masked(boxes, shapes, (input.dtype, dtype, dtype), output_mask)


@transfer("native_batch_norm_backward", phase="backward")
def native_batch_norm_backward(
    grad_out: Interval,
    input: Interval,
    weight: Interval | None,
    running_mean: Interval | None,
    running_var: Interval | None,
    save_mean: Interval | None,
    save_invstd: Interval | None,
    train: bool,
    eps: float,
    output_mask: Mask,
) -> tuple[Interval | None, ...]:
    """Training: rstd |grad weight| (2 + sqrt(n)). Eval: grad weight / sqrt(running_var + eps)."""
    return _batch_norm_backward(
        grad_out, input, weight, running_mean, running_var, save_invstd, train, eps, output_mask
    )


@transfer("cudnn_batch_norm_backward", phase="backward")
def cudnn_batch_norm_backward(
    input: Interval,
    grad_output: Interval,
    weight: Interval,
    running_mean: Interval | None,
    running_var: Interval | None,
    save_mean: Interval | None,
    save_var: Interval | None,
    epsilon: float,
    reserveSpace: Interval,  # noqa: N803 - the schema's own name
) -> tuple[Interval | None, ...]:
    """As native_batch_norm_backward in training; `save_var` holds 1 / sqrt(var + eps)."""
    return _batch_norm_backward(
        grad_output, input, weight, running_mean, running_var, save_var, True, epsilon, (True,) * 3
    )


@transfer("batch_norm_backward", phase="backward")
def batch_norm_backward(
    grad_out: Interval,
    input: Interval,
    weight: Interval,
    running_mean: Interval | None,
    running_var: Interval | None,
    save_mean: Interval | None,
    save_var: Interval | None,
    update: bool,
    eps: float,
    output_mask: Mask,
    reserve: Interval,
) -> tuple[Interval | None, ...]:
    """As native_batch_norm_backward."""
    return _batch_norm_backward(
        grad_out, input, weight, running_mean, running_var, save_var, update, eps, output_mask
    )


# --- contractions, pooling, resampling -----------------------------------------------------


@transfer("convolution_backward", phase="backward")
def convolution_backward(
    grad_output: Interval,
    input: Interval,
    weight: Interval,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Mask,
) -> tuple[Interval | None, ...]:
    """For the input the convolution run backwards; sums over batch and positions for the rest.

    Positions at a border take part in fewer terms, so 0 is joined.
    """
    to_x = to_weight = to_bias = None
    spatial = len(input.shape) - 2
    if output_mask[0]:
        box = per_channel(grad_output, weight, groups, transposed=not transposed, partial=True)
        layout = (1, -1, *(1,) * spatial)
        box = Box(box.lower.reshape(layout), box.upper.reshape(layout), box.dtype, box.may_nan)
        if box.lower.shape[1] not in (1, input.shape[1]):
            box = box.merged()
        to_x = box.interval(input.shape, input.dtype)
    outputs = math.prod(grad_output.shape) // max(grad_output.shape[1], 1)
    inputs = math.prod(input.shape) // max(input.shape[1], 1)
    grad = Box.of(grad_output.merged()).merged()
    if output_mask[1]:
        terms = min(outputs, inputs) if outputs and inputs else 0
        product = (grad * Box.of(input.merged()).merged()).with_zero()
        error = product_error(terms, input.dtype, input.lower.device, conv=True)
        finite = input.is_finite and grad_output.is_finite
        total = product.times(terms) if terms else grad.constant(0.0)
        lost = (not finite or math.isinf(total.peak)) and terms > 0
        slack = error * torch.as_tensor(terms * product.peak if terms else 0.0)
        total = total.replaced(total.lower - slack, total.upper + slack)
        if lost:
            total = grad.constant(-math.inf, math.inf).with_nan()
        to_weight = total.rounded().interval(weight.shape, weight.dtype)
    if output_mask[2]:
        shape = tuple(bias_sizes) if bias_sizes is not None else (grad_output.shape[1],)
        to_bias = grad.times(outputs).interval(shape, weight.dtype)
    return to_x, to_weight, to_bias


def _overlap(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> int:
    """In how many windows an element can lie."""
    return math.prod(
        min(k, ((k - 1) * d) // s + 1) for k, s, d in zip(kernel, stride, dilation, strict=True)
    )


def _each(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def _scattered(
    grad: Interval, shape: Sequence[int], spatial: int, count: int, factor: float = 1.0
) -> Interval:
    """Up to `count` gradients of the same channel, each times up to `factor`, added up."""
    flat = grad.merged(keep=tuple(range(len(grad.shape) - spatial)))
    if grad.is_empty_tensor:
        return Interval.full(0, 0, shape, grad.dtype, grad.lower.device)
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
    kernel = _each(kernel_size, spatial)
    strides = _each(stride, spatial) if stride else kernel
    count = _overlap(kernel, strides, _each(dilation, spatial))
    return _scattered(grad_output, x.shape, spatial, count)


def _adaptive_overlap(inner: Sequence[int], outer: Sequence[int]) -> int:
    """In how many adaptive windows an element of `inner` can lie."""
    return math.prod(
        1 if i % o == 0 else (o + i - 1) // i + 1 for i, o in zip(inner, outer, strict=True) if o
    )


@transfer("adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward", phase="backward")
def adaptive_max_pool2d_backward(grad_output: Interval, x: Interval, indices: Interval) -> Interval:
    """The sum of the gradients of the windows that an element wins."""
    spatial = 2 if len(x.shape) < 5 else 3
    count = _adaptive_overlap(x.shape[-spatial:], grad_output.shape[-spatial:])
    return _scattered(grad_output, x.shape, spatial, count)


@transfer("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", phase="backward")
def _adaptive_avg_pool2d_backward(grad_output: Interval, x: Interval) -> Interval:
    """The sum of grad / window size over the windows of an element."""
    spatial = 2 if len(x.shape) < 5 else 3
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


# --- selections ----------------------------------------------------------------------------


@transfer("embedding_dense_backward", phase="backward")
def embedding_dense_backward(
    grad_output: Interval,
    indices: Interval,
    num_weights: int,
    padding_idx: int,
    scale_grad_by_freq: bool,
) -> Interval:
    """A row sums the gradients of the places where it was looked up: none to all of them."""
    width, places = grad_output.shape[-1], math.prod(indices.shape)
    shape = (num_weights, width)
    if places == 0 or grad_output.is_empty_tensor:
        return Interval.full(0, 0, shape, grad_output.dtype, grad_output.lower.device)
    flat = grad_output.merged(keep=(len(grad_output.shape) - 1,))
    box = Box.native(flat).with_zero().times(places)
    lower, upper = box.lower.reshape(1, -1), box.upper.reshape(1, -1)
    return Box(lower, upper, box.dtype, box.may_nan).interval(shape, grad_output.dtype)


def _placed(grad: Interval, shape: Sequence[int], dim: int, *, lost: bool) -> Interval:
    """The gradient somewhere along `dim`, zeros elsewhere."""
    rank = len(shape)
    kept = grad.merged([d for d in range(rank) if d != dim])
    lower, upper = kept.lower, kept.upper
    if lower.numel() == 0:
        lower = upper = lower.new_zeros((1,) * rank)
    layout = [n if shape[d] == n else 1 for d, n in enumerate(lower.shape)]
    if list(lower.shape) != layout:
        lower = upper = lower.new_zeros((1,) * rank)
    if lost:
        lower, upper = lower.clamp(max=0), upper.clamp(min=0)
    return Interval(lower, upper, tuple(shape), grad.dtype, grad.may_nan)


@transfer("slice_backward", phase="backward")
def slice_backward(
    grad_output: Interval, input_sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Interval:
    """The gradient in its places, 0 elsewhere."""
    dim = dim % len(input_sizes)
    partial = grad_output.shape[dim] != input_sizes[dim]
    return _placed(grad_output, input_sizes, dim, lost=partial)


@transfer("select_backward", phase="backward")
def select_backward(
    grad_output: Interval, input_sizes: Sequence[int], dim: int, index: int
) -> Interval:
    """The gradient in its place, 0 elsewhere."""
    dim = dim % len(input_sizes)
    shape = (*grad_output.shape[:dim], 1, *grad_output.shape[dim:])
    lower, upper = grad_output.lower.unsqueeze(dim), grad_output.upper.unsqueeze(dim)
    seen = Interval(lower, upper, shape, grad_output.dtype, grad_output.may_nan)
    return _placed(seen, input_sizes, dim, lost=input_sizes[dim] != 1)


@transfer("unfold_backward", phase="backward")
def unfold_backward(
    grad_in: Interval, input_sizes: Sequence[int], dim: int, size: int, step: int
) -> Interval:
    """The sum of the gradients of the windows over an element."""
    if grad_in.is_empty_tensor:
        return Interval.full(0, 0, input_sizes, grad_in.dtype, grad_in.lower.device)
    box = Box.native(grad_in.merged()).merged().with_zero().times((size + step - 1) // step)
    return box.interval(tuple(input_sizes), grad_in.dtype)


# --- attention -----------------------------------------------------------------------------


def _attention_backward(
    grad_out: Interval,
    query: Interval,
    key: Interval,
    value: Interval,
    mask: Interval | None,
    dropout: float,
    scale: float | None,
) -> tuple[Interval, Interval, Interval, Box]:
    """Gradients for query, key and value, and the one for the logits.

    With P = softmax(q k scale), |P| <= 1 and rows adding up to 1: |dV| <= L |dO|; dP = dO V
    and dS = P (dP - sum P dP) are at most 2 E |dO| |V|; dQ = dS K scale adds up at most
    |dS| |K| scale, and dK at most L times |dS| |Q| scale. P is made again from log sum exp,
    so an error of the logits multiplies it by exp(error).
    """
    width, features = query.shape[-1], value.shape[-1]
    rows, keys = query.shape[-2], key.shape[-2]
    heads = max(query.shape[1] // max(key.shape[1], 1), 1) if len(query.shape) == 4 else 1
    factor = abs(1 / math.sqrt(max(width, 1)) if scale is None else scale)
    keep = 1 / (1 - dropout) if dropout < 1 else math.inf
    g, q, k, v = (Box.of(x).peak for x in (grad_out, query, key, value))
    logits = _logits(query, key, mask, scale)
    finite = all(x.is_finite for x in (grad_out, query, key, value))
    unit = unit_roundoff(query.dtype)
    terms = width + features + rows * heads + keys
    error = sum_error(terms + 64, logits.dtype) + 64 * unit
    size = max(abs(logits.high), 0.0 if math.isinf(logits.low) else abs(logits.low))
    exponent = 4 * error * (size + math.log(max(keys, 1)) + 1)
    if not finite or logits.may_nan or exponent > 80:
        top = logits.constant(-math.inf, math.inf).with_nan()
        boxes = (top, top, top, top)
    else:
        weight = math.exp(exponent) * (1 + 4 * error)
        to_logits = 2 * features * g * v * weight * weight * keep
        to_query = to_logits * k * factor * weight
        to_key = rows * heads * to_logits * q * factor
        to_value = rows * heads * g * weight * keep
        sizes = (to_query, to_key, to_value, to_logits)
        boxes = tuple(logits.constant(-s, s).rounded() for s in sizes)  # type: ignore[assignment]
        worst = max(*sizes, features * keys * g * v, rows * heads * q * to_logits * 4)
        if not worst < largest(query.dtype) / 4:
            boxes = tuple(  # type: ignore[assignment]
                logits.constant(-math.inf, math.inf).with_nan() for _ in range(4)
            )
    return (
        boxes[0].interval(query.shape, query.dtype),
        boxes[1].interval(key.shape, key.dtype),
        boxes[2].interval(value.shape, value.dtype),
        boxes[3],
    )


@transfer("_scaled_dot_product_flash_attention_for_cpu_backward", phase="backward")
def _scaled_dot_product_flash_attention_for_cpu_backward(
    grad_out: Interval,
    query: Interval,
    key: Interval,
    value: Interval,
    logsumexp: Interval,
    dropout_p: float,
    is_causal: bool,
    attn_mask: Interval | None = None,
    scale: float | None = None,
    out: Interval | None = None,
) -> tuple[Interval, ...]:
    """2 E |grad| |value| |key| scale for the query, and alike; the module says why."""
    return _attention_backward(grad_out, query, key, value, attn_mask, dropout_p, scale)[:3]


@transfer("_scaled_dot_product_flash_attention_backward", phase="backward")
def _scaled_dot_product_flash_attention_backward(
    grad_out: Interval,
    query: Interval,
    key: Interval,
    value: Interval,
    logsumexp: Interval,
    cum_seq_q: Any,
    cum_seq_k: Any,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    philox_seed: Any,
    philox_offset: Any,
    scale: float | None = None,
    out: Interval | None = None,
) -> tuple[Interval, ...]:
    """As on a CPU."""
    return _attention_backward(grad_out, query, key, value, None, dropout_p, scale)[:3]


@transfer("_scaled_dot_product_cudnn_attention_backward", phase="backward")
def _scaled_dot_product_cudnn_attention_backward(
    grad_out: Interval,
    query: Interval,
    key: Interval,
    value: Interval,
    logsumexp: Interval,
    philox_seed: Any,
    philox_offset: Any,
    attn_bias: Interval | None,
    cum_seq_q: Any,
    cum_seq_k: Any,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    scale: float | None = None,
    out: Interval | None = None,
) -> tuple[Interval, ...]:
    """As on a CPU."""
    return _attention_backward(grad_out, query, key, value, attn_bias, dropout_p, scale)[:3]


@transfer("_scaled_dot_product_efficient_attention_backward", phase="backward")
def _scaled_dot_product_efficient_attention_backward(
    grad_out_: Interval,
    query: Interval,
    key: Interval,
    value: Interval,
    attn_bias: Interval | None,
    logsumexp: Interval,
    philox_seed: Any,
    philox_offset: Any,
    dropout_p: float,
    grad_input_mask: Mask,
    is_causal: bool = False,
    scale: float | None = None,
    out: Interval | None = None,
) -> tuple[Interval | None, ...]:
    """As on a CPU, with the gradient of the bias: that of the logits."""
    *three, logits = _attention_backward(grad_out_, query, key, value, attn_bias, dropout_p, scale)
    bias = None
    if attn_bias is not None:
        copies = math.prod(query.shape[:-1]) * key.shape[-2] // max(math.prod(attn_bias.shape), 1)
        bias = logits.times(max(copies, 1)).interval(attn_bias.shape, attn_bias.dtype)
    wanted = zip((*three, bias), grad_input_mask, strict=True)
    return tuple(result if flag else None for result, flag in wanted)


# --- recurrent layers ----------------------------------------------------------------------


def _backward_through_time(
    steps: int, width: float, grads: Sequence[float], cell: float
) -> tuple[float, float, float, float]:
    """Largest sums of |gate gradients| per step and unit of an LSTM, going backwards.

    With |o|, |f|, |i|, |g|, |tanh c| <= 1, s' <= 1/4 and t' <= 1, each step has
    dc += dh; di, df <= dc |.| / 4; dg <= dc; do <= dh / 4; dh = grad + `width` (di+df+dg+do),
    where `width` is H times the largest recurrent weight.

    Returns:
        The largest and the summed gate gradients, and those of h_0 and c_0.
    """
    grad, grad_h, grad_c = grads
    dh, dc, top, total = grad_h + grad, grad_c, 0.0, 0.0
    for step in range(steps):
        dc = dc + dh
        gates = dc / 4 + dc * (cell + steps - step) / 4 + dc + dh / 4
        top, total = max(top, gates), total + gates
        dh = width * gates + (grad if step < steps - 1 else 0.0)
        if not math.isfinite(gates) or gates > 1e300:
            return math.inf, math.inf, math.inf, math.inf
    return top, total, dh, dc


@transfer("mkldnn_rnn_layer_backward", phase="backward")
def mkldnn_rnn_layer_backward(
    input: Interval,
    weight1: Interval,
    weight2: Interval,
    weight3: Interval,
    weight4: Interval,
    hx_: Interval,
    cx_tmp: Interval,
    output: Interval,
    hy_: Interval,
    cy_: Interval,
    grad_output: Interval | None,
    grad_hy: Interval | None,
    grad_cy: Interval | None,
    reverse: bool,
    mode: int,
    hidden_size: int,
    num_layers: int,
    has_biases: bool,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    batch_first: bool,
    workspace: Interval,
) -> tuple[Interval, ...]:
    """Gradients of input, weights, biases, h_0 and c_0 by the recursion of an LSTM's steps."""
    operands = (input, weight1, weight2, weight3, weight4, hx_, cx_tmp)
    box = Box.of(input)
    given = [x for x in (grad_output, grad_hy, grad_cy) if x is not None]
    sizes = [0.0 if x is None else Box.of(x).peak for x in (grad_output, grad_hy, grad_cy)]
    steps, batch = input.shape[0], input.shape[1]
    start = max(1.0, Box.of(hx_).peak)
    recurrent = hidden_size * Box.of(weight2).peak
    slack = 1.001 + sum_error(64 * (hidden_size + steps), box.dtype)
    top, total, to_h, to_c = _backward_through_time(
        steps, recurrent * slack, sizes, Box.of(cx_tmp).peak
    )
    gates = batch * total * (1 + sum_error(batch * steps + 64, box.dtype))
    bounds = (
        top * hidden_size * Box.of(weight1).peak,
        gates * Box.of(input).peak,
        gates * start,
        gates,
        gates,
        to_h,
        to_c,
    )
    finite = all(x.is_finite for x in (*operands, *given))
    lost = not finite or mode != LSTM or not max(bounds) * slack**2 < largest(box.dtype) / 4
    boxes = [
        box.constant(-math.inf, math.inf).with_nan()
        if lost
        else box.constant(-bound, bound).rounded(absolute=bound * (slack**2 - 1))
        for bound in bounds
    ]
    return tuple(b.interval(x.shape, x.dtype) for b, x in zip(boxes, operands, strict=True))


@transfer("_thnn_fused_lstm_cell_backward_impl", phase="backward")
def _thnn_fused_lstm_cell_backward_impl(
    grad_hy: Interval | None,
    grad_cy: Interval | None,
    cx: Interval,
    cy: Interval,
    workspace: Interval,
    has_bias: bool,
) -> tuple[Interval | None, ...]:
    """Gradients of the four preactivations, of c_0, and of the bias: theirs summed."""
    box = Box.native(cx.merged()).merged()
    zero = box.constant(0.0)
    dh = zero if grad_hy is None else Box.native(grad_hy.merged()).merged()
    dc = zero if grad_cy is None else Box.native(grad_cy.merged()).merged()
    both = (dh * box.constant(-1.0, 1.0)).hull(zero) + dc
    c = box * box.constant(-0.25, 0.25)
    unit = both * box.constant(-1.0, 1.0)
    gates = unit.hull(both * c).hull(dh * box.constant(-0.25, 0.25)).rounded(64)
    # Kernels multiply dc by c before the two factors that make it small.
    lost = not ((both * box).is_finite and gates.is_finite)
    lost = lost or not (cx.is_finite and cy.is_finite and workspace.is_finite)
    gates = box.constant(-math.inf, math.inf).with_nan() if lost else gates
    to_c = box.constant(-math.inf, math.inf).with_nan() if lost else unit.rounded(64)
    width = workspace.shape[1]
    bias = gates.times(cx.shape[0]).interval((width,), workspace.dtype) if has_bias else None
    return (
        gates.interval(workspace.shape, workspace.dtype),
        to_c.interval(cx.shape, cx.dtype),
        bias,
    )


@transfer("_thnn_fused_lstm_cell_backward", phase="backward")
def _thnn_fused_lstm_cell_backward(
    grad_hy: Interval | None,
    grad_cy: Interval | None,
    cx: Interval,
    cy: Interval,
    workspace: Interval,
    has_bias: bool,
) -> tuple[Interval | None, ...]:
    """As the implementation, with the shared gradients given for both of their operands."""
    gates, to_c, bias = _thnn_fused_lstm_cell_backward_impl(
        grad_hy, grad_cy, cx, cy, workspace, has_bias
    )
    return gates, gates, to_c, bias, bias


@transfer("_thnn_fused_gru_cell_backward", phase="backward")
def _thnn_fused_gru_cell_backward(
    grad_hy: Interval, workspace: Interval, has_bias: bool
) -> tuple[Interval | None, ...]:
    """Gradients of the preactivations from both sides, of h_0, and of the biases."""
    grad = Box.native(grad_hy.merged()).merged()
    kept = Box.native(workspace.merged()).merged().peak  # gates, h_0, n's preactivation
    size = max(1.0, (1 + kept) / 4, kept / 4)
    gates = (grad * grad.constant(-1.0, 1.0) * (1.0 + size)).rounded(64)
    lost = not (workspace.is_finite and grad.peak * (1 + kept) < largest(grad.dtype) / 8)
    gates = grad.constant(-math.inf, math.inf).with_nan() if lost else gates
    rows, hidden = grad_hy.shape
    shape = (rows, 3 * hidden)
    both = gates.interval(shape, grad_hy.dtype)
    to_h = (grad * grad.constant(-1.0, 1.0)).rounded(64).with_nan(lost)
    bias = gates.times(rows).interval((3 * hidden,), grad_hy.dtype) if has_bias else None
    return both, both, to_h.interval(grad_hy.shape, grad_hy.dtype), bias, bias
