"""Rows that are shares of 1: one-hot labels, class probabilities, mixing weights."""

from __future__ import annotations

from ranum.analysis.facts._patterns import Intervals, fact, operand_of, reduced_dims
from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval

TOLERANCE = 2.0**-6
"""How far a row may sum from 1; twice what is let pass where data is looked at."""


@fact("sum")
def sum_of_shares(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """The sum of a row that is known to hold shares is about 1."""
    operand = operand_of(graph, node, "x")
    if operand is None or not graph.values[operand].is_shared:
        return result
    rank = len(graph.values[operand].shape)
    if reduced_dims(node, rank) != (rank - 1,):
        return result
    return result.intersect(1 - TOLERANCE, 1 + TOLERANCE)
