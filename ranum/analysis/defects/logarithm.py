"""Logarithms outside their domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ranum.analysis.defects.base import (
    DefectRule,
    Problem,
    defect_rule,
    is_float,
    smallest_positive,
)
from ranum.analysis.graph import Node
from ranum.analysis.interval import Interval


@defect_rule
@dataclass(frozen=True)
class LogDomain(DefectRule):
    """A logarithm whose operand can be zero or negative.

    What it finds: `log`, `log2`, `log10` of an operand whose interval reaches 0 or below, and
    `log1p` of one that reaches -1 or below. Probabilities from `softmax` and `sigmoid` are in
    this set: in float32 a softmax underflows to exactly 0 once a logit lies 104 below the
    largest one.

    Why it matters: log(0) is -inf; multiplied by a 0 from a one-hot label it is NaN, and the
    gradient 1/0 is infinite even where the value is masked out. One such sample destroys all
    weights.

    Known misses: an operand that another operator keeps positive in a way the intervals do
    not see is reported as possible.

    Remedies: `log_softmax` or `cross_entropy` instead of log(softmax); `logsigmoid` or
    `binary_cross_entropy_with_logits` instead of log(sigmoid); `log1p` for log(1 + x); a
    clamp before the logarithm where no such form exists.

    Example:
        loss = -(y * torch.log(torch.softmax(logits, -1))).sum(-1).mean()

    References:
        Y. Zhang et al., Detecting Numerical Bugs in Neural Network Architectures (DEBAR),
        ESEC/FSE 2020. L. Li et al., Reliability Assurance for Deep Neural Network
        Architectures Against Numerical Defects (RANUM), ICSE 2023.
    """

    code: ClassVar[str] = "RN101"
    ops: ClassVar[frozenset[str]] = frozenset({"log", "log2", "log10", "log1p"})

    def check(self, node: Node, arguments: Mapping[str, Any], result: Interval) -> Problem | None:
        """The operand reaches the edge of the domain."""
        x = arguments["x"]
        if not is_float(x):
            return None
        edge = -1.0 if node.op == "log1p" else 0.0
        if x.low > edge:
            return None
        outcome = f"-Inf at {edge:g}" + (", NaN below" if x.low < edge else "")
        least = smallest_positive(x.dtype)
        if node.op == "log1p":
            least = -1.0 + torch.finfo(x.dtype).eps / 2
        return Problem(
            argument="x",
            bad=f"x <= {edge:g}" if x.low < edge else f"x = {edge:g}",
            outcome=outcome,
            safe=(least, torch.finfo(x.dtype).max),
            remedy=(
                "log_softmax, logsigmoid or the loss that takes logits, if the operand is a "
                "probability; a clamp with a small positive minimum otherwise"
            ),
        )
