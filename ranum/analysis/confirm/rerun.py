"""Runs the user's own step with other inputs and weights, and watches one operator.

What a search finds on the recorded graph is a guess until it has failed here: in the user's
code, in its own dtype, with seeded random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ranum._dispatch import DispatchMode
from ranum.analysis.capture.overload import overload
from ranum.analysis.evaluate import flush_
from ranum.analysis.result import Context, Defect
from ranum.source import user_source


@dataclass(frozen=True, slots=True)
class Failure:
    """How the operator failed.

    Attributes:
        operand: Smallest and largest element of the blamed operand.
        outcome: "NaN", "Inf", "-Inf", "gradient not finite".
        loss: What the step returned, summed up; None if it returned nothing.
    """

    operand: tuple[float, float]
    outcome: str
    loss: float | None


def rerun(
    context: Context,
    defect: Defect,
    inputs: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    seed: int = 0,
    draws: list[Tensor] | None = None,
) -> Failure | None:
    """Runs the step; the failure of the defect's operator, or None if it does not fail.

    Args:
        context: Of the analysis.
        defect: Which operator is watched.
        inputs: Tensors to put in place of those of the example batch, by name.
        weights: Values to give to parameters while the step runs, by name.
        seed: Of torch's random numbers; the generators are put back.
        draws: Filled with what random operators gave, in order.
    """
    program = context.program
    batch: dict[str, Tensor] = dict(inputs)
    needs_gradient = defect.gradient_only
    if needs_gradient and not program.parameters:
        originals = {name: t for name, t in program.inputs.items() if t.is_floating_point()}
        batch |= {
            name: tensor.detach().clone().requires_grad_()
            for name, tensor in (originals | batch).items()
            if tensor.is_floating_point()
        }
    probe = Probe(context, defect, draws)
    try:
        with program.substituted(weights):
            torch.manual_seed(seed)
            with probe:
                loss = program.step(*program.batch(batch))
                is_bad = needs_gradient and has_bad_gradient(
                    loss, [*program.parameters.values(), *batch.values()]
                )
    except Exception:  # the user's step refuses such inputs: not a witness
        return None
    value = float(loss.detach().sum()) if isinstance(loss, Tensor) else None
    outcome = probe.outcome
    if needs_gradient:
        outcome = "gradient not finite" if is_bad else None
    if outcome is None or probe.operand is None:
        return None
    if program.origin is not None:
        failed = program.origin.fails(
            {**program.inputs, **batch},
            weights,
            defect.source.node or "",
            gradient_only=needs_gradient,
        )
        if failed is False:
            return None
    return Failure(probe.operand, outcome, value)


def has_bad_gradient(loss: Any, leaves: list[Tensor]) -> bool:
    """Runs the backward pass; True if some leaf's gradient is not finite."""
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return False
    loss.sum().backward()
    return any(leaf.grad is not None and not bool(leaf.grad.isfinite().all()) for leaf in leaves)


class Probe(DispatchMode):
    """Watches one operator of the user's step: finite operands in, what comes out."""

    def __init__(self, context: Context, defect: Defect, draws: list[Tensor] | None) -> None:
        super().__init__()
        self._draws = draws
        self._flushes = context.program.flush_to_zero
        self._node = context.graph.nodes[defect.node]
        self._defect = defect
        self._has_infinite_operand = defect.code in ("RN110", "RN111")
        self.operand: tuple[float, float] | None = None
        self.outcome: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator and looks at the one that matters."""
        result = func(*args, **(kwargs or {}))
        if self._flushes and not func.is_view:
            tree_map_only(Tensor, flush_, result)
        known = overload(func)
        if self._draws is not None and known.is_random:
            self._draws += [one.detach().clone() for one in tree_leaves(result)[:1]]
        if self.outcome is None and known.name == self._node.op and self._is_here():
            self._look(known.bind(args, kwargs or {}), result)
        return result

    def _is_here(self) -> bool:
        here, wanted = user_source(), self._defect.source
        return (here.file, here.line, here.column, here.end_column) == (
            wanted.file,
            wanted.line,
            wanted.column,
            wanted.end_column,
        )

    def _look(self, bound: dict[str, Any], result: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(bound) if isinstance(leaf, Tensor)]
        floats = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
        if not all(self._is_fair(tensor) for tensor in floats):
            return
        blamed = next(
            (
                bound[name]
                for name, argument in self._node.arguments.items()
                if getattr(argument, "value", None) == self._defect.operand
                and isinstance(bound.get(name), Tensor)
            ),
            floats[0] if floats else None,
        )
        if blamed is None:
            return
        self.operand = (0.0, 0.0)
        if blamed.numel():
            self.operand = (float(blamed.min()), float(blamed.max()))
        for output in tree_leaves(result):
            if isinstance(output, Tensor) and output.is_floating_point():
                self.outcome = self.outcome or _not_finite(output)

    def _is_fair(self, operand: Tensor) -> bool:
        """An operator fails by itself only if what it was given was in order."""
        bad = operand.isnan() if self._has_infinite_operand else ~operand.isfinite()
        return not bool(bad.any())


def _not_finite(output: Tensor) -> str | None:
    if bool(output.isnan().any()):
        return "NaN"
    if bool((output == -math.inf).any()):
        return "-Inf"
    return "Inf" if bool((output == math.inf).any()) else None
