"""Losses, and gradients of losses and embeddings, on one pair of bounds."""

from __future__ import annotations

import math
from typing import Any

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.transfer.loss import MEAN, SUM, valid_targets
from ranum.analysis.transfer.registry import uniform
from ranum.analysis.transfer.uniform._scalar import (
    Bounds,
    Pair,
    Unsure,
    average,
    averaged,
    count,
    outward,
    pair,
    product,
    same_dtype,
    summed,
    times,
    with_zero,
)

Outputs = tuple[Value, ...]


@uniform("nll_loss_forward", "nll_loss2d_forward", aside=("target",), wide=True)
def nll_loss_forward(
    out: Outputs,
    x: Interval,
    target: Interval,
    weight: Interval | None,
    reduction: int,
    ignore_index: int,
) -> list[Bounds]:
    """Mean or sum of -x over the targets that count, for known targets without weights."""
    number, ignored = valid_targets(target, ignore_index)
    known = target.is_point or not ignored
    if weight is not None or number == 0 or not known or reduction not in (MEAN, SUM):
        raise Unsure
    loss = (-x.high, -x.low)
    fold = averaged if reduction == MEAN else summed
    low, high, lost = fold(loss, number, x.dtype)
    return [(low, high, lost or x.may_nan), (float(number), float(number), False)]


@uniform("nll_loss_backward", "nll_loss2d_backward", aside=("target", "x"))
def nll_loss_backward(
    out: Outputs,
    grad_output: Interval,
    x: Interval,
    target: Interval,
    weight: Interval | None,
    reduction: int,
    ignore_index: int,
    total_weight: Interval,
) -> Pair:
    """-grad [/ total weight] at the target, 0 elsewhere."""
    low, high = -grad_output.high, -grad_output.low
    if weight is not None or (reduction == MEAN and total_weight.low < 1):
        raise Unsure
    least = total_weight.low if reduction == MEAN else 1.0
    return outward(with_zero((low / least, high / least)), x.dtype, 24)


@uniform("mse_loss")
def mse_loss(out: Outputs, x: Interval, target: Interval, reduction: int = MEAN) -> Pair:
    """(x - t)^2."""
    dtype = same_dtype(x, target)
    low, high = outward((x.low - target.high, x.high - target.low), dtype)
    least, most = max(low, -high, 0.0), max(high, -low)
    square = outward((least * least, most * most), dtype)
    if reduction not in (MEAN, SUM):
        return square
    if x.shape != target.shape:
        raise Unsure
    return (average if reduction == MEAN else times)(square, count(x), dtype)


@uniform("mse_loss_backward")
def mse_loss_backward(
    out: Outputs, grad_output: Interval, x: Interval, target: Interval, reduction: int
) -> Pair:
    """2 (x - t) grad, over n for the mean."""
    dtype = same_dtype(x, target, grad_output)
    slope = outward((x.low - target.high, x.high - target.low), dtype)
    scale = 2 / count(x) if reduction == MEAN else 2.0
    outward(product((slope[0] * 2, slope[1] * 2), pair(grad_output)), dtype)  # folded either way
    low, high = product(slope, pair(grad_output))
    return outward((low * scale, high * scale), dtype, 48)


@uniform("embedding_dense_backward", aside=("indices",))
def embedding_dense_backward(
    out: Outputs, grad_output: Interval, indices: Interval, **_: Any
) -> Pair:
    """A row sums the gradients of the places where it was looked up: none to all of them."""
    places = math.prod(indices.shape)
    return times(with_zero(pair(grad_output)), places, grad_output.dtype)
