"""Masks whose places are fixed: a row they left an element in the recorded step, they always do.

Where -inf comes from constants alone, moved about, chosen between by constants or written in
place by slices, its places are the same for all inputs and weights. The recorded step then
shows whether a row has no element left, also where single places are not recorded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ranum.analysis.facts._patterns import Intervals, fact, operand_of
from ranum.analysis.graph import Graph, Node, Ref
from ranum.analysis.interval import Interval

_MOVES = frozenset(
    {"identity", "reshape", "permute", "expand", "slice", "select", "cat", "stack", "copy", "full",
     "join", "slice_scatter", "select_scatter", "constant_pad_nd", "as_strided", "flip", "roll"}
)  # fmt: skip
"""Operators whose elements are elements of operands, taken from places that no data decides."""


@fact("_softmax", "_log_softmax")
def _softmax_keeps_rows(
    graph: Graph, node: Node, intervals: Intervals, result: Interval
) -> Interval:
    """No row of nothing but -inf, as the recorded result has no NaN: no 0 / 0."""
    if not result.may_nan or not _is_bounded_above(graph, node, intervals):
        return result
    seen = _seen(graph, node)
    if seen is None or math.isnan(seen[0]) or math.isnan(seen[1]):
        return result
    return result.with_nan(False) if _has_fixed_mask(graph, node, intervals) else result


@fact("amax", "max", "logsumexp")
def _largest_is_kept(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """No row of nothing but -inf, as the recorded result has none: one element is finite.

    The maximum is at least that element, and so is log sum exp: its terms add up to 1 or more
    after the maximum is taken out.
    """
    if result.low > -math.inf or "other" in node.arguments:
        return result
    seen = _seen(graph, node)
    if seen is None or not seen[0] > -math.inf or math.isnan(seen[1]):
        return result
    if not _is_bounded_above(graph, node, intervals) or not _has_fixed_mask(graph, node, intervals):
        return result
    return result.intersect(lower=torch.finfo(result.dtype).min)


def _seen(graph: Graph, node: Node) -> tuple[float, float] | None:
    output = node.outputs[0]
    seen = None if output is None else graph.values[output].observed
    return None if seen is None else (float(seen[0]), float(seen[1]))


def _is_bounded_above(graph: Graph, node: Node, intervals: Intervals) -> bool:
    x = operand_of(graph, node, "x")
    return x is not None and not intervals[x].may_nan and intervals[x].high < math.inf


def _has_fixed_mask(graph: Graph, node: Node, intervals: Intervals) -> bool:
    x = operand_of(graph, node, "x")
    return x is not None and _floor(graph, intervals, x, {}) is not None


def _floor(
    graph: Graph, intervals: Intervals, value: int, known: dict[int, float | None]
) -> float | None:
    """What no element but those of -inf is below; None if -inf may be in other places.

    `known` keeps the answers for values that were asked about before.
    """
    if value not in known:
        known[value] = _floor_of(graph, intervals, value, known)
    return known[value]


def _floor_of(
    graph: Graph, intervals: Intervals, value: int, known: dict[int, float | None]
) -> float | None:
    recorded, interval, node = graph.values[value], intervals[value], graph.producer(value)
    if recorded.kind == "constant":
        return None if recorded.data is None else _least(recorded.data)
    if interval.is_finite:
        return interval.low
    if node is None or interval.may_nan or not recorded.dtype.is_floating_point:
        return None
    if node.op in ("where", "masked_fill"):
        mask = node.arguments["condition" if node.op == "where" else "mask"]
        if not isinstance(mask, Ref) or graph.values[mask.value].kind != "constant":
            return None
    elif node.op == "cast":
        source = graph.values[node.operands[0]].dtype
        if torch.promote_types(source, recorded.dtype) != recorded.dtype:
            return None  # large numbers may become -inf
    elif node.op != "add" and node.op not in _MOVES:
        return None
    floors = [_floor(graph, intervals, operand, known) for operand in node.operands]
    floors += [_least(torch.tensor(node.arguments[name])) for name in _numbers(node)]
    if None in floors:
        return None
    found = [floor for floor in floors if floor is not None]
    if node.op == "add":
        return _sum(found, recorded.dtype) if node.arguments.get("alpha", 1) == 1 else None
    return min(found, default=math.inf)


def _numbers(node: Node) -> list[str]:
    """Names of the arguments that are elements of the result and no tensors."""
    names = ("x", "other", "value", "src")
    return [name for name in names if isinstance(node.arguments.get(name), (int, float))]


def _least(data: Tensor) -> float | None:
    """The least element above -inf, +inf if there is none; None if one is NaN."""
    if bool(data.isnan().any()):
        return None
    left = data[data != -math.inf]
    return float(left.min()) if left.numel() else math.inf


def _sum(floors: list[float], dtype: torch.dtype) -> float | None:
    """The floor of a sum; None if finite numbers may add up to -inf.

    Rounding makes that of what is beyond the greatest number by half its last place or more.
    """
    info, total = torch.finfo(dtype), sum(floors)
    if not total > -info.max * (1 + info.eps / 4):
        return None
    return total if total == math.inf else max(total - abs(total) * info.eps - info.tiny, -info.max)
