"""What the drawings share: their width, the axis of steps, labels of rows."""

from __future__ import annotations

from html import escape

from ranum.guards.types import History
from ranum.report import svg, words

WIDTH = 960.0
"""User units; the page scales the drawing to its column."""

LEFT, RIGHT = 64.0, WIDTH - 12.0
"""Ends of a plot's x axis."""

LABELS = 190.0
"""Where rows with a name begin."""

ROWS = 40
"""Rows drawn at most."""

COLUMNS = 96
"""Parts a row is divided into at most."""


def step_scale(history: History, start: float, end: float) -> svg.Scale:
    """Holds every step that the history names."""
    steps = [reading.step for reading in history.readings]
    steps += [incident.step for incident in history.incidents]
    steps += [finding.step for finding in history.findings]
    first, last = min(steps, default=0), max(steps, default=1)
    return svg.Scale(first, max(last, first + 1), start, end)


def step_axis(x: svg.Scale, y: float) -> list[str]:
    """The line, the ticks and their numbers."""
    line = svg.tag("path", d=f"M{x.start} {y - 6:.1f}H{x.end}", class_="axis")
    return [line, *counts(x, y, "step")]


def counts(x: svg.Scale, y: float, name: str) -> list[str]:
    """Whole numbers below an axis, with the name of what is counted at their left."""
    whole = [tick for tick in x.ticks(8) if tick == int(tick)]
    return [
        *(svg.label(x(tick), y + 12, f"{int(tick):,}", class_="tick middle") for tick in whole),
        svg.label(LEFT - 8 if x.start < LABELS else x.start - 8, y + 12, name, class_="tick end"),
    ]


def levels(y: svg.Scale) -> list[str]:
    """Lines across a plot at round values, with their numbers at the left."""
    parts: list[str] = []
    for tick in y.ticks(4):
        at = y(tick)
        parts.append(svg.tag("path", d=f"M{LEFT} {at:.1f}H{RIGHT}", class_="grid"))
        parts.append(svg.label(LEFT - 8, at + 4, svg.tick_text(tick), class_="tick end"))
    return parts


def row_label(name: str, top: float) -> str:
    """A name at the left of a row, its middle left out if it is long."""
    shown = words.clean(name)
    short = shown if len(shown) <= 27 else f"{shown[:12]}…{shown[-14:]}"
    title = svg.tag("title", escape(shown)) if short != shown else ""
    return svg.tag(
        "text", title + escape(short), x=LABELS - 10, y=top + 15, class_="tick end label"
    )
