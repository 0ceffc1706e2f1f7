"""The margin loss of several labels."""

from __future__ import annotations

import math

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box
from ranum.analysis.transfer.loss import MEAN, _reduced
from ranum.analysis.transfer.registry import transfer


@transfer("multilabel_margin_loss_forward")
def multilabel_margin_loss(
    x: Interval, target: Interval, reduction: int = MEAN
) -> tuple[Interval, Interval]:
    """Sum of max(0, 1 - x[t] + x[j]) over labels t and other classes j, over their number C."""
    classes = x.shape[-1] if x.shape else 1
    box = Box.native(x.merged()).merged()
    hinge = (box - box + 1.0).clamped(0.0, math.inf)
    loss = hinge.with_zero().times(max(classes, 1) ** 2) / float(max(classes, 1))
    flags = Interval.full(0, 1, target.shape, x.dtype)
    return _reduced(loss.with_zero().rounded(32), x, target.shape[:-1], reduction), flags


@transfer("multilabel_margin_loss_backward", phase="backward")
def multilabel_margin_loss_backward(
    grad_output: Interval, x: Interval, target: Interval, reduction: int, is_target: Interval
) -> Interval:
    """Grad / C up or down, for every label and every class it is compared with."""
    classes = max(x.shape[-1], 1) if x.shape else 1
    if x.is_empty_tensor:
        return Interval.full(0, 0, x.shape, x.dtype)
    grad = Box.native(grad_output.merged()).merged()
    slope = grad.constant(-1.0 - classes, 1.0 + classes).with_nan(x.may_nan or x.may_inf)
    return (grad * slope).rounded(64).interval(x.shape, x.dtype)
