"""Rows masked with -inf: what a softmax or maximum over them can still be.

A mask that depends on no float input and no weight is recorded as data. Where it leaves an
element of every row, the maximum of the row is one of those, and softmax is not 0 / 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.facts._patterns import Intervals, fact, operand_of, root
from ranum.analysis.graph import Graph, Node, Ref
from ranum.analysis.interval import Interval

_MOST_ELEMENTS = 1 << 24
"""Masks larger than this once they are expanded are not looked at."""


@dataclass(frozen=True, slots=True)
class _Open:
    """Where a value is surely above -inf, and what it is not below there.

    Attributes:
        places: Booleans that broadcast to the value's shape.
        floor: A lower bound on the elements at these places.
    """

    places: Tensor
    floor: float


def _open_places(graph: Graph, value: int, intervals: Intervals, depth: int = 12) -> _Open | None:
    """The places where a value cannot be -inf; None if nothing is known."""
    value = root(graph, value)
    recorded, node = graph.values[value], graph.producer(value)
    interval = intervals.get(value)
    if recorded.kind == "constant" and recorded.data is not None:
        return _open_data(recorded.data)
    if interval is not None and interval.low > -math.inf and not interval.may_nan:
        return _Open(torch.ones((), dtype=torch.bool), interval.low)
    if node is None or depth == 0:
        return None
    if node.op in ("masked_fill", "where"):
        return _open_choice(graph, node, intervals, depth)
    if node.op in ("add", "sub", "mul", "div"):
        return _open_arithmetic(graph, node, intervals, depth)
    if node.op == "slice_scatter":
        return _open_written(graph, node, intervals, depth)
    if node.op == "copy":
        return _open_argument(graph, node.arguments["src"], intervals, depth)
    if node.op in ("reshape", "expand", "permute", "cast", "slice"):
        inner = _open_places(graph, node.operands[0], intervals, depth - 1)
        return None if inner is None else _moved(graph, node, inner)
    return None


def _open_data(data: Tensor) -> _Open | None:
    if not data.is_floating_point() or bool(data.isnan().any()):
        return None
    places = data != -math.inf
    return _Open(places, float(data[places].min()) if bool(places.any()) else math.inf)


def _open_argument(
    graph: Graph, argument: object, intervals: Intervals, depth: int
) -> _Open | None:
    if isinstance(argument, Ref):
        return _open_places(graph, argument.value, intervals, depth - 1)
    if isinstance(argument, (int, float)):
        return _Open(torch.tensor(argument != -math.inf), float(argument))
    return None


def _open_choice(graph: Graph, node: Node, intervals: Intervals, depth: int) -> _Open | None:
    """Of masked_fill(x, mask, v) and where(mask, v, x) for a recorded mask."""
    arguments = node.arguments
    if node.op == "masked_fill":
        mask, taken, left = arguments["mask"], arguments["value"], arguments["x"]
    else:
        mask, taken, left = arguments["condition"], arguments["x"], arguments["other"]
    recorded = graph.values[mask.value]
    if recorded.kind != "constant" or recorded.data is None:
        return None
    data = recorded.data.bool()
    first = _open_argument(graph, taken, intervals, depth)
    second = _open_argument(graph, left, intervals, depth)
    nowhere = torch.zeros((), dtype=torch.bool)
    places = torch.where(
        data,
        nowhere if first is None else first.places,
        nowhere if second is None else second.places,
    )
    floors = [
        open_.floor for open_ in (first, second) if open_ is not None and open_.floor > -math.inf
    ]
    return _Open(places, min(floors, default=-math.inf))


def _open_arithmetic(graph: Graph, node: Node, intervals: Intervals, depth: int) -> _Open | None:
    """Of x + mask, and of a masked value times, or divided by, a positive number."""
    if node.op in ("add", "sub"):
        if node.arguments.get("alpha", 1) != 1:
            return None
        x = _open_argument(graph, node.arguments["x"], intervals, depth)
        if node.op == "sub":
            other = node.arguments["other"]
            interval = intervals.get(other.value) if isinstance(other, Ref) else None
            high = (
                float(other)
                if interval is None and not isinstance(other, Ref)
                else (math.inf if interval is None else interval.high)
            )
            if x is None or not math.isfinite(high):
                return None
            return _Open(x.places, _below(x.floor - high, node, graph))
        y = _open_argument(graph, node.arguments["other"], intervals, depth)
        if x is None or y is None:
            return None
        return _Open(x.places & y.places, _below(x.floor + y.floor, node, graph))
    factor = node.arguments["other"]
    if isinstance(factor, Ref) or not 1e-6 <= factor <= 1e6:
        return None
    x = _open_argument(graph, node.arguments["x"], intervals, depth)
    if x is None:
        return None
    floor = x.floor * factor if node.op == "mul" else x.floor / factor
    return _Open(x.places, _below(floor, node, graph))


def _below(floor: float, node: Node, graph: Graph) -> float:
    """A floor with room for rounding in the dtype of the node's output; -inf if it overflows."""
    output = node.outputs[0]
    dtype = graph.values[output].dtype if output is not None else torch.float32
    if not dtype.is_floating_point or not math.isfinite(floor):
        return -math.inf
    info = torch.finfo(dtype)
    floor -= abs(floor) * 4 * info.eps + info.tiny
    return floor if floor > info.min else -math.inf


def _moved(graph: Graph, node: Node, inner: _Open) -> _Open | None:
    shape = graph.values[node.operands[0]].shape
    if node.op == "cast":
        output = node.outputs[0]
        dtype = graph.values[output].dtype if output is not None else torch.float32
        fits = dtype.is_floating_point and inner.floor > torch.finfo(dtype).min
        return _Open(inner.places, _below(inner.floor, node, graph)) if fits else None
    if math.prod(shape) > _MOST_ELEMENTS:
        return None
    full = inner.places.expand(shape)
    if node.op == "reshape":
        full = full.reshape(node.arguments["shape"])
    elif node.op == "permute":
        full = full.permute(node.arguments["dims"])
    elif node.op == "slice":
        full = full[_slice(node.arguments, len(shape))]
    else:
        full = full.expand(node.arguments["shape"])
    return _Open(full, inner.floor)


def _open_written(graph: Graph, node: Node, intervals: Intervals, depth: int) -> _Open | None:
    """Of a value with a slice of it replaced."""
    arguments, shape = node.arguments, graph.values[node.operands[0]].shape
    below = _open_argument(graph, arguments["x"], intervals, depth)
    written = _open_argument(graph, arguments["src"], intervals, depth)
    if below is None or written is None or math.prod(shape) > _MOST_ELEMENTS:
        return None
    places = below.places.expand(shape).clone()
    target = places[_slice(arguments, len(shape))]
    target.copy_(written.places.expand(target.shape))
    return _Open(places, min(below.floor, written.floor))


def _slice(arguments: Mapping[str, Any], rank: int) -> tuple[slice, ...]:
    dim = (arguments.get("dim") or 0) % rank
    bounds = (arguments.get(name) for name in ("start", "end", "step"))
    return (slice(None),) * dim + (slice(*bounds),)


def _row_floor(graph: Graph, node: Node, intervals: Intervals, dim: int | None) -> float | None:
    """What the largest element of every row is not below; None if a row may be all -inf."""
    x = operand_of(graph, node, "x")
    if x is None or intervals[x].may_nan or intervals[x].low > -math.inf:
        return None
    found = _open_places(graph, x, intervals)
    if found is None or not math.isfinite(found.floor):
        return None
    shape = graph.values[x].shape
    if dim is None or not shape:
        return found.floor if bool(found.places.any()) else None
    along = dim % len(shape) - len(shape)
    places = found.places
    if places.dim() >= -along:
        places = places.any(along)
    return found.floor if bool(places.all()) else None


@fact("amax", "max")
def _largest_of_row(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """The maximum of a masked row is not below the least element left in it."""
    dim = node.arguments.get("dim")
    if "other" in node.arguments:
        return result
    if isinstance(dim, (list, tuple)):
        if len(dim) > 1:
            return result
        dim = dim[0] if dim else None
    floor = _row_floor(graph, node, intervals, dim)
    return result if floor is None else result.intersect(lower=floor)


@fact("logsumexp")
def _sum_of_row(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """Log sum exp of a row is not below its largest element, up to rounding."""
    dim = node.arguments["dim"]
    dims = list(dim) if isinstance(dim, (list, tuple)) else [dim]
    if len(dims) != 1:
        return result
    floor = _row_floor(graph, node, intervals, dims[0])
    return result if floor is None else result.intersect(lower=_below(floor, node, graph))


@fact("_softmax", "_log_softmax")
def _softmax_of_row(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """No row of nothing but -inf: no 0 / 0."""
    x = operand_of(graph, node, "x")
    if not result.may_nan or x is None or intervals[x].high == math.inf:
        return result
    floor = _row_floor(graph, node, intervals, node.arguments["dim"])
    return result if floor is None else result.with_nan(False)
