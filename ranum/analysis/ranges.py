"""Where the first intervals come from: the batch, the weights, and what the user says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from ranum.analysis.graph import Graph, Value
from ranum.analysis.interval import Interval
from ranum.errors import ArgumentError

Range = tuple[float, float] | Interval
WeightLevel = Literal["initial", "envelope"]
Weights = WeightLevel | float | Mapping[str, Range]

INPUT_MARGIN = 0.1
"""Share of the batch's own range by which float inputs may exceed what the batch showed."""
ENVELOPE_FACTOR = 10.0
"""The training envelope: weights may grow to ten times their largest initial magnitude, ..."""
ENVELOPE_FLOOR = 1.0
"""... and at least to 1, so that weights that start at zero or nearly so are not pinned."""


def starting_ranges(
    graph: Graph,
    *,
    inputs: Mapping[str, Range] | None = None,
    weights: Weights = "envelope",
) -> dict[int, Interval]:
    """The interval of every leaf of the graph.

    Args:
        graph: A recorded step.
        inputs: Ranges by input name or pattern ("batch[0]", "x*"); other float inputs range
            over what the batch showed plus `INPUT_MARGIN`. A tensor whose values are all
            whole numbers (one-hot labels, counts) gets no margin.
        weights: "initial" (as they are), "envelope" (see `ENVELOPE_FACTOR`), a number r for
            [-r, r], or ranges by parameter name or pattern, the envelope elsewhere.

    Raises:
        ArgumentError: For a range that is not a pair lower <= upper, or a pattern that
            matches nothing.
    """
    names = {value.name for value in graph.leaves("input")}
    parameters = {value.name for value in graph.leaves("parameter")}
    chosen_inputs = _checked("inputs", inputs or {}, names)
    chosen_weights = (
        _checked("weights", weights, parameters) if isinstance(weights, Mapping) else {}
    )
    _check_level(weights)
    ranges = {}
    for value in graph.leaves("input", "parameter", "buffer", "constant"):
        if value.kind == "input":
            ranges[value.index] = _input_range(value, chosen_inputs)
        elif value.kind == "parameter":
            ranges[value.index] = _weight_range(value, weights, chosen_weights)
        else:
            ranges[value.index] = _constant_range(value)
    return ranges


def _check_level(weights: Weights) -> None:
    if isinstance(weights, Mapping) or weights in ("initial", "envelope"):
        return
    if isinstance(weights, (int, float)) and not isinstance(weights, bool):
        if math.isfinite(weights) and weights > 0:
            return
        raise ArgumentError(f"weights must be a positive finite number; got {weights!r}.")
    raise ArgumentError(
        f"weights must be 'initial', 'envelope', a number or a mapping of ranges; got {weights!r}."
    )


def _checked(
    argument: str, ranges: Mapping[str, Range], names: set[str]
) -> dict[str, tuple[float, float] | Interval]:
    checked: dict[str, tuple[float, float] | Interval] = {}
    for pattern, pair in ranges.items():
        if not any(_matches(name, pattern) for name in names):
            known = ", ".join(sorted(names)) or "none"
            raise ArgumentError(f"{argument}[{pattern!r}] matches no name; known names: {known}.")
        if isinstance(pair, Interval):
            checked[pattern] = pair
            continue
        is_pair = isinstance(pair, Sequence) and len(pair) == 2
        if not is_pair or not all(isinstance(end, (int, float)) for end in pair):
            raise ArgumentError(
                f"{argument}[{pattern!r}] must be a pair (lower, upper); got {pair!r}."
            )
        lower, upper = float(pair[0]), float(pair[1])
        if math.isnan(lower) or math.isnan(upper) or lower > upper:
            raise ArgumentError(
                f"{argument}[{pattern!r}] must have lower <= upper, without NaN; got {pair!r}."
            )
        checked[pattern] = (lower, upper)
    return checked


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _lookup(name: str, ranges: Mapping[str, Range]) -> Range | None:
    if name in ranges:
        return ranges[name]
    return next((pair for pattern, pair in ranges.items() if fnmatchcase(name, pattern)), None)


def _from_pair(pair: Range, value: Value) -> Interval:
    if isinstance(pair, Interval):
        return Interval.between(
            pair.lower, pair.upper, value.shape, value.dtype, may_nan=pair.may_nan
        )
    return Interval.full(*pair, value.shape, value.dtype)


def _input_range(value: Value, chosen: Mapping[str, Range]) -> Interval:
    pair = _lookup(value.name, chosen)
    if pair is not None:
        return _from_pair(pair, value)
    if value.data is None:
        return Interval.top(value.shape, value.dtype)
    lower, upper = finite_extremes(value.data)
    margin = 0.0 if _is_whole(value.data) else INPUT_MARGIN * (upper - lower)
    return Interval.full(lower - margin, upper + margin, value.shape, value.dtype)


def _weight_range(value: Value, weights: Weights, chosen: Mapping[str, Range]) -> Interval:
    pair = _lookup(value.name, chosen)
    if pair is not None:
        return _from_pair(pair, value)
    if value.data is None:
        return Interval.top(value.shape, value.dtype)
    if weights == "initial":
        return Interval.point(value.data.cpu())
    if isinstance(weights, (int, float)):
        reach = float(weights)
    else:
        lower, upper = finite_extremes(value.data)
        reach = max(ENVELOPE_FLOOR, ENVELOPE_FACTOR * max(abs(lower), abs(upper)))
        reach = min(reach, torch.finfo(value.dtype).max)
    return Interval.full(-reach, reach, value.shape, value.dtype)


def _constant_range(value: Value) -> Interval:
    if value.data is None:
        return Interval.top(value.shape, value.dtype)
    point = Interval.point(value.data.cpu())  # bounds live on the CPU, wherever the step ran
    if tuple(value.data.shape) == value.shape:
        return point
    # A large constant, kept by its extremes.
    return Interval.between(point.low, point.high, value.shape, value.dtype, point.may_nan)


def finite_extremes(data: Tensor) -> tuple[float, float]:
    """Smallest and largest finite element; (0, 0) if there is none."""
    if data.numel() == 0:
        return 0.0, 0.0
    lower, upper = (float(end) for end in torch.aminmax(data))
    if math.isfinite(lower) and math.isfinite(upper):
        return lower, upper
    finite = data[data.isfinite()]
    return finite_extremes(finite)


def _is_whole(data: Tensor) -> bool:
    return bool((data == data.round()).all()) if data.numel() else True
