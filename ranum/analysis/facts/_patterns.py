"""What facts are made of: the table of them, and patterns over recorded operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from ranum.analysis.graph import Graph, Node, Ref
from ranum.analysis.interval import Interval, gamma, unit_roundoff
from ranum.analysis.transfer._common import accumulator

Intervals = Mapping[int, Interval]
Fact = Callable[[Graph, Node, Intervals, Interval], Interval]

TRANSPARENT = frozenset({"identity"})
SAME_ELEMENTS = frozenset({"identity", "reshape", "expand"})

FACTS: dict[str, list[Fact]] = {}
COUNT_FACTS: dict[str, list[Fact]] = {}
"""Facts about floating-point results, and about integer ones, which count elements."""


def fact(*ops: str, counts: bool = False) -> Callable[[Fact], Fact]:
    """Registers a fact for the floating-point (or integer) results of one or more operators."""
    table = COUNT_FACTS if counts else FACTS

    def register(function: Fact) -> Fact:
        for op in ops:
            table.setdefault(op, []).append(function)
        return function

    return register


def root(graph: Graph, value: int) -> int:
    """The value behind copies and detaches: the same elements in the same places."""
    while (node := graph.producer(value)) is not None and node.op in TRANSPARENT:
        value = node.operands[0]
    return value


def exact_root(graph: Graph, value: int) -> int:
    """As `root`, through casts to wider types as well: the same numbers."""
    while (node := graph.producer(value)) is not None:
        if node.op == "cast":
            source = graph.values[node.operands[0]].dtype
            if torch.promote_types(source, graph.values[value].dtype) != graph.values[value].dtype:
                break
            if not source.is_floating_point:
                break
        elif node.op not in TRANSPARENT:
            break
        value = node.operands[0]
    return value


def sum_slack(terms: int, *dtypes: torch.dtype) -> float:
    """Relative error of a sum of `terms` numbers >= 0 and a few more operations.

    Half types are added up in float32 and rounded at the end.
    """
    return max(gamma(terms + 4, accumulator(d)) + 4 * unit_roundoff(d) for d in dtypes)


def made_by(
    graph: Graph, value: int, *ops: str, through: frozenset[str] = TRANSPARENT
) -> Node | None:
    """The node that made a value, looking through operators in `through`, if it is one of `ops`."""
    node = graph.producer(value)
    while node is not None and node.op in through:
        node = graph.producer(node.operands[0])
    return node if node is not None and node.op in ops else None


def operand_of(graph: Graph, node: Node, name: str) -> int | None:
    argument = node.arguments.get(name)
    return root(graph, argument.value) if isinstance(argument, Ref) else None


def reduced_dims(node: Node, rank: int) -> tuple[int, ...]:
    """The dimensions a reduction runs over, sorted, non-negative."""
    dim = node.arguments.get("dim")
    if dim is None or dim == []:
        return tuple(range(rank))
    dims = [dim] if isinstance(dim, int) else list(dim)
    return tuple(sorted(d % rank for d in dims)) if rank else ()


def count_over(shape: tuple[int, ...], dims: tuple[int, ...]) -> int:
    return math.prod(shape[dim] for dim in dims)


def aligned(graph: Graph, reduced: int, full: int, dims: tuple[int, ...]) -> bool:
    """True if a reduced value broadcasts back along exactly the dimensions it was reduced over."""
    shape = graph.values[full].shape
    kept = tuple(1 if dim in dims else size for dim, size in enumerate(shape))
    got = graph.values[reduced].shape
    if len(got) == len(shape):
        return got in (kept, shape)
    return math.prod(got) == 1 and math.prod(kept) == 1


def is_constant_above(graph: Graph, argument: object, floor: float) -> bool:
    """True for a number or recorded constant that is nowhere below `floor`."""
    if isinstance(argument, (int, float)) and not isinstance(argument, bool):
        return argument >= floor
    if isinstance(argument, Ref):
        data = graph.values[argument.value].data
        is_constant = graph.values[argument.value].kind == "constant"
        return is_constant and data is not None and bool((data >= floor).all())
    return False


def same(graph: Graph, first: int, second: int, depth: int = 3) -> bool:
    """True if two values are surely equal: one value, or computed twice from the same."""
    first, second = root(graph, first), root(graph, second)
    if first == second:
        return True
    one, two = graph.producer(first), graph.producer(second)
    if one is None or two is None or depth == 0 or one.op != two.op or _is_drawn(one):
        return False
    if one.outputs.index(first) != two.outputs.index(second):
        return False
    return _same_arguments(graph, one.arguments, two.arguments, depth - 1)


def _is_drawn(node: Node) -> bool:
    """True for operators that draw random numbers."""
    return node.op in ("uniform", "normal", "bernoulli") or (
        node.target is not None and torch.Tag.nondeterministic_seeded in node.target.tags
    )


def _same_arguments(graph: Graph, first: object, second: object, depth: int) -> bool:
    if isinstance(first, Ref) and isinstance(second, Ref):
        return same(graph, first.value, second.value, depth)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(
            _same_arguments(graph, first[key], second[key], depth) for key in first
        )
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(
            _same_arguments(graph, a, b, depth) for a, b in zip(first, second, strict=True)
        )
    return type(first) is type(second) and bool(first == second)


def on_cpu(graph: Graph) -> bool:
    """True if no recorded leaf is on an accelerator."""
    return all(
        value.data is None or value.data.device.type == "cpu"
        for value in graph.leaves("input", "parameter", "buffer")
    )
