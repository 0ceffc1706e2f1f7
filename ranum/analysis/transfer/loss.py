"""Losses that ATen keeps whole.

`reduction` is ATen's number: 0 none, 1 mean, 2 sum. A loss is computed per element in the
tensor's dtype, then reduced as `mean` and `sum` are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import Box, broadcast_shapes, unknown
from ranum.analysis.transfer.reduction import mean, sum_
from ranum.analysis.transfer.registry import transfer

MEAN, SUM = 1, 2
LOG_FLOOR = -100.0
"""ATen clamps the logarithms of binary cross entropy here, so that log(0) does no harm."""


def _reduced(box: Box, x: Interval, shape: Sequence[int], reduction: int) -> Interval:
    losses = box.interval(shape, x.dtype)
    if reduction == MEAN:
        return mean(losses)
    return sum_(losses) if reduction == SUM else losses


def _shape(x: Interval, target: Interval) -> tuple[int, ...]:
    return broadcast_shapes(x.shape, target.shape)


# --- classes -------------------------------------------------------------------------------


def valid_targets(target: Interval, ignore_index: int) -> tuple[int, bool]:
    """How many targets count, and whether any is ignored; as in the recorded batch if known.

    Which class a counted target names is left open: another batch has other labels.
    """
    total = math.prod(target.shape)
    if target.is_point:
        valid = int((target.lower != ignore_index).sum())
        return valid, valid < total
    ignorable = target.low <= ignore_index <= target.high
    return total, ignorable


def _nll(
    x: Interval,
    target: Interval,
    weight: Interval | None,
    reduction: int,
    ignore_index: int,
    classes: int,
) -> tuple[Interval, Interval]:
    count, ignored = valid_targets(target, ignore_index)
    surely = target.is_point or not ignored
    loss = -Box.native(x.merged()).merged() if not x.is_empty_tensor else _zero(x)
    total = loss.constant(count if surely else 0, count)
    if weight is not None:
        scale = Box.native(weight).merged()
        loss, total = loss * scale, scale.times(count)
        total = total if surely else total.with_zero()
    if reduction not in (MEAN, SUM):
        loss = loss.with_zero() if ignored else loss
        # Of a single sample torch gives its weight, where the total of a batch is left at 0.
        one = loss.constant(1.0, 1.0) if weight is None else Box.native(weight).merged()
        return loss.interval(target.shape, x.dtype), one.with_zero().interval((), x.dtype)
    summed = loss.times(count)
    summed = summed if surely else summed.with_zero()
    if reduction == SUM:
        return summed.interval((), x.dtype), total.interval((), x.dtype)
    if count == 0:
        return unknown((), x), total.interval((), x.dtype)
    average = summed / total
    if (weight is None or weight.low >= 0) and summed.is_finite and total.is_finite:
        # A mean with weights that are not negative lies between the extremes of -x.
        plain = (-Box.native(x.merged()).merged()).times(count)
        average = Box(
            torch.maximum(average.lower, plain.lower / count),
            torch.minimum(average.upper, plain.upper / count),
            average.dtype,
            average.may_nan,
        )
    return average.rounded().interval((), x.dtype), total.interval((), x.dtype)


def _zero(x: Interval) -> Box:
    zero = torch.zeros((), dtype=torch.float64, device=x.device)
    return Box(zero, zero, Box.native(x).dtype)


@transfer("nll_loss_forward")
def nll_loss_forward(
    x: Interval, target: Interval, weight: Interval | None, reduction: int, ignore_index: int
) -> tuple[Interval, Interval]:
    """-weight[t] x[n, t] for any class t; the mean divides by the sum of weights.

    Ignored targets are those of the recorded batch. If none counts, the mean is NaN.
    """
    return _nll(x, target, weight, reduction, ignore_index, x.shape[-1])


@transfer("nll_loss2d_forward")
def nll_loss2d_forward(
    x: Interval, target: Interval, weight: Interval | None, reduction: int, ignore_index: int
) -> tuple[Interval, Interval]:
    """As nll_loss_forward, with a target per position: `[N, C, H, W]`, `[N, H, W]`."""
    return _nll(x, target, weight, reduction, ignore_index, x.shape[1])


@transfer("multi_margin_loss")
def multi_margin_loss(
    x: Interval,
    target: Interval,
    p: float = 1,
    margin: float = 1,
    weight: Interval | None = None,
    reduction: int = MEAN,
) -> Interval:
    """Sum over other classes of weight max(0, margin - x[t] + x[j])^p, over C."""
    classes = x.shape[-1] if x.shape else 1
    box = Box.native(x).merged()
    hinge = (box - box + float(margin)).clamped(0.0, math.inf)
    hinge = hinge.square() if p == 2 else hinge
    if weight is not None:
        hinge = hinge * Box.native(weight).merged()
    loss = (hinge.with_zero().times(max(classes - 1, 0)) / float(classes)).with_zero()
    return _reduced(loss, x, target.shape, reduction)


# --- distances -----------------------------------------------------------------------------


@transfer("mse_loss")
def mse_loss(x: Interval, target: Interval, reduction: int = MEAN) -> Interval:
    """(x - t)^2, not negative."""
    return _reduced((Box.native(x) - Box.native(target)).square(), x, _shape(x, target), reduction)


@transfer("smooth_l1_loss")
def smooth_l1_loss(
    x: Interval, target: Interval, reduction: int = MEAN, beta: float = 1.0
) -> Interval:
    """d^2 / (2 beta) for d = |x - t| < beta, else d - beta / 2: increasing in d."""
    distance = (Box.native(x) - Box.native(target)).abs()
    return _reduced(_huber(distance, beta, scale=1.0), x, _shape(x, target), reduction)


@transfer("huber_loss")
def huber_loss(
    x: Interval, target: Interval, reduction: int = MEAN, delta: float = 1.0
) -> Interval:
    """d^2 / 2 for d = |x - t| <= delta, else delta (d - delta / 2): increasing in d."""
    distance = (Box.native(x) - Box.native(target)).abs()
    return _reduced(_huber(distance, delta, scale=delta), x, _shape(x, target), reduction)


def _huber(distance: Box, knee: float, scale: float) -> Box:
    def value(d: torch.Tensor) -> torch.Tensor:
        near = d.clamp(max=knee)
        square = near * near / (2 * knee) if knee else torch.zeros_like(d)
        return (square + (d - near)) * scale

    lower, upper = value(distance.lower), value(distance.upper)
    upper = upper.nan_to_num(math.inf, math.inf)
    lower = lower.nan_to_num(0.0, math.inf)
    # Just above the knee, d - knee / 2 is rounded at the size of d.
    wide = Box(lower, upper, distance.dtype, distance.may_nan)
    infinite = distance.high == math.inf and scale == 0.0
    return wide.rounded(ulps=32).with_nan(infinite)


# --- binary cross entropy ------------------------------------------------------------------


def _mixed(target: Box, positive: Box, negative: Box) -> Box:
    """T positive + (1 - t) negative: linear in t, so the ends of t decide."""
    sides = []
    for end in (target.lower, target.upper):
        t = Box(end, end, target.dtype, target.may_nan)
        sides.append(t * positive + (-t + 1.0) * negative)
    return sides[0].hull(sides[1])


@transfer("binary_cross_entropy")
def binary_cross_entropy(
    x: Interval, target: Interval, weight: Interval | None = None, reduction: int = MEAN
) -> Interval:
    """-t max(log x, -100) - (1 - t) max(log(1 - x), -100); torch refuses x outside [0, 1]."""
    box = Box.native(x).clamped(0.0, 1.0)
    floor = 16 * unit_roundoff(box.dtype)
    log_x = box.increasing(torch.log, absolute=floor).clamped(LOG_FLOOR, floor)
    rest = Box(1 - box.upper, 1 - box.lower, box.dtype, box.may_nan)
    log_rest = rest.increasing(torch.log, absolute=floor).clamped(LOG_FLOOR, floor)
    losses = _mixed(Box.native(target), -log_x, -log_rest)
    if weight is not None:
        losses = losses * Box.native(weight)
    return _reduced(losses, x, _shape(x, target), reduction)


@transfer("binary_cross_entropy_with_logits")
def binary_cross_entropy_with_logits(
    x: Interval,
    target: Interval,
    weight: Interval | None = None,
    pos_weight: Interval | None = None,
    reduction: int = MEAN,
) -> Interval:
    """(1 - t) softplus(x) + pos_weight t softplus(-x), computed without overflow.

    The kernel's (1 - t) x + (1 + (pos_weight - 1) t) softplus(-x) cancels; the error is a
    few units of its terms.
    """
    logits, labels = Box.native(x), Box.native(target)
    above, below = logits.increasing(_softplus), (-logits).increasing(_softplus)
    positive = below if pos_weight is None else below * Box.native(pos_weight)
    losses = _mixed(labels, positive, above)
    share = -labels + 1.0
    terms = (share * logits).magnitude + (share * below).magnitude + positive.magnitude
    terms = terms + (labels * positive).magnitude + (labels * below).magnitude
    slack = 32 * unit_roundoff(logits.dtype) * terms
    factor = labels if pos_weight is None else labels * (Box.native(pos_weight) - 1.0)
    if not bool((terms < math.inf).all()) or math.isinf(factor.peak):
        slack = slack * math.nan
    losses = losses.replaced(losses.lower - slack, losses.upper + slack)
    if weight is not None:
        losses = losses * Box.native(weight)
    wide = x if torch.promote_types(x.dtype, target.dtype) == x.dtype else target
    return _reduced(losses, wide, _shape(x, target), reduction)


def _softplus(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


@transfer("soft_margin_loss")
def soft_margin_loss(x: Interval, target: Interval, reduction: int = MEAN) -> Interval:
    """log(1 + exp(-t x)); the kernel's exp overflows from -t x = 88 (float32) on."""
    exponent = -(Box.native(x) * Box.native(target))
    grown = exponent.increasing(torch.exp)
    losses = grown.increasing(torch.log1p, absolute=16 * unit_roundoff(x.dtype))
    return _reduced(losses, x, _shape(x, target), reduction)
