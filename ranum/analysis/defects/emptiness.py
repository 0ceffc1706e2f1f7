"""Means of nothing, variances of one sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ranum.analysis.defects.base import DefectRule, Problem, Scene, defect_rule
from ranum.analysis.graph import Node, Ref
from ranum.analysis.interval import Interval

_SPREADS = frozenset({"var", "std", "var_mean", "std_mean"})
_LOSSES = frozenset(
    {"mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "soft_margin_loss",
     "binary_cross_entropy_with_logits", "nll_loss_forward", "nll_loss2d_forward"}
)  # fmt: skip
_FOLLOWED = frozenset(
    {"identity", "reshape", "expand", "permute", "cast", "add", "sub", "rsub", "mul", "div", "neg",
     "abs", "square", "pow", "exp", "log", "log1p", "sqrt", "relu", "sigmoid", "tanh", "softplus",
     "gelu", "silu", "clamp", "clamp_min", "clamp_max", "mm", "addmm", "linear", "_log_softmax",
     "_softmax", "cat"}
)  # fmt: skip
_STEPS_BACK = 24
_MEAN = 1


@defect_rule
@dataclass(frozen=True)
class EmptyReduction(DefectRule):
    """A mean of no element, or an unbiased variance of a single one.

    What it finds: `mean`, and losses with the reduction "mean", of a tensor without elements;
    or of elements picked by a mask that float inputs or weights can make empty, x[x > 0];
    cross entropy of targets that are all to be ignored;
    `var` and `std` of so few samples that the divisor n - correction is not positive.

    Why it matters: both are 0/0, NaN. The last batch of an epoch may hold one sample only, and
    a batch without a positive example leaves nothing to average.

    Known misses: a mask made of integer inputs (labels, token ids), and which targets are
    ignored, is taken as recorded: another batch may leave nothing. A sum divided by a count is
    RN103.

    Remedies: divide the sum by a count clamped at 1; return 0 for an empty selection;
    `unbiased=False`, or drop the last batch.

    Example:
        loss = error[confidence > 0.5].mean()

    References:
        PyTorch documentation, torch.var: correction.
    """

    code: ClassVar[str] = "RN109"
    ops: ClassVar[frozenset[str]] = frozenset({"mean"}) | _SPREADS | _LOSSES
    is_exhaustive: ClassVar[bool] = False

    def check_in(
        self, scene: Scene, node: Node, arguments: Mapping[str, Any], result: Interval
    ) -> Problem | None:
        """No element, too few for the correction, or as many as a mask picks."""
        if node.op in _LOSSES and arguments.get("reduction") != _MEAN:
            return None
        x = arguments["x"]
        count = _count(x.shape, arguments.get("dim"))
        if node.op in _SPREADS:
            correction = _correction(arguments)
            if count - correction <= 0:
                return Problem(
                    argument="x",
                    bad=f"{count} sample{'' if count == 1 else 's'}, divided by n - {correction:g}",
                    outcome="NaN",
                    remedy="unbiased=False, or at least two samples",
                )
        elif count == 0:
            return _nothing("no element")
        if _ignores_all(arguments):
            return _nothing("no target that counts")
        if len(x.shape) != 1 and arguments.get("dim") is not None:
            return None  # the picked dimension may be another one
        reference = node.arguments["x"]
        if isinstance(reference, Ref) and _may_be_empty(scene, reference.value):
            return _nothing("nothing left by the mask")
        return None

    def check(self, node: Node, arguments: Mapping[str, Any], result: Interval) -> Problem | None:
        """Nothing is said without the graph."""
        return None


def _ignores_all(arguments: Mapping[str, Any]) -> bool:
    """True for class numbers that are all the one to be ignored."""
    target, ignored = arguments.get("target"), arguments.get("ignore_index")
    return isinstance(target, Interval) and target.low == target.high == ignored


def _nothing(bad: str) -> Problem:
    return Problem(
        argument="x",
        bad=bad,
        outcome="NaN",
        remedy="divide the sum by a count clamped at 1, or skip an empty selection",
    )


def _count(shape: tuple[int, ...], dim: Any) -> int:
    dims = range(len(shape)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return math.prod(shape[d] for d in dims) if shape else 1


def _correction(arguments: Mapping[str, Any]) -> float:
    """Of var and std, in both spellings; 1 where nothing is said."""
    if "unbiased" in arguments:
        return float(bool(arguments["unbiased"]))
    correction = arguments.get("correction")
    return 1.0 if correction is None else float(correction)


def _may_be_empty(scene: Scene, value: int) -> bool:
    """True if a value is computed from elements picked by a mask that can hold nowhere."""
    pending = [value]
    seen: set[int] = set()
    while pending and len(seen) < _STEPS_BACK:
        node = scene.graph.producer(pending.pop())
        if node is None or node.index in seen:
            continue
        seen.add(node.index)
        if node.op in ("index", "masked_select"):
            if _mask_can_be_empty(scene, node):
                return True
        elif node.op in _FOLLOWED:
            pending += node.operands
    return False


def _mask_can_be_empty(scene: Scene, node: Node) -> bool:
    masks = node.arguments["mask"] if node.op == "masked_select" else node.arguments["indices"]
    for mask in masks if isinstance(masks, (list, tuple)) else [masks]:
        if not isinstance(mask, Ref):
            continue
        interval = scene.interval(mask.value)
        made = scene.graph.producer(mask.value)
        if made is not None and made.op == "nonzero":
            interval = scene.interval(made.operands[0])
        elif scene.graph.values[mask.value].dtype.itemsize > 1:
            continue  # positions, not a mask
        if interval is not None and not interval.is_empty_tensor and not bool(interval.lower.any()):
            return True
    return False
