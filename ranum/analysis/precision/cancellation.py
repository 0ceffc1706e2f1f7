"""Differences of numbers that are nearly equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ranum.analysis.graph import Node
from ranum.analysis.precision.base import AdviceRule, Suggestion, Surroundings, advice_rule
from ranum.analysis.precision.rewrite import bracketed, operand_text, spelled, written


@advice_rule
@dataclass(frozen=True)
class Cancellation(AdviceRule):
    """A difference of two numbers that can be nearly equal, where a better formula exists.

    What it finds: exp(x) - 1 and 1 - cos(x) of an x that can be near 0; a variance computed as
    E[x^2] - E[x]^2.

    Why it matters: the leading digits cancel, and what is left is rounding error. In float32
    exp(1e-8) - 1 is 0. For data with a mean of 4,000 and a spread of 1, E[x^2] - E[x]^2 has no
    correct digit, and may be negative: its root is NaN (RN102).

    Known misses: differences of other expressions are not recognised.

    Remedies: `expm1`; 2 sin(x / 2)^2; `torch.var`, or the mean of the centred squares.

    Example:
        growth = torch.exp(rate) - 1

    References:
        N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, sections 1.7
        and 1.9.
    """

    code: ClassVar[str] = "RN115"
    ops: ClassVar[frozenset[str]] = frozenset({"sub", "rsub", "add"})

    def look(self, around: Surroundings, node: Node) -> Suggestion | None:
        """Both terms come from the same x in a way that cancels."""
        output = node.outputs[0]
        if output is None:
            return None
        cosine = around.made_by(around.one_minus(output), "cos")
        if cosine is not None and around.may_be_small(around.operand(cosine, "x")):
            return Suggestion(
                "cos(x) rounds to 1 for small x",
                f"2 * {spelled(node, 'sin', f'{bracketed(operand_text(cosine))} / 2')} ** 2 "
                f"instead of {written(node) or '1 - torch.cos(x)'}",
            )
        exponential = around.made_by(_minus_one(around, node), "exp")
        if exponential is not None and around.may_be_small(around.operand(exponential, "x")):
            return Suggestion(
                "exp(x) rounds to 1 for small x",
                f"{spelled(node, 'expm1', operand_text(exponential))} instead of "
                f"{written(node) or 'torch.exp(x) - 1'}",
            )
        squares = _mean_of_squares(around, node) if node.op == "sub" else None
        if squares is not None:
            x = bracketed(operand_text(_square(around, around.operand(squares, "x"))))
            return Suggestion(
                "the squares cancel where the mean is large against the spread; the result can "
                "be negative",
                f"{spelled(node, 'var', x, dim=squares.arguments.get('dim'))} instead of "
                f"{written(node) or '(x * x).mean(dim) - x.mean(dim) ** 2'}",
            )
        return None


def _minus_one(around: Surroundings, node: Node) -> int | None:
    """The x of an x - 1, or None."""
    number = {"sub": 1, "add": -1}.get(node.op)
    if number is None or node.arguments.get("alpha", 1) != 1:
        return None
    if not around.is_number(node.arguments["other"], number):
        return None
    return around.operand(node, "x")


def _mean_of_squares(around: Surroundings, node: Node) -> Node | None:
    """The first term of mean(x^2) - mean(x)^2 over the same dimensions, or None."""
    squares = around.made_by(around.operand(node, "x"), "mean")
    mean = around.made_by(_squared(around, around.operand(node, "other")), "mean")
    if squares is None or mean is None or node.arguments.get("alpha", 1) != 1:
        return None
    x = _squared(around, around.operand(squares, "x"))
    if x is None or x != around.operand(mean, "x"):
        return None
    return squares if squares.arguments.get("dim") == mean.arguments.get("dim") else None


def _squared(around: Surroundings, value: int | None) -> int | None:
    """The x of an x * x, x ** 2 or square(x), or None."""
    node = _square(around, value)
    return None if node is None else around.operand(node, "x")


def _square(around: Surroundings, value: int | None) -> Node | None:
    """The operator that made a value as x * x, x ** 2 or square(x), or None."""
    node = around.made_by(value, "mul", "pow", "square")
    if node is None:
        return None
    if node.op == "mul" and around.operand(node, "other") != around.operand(node, "x"):
        return None
    return None if node.op == "pow" and node.arguments.get("exponent") != 2 else node
