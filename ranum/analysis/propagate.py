"""Walks a graph with intervals. It knows no operator: the transfer table does.

Gradients are not propagated through the backward pass: joint bounds of a deep network grow
by orders of magnitude per layer and say nothing. Each backward operator is judged by itself
instead, for upstream gradients within [-`gradient`, `gradient`].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ranum.analysis import facts
from ranum.analysis.graph import Graph, Node, Ref, Value
from ranum.analysis.interval import Interval
from ranum.analysis.transfer import rule_for

GRADIENT_BOUND = 1.0
"""Upstream gradients are taken to lie in [-1, 1] when a backward operator is judged."""

Clips = Mapping[int, Mapping[int, tuple[float, float]]]
"""By forward node: operands, by value number, that are clamped to (lower, upper) there and
in the backward operators that belong to it."""


@dataclass(slots=True)
class Propagation:
    """Intervals of all values, and what could not be bounded.

    Attributes:
        intervals: By value number.
        unknown: Nodes without a transfer function.
        faults: One line per transfer function that failed; its node counts as unknown.
    """

    intervals: dict[int, Interval] = field(default_factory=dict)
    unknown: list[Node] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def propagate(
    graph: Graph,
    start: Mapping[int, Interval],
    *,
    clips: Clips | None = None,
    gradient: float = GRADIENT_BOUND,
    nodes: Iterable[Node] | None = None,
) -> Propagation:
    """Intervals of every value, from those of the leaves.

    Args:
        graph: A recorded step.
        start: Interval of every leaf.
        clips: Clamps to put in front of operands.
        gradient: Bound on upstream gradients.
        nodes: The nodes to walk, in order; all by default. `start` must then hold the
            intervals of everything they read.
    """
    result = Propagation(dict(start))
    for node in graph.nodes if nodes is None else nodes:
        outputs = transfer_node(graph, node, result, clips=clips, gradient=gradient)
        for number, interval in zip(node.outputs, outputs, strict=True):
            if number is not None:
                result.intervals[number] = interval
    return result


def transfer_node(
    graph: Graph,
    node: Node,
    known: Propagation,
    *,
    clips: Clips | None = None,
    gradient: float = GRADIENT_BOUND,
    arguments: Mapping[str, Any] | None = None,
) -> list[Interval]:
    """Output intervals of one node, from the intervals known so far.

    Args:
        graph: A recorded step.
        node: The node to compute.
        known: Intervals of what it reads; takes up what cannot be bounded.
        clips: Clamps to put in front of operands.
        gradient: Bound on upstream gradients.
        arguments: The result of `operand_intervals`, if it is at hand.
    """
    values = [graph.values[number] if number is not None else None for number in node.outputs]
    rule = rule_for(node.op)
    if rule is None:
        known.unknown.append(node)
        return [_top(value) for value in values]
    if arguments is None:
        arguments = operand_intervals(graph, node, known.intervals, clips=clips, gradient=gradient)
    try:
        produced = rule.function(**arguments)
        outputs = list(produced) if isinstance(produced, tuple) else [produced]
        outputs += [None] * (len(values) - len(outputs))
        checked = [_checked(output, value) for output, value in zip(outputs, values, strict=False)]
        if not any(value is not None and value.is_gradient for value in values):
            checked[0] = facts.refine(graph, node, known.intervals, checked[0])
    except Exception as error:  # a fault of ours must cost precision, not the run
        known.unknown.append(node)
        known.faults.append(
            f"transfer function of {node.op} failed ({type(error).__name__}: {error}); "
            f"its result at {node.source} was taken as unbounded."
        )
        return [_top(value) for value in values]
    return checked


def operand_intervals(
    graph: Graph,
    node: Node,
    intervals: Mapping[int, Interval],
    *,
    clips: Clips | None = None,
    gradient: float = GRADIENT_BOUND,
) -> dict[str, Any]:
    """The node's arguments with intervals in place of tensors."""
    own_clips: Mapping[int, tuple[float, float]] = {}
    if clips:
        own_clips = clips.get(node.index if node.forward is None else node.forward, {})

    def look_up(ref: Ref) -> Interval:
        value = graph.values[ref.value]
        if value.is_gradient:
            return Interval.full(-gradient, gradient, value.shape, value.dtype)
        interval = intervals[ref.value]
        if own_clips and (root := facts.root(graph, ref.value)) in own_clips:
            interval = interval.intersect(*own_clips[root])
        return interval

    return {name: _mapped(argument, look_up) for name, argument in node.arguments.items()}


def _mapped(argument: Any, look_up: Callable[[Ref], Interval]) -> Any:
    if isinstance(argument, Ref):
        return look_up(argument)
    if isinstance(argument, (list, tuple)):
        return type(argument)(_mapped(item, look_up) for item in argument)
    return argument


def _checked(output: Interval | None, value: Value | None) -> Interval:
    if value is None:  # nobody asked for this output
        return Interval.full(0, 0, (), torch.float32)
    if output is None or value.dtype == torch.uint8:  # workspaces of fused operators are opaque
        return _top(value)
    if output.shape != value.shape or (output.dtype != value.dtype and not value.dtype.is_complex):
        raise ValueError(
            f"gave {output.dtype} {list(output.shape)} for {value.dtype} {list(value.shape)}"
        )
    return output.limited()


def _top(value: Value | None) -> Interval:
    return (
        Interval.top((), torch.float32) if value is None else Interval.top(value.shape, value.dtype)
    )
