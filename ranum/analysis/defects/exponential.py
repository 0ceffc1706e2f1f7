"""Overflow of exponentials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ranum.analysis.defects.base import DefectRule, Problem, defect_rule, is_float
from ranum.analysis.graph import Node
from ranum.analysis.interval import Interval, round_down


@defect_rule
@dataclass(frozen=True)
class ExpOverflow(DefectRule):
    """An exponential whose operand can be too large for the dtype.

    What it finds: `exp`, `expm1`, `exp2`, `sinh`, `cosh` of an operand that can exceed the
    logarithm of the largest number: 88.72 for exp in float32 and bfloat16, 11.09 in float16.

    Why it matters: the infinity turns into NaN as soon as it is divided by another one
    (a softmax by hand), subtracted, or multiplied by 0, and its gradient is infinite too.

    Known misses: none known.

    Remedies: subtract the maximum first, or use `softmax`, `logsumexp`, `softplus`,
    `sigmoid`; clamp the log-variance of a VAE.

    Example:
        kl = -0.5 * (1 + logvar - mu**2 - torch.exp(logvar)).sum()

    References:
        L. Li et al., RANUM, ICSE 2023.
    """

    code: ClassVar[str] = "RN104"
    ops: ClassVar[frozenset[str]] = frozenset({"exp", "expm1", "exp2", "sinh", "cosh"})

    def check(self, node: Node, arguments: Mapping[str, Any], result: Interval) -> Problem | None:
        """The operand can exceed the largest argument with a finite result."""
        x = arguments["x"]
        if not is_float(x):
            return None
        limit = largest_argument(node.op, x.dtype)
        if node.op in ("sinh", "cosh"):
            if x.high <= limit and x.low >= -limit:
                return None
            safe = (-limit, limit)
            bad = f"|x| > {limit:.5g}"
        else:
            if x.high <= limit:
                return None
            safe = (-torch.finfo(x.dtype).max, limit)
            bad = f"x > {limit:.5g}"
        return Problem(
            argument="x",
            bad=bad,
            outcome="Inf above" if node.op != "sinh" else "Inf or -Inf beyond",
            safe=safe,
            remedy="subtract the maximum first, or use softmax, logsumexp or softplus",
        )


def largest_argument(op: str, dtype: torch.dtype) -> float:
    """The largest x for which the operator stays finite, short of the true limit by two units.

    Kernels of half types compute in float32: the units are its own, then.
    """
    largest = torch.finfo(dtype).max
    limit = math.log(largest)
    if op == "exp2":
        limit = math.log2(largest)
    elif op in ("sinh", "cosh"):
        limit += math.log(2)
    exact = round_down(limit, dtype)
    if dtype.itemsize < 4:
        limit -= 2 * limit * torch.finfo(torch.float32).eps
        return round_down(limit, dtype)
    return exact - 2 * abs(exact) * torch.finfo(dtype).eps
