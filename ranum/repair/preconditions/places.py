"""The places whose ranges can be narrowed: inputs, weights, and what modules return."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from ranum.analysis.graph import Value, fits
from ranum.analysis.interval import Interval
from ranum.analysis.result import Context
from ranum.analysis.scan import finite_extremes
from ranum.errors import ArgumentError

Kind = Literal["input", "weight", "output"]
Pair = tuple[float, float]
Box = tuple[Pair, ...]
"""One range per place."""

_KINDS: dict[str, tuple[Kind, ...]] = {
    "inputs": ("input",),
    "weights": ("weight",),
    "all": ("input", "weight"),
}


@dataclass(frozen=True, eq=False)
class Place:
    """A float input, a weight or the output of a module, one range for all its elements.

    Widths are measured on a scale that is linear for numbers as large as the tensor now holds,
    and logarithmic beyond: asinh(x / size). Ranges from -1 to 1 and up to the largest number
    of the dtype are both seen with it.

    Attributes:
        number: Of its value in the graph.
        name: Of the input or parameter, or path of the module.
        kind: What it is.
        start: Its range in the analysis.
        recorded: Smallest and largest element of the recorded step, cut to that range.
        size: The largest magnitude among those, at least 0.1.
    """

    number: int
    name: str
    kind: Kind
    start: Interval
    recorded: Pair
    size: float

    @cached_property
    def full(self) -> Pair:
        """The range in the analysis, infinities cut off."""
        limit = torch.finfo(self.start.dtype).max
        return max(self.start.low, -limit), min(self.start.high, limit)

    def kept(self, pair: Pair) -> Interval:
        """The interval of the analysis, cut to a range; a clamp lets NaN through."""
        return self.start.intersect(*pair)

    def height(self, x: float) -> float:
        """Where a number lies on the scale."""
        return math.asinh(x / self.size)

    def between(self, near: float, far: float, share: float) -> float:
        """The number so far on the way between two, by the scale."""
        if share >= 1.0 or near == far:
            return far
        if share <= 0.0:
            return near
        height = self.height(near) + share * (self.height(far) - self.height(near))
        low, high = min(near, far), max(near, far)
        return min(max(self.size * math.sinh(height), low), high)

    def share(self, pair: Pair) -> float:
        """The part of the range's width, by the scale, that another range keeps."""
        low, high = self.full
        whole = self.height(high) - self.height(low)
        return (self.height(pair[1]) - self.height(pair[0])) / whole if whole > 0 else 1.0

    def linear_share(self, pair: Pair) -> float:
        """The plain part of the width."""
        low, high = self.full
        return (pair[1] / 2 - pair[0] / 2) / (high / 2 - low / 2) if high > low else 1.0


def chosen_places(context: Context, where: str) -> tuple[Place, ...]:
    """The places that a word, a name or a pattern means.

    Args:
        context: Of the analysis.
        where: "inputs", "weights", "all"; the name, or a pattern, of inputs and weights; else
            the path, or a pattern, of modules, for what they return.

    Raises:
        ArgumentError: If nothing is meant by it.
    """
    known = all_places(context)
    if where in _KINDS:
        return tuple(place for place in known if place.kind in _KINDS[where])
    modules = tuple(_outputs(context))
    for places in (known, modules):
        found = tuple(place for place in places if fits(place.name, where))
        if found:
            return found
    names = ", ".join(dict.fromkeys(place.name for place in known + modules)) or "none"
    raise ArgumentError(
        "where must be 'operators', 'inputs', 'weights', 'all', or the name (or a pattern) of a "
        f"float input, a weight or a module; got {where!r}. Known: {names}."
    )


def all_places(context: Context) -> tuple[Place, ...]:
    """Every float input and every weight that is not a single number in the analysis."""
    return tuple(_places(context))


def _outputs(context: Context) -> Iterator[Place]:
    for path, number in context.graph.module_outputs.items():
        value, start = context.graph.values[number], context.intervals[number]
        if not path or value.producer is None or not value.dtype.is_floating_point:
            continue
        if 0 in value.shape:
            continue
        low, high = (start.low, start.high) if value.observed is None else value.observed
        pair = _inside(float(low), float(high), start)
        size = max(abs(pair[0]), abs(pair[1]), 0.1)
        place = Place(number, path, "output", start, pair, size)
        if place.full[0] < place.full[1]:
            yield place


def _places(context: Context) -> Iterator[Place]:
    trained = context.program.parameters
    for value in _floats(context.graph.leaves("input", "parameter")):
        start = context.start.get(value.index)
        if start is None or start.is_point or not value.name:
            continue
        if value.kind == "parameter" and value.name not in trained:
            continue
        low, high = _extremes(value, start)
        place = Place(
            number=value.index,
            name=value.name,
            kind="input" if value.kind == "input" else "weight",
            start=start,
            recorded=(low, high),
            size=max(abs(low), abs(high), 0.1),
        )
        if place.full[0] < place.full[1]:
            yield place


def _floats(values: Iterable[Value]) -> Iterator[Value]:
    return (one for one in values if one.dtype.is_floating_point and 0 not in one.shape)


def _extremes(value: Value, start: Interval) -> Pair:
    low, high = (start.low, start.high) if value.data is None else finite_extremes(value.data)
    return _inside(low, high, start)


def _inside(low: float, high: float, start: Interval) -> Pair:
    limit = torch.finfo(start.dtype).max
    least, most = max(start.low, -limit), min(start.high, limit)
    return min(max(low, least), most), min(max(high, least), most)
