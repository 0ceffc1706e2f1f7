"""Where the first intervals come from: the batch, the weights, and what the user says."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch

from ranum.analysis.graph import Graph, Value, fits
from ranum.analysis.interval import Interval
from ranum.analysis.scan import Seen, finite_extremes
from ranum.errors import ArgumentError

Range = tuple[float, float] | Interval
WeightLevel = Literal["initial", "envelope", "anything"]
LEVELS: tuple[WeightLevel, ...] = get_args(WeightLevel)
"""From narrow to wide: weights as they are, a training envelope, any finite number."""
Weights = WeightLevel | float | Mapping[str, Range | WeightLevel]

INPUT_MARGIN = 0.1
"""Share of the batch's own range by which float inputs may exceed what the batch showed."""
ENVELOPE_FACTOR = 10.0
"""The training envelope: weights may grow to ten times their largest initial magnitude, ..."""
ENVELOPE_FLOOR = 1.0
"""... and at least to 1, so that weights that start at zero or nearly so are not pinned."""
SIZE_FLOOR = ENVELOPE_FLOOR / ENVELOPE_FACTOR
"""Initial size of weights that start below it, where growth is measured."""


def starting_ranges(
    graph: Graph,
    *,
    inputs: Mapping[str, Range] | None = None,
    weights: Weights = "envelope",
    seen: Mapping[str, Seen] | None = None,
) -> dict[int, Interval]:
    """The interval of every leaf of the graph.

    Args:
        graph: A recorded step.
        inputs: Ranges by input name or pattern ("batch[0]", "x*"); other inputs range over
            what the batch, and `seen`, showed. Float inputs get `INPUT_MARGIN` on top, unless
            all their values are whole numbers (one-hot labels, counts). Integer inputs are
            anything valid where they index; masks made of them are those of the batch.
        weights: See `weight_ranges`.
        seen: What a scan of more data showed, by input name.

    Raises:
        ArgumentError: For a range that is not a pair lower <= upper, or a pattern that
            matches nothing.
    """
    names = {value.name for value in graph.leaves("input")}
    chosen = _checked("inputs", inputs, names.union(graph.inputs))
    uses = _uses(graph)
    ranges = weight_ranges(graph, weights)
    for value in graph.leaves("input", "derived", "buffer", "constant"):
        pair = _lookup(value.name, chosen) if value.name else None
        more = (seen or {}).get(value.name) if value.name else None
        if value.kind == "input":
            ranges[value.index] = _input_range(value, pair, more)
        elif value.kind == "derived":
            ranges[value.index] = _derived_range(value, pair, more, uses.get(value.index, set()))
        else:
            ranges[value.index] = _constant_range(value)
    return ranges


def _uses(graph: Graph) -> dict[int, set[str]]:
    """The operators that read each derived value."""
    uses: dict[int, set[str]] = {value.index: set() for value in graph.leaves("derived")}
    for node in graph.nodes if uses else ():
        for operand in node.operands:
            if operand in uses:
                uses[operand].add(node.op)
    return uses


def weight_ranges(
    graph: Graph,
    weights: Weights,
    level: WeightLevel | float | None = None,
    *,
    only: Collection[int] | None = None,
) -> dict[int, Interval]:
    """The interval of every parameter of the graph.

    Args:
        graph: A recorded step.
        weights: "initial" (as they are), "envelope" (see `ENVELOPE_FACTOR`), "anything" (any
            finite number), a number r for [-r, r], or ranges and levels by parameter name or
            pattern, with the envelope elsewhere.
        level: A level in place of the one in `weights`; ranges by name and those that were to
            stay "initial" stay. A number g here lets the others grow to g times their initial
            size.
        only: Numbers of the values that are asked for; all parameters by default.

    Raises:
        ArgumentError: As `starting_ranges`.
    """
    named: Mapping[str, Any] = {}
    if isinstance(weights, Mapping):
        parameters = {value.name for value in graph.leaves("parameter")}
        named = _checked("weights", weights, parameters, levels=True)
    else:
        _check_level(weights)
    ranges = {}
    for value in graph.leaves("parameter"):
        if only is not None and value.index not in only:
            continue
        chosen: Any = _lookup(value.name, named)
        if value.data is None:
            ranges[value.index] = Interval.top(value.shape, value.dtype)
        elif chosen is not None and not isinstance(chosen, str):
            ranges[value.index] = _from_pair(chosen, value)
        elif level is not None and chosen != "initial":
            ranges[value.index] = _at_level(graph, value, level, grown=True)
        elif chosen is not None:
            ranges[value.index] = _at_level(graph, value, cast("WeightLevel", chosen))
        else:
            usual: Any = "envelope" if isinstance(weights, Mapping) else weights
            ranges[value.index] = _at_level(graph, value, usual)
    return ranges


def describe_weights(weights: Weights) -> str:
    """The weights asked for, in words."""
    if isinstance(weights, (int, float)):
        return f"within [{-weights:g}, {weights:g}]"
    named = f"; {len(weights)} by name" if isinstance(weights, Mapping) and weights else ""
    level: Any = "envelope" if isinstance(weights, Mapping) else weights
    return _LEVEL_WORDS[level] + named


_LEVEL_WORDS: Mapping[WeightLevel, str] = {
    "initial": "as initialised",
    "envelope": f"up to {ENVELOPE_FACTOR:g} times their initial size",
    "anything": "any finite number",
}


def _at_level(
    graph: Graph, value: Value, level: WeightLevel | float, *, grown: bool = False
) -> Interval:
    """A parameter at a level, up to a number, or grown to so many times its initial size."""
    assert value.data is not None
    largest = torch.finfo(value.dtype).max
    if level == "initial":
        return Interval.point(value.data.cpu())  # bounds live on the CPU, wherever the step ran
    if level == "anything":
        reach = largest
    elif isinstance(level, (int, float)) and not grown:
        reach = float(level)
    else:
        factor = level if isinstance(level, (int, float)) else ENVELOPE_FACTOR
        reach = factor * _initial_size(graph, value)
    reach = min(reach, largest)
    return Interval.full(-reach, reach, value.shape, value.dtype)


def _initial_size(graph: Graph, value: Value) -> float:
    """Largest initial magnitude of a parameter, at least `SIZE_FLOOR`; looked for once."""
    assert value.data is not None
    key = ("initial size", value.index)
    known = graph.derived.get(key)
    if known is None or known[0] is not value.data:
        lower, upper = finite_extremes(value.data)
        known = graph.derived[key] = (value.data, max(SIZE_FLOOR, abs(lower), abs(upper)))
    return float(known[1])


def _check_level(weights: WeightLevel | float) -> None:
    if weights in LEVELS:
        return
    if isinstance(weights, (int, float)) and not isinstance(weights, bool):
        if math.isfinite(weights) and weights > 0:
            return
        raise ArgumentError(f"weights must be a positive finite number; got {weights!r}.")
    raise ArgumentError(
        f"weights must be {', '.join(map(repr, LEVELS))}, a number or a mapping of ranges; "
        f"got {weights!r}."
    )


def _checked(
    argument: str,
    ranges: Mapping[str, Range | WeightLevel] | None,
    names: set[str],
    *,
    levels: bool = False,
) -> dict[str, Any]:
    if ranges is None:
        return {}
    if not isinstance(ranges, Mapping):
        raise ArgumentError(
            f"{argument} must map names to ranges (lower, upper); got {type(ranges).__name__}."
        )
    checked: dict[str, Any] = {}
    for pattern, pair in ranges.items():
        label = f"{argument}[{pattern!r}]"
        if not any(fits(name, pattern) for name in names):
            known = ", ".join(sorted(names)) or "none"
            raise ArgumentError(f"{label} matches no name; known names: {known}.")
        if isinstance(pair, Interval) or (levels and isinstance(pair, str) and pair in LEVELS):
            checked[pattern] = pair
        else:
            checked[pattern] = _checked_pair(label, pair)
    return checked


def _checked_pair(label: str, pair: Any) -> tuple[float, float]:
    is_pair = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
    if not is_pair or not all(
        isinstance(end, (int, float)) and not isinstance(end, bool) for end in pair
    ):
        raise ArgumentError(f"{label} must be a pair (lower, upper); got {pair!r}.")
    lower, upper = float(pair[0]), float(pair[1])
    if math.isnan(lower) or math.isnan(upper) or lower > upper:
        raise ArgumentError(f"{label} must have lower <= upper, without NaN; got {pair!r}.")
    return lower, upper


def _lookup(name: str, ranges: Mapping[str, Any]) -> Any:
    """By name, else by the first pattern that fits."""
    if name in ranges:
        return ranges[name]
    return next((pair for pattern, pair in ranges.items() if fits(name, pattern)), None)


def _from_pair(pair: Range, value: Value) -> Interval:
    if isinstance(pair, Interval):
        _check_shape(pair, value)
        return Interval.between(
            pair.lower, pair.upper, value.shape, value.dtype, may_nan=pair.may_nan
        )
    return Interval.full(*pair, value.shape, value.dtype)


def _check_shape(bounds: Interval, value: Value) -> None:
    try:
        fits = torch.broadcast_shapes(bounds.lower.shape, value.shape) == value.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ArgumentError(
            f"the interval for {value.name!r} must have bounds that broadcast to "
            f"{list(value.shape)}; got {list(bounds.lower.shape)}."
        )


def _input_range(value: Value, pair: Range | None, more: Seen | None) -> Interval:
    value.is_shared = False
    if pair is not None:
        return _from_pair(pair, value)
    if value.data is None:
        return Interval.top(value.shape, value.dtype)
    seen = Seen.of(value.data)
    seen = seen if more is None else seen | more
    value.is_shared = seen.is_shared
    margin = 0.0 if seen.is_whole else INPUT_MARGIN * (seen.upper - seen.lower)
    limit = torch.finfo(value.dtype).max
    lower, upper = max(seen.lower - margin, -limit), min(seen.upper + margin, limit)
    return Interval.full(lower, upper, value.shape, value.dtype)


_LABELS = frozenset(
    {"nll_loss_forward", "nll_loss2d_forward", "nll_loss_backward", "nll_loss2d_backward"}
)
"""Operators that take any class for a label by themselves, and need to know the ignored ones."""
_INDEXED = frozenset(
    {"index", "index_select", "gather", "embedding", "take", "index_put", "_unsafe_index_put",
     "scatter", "scatter_add", "index_add", "embedding_dense_backward"}
)  # fmt: skip


def _derived_range(value: Value, pair: Range | None, more: Seen | None, uses: set[str]) -> Interval:
    """What is made of integer inputs: labels, token ids, lengths."""
    is_index = not value.dtype.is_floating_point and bool(uses) and uses <= _INDEXED
    if uses & _LABELS or (value.spread is None and not is_index):
        return _constant_range(value)
    if pair is not None and not is_index:
        return _from_pair(pair, value)
    assert value.data is not None
    lower, upper = finite_extremes(value.data) if value.spread is None else value.spread
    if more is not None:
        lower, upper = min(lower, more.lower), max(upper, more.upper)
    if is_index:  # of which only one is known, the others are just as good
        upper = max(upper, lower + 1)
    value.is_shared = value.data.shape == value.shape and Seen.of(value.data).is_shared
    return Interval.full(lower, upper, value.shape, value.dtype)


def _constant_range(value: Value) -> Interval:
    if value.data is None:
        return Interval.top(value.shape, value.dtype)
    point = Interval.point(value.data.cpu())  # bounds live on the CPU, wherever the step ran
    if tuple(value.data.shape) == value.shape:
        return point
    # A large constant, kept by its extremes.
    return Interval.between(point.low, point.high, value.shape, value.dtype, point.may_nan)
