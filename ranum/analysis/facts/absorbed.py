"""Infinities that come to nothing: 1 / (1 + exp(-x)) is right where exp overflows.

An infinite value is harmless if all that is computed from it takes the infinity away again:
a division by it, tanh, a clamp. In training the backward pass reads it as well, and there
0 * Inf is NaN: the same expression is a defect then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ranum.analysis.facts._patterns import Intervals
from ranum.analysis.graph import Graph, Node, Ref
from ranum.analysis.interval import Interval

_LAYOUT = frozenset(
    {"identity", "reshape", "expand", "permute", "slice", "select", "cat", "stack", "cast", "flip"}
)
_BOUNDED = frozenset(
    {"tanh", "sigmoid", "atan", "erf", "gt", "ge", "lt", "le", "isinf", "isfinite"}
)
_LIMIT = 32
"""Readers looked at before giving up."""


def is_absorbed(
    graph: Graph,
    node: Node,
    outputs: Sequence[Interval],
    intervals: Intervals,
    readers: Mapping[int, tuple[int, ...]],
) -> bool:
    """True if the node's infinities, all of one sign, vanish in everything that reads them."""
    given = [
        (number, interval)
        for number, interval in zip(node.outputs, outputs, strict=False)
        if number is not None and not interval.is_finite
    ]
    if not given or any(interval.may_nan for _, interval in given):
        return False
    pending: list[tuple[int, float]] = []
    for number, interval in given:
        if interval.may_posinf and interval.may_neginf:
            return False
        pending.append((number, math.inf if interval.may_posinf else -math.inf))
    seen: set[int] = set()
    while pending:
        number, infinity = pending.pop()
        reading = readers.get(number, ())
        if number == graph.loss or not reading:
            return False
        for index in reading:
            reader = graph.nodes[index]
            if index in seen:
                continue
            seen.add(index)
            after = _after(graph, reader, number, infinity, intervals)
            if after is None or len(seen) > _LIMIT:
                return False
            if after:
                pending += [(out, after) for out in reader.outputs if out is not None]
    return True


def _after(
    graph: Graph, reader: Node, number: int, infinity: float, intervals: Intervals
) -> float | None:
    """The infinity behind a reader, 0.0 if it is gone, None if it does harm."""
    names = [
        name
        for name, argument in reader.arguments.items()
        if isinstance(argument, Ref) and argument.value == number
    ]
    if reader.op in _LAYOUT:
        return infinity
    if len(names) != 1:
        return None
    name = names[0]
    others = [value for key, value in reader.arguments.items() if key != name]
    if reader.op in _BOUNDED or reader.op == "reciprocal":
        return 0.0
    if reader.op == "neg":
        return -infinity
    if reader.op == "exp":
        return infinity if infinity > 0 else 0.0
    if reader.op in ("clamp", "clamp_min", "clamp_max", "minimum", "maximum"):
        return _limited(reader, name, infinity, graph, intervals)
    if not all(_is_finite(graph, other, intervals) for other in others):
        return None
    if reader.op == "add":
        return infinity if (name == "x" or reader.arguments.get("alpha", 1) > 0) else None
    if reader.op == "sub":
        sign = 1 if name == "x" else -reader.arguments.get("alpha", 1)
        return infinity * sign if sign else None
    if reader.op == "div" and name == "other":
        return 0.0
    return None


def _limited(
    reader: Node, name: str, infinity: float, graph: Graph, intervals: Intervals
) -> float | None:
    """Behind a clamp: gone if the bound on the infinity's side is finite."""
    if reader.op in ("minimum", "maximum"):
        other = reader.arguments["other" if name == "x" else "x"]
        cuts = (reader.op == "minimum") == (infinity > 0)
        return (0.0 if cuts else infinity) if _is_finite(graph, other, intervals) else None
    if name != "x":
        return None
    bound = reader.arguments.get("max" if infinity > 0 else "min")
    if bound is None:
        return infinity
    return 0.0 if _is_finite(graph, bound, intervals) else None


def _is_finite(graph: Graph, argument: Any, intervals: Intervals) -> bool:
    """True for numbers, upstream gradients, and values known to be finite so far."""
    if isinstance(argument, Ref):
        if graph.values[argument.value].is_gradient:
            return True
        interval = intervals.get(argument.value)
        return interval is not None and interval.is_finite
    if isinstance(argument, float):
        return math.isfinite(argument)
    return not isinstance(argument, (list, tuple))
