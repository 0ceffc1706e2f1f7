"""Quotients that are thrown away where their denominator is 0.

masked_fill(x / d, d == 0, v) and where(d > 0, x / d, v) never show what x / 0 gave, and neither
does the gradient of sqrt(relu(x)), which relu drops where it is infinite. The gradient of such a
`where`, as autograd writes it, does: it divides by 0 as well, and is judged by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ranum.analysis.facts._patterns import (
    SAME_ELEMENTS,
    Intervals,
    aligned,
    fact,
    made_by,
    operand_of,
    reduced_dims,
    sum_slack,
)
from ranum.analysis.graph import Graph, Node, Ref
from ranum.analysis.interval import Interval

_ZERO_TESTS = {"eq": True, "le": True, "ne": False, "gt": False}


def is_guarded(graph: Graph, node: Node, readers: Mapping[int, tuple[int, ...]]) -> bool:
    """True if every reader of a quotient discards it where the denominator is 0.

    The product of the quotient with something of its shape may be discarded in its place.
    """
    output, denominator = node.outputs[0], _denominator(graph, node)
    if output is None or denominator is None:
        return False
    return _is_discarded(graph, output, denominator, readers, depth=2)


def _is_discarded(
    graph: Graph,
    output: int | None,
    denominator: int,
    readers: Mapping[int, tuple[int, ...]],
    depth: int,
) -> bool:
    if output is None or output == graph.loss or depth == 0:
        return False
    read_by = [graph.nodes[index] for index in readers.get(output, ())]
    if not read_by:
        return False
    return all(
        _guards(graph, reader, output, denominator)
        or (
            _multiplies(graph, reader, output)
            and _is_discarded(graph, reader.outputs[0], denominator, readers, depth - 1)
        )
        for reader in read_by
    )


def _guards(graph: Graph, reader: Node, output: int, denominator: int) -> bool:
    guard = _guarded(graph, reader)
    return (
        guard is not None
        and guard[0] == output
        and _vanishes_only_with(graph, denominator, guard[1])
    )


def _multiplies(graph: Graph, reader: Node, output: int) -> bool:
    """True for a product with something that is not broadcast over the value."""
    product = reader.outputs[0]
    if reader.op != "mul" or product is None:
        return False
    return graph.values[product].shape == graph.values[output].shape


def _vanishes_only_with(graph: Graph, denominator: int, tested: int) -> bool:
    """True if the denominator is 0 only where the tested value is.

    Of the value itself; of a multiple or a root of it; and of a power of a p-norm up to
    p - 1, which in float32 and float64 does not underflow: the norm is not below the p-th
    root of the smallest number.
    """
    if denominator == tested:
        return True
    node = graph.producer(denominator)
    x = None if node is None else operand_of(graph, node, "x")
    if node is None or x is None:
        return False
    if node.op == "sqrt":
        return _vanishes_only_with(graph, x, tested)
    if node.op == "mul":
        factor = node.arguments["other"]
        is_larger = isinstance(factor, (int, float)) and abs(factor) >= 1
        return is_larger and _vanishes_only_with(graph, x, tested)
    if x != tested:
        return False
    exponent = node.arguments.get("exponent") if node.op == "pow" else None
    norm = made_by(graph, tested, "linalg_vector_norm", "norm", through=SAME_ELEMENTS)
    if norm is None or not isinstance(exponent, (int, float)):
        return False
    order = norm.arguments.get("ord", norm.arguments.get("p", 2))
    is_wide = graph.values[denominator].dtype.itemsize >= 4
    return is_wide and isinstance(order, (int, float)) and 0 < exponent <= order - 1


def _denominator(graph: Graph, node: Node) -> int | None:
    if node.op == "div" and node.arguments.get("rounding_mode") is None:
        return operand_of(graph, node, "other")
    return operand_of(graph, node, "x") if node.op == "reciprocal" else None


def _guarded(graph: Graph, reader: Node) -> tuple[int, int, Any] | None:
    """The value that a reader discards where another is 0, that other, and what it puts there."""
    arguments = reader.arguments
    if reader.op == "masked_fill":
        tested = _tested(graph, arguments["mask"])
        if tested is None or not tested[1]:
            return None
        return arguments["x"].value, tested[0], arguments["value"]
    if reader.op == "threshold_backward":  # of relu: no gradient where its result is 0
        result = operand_of(graph, reader, "x")
        upstream = arguments["grad_output"]
        if result is None or not isinstance(upstream, Ref) or arguments["threshold"] < 0:
            return None
        return upstream.value, result, 0.0
    tested = _tested(graph, arguments.get("condition")) if reader.op == "where" else None
    if tested is None:
        return None
    rest, kept = arguments["x"], arguments["other"]
    if not tested[1]:
        rest, kept = kept, rest
    return (kept.value, tested[0], rest) if isinstance(kept, Ref) else None


def _tested(graph: Graph, mask: object) -> tuple[int, bool] | None:
    """The value d that a mask compares with 0, and whether it is true where d is 0."""
    made = made_by(graph, mask.value, *_ZERO_TESTS) if isinstance(mask, Ref) else None
    if made is None or isinstance(made.arguments["other"], Ref) or made.arguments["other"] != 0:
        return None
    value = operand_of(graph, made, "x")
    return None if value is None else (value, _ZERO_TESTS[made.op])


@fact("masked_fill", "where")
def _guarded_quotient(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """|x| / norm(x) <= 1.5 wherever the norm is not 0; the guard gives the rest.

    Squares that underflow lose up to half a unit of the smallest number, so the norm of
    elements that are only just not lost is up to sqrt(2) too small.
    """
    guard = _guarded(graph, node)
    quotient = None if guard is None else graph.producer(guard[0])
    if guard is None or quotient is None or _denominator(graph, quotient) != guard[1]:
        return result
    x = operand_of(graph, quotient, "x")
    if x is None or not intervals[x].is_finite or not intervals[guard[1]].is_finite:
        return result
    norm = made_by(graph, guard[1], "linalg_vector_norm", "norm", through=SAME_ELEMENTS)
    if norm is None or operand_of(graph, norm, "x") != x:
        return result
    order = norm.arguments.get("ord", norm.arguments.get("p", 2))
    dims = reduced_dims(norm, len(graph.values[x].shape))
    if order not in (1, 2, math.inf) or not aligned(graph, guard[1], x, dims):
        return result
    reach = 1.5 * (1 + 4 * sum_slack(math.prod(graph.values[x].shape), result.dtype))
    low, high = _bounds(guard[2], intervals)
    if math.isinf(low) or math.isinf(high) or math.isnan(low):
        return result
    return result.with_nan(False).intersect(min(-reach, low), max(reach, high))


def _bounds(argument: Any, intervals: Intervals) -> tuple[float, float]:
    if isinstance(argument, Ref):
        interval = intervals[argument.value]
        return (interval.low, interval.high) if not interval.may_nan else (-math.inf, math.inf)
    return float(argument), float(argument)
