"""Differences from something that is never smaller: a maximum, a log-sum-exp, a running sum.

Subtraction is correctly rounded, so it keeps order: a <= b gives fl(a - b) <= 0.
"""

from __future__ import annotations

from ranum.analysis.facts._patterns import (
    SAME_ELEMENTS,
    Intervals,
    aligned,
    fact,
    made_by,
    on_cpu,
    operand_of,
    reduced_dims,
    same,
)
from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval


def _terms(graph: Graph, node: Node) -> tuple[int, int] | None:
    """The values a and b of a node that computes a - b."""
    if node.op != "sub" or node.arguments.get("alpha", 1) != 1:
        return None
    x, other = operand_of(graph, node, "x"), operand_of(graph, node, "other")
    return None if x is None or other is None else (x, other)


def other_candidate(graph: Graph, maximum: int, x: int) -> int | None:
    """The value y of a maximum(x, y); None for anything else."""
    node = made_by(graph, maximum, "maximum", "max")
    if node is None:
        return None
    pair = (operand_of(graph, node, "x"), operand_of(graph, node, "other"))
    for own, rest in (pair, pair[::-1]):
        if own is not None and rest is not None and same(graph, own, x):
            return rest
    return None


@fact("sub")
def _below_maximum(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """X - maximum(x, y) <= 0, and not below min(0, x - y)."""
    terms = _terms(graph, node)
    rest = None if terms is None else other_candidate(graph, terms[1], terms[0])
    if terms is None or rest is None or graph.values[terms[0]].shape != result.shape:
        return result
    x, y = intervals[terms[0]], intervals[rest]
    if not (x.is_finite and y.is_finite):
        return result
    return result.intersect(min(0.0, x.low - y.high) if x.low < y.high else 0.0, 0.0)


@fact("sub")
def _below_logsumexp(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """X - logsumexp(x) <= 0: it is max(x) + log(s), with s >= 1 since one term is exp(0)."""
    terms = _terms(graph, node)
    if terms is None or not intervals[terms[0]].is_finite:
        return result
    x, other = terms
    total = made_by(graph, other, "logsumexp", through=SAME_ELEMENTS)
    if total is None or operand_of(graph, total, "x") != x:
        return result
    dims = reduced_dims(total, len(graph.values[x].shape))
    return result.intersect(upper=0.0) if aligned(graph, other, x, dims) else result


@fact("sub")
def _sinking_sum(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """The last of the running sums of numbers <= 0, minus any of them, is <= 0.

    Each is the one before plus a number <= 0, on a CPU. Kernels that sum blocks in parallel
    round differently, so nothing is said about them.
    """
    terms = _terms(graph, node)
    if terms is None or not on_cpu(graph):
        return result
    last = made_by(graph, terms[0], "slice", "select")
    sums = made_by(graph, terms[1], "cumsum")
    if last is None or sums is None or operand_of(graph, last, "x") != terms[1]:
        return result
    rank = len(result.shape)
    along = sums.arguments["dim"] % rank
    size = result.shape[along]
    if last.op != "slice" or last.arguments["dim"] % rank != along:
        return result
    chosen = range(size)[
        slice(last.arguments["start"], last.arguments["end"], last.arguments["step"])
    ]
    if list(chosen) != [size - 1]:
        return result
    terms_of_sum = operand_of(graph, sums, "x")
    if terms_of_sum is None or not intervals[terms[1]].is_finite:
        return result
    return result.intersect(upper=0.0) if intervals[terms_of_sum].high <= 0 else result


@fact("add")
def _one_is_whole(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """Exp(a - m) d + exp(b - m) >= min(d, 1) for m = maximum(a, b) and d >= 0.

    One of the two exponentials is exp(0) = 1: the sum of a softmax that is kept up to date.
    """
    if node.arguments.get("alpha", 1) != 1:
        return result
    first, second = operand_of(graph, node, "x"), operand_of(graph, node, "other")
    if first is None or second is None or graph.values[second].shape != result.shape:
        return result
    product = made_by(graph, first, "mul")
    new = _shifted_exponential(graph, second)
    if product is None or new is None:
        return result
    factors = (operand_of(graph, product, "x"), operand_of(graph, product, "other"))
    for factor, weight in (factors, factors[::-1]):
        if factor is None or weight is None or graph.values[factor].shape != result.shape:
            continue
        old = _shifted_exponential(graph, factor)
        if old is None or not same(graph, old[1], new[1]) or intervals[weight].low < 0:
            continue
        rest = other_candidate(graph, new[1], new[0])
        if rest is not None and same(graph, rest, old[0]) and intervals[new[1]].is_finite:
            return result.intersect(lower=min(intervals[weight].low, 1.0))
    return result


def _shifted_exponential(graph: Graph, value: int) -> tuple[int, int] | None:
    """(a, m) of a value exp(a - m)."""
    exponential = made_by(graph, value, "exp")
    exponent = None if exponential is None else operand_of(graph, exponential, "x")
    difference = None if exponent is None else made_by(graph, exponent, "sub")
    return None if difference is None else _terms(graph, difference)
