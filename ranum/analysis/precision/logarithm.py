"""Logarithms for which there is a better function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ranum.analysis.graph import Node
from ranum.analysis.precision.base import AdviceRule, Suggestion, Surroundings, advice_rule
from ranum.analysis.precision.rewrite import (
    negated,
    operand_text,
    spelled,
    target_text,
    written,
)

_SHIFTS = frozenset({"amax", "max"})


@advice_rule
@dataclass(frozen=True)
class LogSpelling(AdviceRule):
    """A logarithm spelled so that it loses its digits, where a function for it exists.

    What it finds: log(1 + x) and log(1 - x) of an x that can be near 0; log of a sigmoid, of
    1 - sigmoid, of a softmax; log(1 + exp(x)); log of a sum of exponentials that were not
    shifted by their maximum; `binary_cross_entropy` of a sigmoid.

    Why it matters: in float32, 1 + x forgets everything of x below 6e-8, so log(1 + x) is 0
    there, with a gradient of 1 instead of the value's own slope. log(sigmoid(x)) loses all
    digits for large x and is -inf for small. Where the result can be -inf or NaN as well, the
    operator is a defect (RN101, RN104), and the rewriting shown here is its remedy.

    Known misses: an eps inside (log(p + 1e-8)) hides the pattern, and is left to the writer.

    Remedies: `log1p`, `logsigmoid`, `log_softmax`, `softplus`, `logsumexp`, and the losses that
    take logits.

    Example:
        rate = torch.log(1 + change)

    References:
        N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, section 1.14.
        P. Blanchard, D. Higham, N. Higham, Accurately Computing the Log-Sum-Exp and Softmax
        Functions, IMA Journal of Numerical Analysis, 2021.
    """

    code: ClassVar[str] = "RN114"
    ops: ClassVar[frozenset[str]] = frozenset({"log", "binary_cross_entropy"})

    def look(self, around: Surroundings, node: Node) -> Suggestion | None:
        """The operand is made in a way that a library function does better."""
        x = around.operand(node, "x")
        inner = around.made_by(x, "sigmoid", "_softmax")
        if node.op == "binary_cross_entropy":
            if inner is None or inner.op != "sigmoid":
                return None
            logits, target = operand_text(inner), target_text(node)
            return _suggest(
                node,
                "digits and gradients of confident predictions: the sigmoid rounds to 1",
                spelled(node, "bce", logits, target=target),
                "F.binary_cross_entropy(torch.sigmoid(x), target)",
            )
        if inner is not None and inner.op == "sigmoid":
            return _suggest(
                node,
                "the sigmoid rounds to 1 and underflows to 0",
                spelled(node, "logsigmoid", operand_text(inner)),
                "torch.log(torch.sigmoid(x))",
            )
        if inner is not None:
            return _suggest(
                node,
                "the softmax rounds to 1 and underflows to 0",
                spelled(node, "log_softmax", operand_text(inner), dim=inner.arguments["dim"]),
                "torch.log(torch.softmax(x, dim))",
            )
        return _one_plus(around, node) or _one_minus(around, node) or _sum_of_exp(around, node)


def _suggest(node: Node, loss: str, better: str, usual: str) -> Suggestion:
    """What to write instead of the user's expression, or of the usual one where it is long."""
    return Suggestion(loss, f"{better} instead of {written(node) or usual}")


def _one_plus(around: Surroundings, node: Node) -> Suggestion | None:
    x = around.operand(node, "x")
    inner = around.one_plus(x)
    if inner is None:
        return None
    exponential = around.made_by(inner, "exp")
    if exponential is not None:
        return _suggest(
            node,
            "1 + exp(x) forgets exp(x) for small x and overflows for large",
            spelled(node, "softplus", operand_text(exponential)),
            "torch.log(1 + torch.exp(x))",
        )
    if not around.may_be_small(inner):
        return None
    return _suggest(
        node,
        "1 + x forgets the last digits of a small x",
        spelled(node, "log1p", operand_text(around.made_by(x, "add"))),
        "torch.log(1 + x)",
    )


def _one_minus(around: Surroundings, node: Node) -> Suggestion | None:
    x = around.operand(node, "x")
    inner = around.one_minus(x)
    if inner is None:
        return None
    sigmoid = around.made_by(inner, "sigmoid")
    if sigmoid is not None:
        return _suggest(
            node,
            "1 - sigmoid(x) is 0 from x = 16.6 on in float32",
            spelled(node, "logsigmoid", negated(operand_text(sigmoid))),
            "torch.log(1 - torch.sigmoid(x))",
        )
    if not around.may_be_small(inner):
        return None
    return _suggest(
        node,
        "1 - x forgets the last digits of a small x",
        spelled(node, "log1p", negated(operand_text(around.made_by(x, "rsub", "sub")))),
        "torch.log(1 - x)",
    )


def _sum_of_exp(around: Surroundings, node: Node) -> Suggestion | None:
    total = around.made_by(around.operand(node, "x"), "sum")
    exponential = None if total is None else around.made_by(around.operand(total, "x"), "exp")
    if total is None or exponential is None:
        return None
    inner = around.operand(exponential, "x")
    shift = around.made_by(inner, "sub")
    if shift is not None and _is_shift(around, around.operand(shift, "other")):
        return None
    interval = None if inner is None else around.intervals.get(inner)
    if interval is not None and interval.low >= -10 and interval.high <= 10:
        return None
    return _suggest(
        node,
        "exp overflows for large x, and all terms vanish for small",
        spelled(node, "logsumexp", operand_text(exponential), dim=total.arguments.get("dim")),
        "torch.log(torch.exp(x).sum(dim))",
    )


def _is_shift(around: Surroundings, value: int | None) -> bool:
    """True for a maximum, reshaped or not."""
    for _ in range(4):
        if around.made_by(value, *_SHIFTS) is not None:
            return True
        moved = around.made_by(value, "reshape", "expand", "identity")
        if moved is None:
            return False
        value = around.operand(moved, "x")
    return False
