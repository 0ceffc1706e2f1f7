"""Losses: scores [N, C, ...], labels [N, ...]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis.capture.onnx.registry import Call, UnsupportedError, lowering

_NOTHING = -(1 << 40)
"""Stands for an `ignore_index` that is not given: no label has it."""


def _loss(
    scores: Tensor, target: Tensor, weight: Tensor | None, ignore: int | None, reduction: str
) -> Tensor:
    if reduction not in ("none", "mean", "sum"):
        raise UnsupportedError(f"reduction {reduction}")
    chosen = _NOTHING if ignore is None else ignore
    classes, labels = scores.shape[1], target.long()
    outside = (labels < 0) | (labels >= classes)
    if bool((outside & (labels != chosen)).any()):
        raise UnsupportedError("a label that is no class")
    return F.nll_loss(scores, labels, weight, ignore_index=chosen, reduction=reduction)


@lowering("NegativeLogLikelihoodLoss")
def nll_loss(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Minus the log probability of the label."""
    return _loss(scores, target, weight, ignore_index, reduction)


@lowering("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
    call: Call,
) -> tuple[Tensor, Tensor]:
    """Minus the log softmax of the label, and the log softmax."""
    logs = torch.log_softmax(scores, 1)
    return _loss(logs, target, weight, ignore_index, reduction), logs
