"""Walks a graph with intervals. It knows no operator: the transfer table does.

Bounds are merged to one pair per tensor as they arise, and then computed with as plain
numbers (`transfer.uniform`). Blocks are kept where one of them is infinite, as in a mask, and
for the nodes in `whole`: there the walk gives the tightest bounds that the rules know.

Gradients are not propagated through the backward pass: joint bounds of a deep network grow
by orders of magnitude per layer and say nothing. Each backward operator is judged by itself
instead, for upstream gradients within [-`gradient`, `gradient`].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ranum.analysis import facts
from ranum.analysis.graph import Graph, Node, Ref, Value
from ranum.analysis.interval import Interval, round_down, round_up
from ranum.analysis.transfer import magnitude, rule_for
from ranum.analysis.transfer.magnitude import RULES
from ranum.analysis.transfer.registry import Rule, Twin
from ranum.analysis.transfer.uniform import Lost, Unsure

GRADIENT_BOUND = 1.0
"""Upstream gradients are taken to lie in [-1, 1] when a backward operator is judged."""

Clips = Mapping[int, Mapping[int, tuple[float, float]]]
"""By forward node: operands, by value number, that are clamped to (lower, upper) there and
in the backward operators that belong to it."""

_UNUSED = Interval.full(0, 0, (), torch.float32)
"""In place of an output that nobody asked for."""


@dataclass(slots=True)
class Propagation:
    """Intervals of all values, and what could not be bounded.

    Attributes:
        intervals: By value number.
        unknown: Nodes without a transfer function, or whose function says nothing of this case.
        faults: One line per transfer function that failed; its node counts as unknown.
        loose: Values whose bounds would be tighter with blocks kept.
        whole: Nodes, by index, whose blocks were kept.
    """

    intervals: dict[int, Interval] = field(default_factory=dict)
    unknown: list[Node] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    loose: set[int] = field(default_factory=set)
    whole: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    """What a walk needs of a node, worked out once.

    Attributes:
        node: The node.
        rule: Its transfer function.
        twin: The same on one pair of bounds.
        magnitude: In place of both, where complex numbers go in or come out.
        template: All arguments by name, in order; tensors are filled in.
        tensors: Names and value numbers of arguments that are tensors.
        lists: Names of arguments that hold tensors in lists.
        upstream: Value numbers of those tensors that are gradients from behind.
        outputs: The values it makes.
        has_facts: Whether facts may narrow the first output.
    """

    node: Node
    rule: Rule | None
    twin: Twin | None
    magnitude: magnitude.Rule | None
    template: dict[str, Any]
    tensors: tuple[tuple[str, int], ...]
    lists: tuple[str, ...]
    upstream: frozenset[int]
    outputs: tuple[Value | None, ...]
    has_facts: bool


def step_of(graph: Graph, node: Node) -> Step:
    """The step of a node, kept with the graph."""
    step: Step | None = graph.derived.get(node.index)
    if step is None or step.node is not node:
        step = graph.derived[node.index] = _step(graph, node)
    return step


def _step(graph: Graph, node: Node) -> Step:
    is_complex = _is_complex(graph, node)
    rule = None if is_complex else rule_for(node.op)
    outputs = tuple(None if number is None else graph.values[number] for number in node.outputs)
    own = [(name, item.value) for name, item in node.arguments.items() if isinstance(item, Ref)]
    lists: list[str] = []
    if len(own) != len(node.operands):
        lists += [name for name, item in node.arguments.items() if _holds_tensors(item)]
    return Step(
        node=node,
        rule=rule,
        twin=None if rule is None else rule.twin,
        magnitude=RULES.get(node.op) if is_complex else None,
        template=node.arguments,
        tensors=tuple(own),
        lists=tuple(lists),
        upstream=frozenset(number for number in node.operands if _is_upstream(graph, number))
        if node.phase == "backward"
        else frozenset(),
        outputs=outputs,
        has_facts=not is_complex
        and facts.has_facts(node.op)
        and not any(value is not None and value.is_gradient for value in outputs),
    )


def _is_upstream(graph: Graph, number: int) -> bool:
    """True for a gradient, which is bounded as it comes."""
    value = graph.values[number]
    return value.is_gradient and value.dtype.is_floating_point


def _is_complex(graph: Graph, node: Node) -> bool:
    """True if a complex number goes in or comes out: of those only the size is bounded."""
    values = graph.values
    for number in (*node.operands, *node.outputs):
        if number is not None and values[number].dtype.is_complex:
            return True
    return False


def _holds_tensors(argument: Any) -> bool:
    """True for a list with a tensor in it."""
    if not isinstance(argument, (list, tuple)):
        return False
    return any(isinstance(item, Ref) or _holds_tensors(item) for item in argument)


class Walk:
    """The bounds of one pass, and how to get from one node to the next.

    Args:
        graph: A recorded step.
        start: Interval of every leaf, and of whatever else is read before it is computed.
        clips: Clamps to put in front of operands.
        gradient: Bound on upstream gradients.
        whole: Nodes, by index, whose bounds keep their blocks.
    """

    def __init__(
        self,
        graph: Graph,
        start: Mapping[int, Interval],
        *,
        clips: Clips | None = None,
        gradient: float = GRADIENT_BOUND,
        whole: Collection[int] = (),
    ) -> None:
        self.graph = graph
        self.whole = frozenset(whole)
        self.known = Propagation(dict(start), whole=self.whole)
        self._clips = clips
        self._gradient = gradient
        self._upstream: dict[int, Interval] = {}
        self._execution = graph.execution

    def branch(self) -> Walk:
        """A second walk from here on, with the same options."""
        other = Walk(
            self.graph,
            self.known.intervals,
            clips=self._clips,
            gradient=self._gradient,
            whole=self.whole,
        )
        other.known.loose = self.known.loose
        return other

    def keeps_blocks(self, node: Node) -> bool:
        """True for a node whose bounds are not merged."""
        return node.index in self.whole

    def store(self, node: Node, outputs: Sequence[Interval]) -> None:
        """Takes up the outputs of a node."""
        intervals = self.known.intervals
        for number, interval in zip(node.outputs, outputs, strict=True):
            if number is not None:
                intervals[number] = interval

    # --- operands ---------------------------------------------------------------------------

    def operands(self, step: Step, clips: Clips | None = None) -> dict[str, Any]:
        """The node's arguments with intervals in place of tensors."""
        arguments = step.template.copy()
        intervals, upstream = self.known.intervals, step.upstream
        for name, number in step.tensors:
            is_known = not upstream or number not in upstream
            arguments[name] = intervals[number] if is_known else self.interval(number)
        for name in step.lists:
            arguments[name] = _mapped(arguments[name], self._interval_of)
        if clips is None:
            clips = self._clips
        if clips:
            node = step.node
            own = clips.get(node.index if node.forward is None else node.forward)
            if own:
                self._clip(step, arguments, own)
        if self._execution is not None:
            return self._execution.operands(step.node, arguments)
        return arguments

    def _clip(
        self, step: Step, arguments: dict[str, Any], own: Mapping[int, tuple[float, float]]
    ) -> None:
        def clipped(ref: Ref) -> Interval:
            interval = self._interval_of(ref)
            if self.graph.values[ref.value].is_gradient:
                return interval
            limits = own.get(facts.root(self.graph, ref.value))
            return interval if limits is None else interval.intersect(*limits)

        for name in (*(name for name, _ in step.tensors), *step.lists):
            arguments[name] = _mapped(step.template[name], clipped)

    def interval(self, number: int) -> Interval:
        """The bounds of a value as an operator reads it."""
        if not _is_upstream(self.graph, number):
            return self.known.intervals[number]
        upstream = self._upstream.get(number)
        if upstream is None:
            value = self.graph.values[number]
            upstream = Interval.full(-self._gradient, self._gradient, value.shape, value.dtype)
            self._upstream[number] = upstream
        return upstream

    def _interval_of(self, ref: Ref) -> Interval:
        return self.interval(ref.value)

    # --- outputs ----------------------------------------------------------------------------

    def outputs(self, step: Step, arguments: Mapping[str, Any]) -> list[Interval]:
        """Output intervals of one node; see `operands` for the arguments."""
        rule, node = step.rule, step.node
        if rule is None:
            return self._by_magnitude(step, arguments)
        whole = node.index in self.whole
        loose = self.known.loose
        if loose and not loose.isdisjoint(node.operands):
            self._mark(step)
        try:
            outputs = self._by_twin(step, arguments, whole)
            if outputs is None:
                outputs = self._by_rule(step, rule, arguments, whole)
            execution = self._execution
            if step.has_facts and (execution is None or execution.keeps_facts(self.graph, node)):
                outputs[0] = facts.refine(self.graph, node, self.known.intervals, outputs[0])
            if execution is not None:
                outputs = execution.outputs(node, arguments, outputs)
        except Exception as error:  # a fault of ours must cost precision, not the run
            self.known.unknown.append(node)
            self.known.faults.append(
                f"transfer function of {node.op} failed ({type(error).__name__}: {error}); "
                f"its result at {node.source} was taken as unbounded."
            )
            return [_top(value) for value in step.outputs]
        return outputs

    def _by_magnitude(self, step: Step, arguments: Mapping[str, Any]) -> list[Interval]:
        """The outputs of an operator on complex numbers, or of one that nothing is known of."""
        outputs = None
        if step.magnitude is not None:
            outputs = magnitude.bounded(step.magnitude, arguments, step.outputs)
        if outputs is None:
            self.known.unknown.append(step.node)
            return [_top(value) for value in step.outputs]
        return outputs

    def _mark(self, step: Step) -> None:
        self.known.loose.update(number for number in step.node.outputs if number is not None)

    def _by_twin(
        self, step: Step, arguments: Mapping[str, Any], whole: bool
    ) -> list[Interval] | None:
        """The outputs from one pair of bounds per operand, or None if that is not enough."""
        if step.twin is None:
            return None
        marks: list[bool] = []
        outputs = twin_intervals(step.twin, arguments, step.outputs, whole=whole, marks=marks)
        if outputs is not None and any(marks):
            self._mark(step)
        return outputs

    def _by_rule(
        self, step: Step, rule: Rule, arguments: Mapping[str, Any], whole: bool
    ) -> list[Interval]:
        produced = rule.function(**arguments)
        if produced is None:
            self.known.unknown.append(step.node)
        outputs = list(produced) if isinstance(produced, tuple) else [produced]
        outputs += [None] * (len(step.outputs) - len(outputs))
        checked = [
            _checked(output, value) for output, value in zip(outputs, step.outputs, strict=False)
        ]
        if whole:
            return [item.limited() for item in checked]
        merged = [merged_if_finite(item) for item in checked]
        if any(new is not old for new, old in zip(merged, checked, strict=True)):
            self._mark(step)
        return merged


def propagate(
    graph: Graph,
    start: Mapping[int, Interval],
    *,
    clips: Clips | None = None,
    gradient: float = GRADIENT_BOUND,
    nodes: Iterable[Node] | None = None,
    blocks: bool = True,
) -> Propagation:
    """Intervals of every value, from those of the leaves.

    Args:
        graph: A recorded step.
        start: Interval of every leaf.
        clips: Clamps to put in front of operands.
        gradient: Bound on upstream gradients.
        nodes: The nodes to walk, in order; all by default. `start` must then hold the
            intervals of everything they read.
        blocks: Keep the blocks of all bounds.
    """
    chosen = list(graph.nodes if nodes is None else nodes)
    whole = frozenset(node.index for node in chosen) if blocks else ()
    walk = Walk(graph, start, clips=clips, gradient=gradient, whole=whole)
    for node in chosen:
        step = step_of(graph, node)
        walk.store(node, walk.outputs(step, walk.operands(step)))
    return walk.known


def twin_intervals(
    twin: Twin,
    arguments: Mapping[str, Any],
    values: Sequence[Value | None],
    *,
    whole: bool,
    marks: list[bool] | None = None,
) -> list[Interval] | None:
    """What the twin of a transfer function gives, or None if the case is not ordinary.

    Args:
        twin: The twin.
        arguments: As for the transfer function.
        values: The outputs: their shapes and dtypes.
        whole: Merge no operand for it.
        marks: Takes up True if something was merged.
    """
    case = _ordinary(twin, arguments, whole)
    if case is None:
        return None
    seen, merged, may_nan = case
    if seen is None:
        return [_top(value) for value in values]
    try:
        outputs = _intervals(twin.function(values, **seen), values, twin.wide, may_nan)
    except Lost as lost:
        if merged or len(values) != 1 or values[0] is None:
            return None
        value, nan = values[0], lost.may_nan
        return [Interval.uniform(-math.inf, math.inf, value.shape, value.dtype, nan)]
    except (Unsure, ArithmeticError):
        return None
    if marks is not None:
        marks.append(merged)
    return outputs


def _ordinary(
    twin: Twin, arguments: Mapping[str, Any], whole: bool
) -> tuple[Mapping[str, Any] | None, bool, bool] | None:
    """The arguments for a twin, whether some were merged for it, whether one may be NaN.

    None if the case is not ordinary; None for the arguments if the results can be anything.
    """
    seen, merged, may_nan, fits = arguments, False, False, True
    first: Interval | None = None
    for name, argument in arguments.items():
        item = argument
        if isinstance(item, Interval):
            if item.is_finite and item.is_uniform:
                if twin.hulls:
                    first = item if first is None else first
                    if item.low != first.low or item.high != first.high:
                        fits, merged = fits and not whole, True
                continue
            if (
                not item.is_finite
                and (twin.fragile or (twin.spreads and item.is_anything))
                and name not in twin.aside
                and not (name in twin.exact and item.is_point)
            ):
                return None, False, True
            if not item.is_uniform:
                if name in twin.aside or (name in twin.exact and item.is_point):
                    continue
                if whole or twin.moves or item.is_empty_tensor:
                    fits = False
                    continue
                item, merged = item.merged(), True
                if seen is arguments:
                    seen = dict(arguments)
                seen[name] = item  # type: ignore[index]
                if not (item.is_finite or _is_mask(twin, item) or name in twin.aside):
                    fits = False
                    continue
            elif not (item.is_finite or twin.wide or _is_mask(twin, item) or name in twin.aside):
                fits = False
                continue
            parts: Sequence[Any] = (item,)
        elif isinstance(item, (list, tuple)):
            parts = [x for x in item if isinstance(x, Interval) and not x.is_empty_tensor]
            if not all(x.is_uniform and (x.is_finite or twin.wide) for x in parts):
                fits = False
                continue
        else:
            continue
        for part in parts:
            may_nan = may_nan or part.may_nan
            if twin.hulls:
                first = part if first is None else first
                if part.low != first.low or part.high != first.high:
                    if whole:
                        fits = False
                    merged = True
    return (seen, merged, may_nan) if fits else None


def _is_mask(twin: Twin, item: Interval) -> bool:
    return twin.masks and not item.may_nan and item.high < math.inf


def _intervals(
    pairs: Any, values: Sequence[Value | None], wide: bool, may_nan: bool
) -> list[Interval]:
    """One interval per output, rounded outward into its dtype."""
    if isinstance(pairs, tuple):
        pairs = [pairs]
    outputs = []
    for index, value in enumerate(values):
        pair = pairs[index] if index < len(pairs) else None
        if value is None:
            outputs.append(_UNUSED)
        elif pair is None or value.dtype is torch.uint8:
            outputs.append(_top(value))
        else:
            dtype = value.dtype
            if len(pair) == 3:
                low, high, nan = pair
            else:
                (low, high), nan = pair, may_nan
            low, high = round_down(low, dtype), round_up(high, dtype)
            if not high - low < math.inf:
                if not wide:
                    raise Unsure
                if math.isnan(low) or math.isnan(high):
                    low, high, nan = -math.inf, math.inf, True
            if 0 in value.shape or dtype.is_complex:
                raise Unsure
            nan = nan and dtype.is_floating_point
            outputs.append(Interval.uniform(low, high, value.shape, dtype, nan))
    return outputs


def merged_if_finite(interval: Interval) -> Interval:
    """One pair of bounds, unless data are known or a block is infinite."""
    if interval.is_uniform or interval.is_point or interval.is_empty_tensor:
        return interval.limited()
    return interval.merged() if interval.is_finite else interval.limited()


def _mapped(argument: Any, look_up: Callable[[Ref], Interval]) -> Any:
    if isinstance(argument, Ref):
        return look_up(argument)
    if isinstance(argument, (list, tuple)):
        return type(argument)(_mapped(item, look_up) for item in argument)
    return argument


def _checked(output: Interval | None, value: Value | None) -> Interval:
    if value is None:  # nobody asked for this output
        return _UNUSED
    if output is None or value.dtype == torch.uint8:  # workspaces of fused operators are opaque
        return _top(value)
    if output.dtype != value.dtype and output.shape == value.shape:
        output = _written(output, value.dtype)
    if output.shape != value.shape or (output.dtype != value.dtype and not value.dtype.is_complex):
        raise ValueError(
            f"gave {output.dtype} {list(output.shape)} for {value.dtype} {list(value.shape)}"
        )
    return output


def _written(output: Interval, dtype: torch.dtype) -> Interval:
    """A result of the operands' common type, in the type of the tensor it was written into."""
    if not (output.dtype.is_floating_point and dtype.is_floating_point):
        return output
    lower, upper = output.lower.to(dtype), output.upper.to(dtype)
    return Interval(lower, upper, output.shape, dtype, output.may_nan)


def _top(value: Value | None) -> Interval:
    return (
        Interval.top((), torch.float32) if value is None else Interval.top(value.shape, value.dtype)
    )
