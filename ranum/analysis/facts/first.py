"""The first of running sums is the first number itself: what a comparison says of that place.

A threshold that is searched among sorted numbers and their running sums (sparsemax) divides by
how many of them pass; the first one always does, unless its neighbour absorbs the margin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ranum.analysis.facts._patterns import Intervals, fact, operand_of, root
from ranum.analysis.graph import Graph, Node, Ref
from ranum.analysis.interval import Interval, unit_roundoff

_DEPTH = 6
"""Operators looked through between the comparison and the running sums."""


@dataclass(frozen=True, slots=True)
class _First:
    """The first element along a dimension: a multiple of a sequence's own, plus a number.

    Attributes:
        times: How often the sequence's first element is in it.
        offset: What is added.
        steps: Rounded operations, each with a result of at most the sequence's size and offset.
    """

    times: int
    offset: float
    steps: int = 0


class _Along:
    """First elements along one dimension, in terms of one sequence."""

    def __init__(self, graph: Graph, sequence: int, dim: int) -> None:
        self._graph = graph
        self._sequence = sequence
        self._dim = dim

    def first(self, argument: object, depth: int = _DEPTH) -> _First | None:
        """The first element of an argument, or None if it is no such thing."""
        constant = self._constant(argument)
        if constant is not None:
            return _First(0, constant)
        if not isinstance(argument, Ref) or depth == 0:
            return None
        value = root(self._graph, argument.value)
        node = self._graph.producer(value)
        if value == self._sequence:
            return _First(1, 0.0)
        if node is None:
            return None
        if node.op == "cumsum":
            own = operand_of(self._graph, node, "x") == self._sequence
            along = node.arguments["dim"] % len(self._graph.values[value].shape) == self._dim
            return _First(1, 0.0) if own and along else None
        return self._combined(node, depth - 1)

    def _combined(self, node: Node, depth: int) -> _First | None:
        if node.op not in ("add", "sub", "mul", "div") or node.arguments.get("alpha", 1) != 1:
            return None
        x = self.first(node.arguments["x"], depth)
        other = self.first(node.arguments["other"], depth)
        if x is None or other is None:
            return None
        if node.op in ("add", "sub"):
            sign = 1 if node.op == "add" else -1
            times, offset = x.times + sign * other.times, x.offset + sign * other.offset
            return _First(times, offset, x.steps + other.steps + 1) if 0 <= times <= 1 else None
        if node.op == "mul" and (x.times, x.offset) == (0, 1.0):
            return other
        return x if (other.times, other.offset) == (0, 1.0) else None

    def _constant(self, argument: object) -> float | None:
        if isinstance(argument, (int, float)):
            return float(argument)
        if not isinstance(argument, Ref):
            return None
        value = self._graph.values[argument.value]
        if value.kind != "constant" or value.data is None or value.data.numel() == 0:
            return None
        from_end = self._dim - len(self._graph.values[self._sequence].shape)
        data = value.data
        data = data.select(from_end, 0) if data.dim() >= -from_end else data
        first = float(data.reshape(-1)[0])
        return first if bool((data == first).all()) else None


@fact("gt", "ge", "lt", "le", counts=True)
def _first_passes(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """True in the first place where that compares s + a with s + b for numbers a > b."""
    if result.dtype != torch.bool or bool(result.lower.all()):
        return result
    found = _running_sums(graph, node)
    if found is None:
        return result
    sequence, dim = found
    bound = intervals[sequence]
    along = _Along(graph, sequence, dim)
    x, other = along.first(node.arguments["x"]), along.first(node.arguments["other"])
    if x is None or other is None or x.times != other.times or not bound.is_finite:
        return result
    if graph.values[sequence].shape != result.shape:
        return result
    margin = (x.offset - other.offset) * (1 if node.op in ("gt", "ge") else -1)
    size = max(abs(bound.low), abs(bound.high)) + abs(x.offset) + abs(other.offset) + 1
    steps = x.steps + other.steps
    if margin <= 2 * steps * unit_roundoff(bound.dtype) * size * (1 + steps * 1e-2):
        return result
    shape = [1] * len(result.shape)
    shape[dim] = result.shape[dim]
    passes = torch.zeros(shape, dtype=torch.bool)
    passes.select(dim, 0).fill_(True)
    return Interval.between(result.lower | passes, result.upper, result.shape, torch.bool)


def _running_sums(graph: Graph, node: Node) -> tuple[int, int] | None:
    """The sequence whose running sums the node compares, and the dimension of the sums."""
    waiting = [(argument, _DEPTH) for argument in node.arguments.values()]
    while waiting:
        argument, depth = waiting.pop()
        inner = graph.producer(argument.value) if isinstance(argument, Ref) else None
        if inner is None or depth == 0:
            continue
        if inner.op == "cumsum":
            sequence = operand_of(graph, inner, "x")
            rank = 0 if sequence is None else len(graph.values[sequence].shape)
            return (
                (sequence, inner.arguments["dim"] % rank) if sequence is not None and rank else None
            )
        if inner.op in ("add", "sub", "mul", "div", "identity"):
            waiting += [(one, depth - 1) for one in inner.arguments.values()]
    return None
