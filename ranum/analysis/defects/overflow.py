"""Results too large for their dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ranum.analysis.defects.base import DefectRule, Problem, defect_rule, is_finite
from ranum.analysis.graph import Node
from ranum.analysis.interval import Interval


@defect_rule
@dataclass(frozen=True)
class Overflow(DefectRule):
    """An operator whose finite operands can give an infinite or NaN result.

    What it finds: every operator that no other rule covers (sums, products, matrix
    products, norms, acos and the like) with finite operand intervals and a result interval
    that is not. Only the first operator of a chain is reported.

    Why it matters: products of unbounded activations overflow float16 at 65,504 quickly,
    float32 at 3.4e38 only in networks without normalisation or in diverging runs.

    Known misses: operators without a transfer function are listed as unknown instead.

    Remedies: normalise, use a wider dtype for sums of squares, bound the operands.

    Example:
        loss = (x.half() ** 2).sum()

    References:
        P. Micikevicius et al., Mixed Precision Training, ICLR 2018.
    """

    code: ClassVar[str] = "RN107"
    ops: ClassVar[frozenset[str]] = frozenset()  # every operator without a rule of its own
    is_about_size: ClassVar[bool] = True
    is_about_result: ClassVar[bool] = True

    def check(self, node: Node, arguments: Mapping[str, Any], result: Interval) -> Problem | None:
        """Finite operands, a result that is not."""
        if not result.dtype.is_floating_point or result.is_finite:
            return None
        tensors = [name for name, value in arguments.items() if isinstance(value, Interval)]
        if not tensors or not all(is_finite(argument) for argument in arguments.values()):
            return None
        outcome = "Inf" if not result.may_nan else "NaN or Inf"
        return Problem(
            argument=tensors[0],
            bad="operands whose result exceeds the largest number"
            if result.may_inf
            else "operands outside the operator's domain",
            outcome=outcome,
            remedy="normalise or bound the operands, or compute in a wider dtype",
        )
