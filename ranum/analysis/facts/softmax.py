"""Softmax and log-sum-exp by hand: what subtracting the maximum is good for."""

from __future__ import annotations

import torch

from ranum.analysis.facts._patterns import (
    SAME_ELEMENTS,
    Intervals,
    aligned,
    count_over,
    exact_root,
    fact,
    made_by,
    operand_of,
    reduced_dims,
    root,
    sum_slack,
)
from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval, gamma, unit_roundoff

_CASTS = frozenset({"identity", "cast"})


def _maximum_over(graph: Graph, value: int, of: int) -> tuple[int, ...] | None:
    """Dimensions over which `value` is the maximum of `of`; None if it is not one."""
    node = made_by(graph, value, "amax", "max", through=SAME_ELEMENTS)
    if node is None or operand_of(graph, node, "x") != of or node.outputs[0] is None:
        return None
    if node.op == "max" and "other" in node.arguments:
        return None
    rank = len(graph.values[of].shape)
    return reduced_dims(node, rank)


def _shift(graph: Graph, value: int) -> tuple[int, ...] | None:
    """Dimensions over which `value` is x - max(x); None if it is not."""
    node = made_by(graph, value, "sub")
    if node is None or node.arguments.get("alpha", 1) != 1:
        return None
    x, other = operand_of(graph, node, "x"), operand_of(graph, node, "other")
    if x is None or other is None or graph.values[x].shape != graph.values[value].shape:
        return None
    dims = _maximum_over(graph, other, x)
    return dims if dims is not None and aligned(graph, other, x, dims) else None


@fact("sub")
def _same_terms(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """X - max(x) <= 0, and at least the width of x below; both exact under rounding."""
    output = node.outputs[0]
    if output is None or _shift(graph, output) is None:
        return result
    return result.intersect(upper=0.0)


@fact("sum")
def _sum_of_shifted(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """Sum exp(x - max x) lies in [1, n]: one term is exp(0) = 1, none is above it.

    An x of -inf adds exp(-inf) = 0; a row of nothing else would make the difference NaN.
    """
    operand = operand_of(graph, node, "x")
    if operand is None:
        return result
    exponential = made_by(graph, operand, "exp")
    inner = None if exponential is None else operand_of(graph, exponential, "x")
    if inner is None:
        return result
    shape = graph.values[operand].shape
    dims = reduced_dims(node, len(shape))
    shifted = _shift(graph, inner)
    if shifted is None or not set(shifted) <= set(dims) or intervals[inner].may_nan:
        return result
    terms = count_over(shape, dims)
    return result.intersect(lower=1.0, upper=terms * (1 + sum_slack(terms, result.dtype)))


@fact("div")
def _part_of_whole(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """E / sum(e) lies in [0, 1] for e >= 0 with a positive sum."""
    dims = share_dims(graph, node, intervals)
    part = operand_of(graph, node, "x")
    if dims is None or part is None:
        return result
    terms = count_over(graph.values[part].shape, dims)
    slack = sum_slack(terms, result.dtype)
    return result.with_nan(False).intersect(0.0, 1.0 + slack)


def share_dims(graph: Graph, node: Node, intervals: Intervals) -> tuple[int, ...] | None:
    """Dimensions over which the shares that a node computes add up to 1.

    A softmax, or e / sum(e) for e >= 0 with a positive sum; None for anything else.
    """
    if node.op == "_softmax":
        x = operand_of(graph, node, "x")
        return None if x is None else (node.arguments["dim"] % max(len(graph.values[x].shape), 1),)
    if node.op != "div" or node.arguments.get("rounding_mode") is not None:
        return None
    part, whole = operand_of(graph, node, "x"), operand_of(graph, node, "other")
    if part is None or whole is None or intervals[part].low < 0 or intervals[whole].low <= 0:
        return None
    total = made_by(graph, whole, "sum", through=SAME_ELEMENTS)
    if total is None or operand_of(graph, total, "x") != part:
        return None
    dims = reduced_dims(total, len(graph.values[part].shape))
    return dims if aligned(graph, whole, part, dims) and intervals[whole].is_finite else None


@fact("sum")
def _whole_of_shares(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """Shares add up to 1, rows of them to the number of rows.

    Numerator and denominator hold the same exponentials, so what is left is the rounding of
    sums and quotients, and shares or terms so small that they are flushed to 0.
    """
    operand = operand_of(graph, node, "x")
    if operand is None or intervals[operand].may_nan:
        return result
    shares = exact_root(graph, operand)
    made, shape = graph.producer(shares), graph.values[shares].shape
    among = None if made is None else share_dims(graph, made, intervals)
    dims = reduced_dims(node, len(shape))
    if made is None or among is None or not set(among) <= set(dims) or 0 in shape or not shape:
        return result
    dtype, terms = graph.values[shares].dtype, count_over(shape, among)
    slack = gamma(terms + 16, torch.float32) + 16 * unit_roundoff(dtype) + terms * _tiny(dtype)
    whole = operand_of(graph, made, "other")
    if whole is not None:
        least = graph.values[whole].dtype
        if not least.is_floating_point:
            return result
        slack += 16 * unit_roundoff(least) + terms * _tiny(least) / intervals[whole].low
    count = count_over(shape, dims)
    slack += sum_slack(count, result.dtype)
    rows = count // terms
    if not slack < 1 or rows * (1 + slack) >= torch.finfo(result.dtype).max:
        return result
    return result.intersect(rows * (1 - slack), rows * (1 + slack))


@fact("sum")
def _largest_shares(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """The k largest of n softmax weights add up to at least k / n: all n add up to 1."""
    operand = operand_of(graph, node, "x")
    chosen = None if operand is None else made_by(graph, operand, "topk")
    if operand is None or chosen is None or root(graph, chosen.outputs[0] or 0) != operand:
        return result
    weights = operand_of(graph, chosen, "x")
    soft = None if weights is None else made_by(graph, weights, "_softmax", through=_CASTS)
    if weights is None or soft is None or not chosen.arguments["largest"]:
        return result
    shape = graph.values[weights].shape
    along = soft.arguments["dim"] % max(len(shape), 1)
    dims = reduced_dims(node, len(shape))
    if chosen.arguments["dim"] % max(len(shape), 1) != along or dims != (along,):
        return result
    terms, dtype = shape[along], graph.values[weights].dtype
    slack = gamma(terms + 16, torch.float32) + 16 * unit_roundoff(dtype)
    slack += unit_roundoff(result.dtype) * (chosen.arguments["k"] + 1)
    share = chosen.arguments["k"] / terms
    return result.intersect(lower=max(share * (1 - slack) - terms * _tiny(dtype), 0.0))


def _tiny(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).tiny
