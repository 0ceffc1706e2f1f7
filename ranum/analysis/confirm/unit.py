"""A failing input, and weights, for one defect.

Search by gradients through the recorded graph towards the bad set of the operator, inside
the analysed ranges: first over inputs alone, then over inputs and weights, with restarts.
What is found is re-run in the user's own code; only what fails there is a witness.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ranum._dispatch import DispatchMode
from ranum.analysis.capture.overload import overload
from ranum.analysis.evaluate import NotExecutableError, double, evaluate, needed_nodes
from ranum.analysis.graph import Node, Value
from ranum.analysis.result import Analysis, Context, Defect, Witness
from ranum.errors import ArgumentError
from ranum.source import user_source

STEPS = 80
"""Gradient steps per start: with steps of a twentieth of the range, four times across it."""
STRIDE = 0.05
"""Length of a step as a share of each variable's range."""


def confirm(
    defect: Defect, *, seconds: float = 10.0, restarts: int = 3, seed: int = 0
) -> Witness | None:
    """Searches inputs and weights, inside the analysed ranges, that make a defect happen.

    Args:
        defect: From `Analysis.defects`.
        seconds: Time budget, wall clock.
        restarts: Random starts after the recorded one, for inputs alone and for both.
        seed: Of the random starts; the same seed finds the same witness.

    Returns:
        The witness, re-run in the user's own code; None if none was found in the budget: the
        defect stays possible.

    Raises:
        ArgumentError: If an argument breaks its rule, or the defect is detached from the
            analysis it came from.
    """
    if defect.context is None:
        raise ArgumentError("defect must come from an Analysis; this one has lost its context.")
    if not seconds > 0:
        raise ArgumentError(f"seconds must be positive; got {seconds!r}.")
    if restarts < 0:
        raise ArgumentError(f"restarts must be 0 or more; got {restarts!r}.")
    return _Hunt(defect, defect.context, seconds, restarts, seed).run()


def confirm_all(analysis: Analysis, *, seconds: float = 10.0, seed: int = 0) -> Analysis:
    """The analysis with a witness for every defect that has one, certain defects first.

    Args:
        analysis: A result of `analyze`.
        seconds: Time budget for all defects together, wall clock.
        seed: Of the searches.
    """
    deadline = time.monotonic() + seconds
    defects = []
    for position, defect in enumerate(analysis.defects):
        left = deadline - time.monotonic()
        witness = None
        if left > 0:
            share = left / (len(analysis.defects) - position)
            witness = confirm(defect, seconds=max(share, 0.05), seed=seed)
        defects.append(defect if witness is None else defect.certain(witness))
    defects.sort(key=lambda defect: defect.severity != "certain")
    return replace(analysis, defects=tuple(defects))


@dataclass(slots=True)
class _Point:
    """Concrete tensors for the graph's variable leaves, by value number."""

    tensors: dict[int, Tensor]


class _Hunt:
    def __init__(
        self, defect: Defect, context: Context, seconds: float, restarts: int, seed: int
    ) -> None:
        self._defect = defect
        self._context = context
        self._restarts = restarts
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._deadline = time.monotonic() + seconds
        self._evaluations = 0
        graph = context.graph
        self._inputs = [value for value in graph.leaves("input") if value.data is not None]
        self._weights = [
            value
            for value in graph.leaves("parameter")
            if value.data is not None and value.name in context.program.parameters
        ]

    def run(self) -> Witness | None:
        for movable, start in self._special():  # each costs one run; a descent costs eighty
            if time.monotonic() > self._deadline:
                return None
            found = self._verify(start, movable)
            if found is not None:
                return self._reduced(start, movable, found)
        for movable, start in self._starts():
            if time.monotonic() > self._deadline:
                return None
            for point in self._descend(movable, start):
                found = self._verify(point, movable)
                if found is not None:
                    return self._reduced(point, movable, found)
                if time.monotonic() > self._deadline:
                    return None
        return None

    # --- where to start ---------------------------------------------------------------------

    def _sets(self) -> list[list[Value]]:
        """What may move: the inputs alone, before the weights as well."""
        sets = [self._inputs] if self._inputs else []
        return [*sets, self._inputs + self._weights] if self._weights else sets

    def _special(self) -> Iterator[tuple[list[Value], _Point]]:
        """The recorded point, and zeros."""
        for movable in self._sets():
            yield movable, self._recorded()
            yield movable, self._filled(movable, lambda low, high: torch.zeros_like(low))

    def _starts(self) -> Iterator[tuple[list[Value], _Point]]:
        """Special points, then random ones."""
        yield from self._special()
        for movable in reversed(self._sets()):
            for _ in range(self._restarts):
                yield movable, self._filled(movable, self._random)

    def _recorded(self) -> _Point:
        return _Point({value.index: double(value.data) for value in self._inputs + self._weights})

    def _filled(self, movable: list[Value], fill: Callable[[Tensor, Tensor], Tensor]) -> _Point:
        point = self._recorded()
        for value in movable:
            low, high = self._box(value)
            point.tensors[value.index] = torch.minimum(torch.maximum(fill(low, high), low), high)
        return point

    def _random(self, low: Tensor, high: Tensor) -> Tensor:
        share = torch.rand(low.shape, generator=self._generator, dtype=torch.float64)
        return low + share.to(low.device) * (high - low)

    def _box(self, value: Value) -> tuple[Tensor, Tensor]:
        interval = self._context.start[value.index]
        limit = torch.finfo(value.dtype).max
        low = interval.lower.to(torch.float64).clamp(-limit, limit).expand(value.shape)
        high = interval.upper.to(torch.float64).clamp(-limit, limit).expand(value.shape)
        return low, high

    # --- descent ----------------------------------------------------------------------------

    def _descend(self, movable: list[Value], start: _Point) -> Iterator[_Point]:
        """Points on the way to the bad set, at growing intervals, for verification."""
        yield start
        graph = self._context.graph
        target = self._target()
        nodes = needed_nodes(graph, [target])
        boxes = {value.index: self._box(value) for value in movable}
        point = dict(start.tensors)
        next_check = 4
        for step in range(1, STEPS + 1):
            if time.monotonic() > self._deadline:
                return
            variables = {
                number: point[number].detach().clone().requires_grad_() for number in boxes
            }
            try:
                with torch.enable_grad():
                    known = evaluate(graph, nodes, point | variables)
                    distance = self._distance(known.get(target))
                    self._evaluations += 1
                    if distance is None or not distance.requires_grad:
                        return
                    gradients = torch.autograd.grad(
                        distance, list(variables.values()), allow_unused=True
                    )
            except (NotExecutableError, RuntimeError):
                return
            moved = False
            for (number, (low, high)), gradient in zip(boxes.items(), gradients, strict=True):
                if gradient is None or not bool(gradient.isfinite().all()):
                    continue
                moved = moved or bool(gradient.any())
                stride = STRIDE * (high - low)
                stepped = point[number] - stride * gradient.sign()
                point[number] = torch.minimum(torch.maximum(stepped, low), high).detach()
            if not moved:
                break
            if step == next_check:
                next_check = math.ceil(next_check * 1.5)
                yield _Point(dict(point))
        yield _Point(dict(point))

    def _target(self) -> int:
        """The value to drive: the operand, or the result where the result itself overflows."""
        node = self._context.graph.nodes[self._defect.node]
        overflows = self._defect.code == "RN107" and node.outputs[0] is not None
        return node.outputs[0] if overflows else self._defect.operand  # type: ignore[return-value]

    def _distance(self, operand: Tensor | None) -> Tensor | None:
        """How far the operand is from the bad set; smaller is nearer."""
        if operand is None or operand.numel() == 0 or not operand.is_floating_point():
            return None
        defect = self._defect
        if defect.code == "RN107":
            return -operand.abs().max()
        if defect.code == "RN104":
            return -(operand.abs() if defect.op in ("sinh", "cosh") else operand).max()
        if defect.safe is not None and defect.safe[1] < torch.finfo(defect.bounds.dtype).max:
            reach = defect.safe[1]
            return -(operand.abs() if defect.safe[0] < 0 else operand).max() / max(reach, 1.0)
        edge = -1.0 if defect.op == "log1p" else 0.0
        height = operand - edge
        if defect.code in ("RN103", "RN106"):
            height = height.abs()
        least = height.min()
        if bool(least > 0):
            # The logarithm keeps the gradient of a vanishing probability at order one.
            return least.log()
        return least

    # --- proof ------------------------------------------------------------------------------

    def _tensors(
        self, point: _Point, movable: list[Value]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        moved = {value.index for value in movable}
        inputs = {
            value.name: point.tensors[value.index].to(value.dtype)
            for value in self._inputs
            if value.index in moved
        }
        weights = {
            value.name: point.tensors[value.index].to(value.dtype)
            for value in self._weights
            if value.index in moved
        }
        return inputs, weights

    def _verify(self, point: _Point, movable: list[Value]) -> _Failure | None:
        self._evaluations += 1
        return run_user_code(self._context, self._defect, *self._tensors(point, movable))

    def _reduced(self, point: _Point, movable: list[Value], found: _Failure) -> Witness:
        """The witness nearest to the recorded inputs and weights on the line between them."""
        start = self._recorded()
        weights_only = [value for value in movable if value in self._weights]
        if weights_only and len(weights_only) < len(movable):
            failure = self._verify(point, weights_only)
            if failure is not None:
                movable, found = weights_only, failure
        low, high = 0.0, 1.0
        best = point
        for _ in range(10):
            if time.monotonic() > self._deadline:
                break
            middle = (low + high) / 2
            between = _Point(
                {
                    number: start.tensors[number].lerp(point.tensors[number], middle)
                    for number in point.tensors
                }
            )
            failure = self._verify(between, movable)
            if failure is None:
                low = middle
            else:
                high, best, found = middle, between, failure
        inputs, weights = self._tensors(best, movable)
        return Witness(
            inputs=inputs,
            weights=weights,
            operand=found.operand,
            outcome=found.outcome,
            loss=found.loss,
            evaluations=self._evaluations,
            seed=self._seed,
        )


@dataclass(frozen=True, slots=True)
class _Failure:
    operand: tuple[float, float]
    outcome: str
    loss: float | None


def run_user_code(
    context: Context,
    defect: Defect,
    inputs: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
) -> _Failure | None:
    """Runs the user's step; the failure of the defect's operator, or None if it does not fail."""
    program = context.program
    batch_inputs: dict[str, Tensor] = dict(inputs)
    if defect.gradient_only and not program.parameters:
        originals = {name: t for name, t in program.inputs.items() if t.is_floating_point()}
        batch_inputs = {
            name: tensor.detach().clone().requires_grad_()
            for name, tensor in (originals | batch_inputs).items()
        }
    probe = _Probe(context.graph.nodes[defect.node], defect)
    try:
        with program.substituted(weights):
            with probe:
                loss = program.step(*program.batch(batch_inputs))
            gradient_bad = False
            if defect.gradient_only and isinstance(loss, Tensor) and loss.requires_grad:
                loss.sum().backward()
                leaves = [*program.parameters.values(), *batch_inputs.values()]
                gradient_bad = any(
                    leaf.grad is not None and not bool(leaf.grad.isfinite().all())
                    for leaf in leaves
                )
    except Exception:  # the user's step refuses such inputs: not a witness
        return None
    value = float(loss.detach().sum()) if isinstance(loss, Tensor) else None
    if defect.gradient_only:
        if not gradient_bad or probe.operand is None:
            return None
        return _Failure(probe.operand, "gradient not finite", value)
    if probe.outcome is None or probe.operand is None:
        return None
    return _Failure(probe.operand, probe.outcome, value)


class _Probe(DispatchMode):
    """Watches one operator of the user's step: finite operands in, what comes out."""

    def __init__(self, node: Node, defect: Defect) -> None:
        super().__init__()
        self._node = node
        self._defect = defect
        self.operand: tuple[float, float] | None = None
        self.outcome: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator and looks at the one that matters."""
        result = func(*args, **(kwargs or {}))
        known = overload(func)
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
        if not all(bool(tensor.isfinite().all()) for tensor in floats):
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
        if blamed is None or blamed.numel() == 0:
            return
        self.operand = (float(blamed.min()), float(blamed.max()))
        outputs = [
            leaf
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
        ]
        for output in outputs:
            if bool(output.isnan().any()):
                self.outcome = "NaN"
            elif bool((output == -math.inf).any()):
                self.outcome = "-Inf"
            elif bool((output == math.inf).any()):
                self.outcome = "Inf"
