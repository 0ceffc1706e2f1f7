"""Differences of numbers that are nearly equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ranum.analysis.graph import Node
from ranum.analysis.precision.base import AdviceRule, Suggestion, Surroundings, advice_rule


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
                "2 * torch.sin(x / 2) ** 2 instead of 1 - torch.cos(x)",
            )
        exponential = around.made_by(_minus_one(around, node), "exp")
        if exponential is not None and around.may_be_small(around.operand(exponential, "x")):
            return Suggestion(
                "exp(x) rounds to 1 for small x",
                "torch.expm1(x) instead of torch.exp(x) - 1",
            )
        if node.op == "sub" and _is_variance(around, node):
            return Suggestion(
                "the squares cancel where the mean is large against the spread; the result can "
                "be negative",
                "x.var(dim, unbiased=False) instead of (x * x).mean(dim) - x.mean(dim) ** 2",
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


def _is_variance(around: Surroundings, node: Node) -> bool:
    """True for mean(x^2) - mean(x)^2 over the same dimensions."""
    squares = around.made_by(around.operand(node, "x"), "mean")
    mean = around.made_by(_squared(around, around.operand(node, "other")), "mean")
    if squares is None or mean is None or node.arguments.get("alpha", 1) != 1:
        return False
    x = _squared(around, around.operand(squares, "x"))
    if x is None or x != around.operand(mean, "x"):
        return False
    return bool(squares.arguments.get("dim") == mean.arguments.get("dim"))


def _squared(around: Surroundings, value: int | None) -> int | None:
    """The x of an x * x, x ** 2 or square(x), or None."""
    node = around.made_by(value, "mul", "pow", "square")
    if node is None:
        return None
    x = around.operand(node, "x")
    if node.op == "mul" and around.operand(node, "other") != x:
        return None
    if node.op == "pow" and node.arguments.get("exponent") != 2:
        return None
    return x
