"""Loss and gradient norm over the run, with what happened."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ranum.guards.types import Finding, History, Incident
from ranum.report import svg, words
from ranum.report.charts import axes


def timeline(history: History) -> str:
    """Loss and gradient norm over the steps with incidents, rollbacks and warnings.

    Empty if there is no reading.
    """
    readings = history.readings
    if not readings:
        return ""
    losses: list[svg.Point] = [(reading.step, reading.loss) for reading in readings]
    norms: list[svg.Point] = [(reading.step, reading.grad_norm) for reading in readings]
    warnings = [finding for finding in history.findings if finding.severity == "warning"]
    x = axes.step_scale(history, axes.LEFT, axes.RIGHT)
    events_end = 58.0 if history.incidents or warnings else 8.0
    plots = [
        ("Loss", losses, svg.fitted((y for _, y in losses), events_end + 190, events_end + 24)),
        (
            "Gradient norm",
            norms,
            svg.fitted((y for _, y in norms), events_end + 350, events_end + 224, kind="log"),
        ),
    ]
    plots = [plot for plot in plots if any(y is not None for _, y in plot[1])]
    height = max([plot[2].start for plot in plots], default=events_end) + 22
    parts: list[str] = []
    for name, points, y in plots:
        parts += _plot(name, points, x, y)
    parts += axes.step_axis(x, height - 16)
    parts += _events(history.incidents, warnings, x, events_end, height - 22)
    return svg.figure(
        axes.WIDTH,
        height,
        parts,
        title="Loss and gradient norm over the steps of the run",
        text=_in_words(history, warnings),
        name="timeline",
    )


def _plot(name: str, points: Sequence[svg.Point], x: svg.Scale, y: svg.Scale) -> list[str]:
    suffix = {"log": " (log scale)", "symlog": " (symmetric log scale)", "linear": ""}[y.kind]
    parts = [svg.label(axes.LEFT, y.end - 10, name + suffix, class_="name")]
    parts += axes.levels(y)
    line = svg.polyline(svg.thinned(points), x, y)
    parts.append(svg.tag("path", d=line, class_="line"))
    bad = [step for step, value in points if value is not None and not math.isfinite(value)]
    if bad:
        marks = "".join(f"M{at:.1f} {y.end:.1f}v6" for at in _apart((x(s) for s in bad), 1.0))
        title = f"{name} not finite in {words.count(len(bad), 'step')}"
        parts.append(svg.titled("path", title, d=marks, class_="bad"))
    return parts


def _events(
    incidents: Sequence[Incident],
    warnings: Sequence[Finding],
    x: svg.Scale,
    lane: float,
    bottom: float,
) -> list[str]:
    middle = lane - 18
    places = _apart((x(incident.step) for incident in incidents), 2.0)
    parts = [
        svg.tag("path", d=f"M{at:.1f} {middle:.1f}V{bottom:.1f}", class_="moment") for at in places
    ]
    parts += [_way_back(incident, x, middle) for incident in incidents[:60]]
    for finding in warnings[:200]:
        at, low = x(finding.step), lane + 4
        shape = f"M{at:.1f} {low - 9:.1f}l5 9h-10z"
        title = f"Step {finding.step:,}: {finding.message}"
        parts.append(svg.titled("path", words.clean(title), d=shape, class_="warning"))
    free = -math.inf
    for number, incident in enumerate(incidents[:200], 1):
        at = x(incident.step)
        title = words.clean(f"Step {incident.step:,}: {incident.finding.message}")
        if at - free < 19:
            parts.append(svg.titled("circle", title, cx=at, cy=middle, r=3, class_="incident"))
            continue
        free = at
        parts.append(svg.titled("circle", title, cx=at, cy=middle, r=9, class_="incident"))
        parts.append(svg.label(at, middle + 4, str(number), class_="badge middle"))
    return parts


def _way_back(incident: Incident, x: svg.Scale, y: float) -> str:
    """An arc from the fault to the snapshot gone back to."""
    if incident.back_to is None:
        return ""
    start, end = x(incident.step), x(incident.back_to)
    top = y - 15 - min((start - end) / 8, 20.0)
    arc = f"M{start:.1f} {y - 9:.1f}C{start:.1f} {top:.1f} {end:.1f} {top:.1f} {end:.1f} {y:.1f}"
    head = "m-4 -6l4 6l4 -6"
    title = f"Step {incident.step:,}: went back to step {incident.back_to:,}"
    return svg.titled("path", title, d=arc + head, class_="back")


def _in_words(history: History, warnings: Sequence[Finding]) -> str:
    losses = [reading.loss for reading in history.readings if reading.loss is not None]
    text = words.count(words.steps_seen(history), "step")
    if losses:
        text += f"; the loss went from {words.number(losses[0])} to {words.number(losses[-1])}"
    text += f"; {words.count(len(history.incidents), 'incident')}"
    return f"{text} and {words.count(len(warnings), 'warning')}."


def _apart(places: Iterable[float], least: float) -> list[float]:
    """The places in order, without those closer than `least` to the one before."""
    kept: list[float] = []
    for place in sorted(places):
        if not kept or place - kept[-1] >= least:
            kept.append(place)
    return kept
