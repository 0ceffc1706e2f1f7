"""Relational facts: what the box alone cannot say.

Each fact is a pattern over recorded operators and a bound that then holds for the result,
in floating point too. A fact that does not match costs precision, never soundness.
`refine` is called after every transfer function; it only ever narrows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from ranum.analysis.graph import Graph, Node, Ref
from ranum.analysis.interval import Interval, gamma, unit_roundoff

Intervals = Mapping[int, Interval]
Fact = Callable[[Graph, Node, Intervals, Interval], Interval]

_TRANSPARENT = frozenset({"identity"})
_SAME_ELEMENTS = frozenset({"identity", "reshape", "expand"})


def root(graph: Graph, value: int) -> int:
    """The value behind copies and detaches: the same elements in the same places."""
    while (node := graph.producer(value)) is not None and node.op in _TRANSPARENT:
        value = node.operands[0]
    return value


def refine(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """The result narrowed by every fact known for the operator."""
    if not result.dtype.is_floating_point or result.is_empty_tensor:
        return result
    for fact in _FACTS.get(node.op, ()):
        result = fact(graph, node, intervals, result)
    return result


# --- patterns ------------------------------------------------------------------------------


def _made_by(
    graph: Graph, value: int, *ops: str, through: frozenset[str] = _TRANSPARENT
) -> Node | None:
    """The node that made a value, looking through operators in `through`, if it is one of `ops`."""
    node = graph.producer(value)
    while node is not None and node.op in through:
        node = graph.producer(node.operands[0])
    return node if node is not None and node.op in ops else None


def _operand(graph: Graph, node: Node, name: str) -> int | None:
    argument = node.arguments.get(name)
    return root(graph, argument.value) if isinstance(argument, Ref) else None


def _reduced(node: Node, rank: int) -> tuple[int, ...]:
    """The dimensions a reduction runs over, sorted, non-negative."""
    dim = node.arguments.get("dim")
    if dim is None or dim == []:
        return tuple(range(rank))
    dims = [dim] if isinstance(dim, int) else list(dim)
    return tuple(sorted(d % rank for d in dims)) if rank else ()


def _count(shape: tuple[int, ...], dims: tuple[int, ...]) -> int:
    return math.prod(shape[dim] for dim in dims)


def _maximum_over(graph: Graph, value: int, of: int) -> tuple[int, ...] | None:
    """Dimensions over which `value` is the maximum of `of`; None if it is not one."""
    node = _made_by(graph, value, "amax", "max", through=_SAME_ELEMENTS)
    if node is None or _operand(graph, node, "x") != of or node.outputs[0] is None:
        return None
    if node.op == "max" and "other" in node.arguments:
        return None
    rank = len(graph.values[of].shape)
    return _reduced(node, rank)


def _shift(graph: Graph, value: int) -> tuple[int, ...] | None:
    """Dimensions over which `value` is x - max(x); None if it is not."""
    node = _made_by(graph, value, "sub")
    if node is None or node.arguments.get("alpha", 1) != 1:
        return None
    x, other = _operand(graph, node, "x"), _operand(graph, node, "other")
    if x is None or other is None or graph.values[x].shape != graph.values[value].shape:
        return None
    dims = _maximum_over(graph, other, x)
    return dims if dims is not None and _aligned(graph, other, x, dims) else None


def _aligned(graph: Graph, reduced: int, full: int, dims: tuple[int, ...]) -> bool:
    """True if a reduced value broadcasts back along exactly the dimensions it was reduced over."""
    shape = graph.values[full].shape
    kept = tuple(1 if dim in dims else size for dim, size in enumerate(shape))
    got = graph.values[reduced].shape
    if len(got) == len(shape):
        return got in (kept, shape)
    return math.prod(got) == 1 and math.prod(kept) == 1


# --- facts ---------------------------------------------------------------------------------


def _same_factors(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """X * x >= 0."""
    x, other = _operand(graph, node, "x"), _operand(graph, node, "other")
    return result.intersect(lower=0.0) if x is not None and x == other else result


def _same_terms(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """X - max(x) <= 0, and at least the width of x below; both exact under rounding."""
    output = node.outputs[0]
    if output is None or _shift(graph, output) is None:
        return result
    return result.intersect(upper=0.0)


def _sum_of_shifted(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """Sum exp(x - max x) lies in [1, n]: one term is exp(0) = 1, none is above it."""
    operand = _operand(graph, node, "x")
    if operand is None:
        return result
    exponential = _made_by(graph, operand, "exp")
    inner = None if exponential is None else _operand(graph, exponential, "x")
    if inner is None:
        return result
    shape = graph.values[operand].shape
    dims = _reduced(node, len(shape))
    shifted = _shift(graph, inner)
    if shifted is None or not set(shifted) <= set(dims) or not intervals[inner].is_finite:
        return result
    terms = _count(shape, dims)
    return result.intersect(lower=1.0, upper=terms * (1 + gamma(terms, result.dtype)))


def _part_of_whole(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """E / sum(e) lies in [0, 1] for e >= 0 with a positive sum."""
    part, whole = _operand(graph, node, "x"), _operand(graph, node, "other")
    if part is None or whole is None or intervals[part].low < 0 or intervals[whole].low <= 0:
        return result
    total = _made_by(graph, whole, "sum", through=_SAME_ELEMENTS)
    if total is None or _operand(graph, total, "x") != part:
        return result
    shape = graph.values[part].shape
    dims = _reduced(total, len(shape))
    if not _aligned(graph, whole, part, dims) or not intervals[whole].is_finite:
        return result
    slack = gamma(_count(shape, dims), result.dtype) + unit_roundoff(result.dtype)
    return result.with_nan(False).intersect(0.0, 1.0 + slack)


def _normalised(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """|x| rsqrt(mean(x^2) + eps) <= sqrt(n), and the same spelled x / sqrt(...)."""
    for numerator, scale in _scalings(graph, node):
        n = _mean_square_terms(graph, scale, numerator)
        if n is None or not intervals[numerator].is_finite:
            continue
        slack = 1 + 4 * gamma(n + 4, result.dtype)
        reach = math.sqrt(n) * slack
        return result.with_nan(False).intersect(-reach, reach)
    return result


def _scalings(graph: Graph, node: Node) -> list[tuple[int, int]]:
    """(numerator, radicand) for x * rsqrt(r) and x / sqrt(r)."""
    x, other = _operand(graph, node, "x"), _operand(graph, node, "other")
    if x is None or other is None:
        return []
    pairs = [(x, other)] if node.op == "div" else [(x, other), (other, x)]
    root_op = "sqrt" if node.op == "div" else "rsqrt"
    found = []
    for numerator, factor in pairs:
        made = _made_by(graph, factor, root_op, through=_SAME_ELEMENTS)
        radicand = None if made is None else _operand(graph, made, "x")
        if radicand is not None:
            found.append((numerator, radicand))
    return found


def _mean_square_terms(graph: Graph, radicand: int, x: int) -> int | None:
    """N if the radicand is the mean over n of x*x plus a positive constant; None otherwise.

    A variance taken from uncentred data does not count: x - mean(x) carries the rounding
    error of the mean, which the variance does not see.
    """
    added = _made_by(graph, radicand, "add", through=_SAME_ELEMENTS)
    if added is None or not _is_constant_above(
        graph, added.arguments.get("other"), torch.finfo(graph.values[x].dtype).tiny
    ):
        return None
    average = _operand(graph, added, "x")
    if average is None:
        return None
    shape = graph.values[x].shape
    mean = _made_by(graph, average, "mean", through=_SAME_ELEMENTS)
    squared = None if mean is None else _operand(graph, mean, "x")
    if mean is None or squared is None or _square_of(graph, squared) != x:
        return None
    dims = _reduced(mean, len(shape))
    return _count(shape, dims) if _aligned(graph, average, x, dims) else None


def _square_of(graph: Graph, value: int) -> int | None:
    node = _made_by(graph, value, "mul", "pow", "square")
    if node is None:
        return None
    x = _operand(graph, node, "x")
    if node.op == "mul":
        return x if x == _operand(graph, node, "other") else None
    if node.op == "pow":
        return x if node.arguments.get("exponent") == 2 else None
    return x


def _is_constant_above(graph: Graph, argument: object, floor: float) -> bool:
    """True for a number or recorded constant that is nowhere below `floor`."""
    if isinstance(argument, (int, float)) and not isinstance(argument, bool):
        return argument >= floor
    if isinstance(argument, Ref):
        data = graph.values[argument.value].data
        is_constant = graph.values[argument.value].kind == "constant"
        return is_constant and data is not None and bool((data >= floor).all())
    return False


def _unit_vector(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """|x| / max(norm(x), eps) <= 1, and the same with norm(x) + eps.

    Squares of elements below sqrt(tiny) are lost from the norm; eps must cover those.
    """
    x, other = _operand(graph, node, "x"), _operand(graph, node, "other")
    if x is None or other is None or not intervals[x].is_finite:
        return result
    guarded = _made_by(graph, other, "clamp_min", "clamp", "add", through=_SAME_ELEMENTS)
    inner = None if guarded is None else _operand(graph, guarded, "x")
    if guarded is None or inner is None or not intervals[inner].is_finite:
        return result
    floor = "other" if guarded.op == "add" else "min"
    least = math.sqrt(torch.finfo(result.dtype).tiny)
    if not _is_constant_above(graph, guarded.arguments.get(floor), least):
        return result
    if guarded.arguments.get("max") is not None:
        return result
    norm = _made_by(graph, inner, "linalg_vector_norm", "norm", through=_SAME_ELEMENTS)
    if norm is None or _operand(graph, norm, "x") != x:
        return result
    order = norm.arguments.get("ord", norm.arguments.get("p", 2))
    if order not in (1, 2, math.inf):
        return result
    reach = 1 + 4 * gamma(math.prod(graph.values[x].shape) + 4, result.dtype)
    return result.with_nan(False).intersect(-reach, reach)


_FACTS: dict[str, tuple[Fact, ...]] = {
    "mul": (_same_factors, _normalised),
    "sub": (_same_terms,),
    "sum": (_sum_of_shifted,),
    "div": (_part_of_whole, _normalised, _unit_vector),
}
