"""Logarithms for which there is a better function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ranum.analysis.graph import Node
from ranum.analysis.precision.base import AdviceRule, Suggestion, Surroundings, advice_rule

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
        if node.op == "binary_cross_entropy":
            if around.made_by(x, "sigmoid") is None:
                return None
            return Suggestion(
                "digits and gradients of confident predictions: the sigmoid rounds to 1",
                "F.binary_cross_entropy_with_logits(x, target) instead of "
                "F.binary_cross_entropy(torch.sigmoid(x), target)",
            )
        if around.made_by(x, "sigmoid") is not None:
            return Suggestion(
                "the sigmoid rounds to 1 and underflows to 0",
                "F.logsigmoid(x) instead of torch.log(torch.sigmoid(x))",
            )
        if around.made_by(x, "_softmax") is not None:
            return Suggestion(
                "the softmax rounds to 1 and underflows to 0",
                "torch.log_softmax(x, dim) instead of torch.log(torch.softmax(x, dim))",
            )
        return _one_plus(around, x) or _one_minus(around, x) or _sum_of_exp(around, x)


def _one_plus(around: Surroundings, x: int | None) -> Suggestion | None:
    inner = around.one_plus(x)
    if inner is None:
        return None
    if around.made_by(inner, "exp") is not None:
        return Suggestion(
            "1 + exp(x) forgets exp(x) for small x and overflows for large",
            "F.softplus(x) instead of torch.log(1 + torch.exp(x))",
        )
    if not around.may_be_small(inner):
        return None
    return Suggestion(
        "1 + x forgets the last digits of a small x",
        "torch.log1p(x) instead of torch.log(1 + x)",
    )


def _one_minus(around: Surroundings, x: int | None) -> Suggestion | None:
    inner = around.one_minus(x)
    if inner is None:
        return None
    if around.made_by(inner, "sigmoid") is not None:
        return Suggestion(
            "1 - sigmoid(x) is 0 from x = 16.6 on in float32",
            "F.logsigmoid(-x) instead of torch.log(1 - torch.sigmoid(x))",
        )
    if not around.may_be_small(inner):
        return None
    return Suggestion(
        "1 - x forgets the last digits of a small x",
        "torch.log1p(-x) instead of torch.log(1 - x)",
    )


def _sum_of_exp(around: Surroundings, x: int | None) -> Suggestion | None:
    total = around.made_by(x, "sum")
    exponential = None if total is None else around.made_by(around.operand(total, "x"), "exp")
    if exponential is None:
        return None
    inner = around.operand(exponential, "x")
    shift = around.made_by(inner, "sub")
    if shift is not None and _is_shift(around, around.operand(shift, "other")):
        return None
    interval = None if inner is None else around.intervals.get(inner)
    if interval is not None and interval.low >= -10 and interval.high <= 10:
        return None
    return Suggestion(
        "exp overflows for large x, and all terms vanish for small",
        "torch.logsumexp(x, dim) instead of torch.log(torch.exp(x).sum(dim))",
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
