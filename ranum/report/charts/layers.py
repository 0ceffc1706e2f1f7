"""What was seen where: symptoms by place, gradient norms by parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ranum.guards.types import Finding, History, Reading
from ranum.report import svg, words
from ranum.report.charts import axes
from ranum.report.charts.bounds import least


def symptoms(history: History) -> str:
    """A strip per symptom and place: when it was seen. Empty without findings."""
    if not history.findings:
        return ""
    rows: dict[tuple[str, str], list[Finding]] = {}
    for finding in history.findings:
        rows.setdefault((finding.symptom, finding.where), []).append(finding)
    x = axes.step_scale(history, axes.LABELS, axes.RIGHT)
    wide = max((x.end - x.start) / axes.COLUMNS, 3.0)
    parts: list[str] = []
    for row, ((symptom, where), findings) in enumerate(list(rows.items())[: axes.ROWS]):
        top = row * 22.0
        parts.append(axes.row_label(f"{symptom} {where}".strip(), top))
        parts.append(
            svg.tag("rect", x=x.start, y=top + 3, width=x.end - x.start, height=16.0, class_="lane")
        )
        for finding in findings[: axes.COLUMNS]:
            left = min(x(finding.step) - wide / 2, x.end - wide)
            title = words.clean(f"Step {finding.step:,}: {finding.message}")
            parts.append(
                svg.titled(
                    "rect",
                    title,
                    x=max(left, x.start),
                    y=top + 3,
                    width=wide,
                    height=16.0,
                    class_=finding.severity,
                )
            )
    height = min(len(rows), axes.ROWS) * 22.0 + 34
    parts += axes.step_axis(x, height - 24)
    names = words.listed(sorted({words.clean(symptom) for symptom, _ in rows}), 8)
    return svg.figure(
        axes.WIDTH,
        height,
        parts,
        title="Symptoms over the steps of the run",
        text=f"Seen: {names}, in {words.count(len(rows), 'place')}.",
        name="symptoms",
    )


def gradients(history: History) -> str:
    """Gradient norm of every parameter over the sampled steps, as a map of five shades."""
    sampled = [reading for reading in history.readings if reading.grad_norms]
    names = list(dict.fromkeys(name for reading in sampled for name in reading.grad_norms))
    norms = [norm for reading in sampled for norm in reading.grad_norms.values()]
    positive = [norm for norm in norms if math.isfinite(norm) and norm > 0]
    if len(sampled) < 2 or not positive:
        return ""
    x = axes.step_scale(history, axes.LABELS, axes.RIGHT)
    cells, shown = _cells(sampled, names[: axes.ROWS], x)
    low, high = math.log10(min(positive)), math.log10(max(positive))
    shade = svg.Scale(low, max(high, low + 1e-9), 0.0, 4.99)
    shapes: dict[str, list[str]] = {}
    for row, name in enumerate(names[: axes.ROWS]):
        for column, norm in enumerate(cells[name]):
            if norm is None:
                continue
            kind = "fault" if not math.isfinite(norm) else "shade0"
            if math.isfinite(norm) and norm > 0:
                kind = f"shade{int(shade(math.log10(norm)))}"
            left = x.start + column * (x.end - x.start) / shown
            wide = (x.end - x.start) / shown
            shapes.setdefault(kind, []).append(
                f"M{left:.1f} {row * 16 + 1}h{wide:.1f}v14h-{wide:.1f}z"
            )
    parts = [svg.tag("path", d="".join(paths), class_=kind) for kind, paths in shapes.items()]
    for row, name in enumerate(names[: axes.ROWS]):
        parts.append(axes.row_label(name, row * 16.0 - 3))
    bottom = min(len(names), axes.ROWS) * 16.0
    parts += axes.step_axis(x, bottom + 10)
    parts += _legend(10.0**low, 10.0**high, bottom + 46)
    return svg.figure(
        axes.WIDTH,
        bottom + 62,
        parts,
        title="Gradient norm of each parameter over the steps of the run",
        text=f"Norms from {words.number(min(positive))} to {words.number(max(positive))}.",
        name="gradients",
    )


def _cells(
    sampled: Sequence[Reading], names: Sequence[str], x: svg.Scale
) -> tuple[Mapping[str, list[float | None]], int]:
    """The largest norm per parameter and column; not finite counts as largest."""
    columns = min(axes.COLUMNS, len(sampled))
    cells: dict[str, list[float | None]] = {name: [None] * columns for name in names}
    whole = max(x.upper - x.lower, 1)
    for reading in sampled:
        column = min(int((reading.step - x.lower) / whole * columns), columns - 1)
        for name, norm in reading.grad_norms.items():
            if name in cells:
                before = cells[name][column]
                cells[name][column] = norm if before is None else -least(-before, -norm)
    return cells, columns


def _legend(low: float, high: float, y: float) -> list[str]:
    left = axes.LABELS + 64
    shades = [
        svg.tag("rect", x=left + shade * 28, y=y, width=28.0, height=12.0, class_=f"shade{shade}")
        for shade in range(5)
    ]
    return [
        *shades,
        svg.label(axes.LABELS, y + 10, words.number(low), class_="tick"),
        svg.label(left + 148, y + 10, words.number(high), class_="tick"),
        svg.tag("rect", x=left + 230, y=y, width=14.0, height=12.0, class_="fault"),
        svg.label(left + 250, y + 10, "not finite", class_="tick"),
    ]
