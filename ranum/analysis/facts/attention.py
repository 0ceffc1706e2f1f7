"""Weighted means: rows of weights that add up to 1 keep a product within the values."""

from __future__ import annotations

import torch
from torch import Tensor

from ranum.analysis.facts._patterns import Intervals, fact, operand_of
from ranum.analysis.facts.softmax import share_dims
from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval, gamma, unit_roundoff
from ranum.analysis.transfer._common import outward

_KEEPS_ROWS = frozenset({"identity", "reshape", "expand", "cast"})


@fact("bmm", "mm")
def _mean_of_values(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """Softmax weights times values, `[..., T] @ [..., T, D]`: within the values of each feature.

    Weights that were also multiplied by a dropout mask up to m are not negative and add up
    to at most m: then within m times the values, and 0.
    """
    weights, value = operand_of(graph, node, "x"), operand_of(graph, node, "mat2")
    if weights is None or value is None or not intervals[value].is_finite:
        return result
    rows = _row_sum(graph, intervals, weights)
    if rows is None or 0 in result.shape or not intervals[weights].is_finite:
        return result
    total, is_mean = rows
    v = intervals[value]
    v = v.merged(keep=[d for d in range(len(v.shape)) if d != len(v.shape) - 2])
    lower, upper = v.lower.double(), v.upper.double()
    if not is_mean:
        lower, upper = total * lower.clamp(max=0), total * upper.clamp(min=0)
    terms, dtype = graph.values[weights].shape[-1], graph.values[weights].dtype
    slack = gamma(2 * terms + 32, v.dtype if v.dtype == torch.float64 else torch.float32)
    slack = (slack + 16 * unit_roundoff(dtype)) * max(v.high, -v.low) * total
    return _within(result, lower - slack, upper + slack)


def _within(result: Interval, lower: Tensor, upper: Tensor) -> Interval:
    """The result cut to wider bounds, rounded outward into its dtype."""
    bounds = outward(lower, upper, result.shape, result.dtype)
    low = torch.maximum(result.lower, bounds.lower)
    high = torch.minimum(result.upper, bounds.upper)
    return Interval(low, high, result.shape, result.dtype, result.may_nan)


def _row_sum(graph: Graph, intervals: Intervals, value: int) -> tuple[float, bool] | None:
    """What the rows of `value` add up to at most, and whether to exactly that.

    None if they are not known to be softmax weights, maybe behind a mask that is not negative.
    """
    terms = graph.values[value].shape[-1]
    node = graph.producer(value)
    while node is not None and node.outputs[0] is not None:
        shape = graph.values[node.outputs[0]].shape
        if shape[-1:] != (terms,):
            return None
        last = len(shape) - 1
        if share_dims(graph, node, intervals) == (last,):
            return 1.0, True
        if node.op == "_safe_softmax" and node.arguments["dim"] % len(shape) == last:
            return 1.0, False  # rows without a key are zeros
        if node.op == "mul":
            return _masked(graph, intervals, node, terms)
        if node.op not in _KEEPS_ROWS:
            return None
        node = graph.producer(node.operands[0])
    return None


def _masked(
    graph: Graph, intervals: Intervals, node: Node, terms: int
) -> tuple[float, bool] | None:
    """The row sum of weights times a mask, which dropout scales up."""
    pair = (operand_of(graph, node, "x"), operand_of(graph, node, "other"))
    for weights, mask in (pair, pair[::-1]):
        if weights is None or mask is None or graph.values[weights].shape[-1:] != (terms,):
            continue
        rows, scale = _row_sum(graph, intervals, weights), intervals[mask]
        if rows is not None and scale.is_finite and scale.low >= 0:
            return rows[0] * scale.high, False
    return None
