"""The trials of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ranum.report import svg, words
from ranum.report.charts import axes


def trials(result: Any) -> str:
    """Score by trial, by what became of it, with the best so far. Empty without trials."""
    records = list(result.trials)
    if not records:
        return ""
    scores = [record.score for record in records if math.isfinite(record.score)]
    last = max(record.number for record in records)
    x = svg.Scale(0, max(last, 1), axes.LEFT + 12, axes.RIGHT - 12)
    y = svg.fitted(scores, 190.0, 44.0)
    parts = [
        svg.label(axes.LEFT, 14.0, "Score, lower is better", class_="name"),
        *axes.levels(y),
        svg.tag("path", d=_best_so_far(records, x, y), class_="best"),
        *(_trial(record, x(record.number), y) for record in records),
        *axes.counts(x, 202.0, "trial"),
    ]
    if len(scores) < len(records):
        parts.append(svg.label(axes.LEFT - 8, 32.0, "failed", class_="tick end"))
    best = f"the best score is {words.number(min(scores))}" if scores else "none was completed"
    return svg.figure(
        axes.WIDTH,
        224.0,
        parts,
        title="Score of each trial of the search",
        text=f"{words.count(len(records), 'trial')}; {best}.",
        name="trials",
    )


def _trial(record: Any, at: float, y: svg.Scale) -> str:
    title = f"Trial {record.number}, {record.state}: {words.number(record.score)}"
    if record.reason:
        title += f". {record.reason}"
    if not math.isfinite(record.score):
        cross = f"M{at - 4:.1f} 24l8 8m0 -8l-8 8"
        return svg.titled("path", words.clean(title), d=cross, class_="cross")
    kind = "pruned" if record.state == "pruned" else "complete"
    return svg.titled(
        "circle", words.clean(title), cx=at, cy=y(record.score), r=5, class_=f"trial {kind}"
    )


def _best_so_far(records: Sequence[Any], x: svg.Scale, y: svg.Scale) -> str:
    best, path = math.inf, ""
    for record in sorted(records, key=lambda record: record.number):
        if record.state != "complete" or not record.score < best:
            continue
        best = record.score
        at, low = x(record.number), y(best)
        path += f"H{at:.1f}V{low:.1f}" if path else f"M{at:.1f} {low:.1f}"
    return f"{path}H{x.end:.1f}" if path else "M0 0"
