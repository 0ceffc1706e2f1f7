"""What a condition says about the branch it guards: where(x > c, x, y) takes only x > c.

The double-where idiom, log(where(x > 0, x, 1)), is safe by this alone, and so is
exp(where(x >= 0, -x, x)), TensorFlow's spelling of exp(-|x|).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ranum.analysis.facts._patterns import Intervals, fact, made_by, operand_of, root, same
from ranum.analysis.graph import Graph, Node, Ref
from ranum.analysis.interval import Interval

_OPPOSITE = {"gt": "le", "ge": "lt", "lt": "ge", "le": "gt", "eq": "ne", "ne": "eq"}
_BOTH = frozenset({"logical_and", "bitwise_and", "__and__"})
_EITHER = frozenset({"logical_or", "bitwise_or", "__or__"})
_NEITHER = frozenset({"logical_not", "bitwise_not"})

Constraint = tuple[int, str, float]
"""A value, a comparison that holds for it, and the number it is compared with."""


def constraints(graph: Graph, mask: object, holds: bool, depth: int = 4) -> list[Constraint]:
    """Comparisons with numbers that hold where a mask is true (or false, if not `holds`)."""
    if not isinstance(mask, Ref) or depth == 0:
        return []
    node = made_by(graph, mask.value, *_OPPOSITE, *_BOTH, *_EITHER, *_NEITHER)
    if node is None:
        return []
    if node.op in _NEITHER:
        return constraints(graph, node.arguments["x"], not holds, depth - 1)
    if node.op in _BOTH or node.op in _EITHER:
        if (node.op in _BOTH) != holds:
            return []
        return [
            found
            for name in ("x", "other")
            for found in constraints(graph, node.arguments[name], holds, depth - 1)
        ]
    value, number = operand_of(graph, node, "x"), _number(graph, node.arguments["other"])
    if value is None or number is None:
        return []
    return [(value, node.op if holds else _OPPOSITE[node.op], number)]


def _number(graph: Graph, argument: object) -> float | None:
    """The number an operand is, if it is one for all elements."""
    if isinstance(argument, (int, float)):
        return float(argument)
    if isinstance(argument, Ref):
        value = graph.values[argument.value]
        data = value.data if value.kind == "constant" else None
        if data is not None and data.numel() and not data.is_complex():
            lower, upper = data.aminmax()
            return float(lower) if bool(lower == upper) else None
    return None


def _branches(node: Node) -> list[tuple[Any, bool]]:
    """Both branches of a choice, and whether the mask is true where they are taken."""
    arguments = node.arguments
    if node.op == "masked_fill":
        return [(arguments["value"], True), (arguments["x"], False)]
    return [(arguments["x"], True), (arguments["other"], False)]


def _mask(node: Node) -> object:
    return node.arguments["mask" if node.op == "masked_fill" else "condition"]


@fact("where", "masked_fill")
def _chosen_branch(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """Each branch narrowed by the condition under which it is taken; then their hull."""
    lower, upper = math.inf, -math.inf
    for branch, holds in _branches(node):
        low, high = _narrowed(graph, branch, constraints(graph, _mask(node), holds), intervals)
        lower, upper = min(lower, low), max(upper, high)
    if not lower <= upper or (lower <= result.low and upper >= result.high):
        return result
    return result.intersect(lower, upper)


def _narrowed(
    graph: Graph, branch: Any, known: list[Constraint], intervals: Intervals
) -> tuple[float, float]:
    if not isinstance(branch, Ref):
        return float(branch), float(branch)
    interval = intervals[branch.value]
    low, high = interval.low, interval.high
    negated = made_by(graph, branch.value, "neg")
    for value, comparison, number in known:
        at_least, at_most = _limits(comparison, number, interval.dtype)
        if same(graph, value, branch.value):
            low, high = max(low, at_least), min(high, at_most)
        elif negated is not None and same(graph, value, negated.operands[0]):
            low, high = max(low, -at_most), min(high, -at_least)
    return low, high


def _limits(comparison: str, number: float, dtype: torch.dtype) -> tuple[float, float]:
    """The numbers of a dtype that pass; as torch compares, with the number rounded to it."""
    if not dtype.is_floating_point or math.isnan(number):
        return -math.inf, math.inf
    edge = torch.tensor(number, dtype=dtype)
    if comparison == "gt":
        return float(torch.nextafter(edge, torch.tensor(math.inf, dtype=dtype))), math.inf
    if comparison == "lt":
        return -math.inf, float(torch.nextafter(edge, torch.tensor(-math.inf, dtype=dtype)))
    low = float(edge) if comparison in ("ge", "eq") else -math.inf
    return low, float(edge) if comparison in ("le", "eq") else math.inf


# --- nowhere zero --------------------------------------------------------------------------

_DENOMINATOR = {"div": "other", "reciprocal": "x", "remainder": "other", "fmod": "other"}


def divides_by_nonzero(graph: Graph, node: Node, intervals: Intervals) -> bool:
    """True if the denominator of a division was made nowhere 0 by a `where` before it.

    Its interval cannot say so: where(x != 0, x, 1) takes numbers of both signs.
    """
    name = _DENOMINATOR.get(node.op)
    argument = None if name is None else node.arguments.get(name)
    return isinstance(argument, Ref) and _is_nonzero(graph, argument.value, intervals)


def _is_nonzero(graph: Graph, value: int, intervals: Intervals, depth: int = 4) -> bool:
    value = root(graph, value)
    node = graph.producer(value)
    interval = intervals.get(value)
    if interval is not None and not interval.contains_zero() and not interval.may_nan:
        return True
    if node is None or depth == 0:
        return False
    if node.op in ("where", "masked_fill"):
        return all(
            _is_nonzero_branch(graph, branch, constraints(graph, _mask(node), holds), intervals)
            for branch, holds in _branches(node)
        )
    if node.op == "add" and node.arguments.get("alpha", 1) == 1:
        return _is_one_where_zero(graph, node)
    if node.op in ("reshape", "expand", "permute", "abs", "neg", "sign", "sgn"):
        return _is_nonzero(graph, node.operands[0], intervals, depth - 1)
    return False


def _is_nonzero_branch(
    graph: Graph, branch: Any, known: list[Constraint], intervals: Intervals
) -> bool:
    if not isinstance(branch, Ref):
        return bool(branch != 0)
    interval = intervals.get(branch.value)
    if interval is not None and not interval.contains_zero() and not interval.may_nan:
        return True
    return any(
        _excludes_zero(comparison, number) and _is_or_is_size_of(graph, value, branch.value)
        for value, comparison, number in known
    )


def _excludes_zero(comparison: str, number: float) -> bool:
    if comparison in ("gt", "lt"):
        return number >= 0 if comparison == "gt" else number <= 0
    if comparison in ("ge", "le"):
        return number > 0 if comparison == "ge" else number < 0
    return comparison == "ne" and number == 0


def _is_or_is_size_of(graph: Graph, compared: int, value: int) -> bool:
    """True for x itself and for abs(x)."""
    if same(graph, compared, value):
        return True
    node = made_by(graph, compared, "abs")
    return node is not None and same(graph, node.operands[0], value)


def _is_one_where_zero(graph: Graph, node: Node) -> bool:
    """X + (x == 0)."""
    for name, other in (("x", "other"), ("other", "x")):
        value, mask = operand_of(graph, node, name), node.arguments.get(other)
        if value is None or not isinstance(mask, Ref):
            continue
        cast = made_by(graph, mask.value, "cast")
        mask = cast.arguments["x"] if cast is not None else mask
        tested = constraints(graph, mask, True)
        if any(op == "eq" and c == 0 and same(graph, v, value) for v, op, c in tested):
            return True
    return False


# --- discarded -----------------------------------------------------------------------------

_ON_POSITIVE = frozenset({"log", "log2", "log10", "sqrt", "rsqrt"})


def is_discarded(graph: Graph, node: Node, readers: Mapping[int, tuple[int, ...]]) -> bool:
    """True if every reader takes the result only where the operand is in the domain.

    Of logarithms and roots in where(x > 0, log(x), 0); of negative powers and quotients where
    the operand is not 0. The gradient of the logarithm, grad / x, is judged by itself; where
    the backward pass reads the result, as for roots, this does not hold.
    """
    output, x = node.outputs[0], _fragile_operand(graph, node)
    if output is None or x is None or output == graph.loss:
        return False
    read_by = [graph.nodes[index] for index in readers.get(output, ())]
    is_positive = node.op in _ON_POSITIVE
    return bool(read_by) and all(
        _takes_domain(graph, reader, output, x, is_positive) for reader in read_by
    )


def _fragile_operand(graph: Graph, node: Node) -> int | None:
    if node.op in _ON_POSITIVE:
        return operand_of(graph, node, "x")
    if node.op == "pow":
        exponent = node.arguments["exponent"]
        is_pole = isinstance(exponent, (int, float)) and exponent < 0
        return operand_of(graph, node, "x") if is_pole else None
    return operand_of(graph, node, "other") if node.op == "div" else None


def _takes_domain(graph: Graph, reader: Node, output: int, x: int, is_positive: bool) -> bool:
    if reader.op not in ("where", "masked_fill"):
        return False
    size = made_by(graph, x, "abs")
    for branch, holds in _branches(reader):
        if not isinstance(branch, Ref) or branch.value != output:
            continue
        known = constraints(graph, _mask(reader), holds)
        positive = any(
            ((comparison == "gt" and number >= 0) or (comparison == "ge" and number > 0))
            and same(graph, value, x)
            for value, comparison, number in known
        )
        away = (not is_positive or size is not None) and any(
            _excludes_zero(comparison, number)
            and same(graph, value, x if size is None else size.operands[0])
            for value, comparison, number in known
        )
        if not (positive or away or (not is_positive and _counts_no_zero(graph, known, x))):
            return False
    return True


def _counts_no_zero(graph: Graph, known: list[Constraint], x: int) -> bool:
    """True if a running count of the zeros of x is known to be 0."""
    for value, comparison, number in known:
        count = made_by(graph, value, "cumsum") if (comparison, number) == ("eq", 0) else None
        zeros = None if count is None else made_by(graph, count.operands[0], "eq")
        if zeros is not None and zeros.arguments["other"] == 0:
            of = operand_of(graph, zeros, "x")
            if of is not None and same(graph, of, x):
                return True
    return False
