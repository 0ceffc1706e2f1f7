"""Powers outside their domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ranum.analysis.defects.base import (
    DefectRule,
    Problem,
    defect_rule,
    is_finite,
    number_or_interval,
    smallest_positive,
)
from ranum.analysis.graph import Node
from ranum.analysis.interval import Interval


@defect_rule
@dataclass(frozen=True)
class PowerDomain(DefectRule):
    """A power whose base and exponent can meet outside the domain, or overflow.

    What it finds: a negative base with a fractional exponent (NaN), a zero base with a
    negative exponent (Inf), and powers that overflow the dtype. The infinite gradient of
    x^p at 0 for p < 1 is RN106.

    Why it matters: generalised means, Box-Cox transforms and focal losses raise quantities
    near 0 to fractional or negative powers.

    Known misses: none known.

    Remedies: clamp the base to be positive; use `sqrt(x + eps)` for x ** 0.5.

    Example:
        loss = ((p - y) ** 0.7).mean()

    References:
        L. Li et al., RANUM, ICSE 2023 (operator Pow).
    """

    code: ClassVar[str] = "RN105"
    ops: ClassVar[frozenset[str]] = frozenset({"pow"})
    is_about_size: ClassVar[bool] = True

    def check(self, node: Node, arguments: Mapping[str, Any], result: Interval) -> Problem | None:
        """Negative base with fractional exponent, zero base with negative one, or overflow."""
        if not result.dtype.is_floating_point:
            return None
        base, exponent = arguments["x"], arguments["exponent"]
        low, high = number_or_interval(base)
        least, most = number_or_interval(exponent)
        info = torch.finfo(result.dtype)
        fractional = least != most or least != int(least) if abs(least) < 2**53 else False
        remedy = "clamp the base to be positive"
        if low < 0 and fractional:
            floor = 0.0 if least > 0 else smallest_positive(result.dtype)
            return Problem(
                argument="x",
                bad="base < 0 with a fractional exponent",
                outcome="NaN below 0",
                safe=(floor, info.max),
                remedy=remedy,
            )
        if least < 0 and low <= 0 <= high:
            # The root of the largest number: below it, the power itself overflows.
            floor = info.max ** (1 / least) * (1 + 8 * info.eps)
            return Problem(
                argument="x",
                bad="base = 0 with a negative exponent",
                outcome="Inf at 0",
                safe=(max(floor, smallest_positive(result.dtype)), info.max) if low >= 0 else None,
                remedy=remedy,
            )
        if is_finite(base) and is_finite(exponent) and result.may_inf:
            reach = info.max ** (1 / most) * (1 - 8 * info.eps) if most > 0 else None
            safe = None
            if reach is not None:
                safe = (-reach if low < 0 else 0.0, reach)
            return Problem(
                argument="x",
                bad="a power above the largest number",
                outcome="Inf",
                safe=safe,
                remedy="bound the base",
            )
        return None
