"""Infinities that come to nothing: 1 / (1 + exp(-x)) is right where exp overflows.

An infinite value is harmless if all that is computed from it takes the infinity away again:
a division by it, tanh, a clamp. In training the backward pass reads it as well, and there
0 * Inf is NaN: the same expression is a defect then, unless the backward pass puts 0 where the
upstream gradient is 0, as TensorFlow's does for roots and reciprocals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ranum.analysis.facts._patterns import Intervals, made_by, operand_of, root
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
_WILD = math.nan
"""Behind a product with an infinity: anything, NaN included, until something masks it."""


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
    sources = {root(graph, number): infinity for number, infinity in pending}
    seen: set[tuple[int, int]] = set()
    while pending:
        number, infinity = pending.pop()
        reading = readers.get(number, ())
        if number == graph.loss or not reading:
            return False
        for index in reading:
            reader = graph.nodes[index]
            if (index, number) in seen:
                continue
            seen.add((index, number))
            if math.isnan(infinity):
                after = _after_product(graph, reader, number, sources)
            else:
                after = _after(graph, reader, number, infinity, intervals)
            if after is None or len(seen) > _LIMIT:
                return False
            if after:
                pending += [(out, after) for out in reader.outputs if out is not None]
    return True


def _after_product(
    graph: Graph, reader: Node, number: int, sources: Mapping[int, float]
) -> float | None:
    """As `_after`, for what may be anything where one of the sources is infinite."""
    if reader.op in ("mul", "neg") or reader.op in _LAYOUT - {"cast", "cat", "stack"}:
        return _WILD
    if reader.op != "where" or operand_of(graph, reader, "other") != root(graph, number):
        return None
    condition = operand_of(graph, reader, "condition")
    empty = None if condition is None else made_by(graph, condition, "eq")
    if empty is None or empty.arguments["other"] != 0 or not _is_zero(graph, reader, "x"):
        return None
    gradient = operand_of(graph, empty, "x")
    return 0.0 if gradient is not None and _is_masked(graph, gradient, sources) else None


def _is_masked(graph: Graph, gradient: int, sources: Mapping[int, float]) -> bool:
    """True for where(y <= c, upstream, 0) with a source y that can be +Inf; >= for -Inf."""
    mask = made_by(graph, gradient, "where")
    condition = None if mask is None else operand_of(graph, mask, "condition")
    if mask is None or condition is None or not _is_zero(graph, mask, "other"):
        return False
    compared = made_by(graph, condition, "le", "lt", "ge", "gt")
    source = None if compared is None else operand_of(graph, compared, "x")
    if compared is None or source is None or source not in sources:
        return False
    bound, upper = compared.arguments["other"], compared.op in ("le", "lt")
    return (
        isinstance(bound, (int, float))
        and math.isfinite(bound)
        and upper == (sources[source] > 0)
        and graph.values[source].shape == graph.values[gradient].shape
    )


def _is_zero(graph: Graph, node: Node, name: str) -> bool:
    """True if an argument is the number 0, or a constant full of it."""
    argument = node.arguments[name]
    if not isinstance(argument, Ref):
        return bool(argument == 0)
    value = graph.values[argument.value]
    return value.kind == "constant" and value.data is not None and not bool(value.data.any())


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
    if reader.op == "mul" and reader.phase == "backward":
        return _WILD
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
