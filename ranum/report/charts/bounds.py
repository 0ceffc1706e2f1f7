"""Each module's interval against the extremes that were seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ranum.analysis.result import Analysis
from ranum.guards.types import History
from ranum.report import svg, words


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRow:
    """One module's interval against what was seen.

    Attributes:
        name: Module path, or "loss".
        bounds: The interval in words.
        observed: The extremes seen in words, "" if none were.
        is_outside: True if an element outside the interval was seen.
        drawing: A bar, on the axis that `bound_axis` draws.
    """

    name: str
    bounds: str
    observed: str
    is_outside: bool
    drawing: str


BAR_WIDTH, BAR_HEIGHT = 400.0, 18.0


def bound_rows(analysis: Analysis, history: History | None = None) -> tuple[list[BoundRow], str]:
    """A row for each module output and the loss, those left by the run first; and the axis."""
    seen = observed_extremes(analysis, history)
    ends = [end for bound in analysis.bounds.values() for end in (bound.low, bound.high)]
    ends += [end for pair in seen.values() for end in pair]
    finite = [abs(end) for end in ends if math.isfinite(end)]
    reach = min(max([*finite, 1.0]) * 2, 1e39)
    scale = svg.Scale(-reach, reach, 6.0, BAR_WIDTH - 6.0, "symlog")
    if all(end >= 0 for end in ends):
        scale = svg.Scale(0.0, reach, 6.0, BAR_WIDTH - 6.0, "symlog")
    rows = []
    for name, bound in analysis.bounds.items():
        pair = seen.get(name)
        outside = pair is not None and (_below(pair[0], bound.low) or _below(-pair[1], -bound.high))
        rows.append(
            BoundRow(
                name=words.module(name),
                bounds=words.interval(bound),
                observed="" if pair is None else words.span(*pair),
                is_outside=outside,
                drawing=_bar(bound.low, bound.high, pair, outside, scale),
            )
        )
    rows.sort(key=lambda row: not row.is_outside)
    return rows, _bar_axis(scale)


def observed_extremes(
    analysis: Analysis, history: History | None
) -> dict[str, tuple[float, float]]:
    """Smallest and largest element seen per module: in the recorded step and in the run."""
    seen = dict(analysis.observed)
    for reading in history.readings if history else ():
        for name, now in reading.activations.items():
            low, high = seen.get(name, (math.inf, -math.inf))
            seen[name] = (least(low, now.lower), -least(-high, -now.upper))
    return seen


def least(one: float, other: float) -> float:
    """The smaller one; NaN wins, so that it is seen."""
    return math.nan if math.isnan(one) or math.isnan(other) else min(one, other)


def _below(seen: float, bound: float) -> bool:
    return math.isnan(seen) or seen < bound


def _bar(
    low: float, high: float, seen: tuple[float, float] | None, outside: bool, x: svg.Scale
) -> str:
    middle = BAR_HEIGHT / 2
    start, end = x(low), x(high)
    parts = [
        svg.tag("path", d=f"M{x(0.0):.1f} 0V{BAR_HEIGHT}", class_="grid"),
        svg.tag(
            "rect", x=start, y=2.0, width=max(end - start, 2.0), height=14.0, rx=2, class_="band"
        ),
    ]
    if math.isinf(low):
        parts.append(svg.tag("path", d=f"M{start - 1:.1f} 4l-4 5 4 5", class_="open"))
    if math.isinf(high):
        parts.append(svg.tag("path", d=f"M{end + 1:.1f} 4l4 5 -4 5", class_="open"))
    if seen is not None and not any(map(math.isnan, seen)):
        left, right = x(seen[0]), x(seen[1])
        wide = max(right - left, 3.0)
        kind = "seen outside" if outside else "seen"
        parts.append(
            svg.tag("rect", x=left, y=middle - 3, width=wide, height=6.0, rx=1.5, class_=kind)
        )
    return svg.tag(
        "svg",
        "".join(parts),
        viewBox=f"0 0 {BAR_WIDTH:.0f} {BAR_HEIGHT:.0f}",
        class_="bar",
        aria_hidden="true",
    )


def _bar_axis(x: svg.Scale) -> str:
    ticks = x.ticks(6)
    parts = [svg.label(x(tick), 12.0, svg.tick_text(tick), class_="tick middle") for tick in ticks]
    return svg.tag(
        "svg",
        "".join(parts),
        viewBox=f"0 0 {BAR_WIDTH:.0f} {BAR_HEIGHT:.0f}",
        class_="bar",
        aria_hidden="true",
    )
