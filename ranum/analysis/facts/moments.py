"""Variances made of moments: E[x^2] - E[x]^2 is not below 0 by more than its rounding errors.

Those are real: of 3600 equal elements near 30, torch's own sums make it -0.0012 in float32, and
Keras' batch norm on torch, which adds 0.001, gives NaN. The bound holds for sums in any order;
torch adds up in blocks and stays below it by far, but no device promises that it does.
"""

from __future__ import annotations

from ranum.analysis.facts._patterns import (
    Intervals,
    count_over,
    fact,
    made_by,
    operand_of,
    reduced_dims,
    same,
    sum_slack,
)
from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import smallest


@fact("sub")
def _difference_of_moments(
    graph: Graph, node: Node, intervals: Intervals, result: Interval
) -> Interval:
    """E[x^2] - E[x]^2 >= -4 e (1 + e) max(x^2), for sums in any order with relative error e.

    E[x]^2 <= E[|x|]^2 <= E[x^2] <= max(x^2): one term is off by at most e of it, the other by
    2 e + e^2.
    """
    if node.arguments.get("alpha", 1) != 1:
        return result
    first, second = operand_of(graph, node, "x"), operand_of(graph, node, "other")
    squares = None if first is None else made_by(graph, first, "mean")
    root_of_second = None if second is None else _squared(graph, second)
    mean = None if root_of_second is None else made_by(graph, root_of_second, "mean")
    if squares is None or mean is None:
        return result
    of_squares, x = operand_of(graph, squares, "x"), operand_of(graph, mean, "x")
    base = None if of_squares is None else _squared(graph, of_squares)
    if base is None or x is None or not same(graph, base, x) or not intervals[x].is_finite:
        return result
    if intervals[x].dtype != result.dtype:
        return result
    rank = len(graph.values[x].shape)
    dims = reduced_dims(squares, rank)
    if dims != reduced_dims(mean, rank) or graph.values[first or 0].shape != result.shape:
        return result
    count = count_over(graph.values[x].shape, dims)
    size = max(abs(intervals[x].low), abs(intervals[x].high)) ** 2
    error = sum_slack(count, result.dtype)
    slack = 4 * error * (1 + error) * size + 4 * smallest(result.dtype)
    return result.intersect(lower=-slack)


def _squared(graph: Graph, value: int) -> int | None:
    """The x of an x * x, x ** 2 or square(x), or None."""
    node = made_by(graph, value, "mul", "pow", "square")
    if node is None:
        return None
    x = operand_of(graph, node, "x")
    if node.op == "mul" and operand_of(graph, node, "other") != x:
        return None
    return x if node.op != "pow" or node.arguments.get("exponent") == 2 else None
