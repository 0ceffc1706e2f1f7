"""Division by zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ranum.analysis.defects.base import (
    DefectRule,
    Problem,
    defect_rule,
    number_or_interval,
)
from ranum.analysis.graph import Node
from ranum.analysis.interval import Interval

_DENOMINATORS = {
    "div": "other",
    "reciprocal": "x",
    "addcdiv": "tensor2",
    "remainder": "other",
    "fmod": "other",
    "_weight_norm_interface": "v",
}


@defect_rule
@dataclass(frozen=True)
class DivisionByZero(DefectRule):
    """A division whose denominator can be zero.

    What it finds: `div`, `reciprocal`, `addcdiv`, `remainder` and `fmod` with a denominator
    whose interval holds 0, and constant denominators that are 0; weight norm, g v / |v|, of a v
    that can be all 0.

    Why it matters: 1/0 is infinite, 0/0 is NaN: means over an empty mask, norms of a zero
    vector, a softmax written by hand whose terms all underflow.

    Known misses: a denominator that cannot be 0, but so small that the quotient overflows, is not
    reported; nor is one that a `where` before it keeps away from 0.

    Remedies: clamp counts at 1; add eps to norms, or use `torch.nn.functional.normalize`;
    `softmax` instead of exp(x) / exp(x).sum().

    Example:
        loss = (mask * error).sum() / mask.sum()

    References:
        L. Li et al., RANUM, ICSE 2023.
    """

    code: ClassVar[str] = "RN103"
    ops: ClassVar[frozenset[str]] = frozenset(_DENOMINATORS)

    def check(self, node: Node, arguments: Mapping[str, Any], result: Interval) -> Problem | None:
        """The denominator's interval holds 0."""
        name = _DENOMINATORS[node.op]
        denominator = arguments[name]
        if not result.dtype.is_floating_point:
            return None
        if node.op == "_weight_norm_interface":
            return _weight_norm(denominator, arguments["dim"])
        lower, upper = number_or_interval(denominator)
        if isinstance(denominator, Interval):
            if not denominator.contains_zero():
                return None
        elif lower != 0:
            return None
        numerator = (
            1.0
            if node.op == "reciprocal"
            else arguments.get("tensor1" if node.op == "addcdiv" else "x", 1.0)
        )
        low, high = number_or_interval(numerator)
        is_modulo = node.op in ("remainder", "fmod")
        nan = low <= 0 <= high
        outcome = "Inf at 0, NaN for 0/0" if nan else "Inf at 0"
        info = torch.finfo(result.dtype)
        # The reciprocal of the smallest normal is finite in every dtype; below it is not.
        if lower >= 0:
            safe = (info.smallest_normal, info.max)
        elif upper <= 0:
            safe = (-info.max, -info.smallest_normal)
        else:
            safe = None
        return Problem(
            argument=name,
            bad="x = 0" if node.op == "reciprocal" else "a denominator of 0",
            outcome="NaN at 0" if is_modulo else outcome,
            safe=safe,
            remedy="keep the denominator away from 0: clamp a count at 1, add eps to a norm",
        )


def _weight_norm(v: Interval, dim: int) -> Problem | None:
    """A problem if all elements of v at one index along `dim` can be 0."""
    zero = (v.lower <= 0) & (v.upper >= 0)
    others = [d for d in range(zero.dim()) if d != dim % zero.dim()]
    if not bool((zero.all(dim=tuple(others)) if others else zero).any()):
        return None
    return Problem(
        argument="v",
        bad="a vector v of 0",
        outcome="NaN for 0/0",
        remedy="keep the weights from decaying to 0: no weight decay on v, or an eps in the norm",
    )
