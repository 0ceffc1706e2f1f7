"""Operators whose value is finite and whose gradient is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ranum.analysis.defects.base import DefectRule, Problem, Scene, defect_rule, is_finite
from ranum.analysis.graph import Node
from ranum.analysis.interval import Interval

_POINTS = {
    "sqrt": "x = 0",
    "pow": "x = 0",
    "log": "x = 0",
    "acos": "|x| = 1",
    "asin": "|x| = 1",
    "acosh": "x = 1",
    "atanh": "|x| = 1",
    "div": "a denominator of 0",
    "reciprocal": "x = 0",
}
"""Where the gradient of an operator is lost, if there is one answer."""


@defect_rule
@dataclass(frozen=True)
class InfiniteGradient(DefectRule):
    """An operator with a finite value whose gradient can be infinite or NaN.

    What it finds: any operator of the backward pass that can give NaN or Inf for finite
    operands and upstream gradients within [-1, 1]: sqrt and x^p (p < 1) at 0, acos and asin at
    the ends of their domain, the branch of `where` that was not taken, the root of a variance
    of a constant. Backward operators of an operator that is already reported are not reported
    again. Where torch itself guards the gradient, nothing is reported: `norm`, `std`, `atan2`,
    `cdist`, `pdist`, `sinc`, `prod` and `cumprod` have finite gradients at 0; `hypot` at (0, 0)
    and the eigenvectors of equal eigenvalues do not.

    Why it matters: the loss looks healthy; the weights are NaN after the step.

    Known misses: gradients that overflow only because many large factors multiply along
    the network are not judged (bounds on those say nothing about real runs).

    Remedies: sqrt(x + eps); move the guard inside the operator (`where` before the division
    as well as after it); clamp away from the ends.

    Example:
        distance = torch.sqrt(((a - b) ** 2).sum(-1))   # a == b at a positive pair

    References:
        PyTorch documentation, Autograd mechanics: Gradients for non-differentiable functions.
    """

    code: ClassVar[str] = "RN106"
    ops: ClassVar[frozenset[str]] = frozenset()  # every backward operator
    is_about_size: ClassVar[bool] = True
    is_about_result: ClassVar[bool] = True

    def check_in(
        self, scene: Scene, node: Node, arguments: Mapping[str, Any], result: Interval
    ) -> Problem | None:
        """As `check`; the operator of the forward pass says where."""
        problem = self.check(node, arguments, result)
        if problem is None or node.forward is None:
            return problem
        point = _POINTS.get(scene.graph.nodes[node.forward].op)
        return problem if point is None else replace(problem, bad=point)

    def check(self, node: Node, arguments: Mapping[str, Any], result: Interval) -> Problem | None:
        """Finite operands, a result that is not."""
        if not result.dtype.is_floating_point or result.is_finite:
            return None
        if not all(is_finite(argument) for argument in arguments.values()):
            return None
        tensors = [name for name, value in arguments.items() if isinstance(value, Interval)]
        if not tensors:
            return None
        at_zero = [
            name
            for name in tensors
            if arguments[name].dtype.is_floating_point and arguments[name].contains_zero()
        ]
        argument = at_zero[-1] if at_zero else tensors[0]
        return Problem(
            argument=argument,
            bad="x where the derivative is infinite",
            outcome="gradient Inf" + (" or NaN" if result.may_nan else ""),
            remedy="add eps inside the operator, or keep its operand away from that point",
            gradient_only=True,
        )
