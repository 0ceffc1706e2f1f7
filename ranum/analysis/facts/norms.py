"""Squares and norms: x * x is not negative, and no element is larger than the norm."""

from __future__ import annotations

import math

import torch

from ranum.analysis.facts._patterns import (
    SAME_ELEMENTS,
    Intervals,
    aligned,
    count_over,
    exact_root,
    fact,
    is_constant_above,
    made_by,
    operand_of,
    reduced_dims,
    sum_slack,
)
from ranum.analysis.graph import Graph, Node, Ref
from ranum.analysis.interval import Interval


@fact("mul")
def _same_factors(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """X * x >= 0."""
    x, other = operand_of(graph, node, "x"), operand_of(graph, node, "other")
    return result.intersect(lower=0.0) if x is not None and x == other else result


_SAME_PLACES = frozenset({"identity", "reshape"})


def _shape(graph: Graph, node: Node) -> tuple[int, ...] | None:
    number = node.outputs[0]
    return None if number is None else graph.values[number].shape


@fact("diagonal", "diagonal_copy")
def _own_products(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """The diagonal of x x^T, and of that over a positive number, is not negative: variances."""
    product = operand_of(graph, node, "x")
    if node.arguments.get("offset", 0) != 0 or product is None:
        return result
    made = made_by(graph, product, "mm", "div", through=_SAME_PLACES)
    if made is not None and made.op == "div":
        divisor, dividend = made.arguments["other"], operand_of(graph, made, "x")
        low = intervals[divisor.value].low if isinstance(divisor, Ref) else divisor
        made = made_by(graph, dividend, "mm") if low > 0 and dividend is not None else None
    if made is None or _shape(graph, made) != graph.values[product].shape:
        return result
    first, second = operand_of(graph, made, "x"), operand_of(graph, made, "mat2")
    turned = None if second is None else made_by(graph, second, "permute")
    if turned is None or first is None or operand_of(graph, turned, "x") != first:
        return result
    return result.intersect(lower=0.0) if list(turned.arguments["dims"]) == [1, 0] else result


@fact("mul", "div")
def _normalised(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """|x| rsqrt(mean(x^2) + eps) <= sqrt(n), and the same spelled x / sqrt(...)."""
    for numerator, scale in _scalings(graph, node):
        n = _mean_square_terms(graph, scale, numerator)
        if n is None or not intervals[numerator].is_finite:
            continue
        slack = sum_slack(n, result.dtype, graph.values[scale].dtype)
        reach = math.sqrt(n) * (1 + 4 * slack)
        return result.with_nan(False).intersect(-reach, reach)
    return result


def _scalings(graph: Graph, node: Node) -> list[tuple[int, int]]:
    """(numerator, radicand) for x * rsqrt(r) and x / sqrt(r)."""
    x, other = operand_of(graph, node, "x"), operand_of(graph, node, "other")
    if x is None or other is None:
        return []
    pairs = [(x, other)] if node.op == "div" else [(x, other), (other, x)]
    root_op = "sqrt" if node.op == "div" else "rsqrt"
    found = []
    for numerator, factor in pairs:
        made = made_by(graph, factor, root_op, through=SAME_ELEMENTS)
        radicand = None if made is None else operand_of(graph, made, "x")
        if radicand is not None:
            found.append((numerator, radicand))
    return found


def _mean_square_terms(graph: Graph, radicand: int, x: int) -> int | None:
    """N if the radicand is the mean over n of x*x plus a positive constant; None otherwise.

    A variance taken from uncentred data does not count: x - mean(x) carries the rounding
    error of the mean, which the variance does not see.
    """
    added = made_by(graph, radicand, "add", through=SAME_ELEMENTS)
    if added is None or not is_constant_above(
        graph, added.arguments.get("other"), torch.finfo(graph.values[x].dtype).tiny
    ):
        return None
    average = operand_of(graph, added, "x")
    if average is None:
        return None
    shape = graph.values[x].shape
    mean = made_by(graph, average, "mean", through=SAME_ELEMENTS)
    squared = None if mean is None else operand_of(graph, mean, "x")
    if mean is None or squared is None or not _is_square_of(graph, squared, x):
        return None
    dims = reduced_dims(mean, len(shape))
    return count_over(shape, dims) if aligned(graph, average, x, dims) else None


def _is_square_of(graph: Graph, value: int, of: int) -> bool:
    node = made_by(graph, value, "mul", "pow", "square")
    x = None if node is None else operand_of(graph, node, "x")
    if node is None or x is None or exact_root(graph, x) != exact_root(graph, of):
        return False
    if node.op == "mul":
        return x == operand_of(graph, node, "other")
    return node.op == "square" or node.arguments.get("exponent") == 2


@fact("div")
def _unit_vector(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """|x| / max(norm(x), eps) <= 1, and the same with norm(x) + eps.

    Squares of elements below sqrt(tiny) are lost from the norm; eps must cover those.
    """
    x, other = operand_of(graph, node, "x"), operand_of(graph, node, "other")
    if x is None or other is None or not intervals[x].is_finite:
        return result
    guarded = made_by(graph, other, "clamp_min", "clamp", "add", through=SAME_ELEMENTS)
    inner = None if guarded is None else operand_of(graph, guarded, "x")
    if guarded is None or inner is None or not intervals[inner].is_finite:
        return result
    floor = "other" if guarded.op == "add" else "min"
    least = math.sqrt(torch.finfo(result.dtype).tiny)
    if not is_constant_above(graph, guarded.arguments.get(floor), least):
        return result
    if guarded.arguments.get("max") is not None:
        return result
    norm = made_by(graph, inner, "linalg_vector_norm", "norm", through=SAME_ELEMENTS)
    if norm is None or operand_of(graph, norm, "x") != x:
        return result
    order = norm.arguments.get("ord", norm.arguments.get("p", 2))
    if order not in (1, 2, math.inf):
        return result
    reach = 1 + 4 * sum_slack(math.prod(graph.values[x].shape), result.dtype)
    return result.with_nan(False).intersect(-reach, reach)


@fact("rsqrt", "reciprocal")
def _no_minus_zero(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """1 / sqrt(x) >= 0 and 1 / x >= 0 for sums of squares: squares are never -0, sums neither."""
    operand = operand_of(graph, node, "x")
    if operand is None or intervals[operand].low < 0:
        return result
    total = made_by(graph, operand, "sum", "mean", through=SAME_ELEMENTS)
    terms = None if total is None else operand_of(graph, total, "x")
    square = None if terms is None else made_by(graph, terms, "mul", "square", "abs", "exp")
    if square is None:
        return result
    if square.op == "mul" and operand_of(graph, square, "x") != operand_of(graph, square, "other"):
        return result
    return result.intersect(lower=0.0)
