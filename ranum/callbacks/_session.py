"""One guarded run, whatever the framework: what was found, done, shown and written.

The adapters translate hooks; everything they share is here. A fault of Ranum's own is
contained: reported once, the part that failed is switched off, training goes on.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ranum.analysis.analyze import analyze
from ranum.analysis.capture.program import Program
from ranum.analysis.confirm import confirm_all
from ranum.analysis.result import Analysis, Defect
from ranum.analysis.scan import Batches
from ranum.errors import ArgumentError, CaptureError, MissingExtraError, RanumWarning
from ranum.guards.guard import Decision
from ranum.guards.recovery import Fault
from ranum.guards.types import Culprit, Finding, History, Incident
from ranum.repair.clipping import Clip, Rewrite, best_cure
from ranum.repair.patch import AppliedPatch
from ranum.report import Panels, Story, open_writer, write_html

_log = logging.getLogger(__name__)

CONFIRM_LIMIT = 30_000_000
"""Models with more weights get no search for failing inputs before training: it works on copies
of the weights in float64."""


class Session:
    """The state of one guarded run.

    Args:
        directory: Where the report and `incidents.jsonl` go; None writes nothing.
        writer: A TensorBoard `SummaryWriter` to use; None opens one in `directory`.
        show: Whether this process writes and talks (rank zero of a distributed run).
        quiet: Tell no story in the terminal.
        strict: Raise internal faults instead of containing them.
    """

    def __init__(
        self,
        *,
        directory: Path | None,
        writer: Any = None,
        show: bool = True,
        quiet: bool = False,
        strict: bool = False,
    ) -> None:
        self.directory = directory if show else None
        self.analysis: Analysis | None = None
        self.repair: Any = None
        self.outcome = ""
        self.faults: list[str] = []
        self.patches: list[AppliedPatch] = []
        self._cures: dict[tuple[Any, ...], Clip | Rewrite] = {}
        self._strict = strict
        self._off: set[str] = set()
        self._story = Story(quiet=quiet or not show)
        self._owned_writer: Any = None
        self._panels: Panels | None = None
        if show:
            with self.contained("the TensorBoard panels"):
                self._open_panels(writer)

    def _open_panels(self, writer: Any) -> None:
        if writer is None and self.directory is not None:
            try:
                self._owned_writer = writer = open_writer(self.directory)
            except MissingExtraError as error:
                _log.info("%s The HTML report is written all the same.", error)
        if writer is not None:
            self._panels = Panels(writer)

    @property
    def incident_dir(self) -> Path | None:
        """Where faulty steps are saved; None if nothing is written."""
        return None if self.directory is None else self.directory / "incidents"

    # --- faults of our own ------------------------------------------------------------------

    @contextmanager
    def contained(self, part: str) -> Iterator[None]:
        """Keeps a fault of Ranum's own inside: reports it once and switches the part off."""
        try:
            yield
        except Exception as error:
            if self._strict:
                raise
            if part not in self._off:
                self._off.add(part)
                line = (
                    f"{part} failed ({type(error).__name__}: {error}) and was switched off; "
                    "training goes on."
                )
                self.faults.append(line)
                warnings.warn(RanumWarning(f"Ranum: {line}"), stacklevel=3)
                _log.debug("Ranum's internal fault", exc_info=True)

    def is_on(self, part: str) -> bool:
        """False once a part has failed."""
        return part not in self._off

    # --- before training --------------------------------------------------------------------

    def analyze(
        self,
        program: Callable[[], Program],
        *,
        confirm_seconds: float,
        data: Batches | None = None,
        training_seconds: float = 0.0,
        optimizer: Any = None,
    ) -> None:
        """Analyses the first real step, tries to confirm what it finds, and shows it.

        Args:
            program: Makes the step.
            confirm_seconds: Time for proving defects, wall clock; 0 proves none.
            data: Batches like the first, to widen the ranges of the inputs.
            training_seconds: Time for training runs into defects, wall clock; 0 looks for none.
            optimizer: What the run trains with.
        """
        with self.contained("the analysis"):
            try:
                analysis = analyze(program(), data=data)
            except CaptureError as error:
                if self._strict:
                    raise
                line = f"the analysis was left out: {error} Monitoring goes on without it."
                self.faults.append(line)
                warnings.warn(RanumWarning(f"Ranum: {line}"), stacklevel=3)
                return
            self.analysis = analysis
            if confirm_seconds > 0 and analysis.defects:
                with self.contained("the search for failing inputs"):
                    self.analysis = analysis = _confirmed(
                        analysis, confirm_seconds, training_seconds, optimizer
                    )
            with self.contained("the terminal story"):
                self._story.analysis(analysis, diffs=self._diffs())
            if self._panels is not None:
                with self.contained("the TensorBoard panels"):
                    self._panels.analysis(analysis)

    def cure_for(self, culprit: Culprit) -> Clip | Rewrite | None:
        """The cure the analysis proposes for an operator that failed, if it has one."""
        if self.analysis is None:
            return None
        place = _place(culprit.source)
        defects = self.analysis.defects
        found = [one for one in defects if _place(one.source) == place]
        if not found:  # a TensorFlow graph tells lines only
            near = [one for one in defects if one.op == culprit.op and _is_in(culprit, one)]
            found = near if len({one.source.node for one in near}) == 1 else []
        cure = self._cure(found[0]) if found else None
        return None if cure is None or cure.edit is None else cure

    def cures(self) -> tuple[Clip | Rewrite, ...]:
        """Cures of all certain defects and of all that were patched."""
        if self.analysis is not None:
            for defect in self.analysis.defects:
                if defect.severity == "certain":
                    with self.contained("the search for cures"):
                        self._cure(defect)
        return tuple({id(cure): cure for cure in self._cures.values()}.values())

    def _cure(self, defect: Defect) -> Clip | Rewrite:
        """A rewriting that passes its verification, else the smallest clip; looked for once."""
        key = (*_place(defect.source), defect.op)
        if key not in self._cures:
            assert self.analysis is not None
            cure = best_cure(self.analysis, defect)
            self._cures[key] = cure
            for other in cure.cures if isinstance(cure, Rewrite) else ():
                self._cures.setdefault((*_place(other.source), other.op), cure)
        return self._cures[key]

    # --- during training --------------------------------------------------------------------

    def decision(self, decision: Decision) -> None:
        """Shows what one step brought: its reading, findings and incident."""
        if self._panels is not None and decision.reading is not None:
            with self.contained("the TensorBoard panels"):
                self._panels.reading(decision.reading)
        for finding in decision.findings:
            self.finding(finding)
        if decision.incident is not None:
            self.incident(decision.incident)

    def finding(self, finding: Finding) -> None:
        """Shows a finding."""
        with self.contained("the terminal story"):
            self._story.finding(finding)
        if self._panels is not None:
            with self.contained("the TensorBoard panels"):
                self._panels.finding(finding)

    def incident(self, incident: Incident) -> None:
        """Shows and records an incident."""
        with self.contained("the terminal story"):
            self._story.incident(incident)
        if self._panels is not None:
            with self.contained("the TensorBoard panels"):
                self._panels.incident(incident)
        if self.directory is not None:
            with self.contained("incidents.jsonl"):
                self.directory.mkdir(parents=True, exist_ok=True)
                with open(self.directory / "incidents.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps(incident.to_dict()) + os.linesep)

    def searching(self, fault: Fault) -> None:
        """Says that a search begins."""
        with self.contained("the terminal story"):
            self._story.searching(fault.step, fault.finding)

    def trial(self, record: Any, faulty: Mapping[str, Any]) -> None:
        """Shows one training of a search, by what differs from the faulty configuration."""
        with self.contained("the terminal story"):
            self._story.trial(record, faulty)

    def repaired(self, result: Any) -> None:
        """Shows and keeps the result of a search."""
        self.repair = result
        with self.contained("the terminal story"):
            self._story.repair(result)
        if self._panels is not None:
            with self.contained("the TensorBoard panels"):
                self._panels.repair(result)

    # --- at the end -------------------------------------------------------------------------

    def finish(self, history: History, outcome: str) -> None:
        """Writes the report, tells the end of the story, takes live patches out again."""
        # First, so that the report shows the source as it is.
        for patch in reversed(self.patches):
            with self.contained("undoing a live patch"):
                patch.undo()
        self.patches.clear()
        if self.faults:
            seen = [*history.internal_faults, *self.faults]
            history = History(
                readings=history.readings,
                findings=history.findings,
                incidents=history.incidents,
                internal_faults=tuple(dict.fromkeys(seen)),
            )
        report: Path | None = None
        if self.directory is not None:
            with self.contained("the HTML report"):
                report = self.directory / "report.html"
                report.parent.mkdir(parents=True, exist_ok=True)
                write_html(
                    report,
                    analysis=self.analysis,
                    history=history,
                    repair=self.repair,
                    outcome=outcome,
                    diffs=self._diffs(),
                )
        with self.contained("the terminal story"):
            self._story.end(history, outcome if report is None else f"{outcome}; report: {report}")
        if self._owned_writer is not None:
            with self.contained("the TensorBoard panels"):
                self._owned_writer.close()

    def _diffs(self) -> Mapping[str, str]:
        """The proposed edits by the place of their defect."""
        diffs = {}
        for cure in self.cures():
            if cure.edit is not None:
                with self.contained("the diffs"):
                    diffs[cure.defect.source.location] = cure.edit.diff()
        return diffs


def _confirmed(analysis: Analysis, seconds: float, training: float, optimizer: Any) -> Analysis:
    context = analysis.context
    weights = 0 if context is None else sum(p.numel() for p in context.program.parameters.values())
    if weights > CONFIRM_LIMIT:
        note = (
            f"no failing inputs were searched: {weights:,} weights are more than "
            f"{CONFIRM_LIMIT:,}; ranum.confirm(defect) searches them all the same"
        )
        return replace(analysis, notes=(*analysis.notes, note))
    return confirm_all(analysis, seconds=seconds, training=training, optimizer=optimizer)


def _place(source: Any) -> tuple[Any, ...]:
    return (source.file, source.line, source.column, source.end_line, source.end_column)


def _is_in(culprit: Culprit, defect: Defect) -> bool:
    """True if the culprit's expression is in the lines of the defect's, which may be all of it."""
    inner, outer = culprit.source, defect.source
    return (
        bool(outer.node)
        and inner.file == outer.file
        and outer.line <= inner.line
        and inner.end_line <= outer.end_line
    )


def checked(name: str, value: Any, rule: str, test: Callable[[Any], bool]) -> Any:
    """The value, or an ArgumentError that names argument, rule and value."""
    try:
        fits = test(value)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ArgumentError(f"{name} must be {rule}; got {value!r}.")
    return value
