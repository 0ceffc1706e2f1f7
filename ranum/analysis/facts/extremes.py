"""How many elements equal the extreme of all: at least one does."""

from __future__ import annotations

import math

from ranum.analysis.facts._patterns import (
    SAME_ELEMENTS,
    Intervals,
    aligned,
    fact,
    made_by,
    operand_of,
    reduced_dims,
)
from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval

_CASTS = frozenset({"identity", "cast"})


@fact("sum", counts=True)
def _one_is_extreme(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """Sum (x == max x) >= 1 over the dimensions of the maximum, for x without NaN; so for min.

    The comparison is exact, and the extreme is one of the elements, infinite ones included. The
    maximum norm is the largest of the absolute values; its gradient counts (|x| == norm) | NaN.
    """
    mask = operand_of(graph, node, "x")
    either = None if mask is None else made_by(graph, mask, "logical_or")
    if either is not None:
        mask = operand_of(graph, either, "x")
    equal = None if mask is None else made_by(graph, mask, "eq", through=_CASTS)
    if equal is None or mask is None:
        return result
    pair = operand_of(graph, equal, "x"), operand_of(graph, equal, "other")
    summed = reduced_dims(node, len(graph.values[mask].shape))
    for extreme, x in (pair, pair[::-1]):
        if extreme is None or x is None or intervals[x].may_nan:
            continue
        dims = _extreme_over(graph, extreme, x)
        if dims is not None and set(dims) <= set(summed) and aligned(graph, extreme, x, dims):
            least = max(result.low, 1)
            return Interval.full(least, max(result.high, least), result.shape, result.dtype)
    return result


def _extreme_over(graph: Graph, value: int, of: int) -> tuple[int, ...] | None:
    """Dimensions over which `value` is the largest or smallest of `of`; None if it is not."""
    node = made_by(
        graph, value, "amax", "amin", "max", "min", "linalg_vector_norm", through=SAME_ELEMENTS
    )
    if node is None:
        return None
    if node.op == "linalg_vector_norm":
        size = made_by(graph, of, "abs")
        if size is None or abs(node.arguments["ord"]) != math.inf:
            return None
        if operand_of(graph, size, "x") != operand_of(graph, node, "x"):
            return None
    elif operand_of(graph, node, "x") != of or "other" in node.arguments:
        return None
    if node.outputs[0] is None:
        return None
    return reduced_dims(node, len(graph.values[of].shape))
