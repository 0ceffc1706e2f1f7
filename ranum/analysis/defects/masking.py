"""Softmax over a row of nothing but -inf."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ranum.analysis.defects.base import DefectRule, Problem, defect_rule, is_float
from ranum.analysis.graph import Node
from ranum.analysis.interval import Interval


@defect_rule
@dataclass(frozen=True)
class FullyMasked(DefectRule):
    """A softmax over a row in which every element can be -inf.

    What it finds: `softmax` and `log_softmax` of logits masked with -inf, where a row may
    have no element left; `logsumexp` of such a row in training, whose value is -inf and whose
    gradient is NaN. A mask that depends on float inputs or weights can leave nothing; one made
    of shapes, constants or integer inputs (causal, padding) is taken as recorded, and its rows
    are looked at one by one; where it is written by slices, the recorded step shows if it
    leaves every row an element.

    Why it matters: exp(-inf - -inf) is NaN. One padded sequence of length 0, or one query
    that may attend to nothing, makes the whole batch's gradient NaN, also where its own output
    is thrown away.

    Known misses: an integer padding mask that leaves an element in the recorded batch may
    leave none in another.

    Remedies: mask with the dtype's least number, torch.finfo(x.dtype).min, instead of -inf: the
    row is then uniform; `scaled_dot_product_attention`, which gives 0 for such a row; let
    every row keep one element.

    Example:
        weights = torch.softmax(scores.masked_fill(distance > radius, -math.inf), -1)

    References:
        PyTorch documentation, torch.nn.functional.scaled_dot_product_attention.
    """

    code: ClassVar[str] = "RN110"
    ops: ClassVar[frozenset[str]] = frozenset({"_softmax", "_log_softmax", "logsumexp"})
    is_about_result: ClassVar[bool] = True

    def check(self, node: Node, arguments: Mapping[str, Any], result: Interval) -> Problem | None:
        """The maximum of a row can be -inf: seen as NaN, or for logsumexp as -inf."""
        x = arguments["x"]
        if not is_float(x) or x.may_nan or not x.may_inf:
            return None
        is_sum = node.op == "logsumexp"
        if x.high == math.inf and not is_sum:
            return Problem(
                argument="x",
                bad="+Inf in a row",
                outcome="NaN",
                remedy="a large finite number instead of Inf",
            )
        if not (result.low == -math.inf if is_sum else result.may_nan):
            return None
        return Problem(
            argument="x",
            bad="a row of nothing but -Inf",
            outcome="-Inf, and a NaN gradient" if is_sum else "NaN",
            remedy="mask with torch.finfo(x.dtype).min, or let every row keep an element",
        )
