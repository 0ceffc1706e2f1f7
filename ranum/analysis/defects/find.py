"""Walks a graph once and applies the defect rules.

Two sets of intervals are carried along. The *true* ones follow every operator, so they show
what a defect does to the loss. The *judged* ones continue behind a defect as if it had been
repaired (its operand clipped to the safe range), so that one defect is reported once, where
it starts, and a second one behind it is still seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch

from ranum.analysis import facts
from ranum.analysis.defects.base import CODES, DefectRule, Problem, Scene, is_finite, is_float
from ranum.analysis.defects.ordinary import ordinary
from ranum.analysis.execution import unflushed
from ranum.analysis.graph import Graph, Node, Ref
from ranum.analysis.interval import Interval
from ranum.analysis.propagate import (
    GRADIENT_BOUND,
    Clips,
    Propagation,
    Step,
    Walk,
    merged_if_finite,
    step_of,
)
from ranum.analysis.result import Defect

_GRADIENT_CODE = "RN106"
_GENERAL_CODES = ("RN107", "RN111")
"""Rules about any operator of the forward pass."""

_ATTEMPTS = 4
"""Walks until all blocks are kept."""


def find_defects(
    graph: Graph,
    start: Mapping[int, Interval],
    *,
    clips: Clips | None = None,
    gradient: float = GRADIENT_BOUND,
    nodes: Sequence[Node] | None = None,
    whole: frozenset[int] = frozenset(),
) -> tuple[tuple[Defect, ...], Propagation]:
    """All defects of a graph in execution order, and the true intervals.

    The graph is walked with one pair of bounds per tensor first. Where a rule objects to
    bounds that were merged on the way, what they depend on is walked again with blocks kept.
    If an objection falls, so is all the rest, until every objection stands.

    Args:
        graph: A recorded step.
        start: Interval of every leaf.
        clips: Clamps to put in front of operands; how a repair is tried out.
        gradient: Bound on upstream gradients for judging backward operators.
        nodes: The nodes to walk; all by default. `start` must hold what they read.
        whole: Nodes whose blocks are kept from the first walk on.
    """
    with unflushed():
        chosen = graph.nodes if nodes is None else nodes
        return _found(graph, start, chosen, whole, clips=clips, gradient=gradient)


def _found(
    graph: Graph,
    start: Mapping[int, Interval],
    chosen: Sequence[Node],
    whole: frozenset[int],
    **options: Any,
) -> tuple[tuple[Defect, ...], Propagation]:
    steps = [step_of(graph, node) for node in chosen]
    for attempt in range(_ATTEMPTS):
        search = _Search(Walk(graph, start, whole=whole, **options))
        found = search.run(steps)
        if search.doubtful <= whole:
            break
        cone = _cone(graph, search.doubtful)
        whole |= cone
        if attempt == 0:
            known = search.true.known.intervals
            again = _Search(Walk(graph, known, whole=whole, **options))
            tight = again.run([step for step in steps if step.node.index in cone])
            if again.confirms(search):
                return _tightened(found, tight), again.true.known
        if attempt == _ATTEMPTS - 2:
            whole = frozenset(node.index for node in chosen)
    return found, search.true.known


def _tightened(found: Sequence[Defect], tight: Sequence[Defect]) -> tuple[Defect, ...]:
    """The defects, those that were found again with the bounds they had then."""
    better = {(defect.code, defect.node): defect for defect in tight}
    return tuple(better.get((defect.code, defect.node), defect) for defect in found)


def _cone(graph: Graph, nodes: Iterable[int]) -> frozenset[int]:
    """The nodes and all they are computed from; nothing is followed through gradients."""
    wanted = set(nodes)
    stack = list(wanted)
    while stack:
        for operand in graph.nodes[stack.pop()].operands:
            value = graph.values[operand]
            if value.is_gradient or value.producer is None or value.producer in wanted:
                continue
            wanted.add(value.producer)
            stack.append(value.producer)
    return frozenset(wanted)


class _Rules:
    """The rules for one operator: all of them, and those that object to finite results too."""

    __slots__ = ("about_operands", "every")

    def __init__(self, rules: tuple[DefectRule, ...]) -> None:
        self.every = rules
        self.about_operands = tuple(rule for rule in rules if not rule.is_about_result)


@dataclass(frozen=True, slots=True)
class _Table:
    """All rules: by operator, about any operator, about backward operators."""

    by_op: Mapping[str, _Rules]
    general: _Rules
    backward: _Rules


@lru_cache(maxsize=4)
def _table(codes: tuple[tuple[str, type[DefectRule]], ...]) -> _Table:
    rules = {code: cls() for code, cls in codes}
    by_op: dict[str, tuple[DefectRule, ...]] = {}
    for rule in rules.values():
        for op in rule.ops:
            by_op[op] = (*by_op.get(op, ()), rule)
    general = tuple(rules[code] for code in _GENERAL_CODES)
    return _Table(
        by_op={
            op: _Rules(own if any(rule.is_exhaustive for rule in own) else own + general)
            for op, own in by_op.items()
        },
        general=_Rules(general),
        backward=_Rules((rules[_GRADIENT_CODE],)),
    )


class _Search:
    """One walk with the true bounds, and behind a defect a second one as if it were repaired."""

    def __init__(self, walk: Walk) -> None:
        self.true = self.judged = walk
        self.doubtful: set[int] = set()
        self._graph = walk.graph
        self._diverged: set[int] = set()
        self._table = _table(tuple(CODES.items()))
        self._scene = Scene(self._graph, self._interval_now)
        self._defects: dict[tuple[Any, ...], Defect] = {}
        self._flagged: set[int] = set()
        self._reported: dict[int, str] = {}

    def confirms(self, other: _Search) -> bool:
        """True if all that `other` doubted was reported here too, and nothing is doubted."""
        return self.doubtful <= self.true.whole and all(
            self._reported.get(index) == other._reported[index] for index in other.doubtful
        )

    @cached_property
    def _readers(self) -> Mapping[int, tuple[int, ...]]:
        return self._graph.consumers()

    def run(self, steps: Sequence[Step]) -> tuple[Defect, ...]:
        for step in steps:
            node, diverged = step.node, self._diverged
            apart = bool(diverged) and not diverged.isdisjoint(node.operands)
            # What a defect does to gradients is not followed: backward bounds are judged only.
            only_judged = apart and node.phase == "backward"
            walk = self.judged if only_judged else self.true
            arguments = walk.operands(step)
            judged = true = walk.outputs(step, arguments)
            self.true.store(node, true)
            if apart and not only_judged:
                arguments = self.judged.operands(step)
                judged = self.judged.outputs(step, arguments)
            after = self._judge(step, arguments, judged)
            if self.judged is not self.true:
                self.judged.store(node, after)
                if after is not true or only_judged:
                    diverged.update(number for number in node.outputs if number is not None)
        ordered = sorted(self._defects.values(), key=lambda defect: defect.node)
        return tuple(self._with_consequence(defect) for defect in ordered)

    def _part(self) -> None:
        """From here on the judged bounds are others than the true ones."""
        if self.judged is self.true:
            self.judged = self.true.branch()

    # --- judging ----------------------------------------------------------------------------

    def _judge(
        self, step: Step, arguments: Mapping[str, Any], outputs: list[Interval]
    ) -> list[Interval]:
        """Reports the node if a rule objects; the outputs to go on with."""
        node = step.node
        rules = self._rules_for(node).every
        for item in _looked_at(node, outputs):
            if not item.is_finite:
                break
        else:
            rules = self._rules_for(node).about_operands
        if not rules or node.forward in self._flagged or not outputs or _is_complex(step):
            return outputs
        found = self._first_problem(rules, node, arguments, outputs)
        if node in self.true.known.unknown:
            return outputs
        if found is None:
            return self._grown(node, arguments, outputs)
        rule, problem = found
        self._part()
        if self._is_harmless(node, outputs):
            return [moderate_part(output) for output in outputs]
        if rule.is_about_size:
            usual = ordinary(self.judged, step, arguments, self._flagged)
            tamed = self.judged.outputs(step, usual)
            found = self._first_problem((rule,), node, usual, tamed)
            if found is None:
                # Sizes do not add up behind this operator: as if its operands were ordinary.
                parts = [one if one.is_finite else moderate_part(one) for one in tamed]
                return self._merged(node, parts)
            problem = found[1]
        if not self.true.known.loose.isdisjoint(node.operands):
            self.doubtful.add(node.index)
        self._report(rule, node, problem)
        return self._continued(step, problem, outputs)

    def _grown(
        self, node: Node, arguments: Mapping[str, Any], outputs: list[Interval]
    ) -> list[Interval]:
        """What goes on where nobody objects: an infinity made of finite operands is size alone."""
        looked_at = _looked_at(node, outputs)
        if node.phase == "backward" or all(item.is_finite for item in looked_at):
            return outputs
        if not any(map(is_float, arguments.values())):
            return outputs
        if not all(is_finite(argument) for argument in arguments.values()):
            return outputs
        self._part()
        return [moderate_part(output) for output in outputs]

    def _rules_for(self, node: Node) -> _Rules:
        if node.phase == "backward":
            return self._table.backward
        return self._table.by_op.get(node.op, self._table.general)

    def _first_problem(
        self,
        rules: Sequence[DefectRule],
        node: Node,
        arguments: Mapping[str, Any],
        outputs: Sequence[Interval],
    ) -> tuple[DefectRule, Problem] | None:
        """The first objection to the first output, or in a backward operator to any."""
        for rule in rules:
            for output in _looked_at(node, outputs):
                problem = rule.check_in(self._scene, node, arguments, output)
                if problem is not None:
                    return rule, problem
        return None

    def _is_harmless(self, node: Node, outputs: Sequence[Interval]) -> bool:
        """True if other operators keep the problem from happening, or from being seen."""
        known = self.judged.known.intervals
        return (
            facts.is_guarded(self._graph, node, self._readers)
            or facts.is_discarded(self._graph, node, self._readers)
            or facts.divides_by_nonzero(self._graph, node, known)
            or facts.is_absorbed(self._graph, node, outputs, known, self._readers)
        )

    def _interval_now(self, number: int) -> Interval | None:
        return self.judged.known.intervals.get(number)

    def _report(self, rule: DefectRule, node: Node, problem: Problem) -> None:
        blamed, argument = node, problem.argument
        if node.phase == "backward" and node.forward is not None:
            blamed = self._graph.nodes[node.forward]
            argument = _first_tensor(blamed) or argument
        ref = blamed.arguments.get(argument)
        operand = ref.value if isinstance(ref, Ref) else blamed.outputs[0] or 0
        bounds = self.judged.operands(step_of(self._graph, blamed)).get(argument)
        if not isinstance(bounds, Interval):
            bounds = self.judged.interval(operand)
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
        self._reported[node.index] = rule.code
        key = (rule.code, blamed.op, blamed.source)
        known = self._defects.get(key)
        if known is None:
            self._defects[key] = defect

    def _continued(self, step: Step, problem: Problem, outputs: list[Interval]) -> list[Interval]:
        """The outputs as they would be with the defect repaired."""
        node = step.node
        ref = node.arguments.get(problem.argument)
        if problem.safe is not None and isinstance(ref, Ref) and node.phase == "forward":
            clip = {node.index: {facts.root(self._graph, ref.value): problem.safe}}
            repaired = self.judged.outputs(step, self.judged.operands(step, clip))
            if repaired[0].is_finite:
                outputs = repaired
        return self._merged(node, [moderate_part(output) for output in outputs])

    def _merged(self, node: Node, outputs: list[Interval]) -> list[Interval]:
        if self.judged.keeps_blocks(node):
            return outputs
        return [merged_if_finite(output) for output in outputs]

    # --- consequences -----------------------------------------------------------------------

    def _with_consequence(self, defect: Defect) -> Defect:
        return replace(defect, consequence=self._consequence(defect))

    def _consequence(self, defect: Defect) -> str:
        if defect.gradient_only:
            return "the loss stays finite; gradients, and weights after the step, become NaN"
        reached = {
            number for number in self._graph.nodes[defect.node].outputs if number is not None
        }
        was_nan = any(self.true.known.intervals[number].may_nan for number in reached)
        for node in self._graph.nodes[defect.node + 1 :]:
            if node.phase == "backward":
                break
            if reached.isdisjoint(node.operands):
                continue
            outputs = {number for number in node.outputs if number is not None}
            reached |= outputs
            first = min(outputs, default=None)
            if first is not None and not was_nan and self.true.known.intervals[first].may_nan:
                expression = node.source.expression or node.op
                into = ", and so does the loss" if self._reaches_loss(reached) else ""
                return f"becomes NaN in `{expression}`{into}"
        if self._graph.loss in reached and self._graph.loss is not None:
            loss = self.true.known.intervals[self._graph.loss]
            if not loss.is_finite:
                return f"the loss becomes {'NaN or Inf' if loss.may_nan else 'Inf'}"
        return ""

    def _reaches_loss(self, reached: set[int]) -> bool:
        reached = set(reached)
        for node in self._graph.nodes:
            if node.phase == "forward" and not reached.isdisjoint(node.operands):
                reached.update(number for number in node.outputs if number is not None)
        return self._graph.loss in reached


def _is_complex(step: Step) -> bool:
    """True if the result is complex: of those only the size is known."""
    return any(value is not None and value.dtype.is_complex for value in step.outputs)


def _looked_at(node: Node, outputs: Sequence[Interval]) -> Sequence[Interval]:
    return outputs if node.phase == "backward" else outputs[:1]


def _first_tensor(node: Node) -> str | None:
    return next((name for name, value in node.arguments.items() if isinstance(value, Ref)), None)


def moderate_part(interval: Interval) -> Interval:
    """Cut to the root of the largest number.

    Sums and products of what a repaired operator gives are not to be reported once more.
    """
    if not interval.dtype.is_floating_point:
        return interval
    reach = torch.finfo(interval.dtype).max ** 0.5
    return interval.with_nan(False).intersect(-reach, reach)
