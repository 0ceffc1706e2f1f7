"""Gradients of losses."""

from __future__ import annotations

import math

import torch

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box
from ranum.analysis.transfer.backward._common import overflowing
from ranum.analysis.transfer.loss import MEAN
from ranum.analysis.transfer.registry import transfer

BCE_EPSILON = 0.9999999e-12
"""ATen's floor of x (1 - x) in the gradient of binary cross entropy: 1e-12 as a float32."""


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
    slope = overflowing(-t * t.constant(0.0, 1.0), -t * z)
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
    classes = max(x.shape[-1], 1) if x.shape else 1
    hinge = (box - box + float(margin)).clamped(0.0, math.inf)
    slope = hinge * 2.0 if p == 2 else hinge.constant(0.0, 1.0).with_nan(hinge.may_nan)
    if weight is not None:
        slope = slope * Box.native(weight.merged()).merged()
    each = slope.with_zero() / float(classes)
    slopes = each.hull(-each.times(classes)).with_zero()
    samples = math.prod(target.shape)
    grad = Box.native(grad_output.merged()) * _mean_factor(reduction, samples)
    return (grad * slopes).with_zero().rounded(32).interval(x.shape, x.dtype)
