"""Asks the analysis whether narrower ranges remove defects."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence

import torch

from ranum.analysis import facts
from ranum.analysis.defects import find_defects
from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval
from ranum.analysis.levels import cone
from ranum.analysis.propagate import Clips
from ranum.analysis.result import Context, Defect
from ranum.repair.preconditions.places import Box, Pair, Place
from ranum.source import Source

Key = tuple[str, Source]


def key_of(defect: Defect) -> Key:
    """What a defect is known by: whatever the rule, one operator at one place."""
    return defect.op, defect.source


class Trial:
    """The real analysis, on those operators alone that the targeted defects depend on.

    Args:
        context: Of the analysis.
        places: Whose ranges may be narrowed.
        targets: Defects that are to go.
        others: Defects that may stay.
        deadline: When it `is_spent`, by `time.monotonic`.
    """

    def __init__(
        self,
        context: Context,
        places: Sequence[Place],
        targets: Sequence[Defect],
        *,
        others: Sequence[Defect] = (),
        deadline: float = math.inf,
    ) -> None:
        self.context = context
        self.places = tuple(places)
        self.targets = tuple(targets)
        self.runs = 0
        self._nodes = cone(context.graph, targets)
        self._base = {**context.intervals, **context.start}
        self._allowed = {key_of(defect) for defect in others}
        self._deadline = deadline

    @property
    def is_spent(self) -> bool:
        """True once the time is up."""
        return time.monotonic() > self._deadline

    def with_targets(self, more: Sequence[Defect]) -> Trial:
        """The same for more defects."""
        trial = Trial(self.context, self.places, (*self.targets, *more), deadline=self._deadline)
        trial._allowed = self._allowed - {key_of(defect) for defect in more}
        return trial

    def uncovered(self, box: Box) -> tuple[Defect, ...]:
        """Defects of the whole graph in the ranges that are neither targeted nor may stay."""
        found, _ = find_defects(self.context.graph, self.start(box), clips=self.clips(box))
        known = self._allowed | {key_of(defect) for defect in self.targets}
        return tuple(defect for defect in found if key_of(defect) not in known)

    def holds(self, box: Box) -> bool:
        """True if none of the targeted defects is left in the ranges, and none is new."""
        return not self.left(box)

    def left(self, box: Box) -> set[Key]:
        """The defects there are in the ranges, except those that may stay."""
        found, _ = self._run(box)
        return {key_of(defect) for defect in found} - self._allowed

    def margin(self, box: Box) -> float:
        """How far the worst targeted operator is from its bad set, in powers of two.

        Negative where one of them meets it.
        """
        _, known = self._run(box)
        return min(self._distance(defect, known) for defect in self.targets)

    def start(self, box: Box) -> dict[int, Interval]:
        """The interval of every leaf, with the ranges of a box."""
        start = dict(self.context.start)
        for place, pair in zip(self.places, box, strict=True):
            if place.kind != "output":
                start[place.number] = place.kept(pair)
        return start

    def clips(self, box: Box) -> Clips | None:
        """The ranges of what modules return, where it is read."""
        pairs = {
            place.number: pair
            for place, pair in zip(self.places, box, strict=True)
            if place.kind == "output"
        }
        return clips_of(self.context.graph, pairs)

    def _run(self, box: Box) -> tuple[Sequence[Defect], Mapping[int, Interval]]:
        self.runs += 1
        start = {**self._base, **self.start(box)}
        found, propagation = find_defects(
            self.context.graph, start, nodes=self._nodes, clips=self.clips(box)
        )
        return found, propagation.intervals

    def _distance(self, defect: Defect, known: Mapping[int, Interval]) -> float:
        operand = known[defect.operand]
        if operand.may_nan:
            return -math.inf
        if defect.safe is not None:
            low, high = defect.safe
            least, most = _level(operand.low, operand), _level(operand.high, operand)
            ends = []
            if defect.bounds.low < low:
                ends.append(least - _level(low, operand))
            if defect.bounds.high > high:
                ends.append(_level(high, operand) - most)
            if ends:
                return min(ends)
        output = self.context.graph.nodes[defect.node].outputs[0]
        if defect.gradient_only or defect.code == "RN103" or output is None:
            least, most = _level(operand.low, operand), _level(operand.high, operand)
            return max(least, -most) if defect.code == "RN103" else least
        result = known[output]
        largest = torch.finfo(result.dtype).max if result.dtype.is_floating_point else math.inf
        return _level(largest, result) - _level(max(abs(result.low), abs(result.high)), result)


def clips_of(graph: Graph, pairs: Mapping[int, Pair]) -> Clips | None:
    """Clamps of values by number, in front of every operator that reads them."""
    clips: dict[int, dict[int, Pair]] = {}
    for number, pair in pairs.items():
        for reader in graph.consumers().get(number, ()):
            if graph.nodes[reader].phase == "forward":
                clips.setdefault(reader, {})[facts.root(graph, number)] = pair
    return clips or None


def _level(x: float, of: Interval) -> float:
    """Signed power of two of a number, above that of the dtype's smallest normal one."""
    tiny = torch.finfo(of.dtype).smallest_normal if of.dtype.is_floating_point else 1.0
    if math.isinf(x):
        return math.copysign(2100.0, x)
    return math.copysign(math.log2(1.0 + abs(x) / tiny), x)


def reaching(context: Context, places: Sequence[Place], defect: Defect) -> tuple[Place, ...]:
    """The places that a defect's operator is computed from."""
    return _read_by(cone(context.graph, [defect]), places)


def _read_by(nodes: Collection[Node], places: Sequence[Place]) -> tuple[Place, ...]:
    read = {operand for node in nodes for operand in node.operands}
    return tuple(place for place in places if place.number in read)
