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


_PICKS = {"scatter_reduce": ("gather", "src"), "index_reduce": ("index_select", "source")}
"""Reductions over slots: how a slot's result is looked up, and the name of what was put there."""


@fact("scatter_add", "index_add")
def _one_met_the_extreme(
    graph: Graph, node: Node, intervals: Intervals, result: Interval
) -> Interval:
    """How many of a slot's elements equal the largest (or smallest) that was put there: one does.

    The count (x == r) + sum over the slot of (source == r), as the gradient of scatter_reduce
    has it; a slot that nothing was put into keeps x.
    """
    own = _compared(graph, node, "x")
    put = _compared(graph, node, "src" if node.op == "scatter_add" else "source")
    for total in own:
        reduced = made_by(graph, total, *_PICKS)
        if reduced is None or reduced.arguments["reduce"] not in ("amax", "amin"):
            continue
        pick, name = _PICKS[reduced.op]
        x, source = operand_of(graph, reduced, "x"), operand_of(graph, reduced, name)
        if x not in own or source not in put or not _same_slots(graph, node, reduced):
            continue
        looked_up = (made_by(graph, value, pick) for value in put)
        if any(
            found is not None
            and operand_of(graph, found, "x") == total
            and _same_slots(graph, found, reduced)
            for found in looked_up
        ) and not any(value is None or intervals[value].may_nan for value in (x, source)):
            return result.intersect(lower=1.0)
    return result


def _compared(graph: Graph, node: Node, name: str) -> tuple[int, ...]:
    """The two values whose equality an argument counts, or none."""
    value = operand_of(graph, node, name)
    equal = None if value is None else made_by(graph, value, "eq", through=_CASTS)
    pair = [] if equal is None else [operand_of(graph, equal, side) for side in ("x", "other")]
    return tuple(value for value in pair if value is not None)


def _same_slots(graph: Graph, node: Node, other: Node) -> bool:
    """True if two operators run along one dimension with one index."""
    index = operand_of(graph, node, "index")
    return (
        node.arguments["dim"] == other.arguments["dim"]
        and index is not None
        and index == operand_of(graph, other, "index")
    )


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
