"""Square roots outside their domain."""

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
class RootDomain(DefectRule):
    """A square root of a negative number, or a reciprocal square root of zero.

    What it finds: `sqrt` of an operand that can be negative, `rsqrt` of one that can be zero
    or negative. The infinite gradient of `sqrt` at 0 is RN106.

    Why it matters: sqrt(-1e-9) is NaN. Variances computed as E[x^2] - E[x]^2 go slightly
    negative by cancellation; rsqrt(0) is infinite.

    Known misses: none known; operands that are non-negative for reasons the intervals do not
    see are reported as possible.

    Remedies: add a positive eps inside the root, not outside; use `torch.var` instead of
    E[x^2] - E[x]^2; clamp at 0 before adding eps.

    Example:
        std = torch.sqrt((x * x).mean() - x.mean() ** 2)

    References:
        L. Li et al., RANUM, ICSE 2023.
    """

    code: ClassVar[str] = "RN102"
    ops: ClassVar[frozenset[str]] = frozenset({"sqrt", "rsqrt"})

    def check(self, node: Node, arguments: Mapping[str, Any], result: Interval) -> Problem | None:
        """The operand can be negative (sqrt) or not positive (rsqrt)."""
        x = arguments["x"]
        if not is_float(x):
            return None
        largest = torch.finfo(x.dtype).max
        if node.op == "sqrt":
            if x.low >= 0:
                return None
            return Problem(
                argument="x",
                bad="x < 0",
                outcome="NaN below 0",
                safe=(0.0, largest),
                remedy="clamp at 0 and add eps inside the root",
            )
        if x.low > 0:
            return None
        return Problem(
            argument="x",
            bad="x <= 0" if x.low < 0 else "x = 0",
            outcome="Inf at 0" + (", NaN below" if x.low < 0 else ""),
            safe=(smallest_positive(x.dtype), largest),
            remedy="add eps inside the root",
        )
