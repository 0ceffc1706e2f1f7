"""Elements in another order: what a permutation leaves as it is."""

from __future__ import annotations

import torch

from ranum.analysis.facts._patterns import (
    Intervals,
    fact,
    made_by,
    operand_of,
    reduced_dims,
    root,
)
from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval
from ranum.analysis.transfer import rule_for


@fact("sum")
def _sum_in_any_order(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """A sum over elements that were put in another order is bounded by that over the first.

    The bounds of a sum hold for any order of its terms.
    """
    operand = operand_of(graph, node, "x")
    source = None if operand is None else _unpermuted(graph, operand, node)
    rule = rule_for("sum")
    if source is None or rule is None or intervals[source].dtype != result.dtype:
        return result
    total = rule.function(**{**node.arguments, "x": intervals[source]})
    if total.may_nan:
        return result
    lower = torch.maximum(result.lower, total.lower)
    upper = torch.minimum(result.upper, total.upper)
    return Interval.between(lower, upper, result.shape, result.dtype, result.may_nan)


def _unpermuted(graph: Graph, value: int, total: Node) -> int | None:
    """What `value` is a permutation of, along a dimension that is summed over."""
    gathered = made_by(graph, value, "gather")
    if gathered is None:
        return None
    x, index = operand_of(graph, gathered, "x"), operand_of(graph, gathered, "index")
    order = None if index is None else made_by(graph, index, "argsort", "sort")
    if x is None or index is None or order is None:
        return None
    shape = graph.values[x].shape
    along = gathered.arguments["dim"] % len(shape)
    positions = order.outputs[-1]
    if graph.values[index].shape != shape or positions is None or root(graph, positions) != index:
        return None
    if order.arguments["dim"] % len(shape) != along:
        return None
    return x if along in reduced_dims(total, len(shape)) else None
