"""Infinities that meet: inf - inf, 0 * inf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ranum.analysis.defects.base import DefectRule, Problem, Scene, defect_rule, is_float
from ranum.analysis.graph import Node, Ref
from ranum.analysis.interval import Interval

_WORDS = {
    "add": "Inf + -Inf",
    "sub": "Inf - Inf",
    "rsub": "Inf - Inf",
    "mul": "0 * Inf",
    "div": "Inf / Inf",
    "sum": "Inf + -Inf",
    "mean": "Inf + -Inf",
    "cumsum": "Inf + -Inf",
}


@defect_rule
@dataclass(frozen=True)
class MeetingInfinities(DefectRule):
    """An operator that can turn an infinity put there on purpose into NaN.

    What it finds: inf - inf, 0 * inf and inf / inf, where the infinity is not the outcome of
    another defect: masks of -inf, `full(inf)`, running minima that start at inf; and the
    first operator that reads a constant in which this has happened already.

    Why it matters: (1 - mask) * -inf is NaN at every element that is kept; p * log(p) is
    0 * -inf at every element that is masked out; the difference of two masked scores is NaN.

    Known misses: none known in one step; an infinity that training itself brings about is
    reported where it starts, as RN104 or RN107.

    Remedies: `masked_fill(mask, -inf)` instead of a product; a large finite number instead of
    infinity; `where` around the product.

    Example:
        scores = scores + (1 - mask) * float("-inf")

    References:
        IEEE 754-2019, section 7.2 (invalid operations).
    """

    code: ClassVar[str] = "RN111"
    ops: ClassVar[frozenset[str]] = frozenset()  # every operator, as RN107
    is_about_result: ClassVar[bool] = True

    def check_in(
        self, scene: Scene, node: Node, arguments: Mapping[str, Any], result: Interval
    ) -> Problem | None:
        """As `check`; a recorded constant that holds NaN already is to blame as well."""
        for name, argument in node.arguments.items():
            if not isinstance(argument, Ref) or not is_float(arguments[name]):
                continue
            if scene.graph.values[argument.value].kind == "constant" and arguments[name].may_nan:
                return Problem(
                    argument=name,
                    bad="a constant that is NaN",
                    outcome="NaN",
                    remedy="see how the constant is made: 0 * Inf, say, in (1 - mask) * -inf",
                )
        return self.check(node, arguments, result)

    def check(self, node: Node, arguments: Mapping[str, Any], result: Interval) -> Problem | None:
        """Operands without NaN, one of them infinite, and a result that can be NaN."""
        if not result.dtype.is_floating_point or not result.may_nan:
            return None
        floats = {name: value for name, value in arguments.items() if is_float(value)}
        infinite = [name for name, value in floats.items() if value.may_inf]
        if not infinite:
            infinite = [
                name
                for name, value in arguments.items()
                if isinstance(value, float) and value in (float("inf"), float("-inf"))
            ]
        if not infinite or any(value.may_nan for value in floats.values()):
            return None
        tensors = [name for name in infinite if name in floats] or list(floats)
        if not tensors:
            return None
        return Problem(
            argument=tensors[0],
            bad=_WORDS.get(node.op, "an infinite operand"),
            outcome="NaN",
            remedy="masked_fill instead of a product, or a large finite number instead of Inf",
        )
