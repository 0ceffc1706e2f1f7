"""How far weights must move before a defect can occur.

A defect is found for the widest weights asked for. Its *reach* is the narrowest of the three
levels at which it still occurs: with the weights as they were initialised, within the training
envelope, or only for anything. Between the levels the growth of the weights is bisected, on
those operators alone that the defect depends on. Without defects nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ranum.analysis.defects import find_defects
from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval
from ranum.analysis.ranges import ENVELOPE_FACTOR, WeightLevel, Weights, weight_ranges
from ranum.analysis.result import Defect

LARGEST_GROWTH = 1e38
"""Growth beyond which no float32 weight stays finite."""
HALVINGS = {"envelope": 5, "anything": 9}
"""Bisections of the logarithm of the growth: to 1.07 times within the envelope, 1.2 beyond."""


def with_reach(
    graph: Graph,
    intervals: Mapping[int, Interval],
    weights: Weights,
    defects: Sequence[Defect],
) -> tuple[Defect, ...]:
    """The defects with their `reach` and `growth`.

    Args:
        graph: A recorded step.
        intervals: Of every value, as the defects were found.
        weights: What the analysis was asked for; ranges by name in it stay as they are.
        defects: To be placed.
    """
    if not defects:
        return ()
    return _Levels(graph, intervals, weights).place(defects)


class _Levels:
    def __init__(self, graph: Graph, intervals: Mapping[int, Interval], weights: Weights) -> None:
        self._graph = graph
        self._intervals = intervals
        self._weights = weights
        self._growth: dict[int, float] = {}
        self._whole: frozenset[int] = frozenset()

    def place(self, defects: Sequence[Defect]) -> tuple[Defect, ...]:
        at_once, later = self._split(defects, "initial")
        placed: dict[int, tuple[WeightLevel, float | None]] = {
            id(defect): ("initial", None) for defect in at_once
        }
        inside, beyond = self._split(later, "envelope")
        self._bisect(inside, 1.0, ENVELOPE_FACTOR, HALVINGS["envelope"])
        self._bisect(beyond, ENVELOPE_FACTOR, LARGEST_GROWTH, HALVINGS["anything"])
        for level, group in (("envelope", inside), ("anything", beyond)):
            for defect in group:
                placed[id(defect)] = (level, self._growth[id(defect)])  # type: ignore[assignment]
        return tuple(
            replace(defect, reach=placed[id(defect)][0], growth=placed[id(defect)][1])
            for defect in defects
        )

    def _bisect(self, defects: Sequence[Defect], low: float, high: float, left: int) -> None:
        """The least growth at which each defect occurs, which is known to be up to `high`."""
        if left == 0:
            self._growth.update({id(defect): high for defect in defects})
            return
        if low == 1.0 and high == ENVELOPE_FACTOR:  # some occur without any growth
            there, defects = self._split(defects, low)
            self._growth.update({id(defect): low for defect in there})
        if not defects:
            return
        middle = (low * high) ** 0.5
        below, above = self._split(defects, middle)
        self._bisect(below, low, middle, left - 1)
        self._bisect(above, middle, high, left - 1)

    def _split(
        self, defects: Sequence[Defect], level: WeightLevel | float
    ) -> tuple[list[Defect], list[Defect]]:
        """Those that occur with weights at a level, and the others."""
        if not defects:
            return [], []
        nodes = cone(self._graph, defects)
        read = {operand for node in nodes for operand in node.operands}
        ranges = weight_ranges(self._graph, self._weights, level, only=read)
        start = {**self._intervals, **ranges}
        whole = frozenset() if level == "initial" else self._whole
        found, known = find_defects(self._graph, start, nodes=nodes, whole=whole)
        if level != "initial":  # what needed its blocks will need them at the next level
            self._whole |= known.whole
        keys = {_key(defect) for defect in found}
        there = [defect for defect in defects if _key(defect) in keys]
        return there, [defect for defect in defects if _key(defect) not in keys]


def _key(defect: Defect) -> tuple[object, ...]:
    return (defect.code, defect.op, defect.source)


def cone(graph: Graph, defects: Sequence[Defect]) -> list[Node]:
    """What defects depend on.

    That is: their operators, as often as their expression ran, with their backward
    operators and all they are computed from. Gradients are bounded as they come: nothing is
    followed through them.
    """
    places = {(defect.op, defect.source) for defect in defects}
    own = {
        node.index
        for node in graph.nodes
        if node.phase == "forward" and (node.op, node.source) in places
    }
    own |= {defect.node for defect in defects}
    wanted = own | {node.index for node in graph.nodes if node.forward in own}
    stack = list(wanted)
    while stack:
        for operand in graph.nodes[stack.pop()].operands:
            value = graph.values[operand]
            if value.is_gradient or value.producer is None or value.producer in wanted:
                continue
            wanted.add(value.producer)
            stack.append(value.producer)
    return [graph.nodes[index] for index in sorted(wanted)]
