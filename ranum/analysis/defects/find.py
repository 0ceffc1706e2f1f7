"""Walks a graph once and applies the defect rules.

Two sets of intervals are carried along. The *true* ones follow every operator, so they show
what a defect does to the loss. The *judged* ones continue behind a defect as if it had been
repaired (its operand clipped to the safe range), so that one defect is reported once, where
it starts, and a second one behind it is still seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from ranum.analysis import facts
from ranum.analysis.defects.base import CODES, DefectRule, Problem, moderate
from ranum.analysis.graph import Graph, Node, Ref
from ranum.analysis.interval import Interval
from ranum.analysis.propagate import (
    GRADIENT_BOUND,
    Clips,
    Propagation,
    operand_intervals,
    transfer_node,
)
from ranum.analysis.result import Defect

_GRADIENT_CODE = "RN106"
_OVERFLOW_CODE = "RN107"


def find_defects(
    graph: Graph,
    start: Mapping[int, Interval],
    *,
    clips: Clips | None = None,
    gradient: float = GRADIENT_BOUND,
    nodes: Sequence[Node] | None = None,
) -> tuple[tuple[Defect, ...], Propagation]:
    """All defects of a graph in execution order, and the true intervals.

    Args:
        graph: A recorded step.
        start: Interval of every leaf.
        clips: Clamps to put in front of operands; how a repair is tried out.
        gradient: Bound on upstream gradients for judging backward operators.
        nodes: The nodes to walk; all by default. `start` must hold what they read.
    """
    return _Search(graph, start, clips, gradient).run(graph.nodes if nodes is None else nodes)


class _Search:
    def __init__(
        self,
        graph: Graph,
        start: Mapping[int, Interval],
        clips: Clips | None,
        gradient: float,
    ) -> None:
        self._graph = graph
        self._options: dict[str, Any] = {"clips": clips, "gradient": gradient}
        self._true = Propagation(dict(start))
        self._judged = Propagation(dict(start))
        self._diverged: set[int] = set()
        self._rules = {code: cls() for code, cls in CODES.items()}
        self._by_op: dict[str, DefectRule] = {
            op: rule for rule in self._rules.values() for op in rule.ops
        }
        self._defects: dict[tuple[Any, ...], Defect] = {}
        self._flagged: set[int] = set()

    @cached_property
    def _readers(self) -> Mapping[int, tuple[int, ...]]:
        return self._graph.consumers()

    def run(self, nodes: Sequence[Node]) -> tuple[tuple[Defect, ...], Propagation]:
        for node in nodes:
            arguments = self._arguments(node, self._true)
            true = transfer_node(self._graph, node, self._true, arguments=arguments)
            self._store(self._true, node, true)
            judged = true
            if not self._diverged.isdisjoint(node.operands):
                arguments = self._arguments(node, self._judged)
                judged = transfer_node(self._graph, node, self._judged, arguments=arguments)
            self._store(self._judged, node, self._judge(node, arguments, judged))
            if judged is not true or self._judged_differs(node, true):
                self._diverged.update(number for number in node.outputs if number is not None)
        ordered = sorted(self._defects.values(), key=lambda defect: defect.node)
        return tuple(self._with_consequence(defect) for defect in ordered), self._true

    def _arguments(self, node: Node, known: Propagation) -> dict[str, Any]:
        return operand_intervals(self._graph, node, known.intervals, **self._options)

    @staticmethod
    def _store(propagation: Propagation, node: Node, outputs: list[Interval]) -> None:
        for number, interval in zip(node.outputs, outputs, strict=True):
            if number is not None:
                propagation.intervals[number] = interval

    def _judged_differs(self, node: Node, true: list[Interval]) -> bool:
        return any(
            number is not None and self._judged.intervals[number] is not interval
            for number, interval in zip(node.outputs, true, strict=True)
        )

    # --- judging ----------------------------------------------------------------------------

    def _judge(
        self, node: Node, arguments: Mapping[str, Any], outputs: list[Interval]
    ) -> list[Interval]:
        """Reports the node if a rule objects; the outputs to go on with."""
        if node.forward in self._flagged or not outputs or self._is_complex(node):
            return outputs
        rule = self._rule(node)
        problem = _first_problem(rule, node, arguments, outputs)
        if problem is None or node in self._true.unknown:
            return outputs
        if facts.is_guarded(self._graph, node, self._readers):
            return outputs
        if rule.is_about_size:
            ordinary = {
                name: value if self._is_gradient(node.arguments[name]) else _ordinary(value)
                for name, value in arguments.items()
            }
            tamed = transfer_node(self._graph, node, self._judged, arguments=ordinary)
            problem = _first_problem(rule, node, ordinary, tamed)
            if problem is None:
                # Sizes do not add up behind this operator: as if its operands were ordinary.
                return [_moderate_part(output) for output in tamed]
        self._report(rule, node, problem)
        return self._continued(node, problem, outputs)

    def _is_complex(self, node: Node) -> bool:
        """True if the result is complex: intervals do not bound those."""
        return any(
            number is not None and self._graph.values[number].dtype.is_complex
            for number in node.outputs
        )

    def _is_gradient(self, argument: Any) -> bool:
        """True for an upstream gradient, whose size is an option of the search."""
        return isinstance(argument, Ref) and self._graph.values[argument.value].is_gradient

    def _rule(self, node: Node) -> DefectRule:
        if node.phase == "backward":
            return self._rules[_GRADIENT_CODE]
        return self._by_op.get(node.op, self._rules[_OVERFLOW_CODE])

    def _report(self, rule: DefectRule, node: Node, problem: Problem) -> None:
        blamed, argument = node, problem.argument
        if node.phase == "backward" and node.forward is not None:
            blamed = self._graph.nodes[node.forward]
            argument = _first_tensor(blamed) or argument
        ref = blamed.arguments.get(argument)
        operand = ref.value if isinstance(ref, Ref) else blamed.outputs[0] or 0
        bounds = self._arguments(blamed, self._judged).get(argument)
        if not isinstance(bounds, Interval):
            bounds = self._judged.intervals[operand]
        defect = Defect(
            code=rule.code,
            rule=type(rule).__name__,
            op=blamed.op,
            node=blamed.index,
            operand=operand,
            source=blamed.source,
            bounds=bounds,
            bad=problem.bad,
            outcome=problem.outcome,
            remedy=problem.remedy,
            gradient_only=problem.gradient_only,
            safe=problem.safe,
        )
        self._flagged.add(blamed.index)
        key = (rule.code, blamed.op, blamed.source)
        known = self._defects.get(key)
        if known is None:
            self._defects[key] = defect

    def _continued(self, node: Node, problem: Problem, outputs: list[Interval]) -> list[Interval]:
        """The outputs as they would be with the defect repaired."""
        ref = node.arguments.get(problem.argument)
        if problem.safe is not None and isinstance(ref, Ref) and node.phase == "forward":
            clip = {node.index: {facts.root(self._graph, ref.value): problem.safe}}
            repaired = transfer_node(
                self._graph,
                node,
                self._judged,
                clips=clip,
                gradient=self._options["gradient"],
            )
            if repaired[0].is_finite:
                outputs = repaired
        return [_moderate_part(output) for output in outputs]

    # --- consequences -----------------------------------------------------------------------

    def _with_consequence(self, defect: Defect) -> Defect:
        return replace(defect, consequence=self._consequence(defect))

    def _consequence(self, defect: Defect) -> str:
        if defect.gradient_only:
            return "the loss stays finite; gradients, and weights after the step, become NaN"
        reached = {
            number for number in self._graph.nodes[defect.node].outputs if number is not None
        }
        was_nan = any(self._true.intervals[number].may_nan for number in reached)
        for node in self._graph.nodes[defect.node + 1 :]:
            if node.phase == "backward":
                break
            if reached.isdisjoint(node.operands):
                continue
            outputs = {number for number in node.outputs if number is not None}
            reached |= outputs
            first = min(outputs, default=None)
            if first is not None and not was_nan and self._true.intervals[first].may_nan:
                expression = node.source.expression or node.op
                into = ", and so does the loss" if self._reaches_loss(reached) else ""
                return f"becomes NaN in `{expression}`{into}"
        if self._graph.loss in reached and self._graph.loss is not None:
            loss = self._true.intervals[self._graph.loss]
            if not loss.is_finite:
                return f"the loss becomes {'NaN or Inf' if loss.may_nan else 'Inf'}"
        return ""

    def _reaches_loss(self, reached: set[int]) -> bool:
        reached = set(reached)
        for node in self._graph.nodes:
            if node.phase == "forward" and not reached.isdisjoint(node.operands):
                reached.update(number for number in node.outputs if number is not None)
        return self._graph.loss in reached


def _first_problem(
    rule: DefectRule, node: Node, arguments: Mapping[str, Any], outputs: Sequence[Interval]
) -> Problem | None:
    """The rule's objection to the first output, or in a backward operator to any."""
    judged = outputs if node.phase == "backward" else outputs[:1]
    problems = (rule.check(node, arguments, output) for output in judged)
    return next((problem for problem in problems if problem is not None), None)


def _ordinary(argument: Any) -> Any:
    """The argument with intervals cut to ordinary sizes."""
    if isinstance(argument, (list, tuple)):
        return type(argument)(_ordinary(item) for item in argument)
    if isinstance(argument, Interval) and argument.dtype.is_floating_point:
        reach = moderate(argument.dtype)
        return argument.intersect(-reach, reach) if argument.is_finite else argument
    return argument


def _first_tensor(node: Node) -> str | None:
    return next((name for name, value in node.arguments.items() if isinstance(value, Ref)), None)


def _moderate_part(interval: Interval) -> Interval:
    """Cut to the root of the largest number.

    Sums and products of what a repaired operator gives are not to be reported once more.
    """
    if not interval.dtype.is_floating_point:
        return interval
    reach = torch.finfo(interval.dtype).max ** 0.5
    return interval.with_nan(False).intersect(-reach, reach)
