"""Boxes given by centre and size: widths are not negative, overlaps not larger than a box.

For corners c + h and c - h, stacked as in detection code, and intersection over union.
Rounding keeps order, so what is larger before rounding is not smaller after it.
"""

from __future__ import annotations

from ranum.analysis.facts._patterns import (
    SAME_ELEMENTS,
    Intervals,
    fact,
    made_by,
    operand_of,
    same,
)
from ranum.analysis.graph import Graph, Node, Ref
from ranum.analysis.interval import Interval, unit_roundoff

Edges = tuple[int, int]
"""The far and the near edges of boxes: two values of one shape."""


def _terms(graph: Graph, value: int) -> list[int] | None:
    """What was stacked to make the last dimension of a value, as far as it is kept."""
    node = graph.producer(value)
    if node is None:
        return None
    shape = graph.values[value].shape
    if node.op == "stack":
        tensors = node.arguments["tensors"]
        last = node.arguments["dim"] % len(shape) == len(shape) - 1
        return [ref.value for ref in tensors] if last else None
    x = node.arguments.get("x")
    if node.op not in ("identity", "reshape", "slice", "select") or not isinstance(x, Ref):
        return None
    terms, whole = _terms(graph, x.value), graph.values[x.value].shape
    if terms is None or not whole:
        return None
    if node.op in ("slice", "select") and node.arguments["dim"] % len(whole) == len(whole) - 1:
        if node.op == "select":
            return [terms[node.arguments["index"]]]
        return terms[node.arguments["start"] : node.arguments["end"] : node.arguments["step"]]
    if node.op == "select" or shape[-1:] != whole[-1:]:
        return None
    return terms if node.op != "slice" or shape == whole else None


def _gap(graph: Graph, intervals: Intervals, edges: Edges) -> float | None:
    """How far the edges c + h and c - h are apart at least; None if they are not such edges."""
    far, near = (_terms(graph, value) for value in edges)
    shapes = [graph.values[value].shape for value in edges]
    if not far or not near or len(far) != len(near) or shapes[0] != shapes[1]:
        return None
    gaps = [_width(graph, intervals, a, b) for a, b in zip(far, near, strict=True)]
    known = [gap for gap in gaps if gap is not None]
    return min(known) if len(known) == len(gaps) else None


def _width(graph: Graph, intervals: Intervals, far: int, near: int) -> float | None:
    above, below = made_by(graph, far, "add"), made_by(graph, near, "sub")
    if above is None or below is None:
        return None
    if above.arguments.get("alpha", 1) != 1 or below.arguments.get("alpha", 1) != 1:
        return None
    centre, half = operand_of(graph, above, "x"), operand_of(graph, above, "other")
    other_centre, other_half = operand_of(graph, below, "x"), operand_of(graph, below, "other")
    if centre is None or half is None or other_centre is None or other_half is None:
        return None
    if not same(graph, centre, other_centre) or not same(graph, half, other_half):
        return None
    c, h = intervals[centre], intervals[half]
    if not c.is_finite or not h.is_finite or h.low < 0:
        return None
    rounding = 8 * unit_roundoff(h.dtype) * (max(c.high, -c.low) + h.high)
    return max(2 * h.low - rounding, 0.0)


def _pair(graph: Graph, value: int, op: str) -> tuple[int, int] | None:
    node = made_by(graph, value, op)
    if node is None:
        return None
    x, other = operand_of(graph, node, "x"), operand_of(graph, node, "other")
    return None if x is None or other is None else (x, other)


@fact("sub")
def _far_from_near(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """(c + h) - (c - h) is about 2 h; the hull of two boxes is at least as wide as each."""
    edges = _edges(graph, node)
    if edges is None:
        return result
    candidates = [edges]
    far, near = _pair(graph, edges[0], "maximum"), _pair(graph, edges[1], "minimum")
    if far is not None and near is not None:
        candidates = [(a, b) for a in far for b in near]
    gaps = [gap for pair in candidates if (gap := _gap(graph, intervals, pair)) is not None]
    return result.intersect(lower=max(gaps)) if gaps else result


def _edges(graph: Graph, node: Node) -> Edges | None:
    if node.op != "sub" or node.arguments.get("alpha", 1) != 1:
        return None
    far, near = operand_of(graph, node, "x"), operand_of(graph, node, "other")
    return None if far is None or near is None else (far, near)


@fact("sub")
def _union(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """Area 1 + area 2 - overlap is at least the larger area: the overlap is in both boxes."""
    total = made_by(graph, node.operands[0], "add") if node.operands else None
    overlap = operand_of(graph, node, "other")
    if total is None or overlap is None or node.arguments.get("alpha", 1) != 1:
        return result
    boxes = _overlapping(graph, overlap)
    areas = (operand_of(graph, total, "x"), operand_of(graph, total, "other"))
    if boxes is None or areas[0] is None or areas[1] is None:
        return result
    for first, second in (areas, areas[::-1]):
        if _is_area(graph, intervals, first, boxes[0]) and _is_area(
            graph, intervals, second, boxes[1]
        ):
            least = max(intervals[area].low for area in areas if area is not None)
            return result.intersect(lower=max(least * (1 - 8 * unit_roundoff(result.dtype)), 0.0))
    return result


def _overlapping(graph: Graph, overlap: int) -> tuple[Edges, Edges] | None:
    """The edges of the two boxes whose common area a value is; None for anything else."""
    sides = _pair(graph, overlap, "mul")
    if sides is None:
        return None
    cuts = [made_by(graph, side, "select") for side in sides]
    if any(cut is None for cut in cuts):
        return None
    first, second = (cut for cut in cuts if cut is not None)
    rank = len(graph.values[first.operands[0]].shape)
    is_last = all(cut.arguments["dim"] % rank == rank - 1 for cut in (first, second))
    order = (first.arguments["index"], second.arguments["index"])
    extent = operand_of(graph, first, "x")
    if not is_last or order != (0, 1) or extent is None:
        return None
    if extent != operand_of(graph, second, "x"):
        return None
    clamped = made_by(graph, extent, "clamp", "clamp_min", "relu")
    inner = None if clamped is None else operand_of(graph, clamped, "x")
    if clamped is None or inner is None or clamped.arguments.get("max") is not None:
        return None
    if clamped.op != "relu" and clamped.arguments.get("min") != 0:
        return None
    difference = made_by(graph, inner, "sub")
    edges = None if difference is None else _edges(graph, difference)
    if edges is None:
        return None
    far, near = _pair(graph, edges[0], "minimum"), _pair(graph, edges[1], "maximum")
    return None if far is None or near is None else ((far[0], near[0]), (far[1], near[1]))


def _is_area(graph: Graph, intervals: Intervals, area: int | None, edges: Edges) -> bool:
    """True if a value is the product of the two sides of boxes with these edges."""
    if area is None or graph.values[area].shape != graph.values[edges[0]].shape[:-1]:
        return False
    product = made_by(graph, area, "mul", through=SAME_ELEMENTS)
    far, near = _terms(graph, edges[0]), _terms(graph, edges[1])
    if product is None or not far or not near or (len(far), len(near)) != (2, 2):
        return False
    if _gap(graph, intervals, edges) is None:
        return False
    for index, name in enumerate(("x", "other")):
        side = operand_of(graph, product, name)
        difference = None if side is None else made_by(graph, side, "sub")
        own = None if difference is None else _edges(graph, difference)
        ends = None if own is None else [_terms(graph, value) for value in own]
        if ends is None or not ends[0] or not ends[1] or len(ends[0]) != 1 or len(ends[1]) != 1:
            return False
        if not same(graph, ends[0][0], far[index]) or not same(graph, ends[1][0], near[index]):
            return False
    return True
