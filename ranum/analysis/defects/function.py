"""Functions outside their domain: inverse trigonometric, gamma and error functions, tan."""

from __future__ import annotations

import math
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
from ranum.analysis.interval import Interval, format_number

_CLOSED = {"acos": (-1.0, 1.0), "asin": (-1.0, 1.0), "acosh": (1.0, math.inf)}
_OPEN = {"atanh": (-1.0, 1.0), "erfinv": (-1.0, 1.0), "special_ndtri": (0.0, 1.0)}
_POLES = frozenset({"lgamma", "digamma", "polygamma"})
"""Infinite or NaN at 0 and at every negative integer."""


@defect_rule
@dataclass(frozen=True)
class FunctionDomain(DefectRule):
    """A function whose operand can leave its domain, or meet one of its poles.

    What it finds: `acos`, `asin` beyond [-1, 1]; `acosh` below 1; `atanh`, `erfinv` at or
    beyond -1 and 1; the inverse of the normal distribution at or beyond 0 and 1; `lgamma`,
    `digamma` and `polygamma` at 0 or below; `tan` of an operand that can pass an odd multiple
    of pi / 2.

    Why it matters: outside the domain these are NaN, at its open ends infinite. A cosine of
    two vectors exceeds 1 by rounding alone, and `tanh` rounds to exactly 1 from 9.02 on in
    float32. `tan` stays finite, since no float is an odd multiple of pi / 2, but jumps between
    -2e7 and 2e7 there. The infinite gradient of acos and asin at -1 and 1 is RN106.

    Known misses: none known; gamma functions between two poles are finite, and reported when
    the interval holds no pole but reaches below 0.

    Remedies: clamp to the domain, short of its open ends; angles by `atan2` of sine and
    cosine instead of acos; keep the logits instead of `atanh(tanh(x))`.

    Example:
        angle = torch.acos((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)))

    References:
        W. Kahan, How Futile are Mindless Assessments of Roundoff in Floating-Point
        Computation?, 2006, section 12 (angles from acos).
    """

    code: ClassVar[str] = "RN108"
    ops: ClassVar[frozenset[str]] = frozenset({*_CLOSED, *_OPEN, *_POLES, "tan"})

    def check(self, node: Node, arguments: Mapping[str, Any], result: Interval) -> Problem | None:
        """The operand reaches beyond the domain, to an open end, or to a pole."""
        x = arguments["x"]
        if not is_float(x):
            return None
        largest = torch.finfo(x.dtype).max
        if node.op in _CLOSED:
            least, most = _CLOSED[node.op]
            if least <= x.low and x.high <= most:
                return None
            return Problem(
                argument="x",
                bad=_outside(least, most),
                outcome="NaN outside the domain",
                safe=(least, min(most, largest)),
                remedy="clamp to the domain; for an angle, use atan2",
            )
        if node.op in _OPEN:
            least, most = _OPEN[node.op]
            if least < x.low and x.high < most:
                return None
            step = torch.finfo(x.dtype).eps / 2
            low = least + step if least else smallest_positive(x.dtype)
            beyond = x.low < least or x.high > most
            return Problem(
                argument="x",
                bad=f"x <= {least:g} or x >= {most:g}",
                outcome="Inf or -Inf at the ends" + (", NaN beyond" if beyond else ""),
                safe=(low, most - step),
                remedy="clamp short of the ends by the dtype's resolution",
            )
        if node.op == "tan":
            return _tan(x)
        if x.low > 0:
            return None
        return Problem(
            argument="x",
            bad="x = 0 or a negative integer",
            outcome="Inf or NaN at the poles",
            safe=(torch.finfo(x.dtype).smallest_normal, largest),
            remedy="keep the operand positive: softplus(x) + eps, or clamp",
        )


def _outside(least: float, most: float) -> str:
    if math.isinf(most):
        return f"x < {least:g}"
    return f"x < {least:g} or x > {most:g}"


def _tan(x: Interval) -> Problem | None:
    """A pole lies between two operands: (k + 1/2) pi for the least k not below the lower end."""
    if not math.isfinite(x.low):
        return None
    pole = (math.ceil(x.low / math.pi - 0.5) + 0.5) * math.pi
    if pole > x.high:
        return None
    size = abs(float(torch.tensor(math.pi / 2, dtype=x.dtype).tan()))
    return Problem(
        argument="x",
        bad="x near an odd multiple of pi / 2",
        outcome=f"jumps between {format_number(-size)} and {format_number(size)}",
        remedy="keep the operand inside (-pi / 2, pi / 2), or use atan2 and sines and cosines",
    )
