"""The run as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ranum._version import __version__
from ranum.analysis.result import Advice, Analysis, Defect
from ranum.errors import ArgumentError
from ranum.guards.types import Culprit, History, Incident
from ranum.report import charts, words
from ranum.report.excerpt import excerpt

if TYPE_CHECKING:
    from jinja2 import Template

CARDS = 40
"""Incidents told in full; the others get a line each."""

Tone = Literal["good", "warn", "bad", "calm"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The report's first sentence.

    Attributes:
        text: In plain words.
        tone: Colour of its mark.
    """

    text: str
    tone: Tone


def write_html(
    path: str | os.PathLike[str],
    *,
    analysis: Analysis | None = None,
    history: History | None = None,
    repair: Any = None,
    diffs: Mapping[str, str] | None = None,
    title: str = "Ranum report",
    outcome: str = "",
) -> Path:
    """Writes the report, or replaces it: readers see the old file or the new one, never half.

    Args:
        path: File to write; missing folders are made.
        analysis: What was found before training.
        history: What the guard saw and did.
        repair: Result of a configuration repair.
        diffs: Proposed changes of the source, unified diffs by title. One whose title is a
            defect's `file:line` is shown with that defect.
        title: Of the page.
        outcome: One sentence on how the run ended.

    Returns:
        The path written.

    Raises:
        ArgumentError: If `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise ArgumentError(f"path must be a file; got the folder {str(target)!r}.")
    page = render_html(
        analysis=analysis,
        history=history,
        repair=repair,
        diffs=diffs,
        title=title,
        outcome=outcome,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(page, encoding="utf-8")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def render_html(
    *,
    analysis: Analysis | None = None,
    history: History | None = None,
    repair: Any = None,
    diffs: Mapping[str, str] | None = None,
    title: str = "Ranum report",
    outcome: str = "",
) -> str:
    """The report as text; arguments as for `write_html`."""
    from markupsafe import Markup

    certain, possible = words.grouped(analysis) if analysis else ([], [])
    history = history or History()
    proposed = dict(diffs or {})
    rows, axis = charts.bound_rows(analysis, history) if analysis else ([], "")

    def view(defect: Defect, times: int) -> dict[str, Any]:
        return _defect(defect, times, proposed.pop(defect.source.location, ""))

    proven = [view(*entry) for entry in certain]
    unproven = [
        (level, [view(*entry) for entry in group]) for level, group in words.by_reach(possible)
    ]
    page = _template().render(
        title=words.clean(title),
        outcome=words.clean(outcome),
        verdict=verdict(analysis, history, repair),
        tiles=_tiles(analysis, history, repair),
        timeline=Markup(charts.timeline(history)),
        symptoms=Markup(charts.symptoms(history)),
        gradients=Markup(charts.gradients(history)),
        warnings=[finding for finding in history.findings if finding.severity == "warning"],
        incidents=[
            _incident(number, incident, analysis)
            for number, incident in enumerate(history.incidents[:CARDS], 1)
        ],
        others=history.incidents[CARDS:],
        certain=proven,
        possible=unproven,
        unproven=len(possible),
        diffs=[(words.clean(name), _diff(text)) for name, text in proposed.items()],
        analysis=analysis,
        advice=[_advice(advice) for advice in analysis.advice] if analysis else [],
        unknowns=[words.clean(str(unknown)) for unknown in analysis.unknowns] if analysis else [],
        notes=[words.clean(note) for note in analysis.notes] if analysis else [],
        ranges=_ranges(analysis) if analysis else [],
        bounds=rows,
        axis=Markup(axis),
        infinite=any("Inf" in row.bounds for row in rows),
        repair=repair,
        settings=_settings(repair) if repair else [],
        trials=Markup(charts.trials(repair)) if repair else "",
        internal_faults=[words.clean(fault) for fault in history.internal_faults],
        environment=_environment(),
        words=words,
        Markup=Markup,
    )
    return page.lstrip()  # the macros above the page leave empty lines


@cache
def _template() -> Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ranum.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.jinja")


def verdict(analysis: Analysis | None, history: History, repair: Any = None) -> Verdict:
    """What a reader in a hurry needs to know."""
    certain, possible = words.grouped(analysis) if analysis else ([], [])
    incidents = history.incidents
    stopped = next((incident for incident in incidents if incident.action == "stop"), None)
    if repair is not None and repair.is_repaired:
        changed = f"{len(repair.patch)} of {words.count(len(words.settings(repair)), 'setting')}"
        return Verdict(f"Repaired: the run trains with {changed} changed.", "good")
    if repair is not None:
        return Verdict("No configuration was found that trains.", "bad")
    if stopped is not None:
        return Verdict(f"The run was stopped at step {stopped.step:,}.", "bad")
    if incidents:
        faults = words.count(len(incidents), "fault")
        return Verdict(f"{faults} caught before the optimizer step; training went on.", "warn")
    if certain:
        return Verdict(f"{words.count(len(certain), 'operator')} can fail; it is proven.", "bad")
    if history.readings:
        return Verdict(f"No faults in {words.count(words.steps_seen(history), 'step')}.", "good")
    if analysis is None:
        return Verdict("Nothing was recorded.", "calm")
    if possible:
        return Verdict(f"Nothing proven; {words.count(len(possible), 'possible defect')}.", "calm")
    if not analysis.is_complete:
        return Verdict("No numerical defects in what could be bounded.", "calm")
    return Verdict("No numerical defects.", "good")


def _tiles(analysis: Analysis | None, history: History, repair: Any) -> list[tuple[str, str, Tone]]:
    """Name, value and tone of the figures under the headline."""
    tiles: list[tuple[str, str, Tone]] = []
    losses = [reading.loss for reading in history.readings if reading.loss is not None]
    if history.readings:
        warned = sum(finding.severity == "warning" for finding in history.findings)
        incidents = len(history.incidents)
        tiles.append(("steps", f"{words.steps_seen(history):,}", "calm"))
        if losses:
            tiles.append(("last loss", words.number(losses[-1]), "calm"))
        tiles.append(("incidents", str(incidents), "bad" if incidents else "calm"))
        tiles.append(("warnings", str(warned), "warn" if warned else "calm"))
    if analysis is not None:
        certain, possible = map(len, words.grouped(analysis))
        tiles.append(("certain defects", str(certain), "bad" if certain else "calm"))
        tiles.append(("possible defects", str(possible), "calm"))
    if repair is not None:
        tiles.append(("trials", str(len(repair.trials)), "calm"))
    return tiles


# --- views: what the template prints, as plain values ----------------------------------------


def _prose(text: str) -> str:
    """Text for people: the minus of -Inf is one that lines do not break after."""
    return words.clean(text).replace("-Inf", "\N{MINUS SIGN}Inf")


def _defect(defect: Defect, times: int, diff: str) -> dict[str, Any]:
    return {
        "code": words.clean(defect.code),
        "title": words.clean(f"{defect.op} fails for {defect.bad}"),
        "times": times,
        "place": words.clean(defect.source.location),
        "module": words.module(defect.source.module) if defect.source.module is not None else "",
        "lines": excerpt(defect.source, around=2),
        "bounds": _prose(words.interval(defect.bounds)),
        "outcome": _prose(defect.outcome),
        "gradient_only": defect.gradient_only,
        "consequence": _prose(defect.consequence),
        "drift": words.clean(defect.drift),
        "remedy": words.clean(defect.remedy),
        "witness": _prose(words.witness(defect.witness, defect.op)) if defect.witness else "",
        "training": _prose(words.training(defect.training, defect.op)) if defect.training else "",
        "prospect": words.prospect(defect),
        "proof": defect.proof,
        "diff": _diff(diff),
    }


def _incident(number: int, incident: Incident, analysis: Analysis | None) -> dict[str, Any]:
    culprit = incident.culprit
    foretold = _foretold(culprit, analysis)
    return {
        "number": number,
        "step": f"{incident.step:,}",
        "epoch": incident.epoch,
        "symptom": words.clean(incident.finding.symptom),
        "code": words.clean(incident.finding.code),
        "message": _prose(incident.finding.message),
        "where": words.clean(incident.finding.where),
        "evidence": [
            (words.clean(name.replace("_", " ")), _prose(words.number(value)))
            for name, value in incident.finding.evidence.items()
        ],
        "culprit": _prose(words.culprit(culprit)) if culprit else "",
        "place": words.clean(culprit.source.location)
        if culprit and culprit.source.is_known
        else "",
        "module": words.module(culprit.source.module)
        if culprit and culprit.source.module is not None
        else "",
        "lines": excerpt(culprit.source, around=2) if culprit else (),
        "operands": [_prose(str(operand)) for operand in culprit.operands] if culprit else [],
        "action": words.action(incident),
        "tone": "bad" if incident.action == "stop" else "good",
        "detail": _prose(incident.detail),
        "diff": _diff(incident.patch),
        "file": words.clean(incident.file),
        "foretold": words.clean(foretold.code) if foretold else "",
        "remedy": words.clean(foretold.remedy) if foretold else "",
    }


def _foretold(culprit: Culprit | None, analysis: Analysis | None) -> Defect | None:
    """The defect that the analysis had found at the culprit's expression."""
    if culprit is None or analysis is None or not culprit.source.is_known:
        return None
    place = (culprit.source.file, culprit.source.line, culprit.source.column)
    for defect in analysis.defects:
        if (defect.source.file, defect.source.line, defect.source.column) == place:
            return defect
    return None


def _diff(text: str) -> list[tuple[str, str]]:
    """Lines of a unified diff, each with the class it is coloured by."""
    lines = []
    for line in text.splitlines():
        kind = {"+": "added", "-": "removed", "@": "hunk"}.get(line[:1], "")
        if line.startswith(("+++ ", "--- ")):
            kind = "file"
        lines.append((kind, words.clean(line)))
    return lines


def _settings(repair: Any) -> list[tuple[str, str, str, bool]]:
    """Name, faulty value, repaired value and whether it changed; changed ones first."""
    patch = repair.patch
    changed = [(name, old, new, True) for name, old, new in words.changes(patch)]
    kept = [
        (words.clean(name), words.setting(value), words.setting(value), False)
        for name, value in words.settings(repair).items()
        if name not in patch
    ]
    return changed + kept


def _advice(advice: Advice) -> dict[str, str]:
    return {
        "code": words.clean(advice.code),
        "place": words.clean(advice.source.location),
        "expression": words.clean(advice.source.expression or advice.op),
        "loss": words.clean(advice.loss),
        "rewrite": words.clean(advice.rewrite),
    }


def _ranges(analysis: Analysis) -> list[tuple[str, str]]:
    return [(words.clean(name), words.interval(bound)) for name, bound in analysis.ranges.items()]


def _environment() -> list[tuple[str, str]]:
    return [
        ("Ranum", __version__),
        ("torch", torch.__version__),
        ("Python", platform.python_version()),
        ("written", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")),
    ]
