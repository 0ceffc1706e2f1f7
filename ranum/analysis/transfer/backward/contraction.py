"""Gradients of convolutions; those of matrix products are products again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box
from ranum.analysis.transfer.backward._common import Mask
from ranum.analysis.transfer.contraction import per_channel, product_error
from ranum.analysis.transfer.registry import transfer


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
        error = product_error(terms, input.dtype, input.device, conv=True)
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
