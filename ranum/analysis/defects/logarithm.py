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
    number_or_interval,
    smallest_positive,
)
from ranum.analysis.graph import Node
from ranum.analysis.interval import Interval


@defect_rule
@dataclass(frozen=True)
class LogDomain(DefectRule):
    """A logarithm whose operand can be zero or negative.

    What it finds: `log`, `log2`, `log10` and the second operand of `xlogy` where the
    interval reaches 0 or below, `log1p` where it reaches -1 or below, and `logit` where it
    reaches 0 or 1. Probabilities from `softmax` and `sigmoid` are in this set: in float32 a
    softmax underflows to exactly 0 once a logit lies 104 below the largest one, and a sigmoid
    rounds to exactly 1 from 16.6 on.

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
    ops: ClassVar[frozenset[str]] = frozenset({"log", "log2", "log10", "log1p", "xlogy", "logit"})

    def check(self, node: Node, arguments: Mapping[str, Any], result: Interval) -> Problem | None:
        """The operand reaches the edge of the domain."""
        if node.op == "logit":
            return _logit(arguments["x"], arguments.get("eps"))
        name = "other" if node.op == "xlogy" else "x"
        x = arguments[name]
        if not is_float(x) or (node.op == "xlogy" and number_or_interval(arguments["x"]) == (0, 0)):
            return None
        edge = -1.0 if node.op == "log1p" else 0.0
        if x.low > edge:
            return None
        outcome = f"-Inf at {edge:g}" + (", NaN below" if x.low < edge else "")
        least = smallest_positive(x.dtype)
        if node.op == "log1p":
            least = -1.0 + torch.finfo(x.dtype).eps / 2
        return Problem(
            argument=name,
            bad=f"x <= {edge:g}" if x.low < edge else f"x = {edge:g}",
            outcome=outcome,
            safe=(least, torch.finfo(x.dtype).max),
            remedy=(
                "log_softmax, logsigmoid or the loss that takes logits, if the operand is a "
                "probability; a clamp with a small positive minimum otherwise"
            ),
        )


def _logit(x: Any, eps: float | None) -> Problem | None:
    """Log(x / (1 - x)): infinite at 0 and 1; `eps`, if given, clamps to [eps, 1 - eps]."""
    if not is_float(x):
        return None
    info = torch.finfo(x.dtype)
    low, high = x.low, x.high
    if eps is not None:
        top = float(torch.tensor(1 - eps, dtype=x.dtype))
        low, high = max(low, float(torch.tensor(eps, dtype=x.dtype))), min(high, top)
    if low > 0 and high < 1:
        return None
    beyond = ", NaN beyond" if low < 0 or high > 1 else ""
    return Problem(
        argument="x",
        bad="x <= 0 or x >= 1",
        outcome="-Inf at 0, Inf at 1" + beyond,
        safe=(smallest_positive(x.dtype), 1 - info.eps / 2),
        remedy="keep the logits the probability was made from; or give `eps`, 1e-6 in float32",
    )
