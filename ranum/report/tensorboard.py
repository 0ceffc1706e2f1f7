"""Panels in TensorBoard with no plugin of its own: custom scalars, scalars and text."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

from ranum.analysis.result import Analysis
from ranum.errors import MissingExtraError
from ranum.guards.types import Finding, Incident, Reading
from ranum.report import words
from ranum.report.svg import symlog
from ranum.source import Source

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

BEYOND = 39.0
"""Drawn for infinity and everything past float32, whose largest number is 10^38.53."""

CHARTS = 64
"""Margin charts at most; TensorBoard fetches each by itself."""

SETTLING = 8
"""Zeros after a pulse: with TensorBoard's usual smoothing of 0.6 the curve is then below 2 %.

Not a zero for every step: TensorBoard keeps a random 1,000 points of a series, and the pulse
would be lost among them.
"""

LEVELS = {"warning": 1.0, "fault": 2.0}

Layout = dict[str, dict[str, list[Any]]]


class Writer(Protocol):
    """What is used of TensorBoard's `SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Writes one point."""

    def add_text(self, tag: str, text_string: str, global_step: int) -> None:
        """Writes Markdown."""

    def add_custom_scalars(self, layout: Layout) -> None:
        """Writes the layout of the charts."""


def open_writer(log_dir: str | os.PathLike[str]) -> SummaryWriter:
    """A `SummaryWriter` for a folder.

    Raises:
        MissingExtraError: If TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "tensorboard", "The TensorBoard panels") from error
    # With the usual queue of 10 a burst of events would wait for the disk.
    return SummaryWriter(str(log_dir), max_queue=1000)


class Panels:
    """Writes what Ranum measures and does to TensorBoard.

    The Custom Scalars page then shows events first, then gradients, units and bounds. All
    tags begin with `ranum/`. Series that span many decades are written twice, as they are
    and under `ranum/log10/`. Bounds are drawn as sign(x) log10(1 + |x|), and what is
    infinite or past float32 at ±39; the Text page holds the true numbers. NaN is left out of
    the log10 series, because the fault it makes is an event of its own.

    TensorBoard reads only the first layout of a run, so `analysis`, if there is one, comes
    before the first `reading`.

    Args:
        writer: A `SummaryWriter` or anything with its `add_scalar`, `add_text` and
            `add_custom_scalars`. It is neither flushed on every call nor closed.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._bounds: dict[str, tuple[float, float]] = {}
        self._write_batch = _batch_writer(writer)
        self._has_layout = False
        self._first_step: int | None = None
        self._raised: dict[str, int] = {}
        self._last_steps: dict[str, int] = {}

    def analysis(self, analysis: Analysis) -> None:
        """The bounds as charts and the defects as a table."""
        # A container's output is its last child's, and readings are of modules without children.
        names = [
            name
            for name in analysis.bounds
            if not any(other.startswith(f"{name}.") for other in analysis.bounds)
        ]
        charted = [(name, analysis.bounds[name]) for name in names[-CHARTS:]]
        self._bounds = {name: (bound.low, bound.high) for name, bound in charted}
        self._lay_out(analysis.observed)
        for name, pair in analysis.observed.items():
            self._write(self._bound(name, *pair), 0)
        self._writer.add_text("ranum/defects", _defect_table(analysis), 0)
        self._writer.add_text("ranum/bounds", _bound_table(analysis), 0)

    def reading(self, reading: Reading) -> None:
        """Loss and gradient norm; the layers too in steps that sampled them."""
        step = reading.step
        if not self._has_layout:
            self._lay_out({})
        if self._first_step is None:
            self._first_step = step
        self._end_pulses(step)
        values: dict[str, float] = {}
        if reading.loss is not None:
            values["loss"] = reading.loss
        if reading.grad_norm is not None:
            values |= _decades("grad_norm", reading.grad_norm)
        if reading.is_sampled:
            values |= self._layers(reading)
        self._write(values, step)

    def finding(self, finding: Finding) -> None:
        """A pulse in the symptom's series, 1 for a warning and 2 for a fault."""
        tag = f"symptom/{finding.code}_{finding.symptom}"
        self._pulse(tag, finding.step, LEVELS[finding.severity])
        if finding.severity == "warning":
            row = [f"{finding.step:,}", finding.symptom, finding.message]
            table = _table(["Step", "Symptom", "What was seen"], [[_cell(cell) for cell in row]])
            self._writer.add_text("ranum/warnings", table, finding.step)

    def incident(self, incident: Incident) -> None:
        """A pulse in the series of incidents, and the whole of it as text."""
        self._pulse("incident", incident.step, 1.0)
        self._writer.add_text("ranum/incidents", _incident_text(incident), incident.step)
        flush = getattr(self._writer, "flush", None)
        if flush is not None:  # an incident may be the last thing a run writes
            flush()

    def repair(self, result: Any) -> None:
        """The score of each trial as a series, and the changed values as a table."""
        best = math.inf
        for trial in sorted(result.trials, key=lambda trial: trial.number):
            if math.isfinite(trial.score):
                self._write({"repair/score": trial.score}, trial.number)
            if trial.state == "complete":
                best = min(best, trial.score)
            if math.isfinite(best):
                self._write({"repair/best": best}, trial.number)
        rows = [[_cell(cell) for cell in row] for row in words.changes(result.patch)]
        head = "Repaired" if result.is_repaired else "No configuration was found that trains"
        table = _table(["Setting", "Was", "Is now"], rows) if rows else ""
        scores = f"{words.number(result.faulty_score)} before, {words.number(result.score)} after"
        trials = words.count(len(result.trials), "trial")
        text = f"**{head}**: {trials}, score {scores}\n\n{table}"
        self._writer.add_text("ranum/repair", text, 0)

    # --- series ----------------------------------------------------------------------------

    def _layers(self, reading: Reading) -> dict[str, float]:
        values: dict[str, float] = {}
        if reading.loss is not None:
            values |= self._bound("loss", reading.loss, reading.loss)
        for name, norm in reading.grad_norms.items():
            values |= _decades(f"grad_norm/{name}", norm)
            weight = reading.weight_norms.get(name, 0.0)
            if weight > 0 and reading.learning_rate is not None:
                values |= _decades(f"update/{name}", reading.learning_rate * norm / weight)
        for name, seen in reading.activations.items():
            values |= self._bound(name, seen.lower, seen.upper)
            if seen.dead is not None:
                values[f"dead/{words.module(name)}"] = seen.dead
        if self._bounds:
            values["outside"] = float(self._outside(reading))
        return values

    def _bound(self, name: str, lower: float, upper: float) -> dict[str, float]:
        """All series of one margin chart: TensorBoard wants them at the same steps."""
        bound = self._bounds.get(name)
        if bound is None or math.isnan(lower) or math.isnan(upper):
            return {}
        ends = {"lower": bound[0], "upper": bound[1], "smallest": lower, "largest": upper}
        place = f"bounds/{words.module(name)}"
        return {f"{place}/{part}": _drawn(value) for part, value in ends.items()}

    def _outside(self, reading: Reading) -> int:
        """How many module outputs had an element outside their bounds."""
        return sum(
            not bound[0] <= seen.lower <= seen.upper <= bound[1]
            for name, seen in reading.activations.items()
            if (bound := self._bounds.get(name)) is not None
        )

    def _pulse(self, name: str, step: int, level: float) -> None:
        """0 before, `level` at the step; the next readings bring it down again.

        A step already written is not written again: TensorBoard takes a series that goes
        back as a restart and forgets what came after.
        """
        start = step if self._first_step is None else self._first_step
        for zero in (start, step - 1):
            if 0 <= zero < step:
                self._forward(name, 0.0, zero)
        if self._forward(name, level, step):
            self._raised[name] = SETTLING

    def _end_pulses(self, step: int) -> None:
        for name, left in list(self._raised.items()):
            if self._forward(name, 0.0, step):
                self._raised[name] = left - 1
                if left == 1:
                    del self._raised[name]

    def _forward(self, name: str, value: float, step: int) -> bool:
        """Writes a point if it lies after the last one of its series."""
        if step <= self._last_steps.get(name, -1):
            return False
        self._write({name: value}, step)
        self._last_steps[name] = step
        return True

    def _write(self, values: Mapping[str, float], step: int) -> None:
        if not values:
            return
        tagged = {_tag(name): float(value) for name, value in values.items()}
        if self._write_batch is not None and self._write_batch(tagged, step):
            return
        for tag, value in tagged.items():
            self._writer.add_scalar(tag, value, step)

    def _lay_out(self, observed: Mapping[str, tuple[float, float]]) -> None:
        self._has_layout = True
        self._writer.add_custom_scalars(_layout(self._bounds, observed))


def _batch_writer(writer: Any) -> Callable[[Mapping[str, float], int], bool] | None:
    """For torch's writer: all scalars of a step in one event, a sixth of the time.

    An event costs about 40 microseconds of CPU, mostly for checksums in Python.
    """
    if not type(writer).__module__.startswith("torch.utils.tensorboard"):
        return None
    from tensorboard.compat.proto.summary_pb2 import Summary

    def write(values: Mapping[str, float], step: int) -> bool:
        if writer.file_writer is None:  # closed; `add_scalar` opens a new file
            return False
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        writer.file_writer.add_summary(Summary(value=points), step)
        return True

    return write


def _decades(name: str, value: float) -> dict[str, float]:
    """A series as it is, and its decimal logarithm where that exists."""
    values = {name: value}
    if value > 0:
        values[f"log10/{name}"] = min(math.log10(value), BEYOND)
    return values


def _layout(bounds: Iterable[str], observed: Mapping[str, tuple[float, float]]) -> Layout:
    """Categories and charts; the keys are the titles that TensorBoard shows, in this order."""
    layout: Layout = {
        "Ranum 1: events (set smoothing to 0)": {
            "incidents (1 = step withheld)": _lines("incident"),
            "symptoms (1 = warning, 2 = fault)": _lines("symptom/", prefix=True),
        },
        "Ranum 2: gradients, log10": {
            "all parameters": _lines("log10/grad_norm"),
            "each parameter": _lines("log10/grad_norm/", prefix=True),
            "learning rate x gradient / weight": _lines("log10/update/", prefix=True),
        },
        "Ranum 3: dead units": {"share of units at 0": _lines("dead/", prefix=True)},
    }
    if bounds:
        layout[f"Ranum 4: bounds, as sign(x) log10(1 + |x|), beyond float32 = {BEYOND:.0f}"] = {
            f"{words.module(name)}: {side} element": [
                "Margin",
                [_tag(f"bounds/{words.module(name)}/{part}") for part in (side, "lower", "upper")],
            ]
            for name in bounds
            for side in [_busier_side(observed.get(name))]
        } | {"outputs outside their bounds, count": _lines("outside")}
    return layout


def _busier_side(seen: tuple[float, float] | None) -> str:
    """Which extreme a chart follows; a margin chart of TensorBoard has room for one line."""
    return "smallest" if seen is not None and -seen[0] > abs(seen[1]) else "largest"


def _lines(name: str, *, prefix: bool = False) -> list[Any]:
    """A chart of all series that match; TensorBoard takes the tag as a regular expression."""
    return ["Multiline", ["^" + re.escape(_tag(name)) + ("" if prefix else "$")]]


def _tag(name: str) -> str:
    return "ranum/" + re.sub(r"[^-\w./]", "_", name)


def _drawn(value: float) -> float:
    return min(max(symlog(value), -BEYOND), BEYOND)


# --- text ------------------------------------------------------------------------------------


def _defect_table(analysis: Analysis) -> str:
    certain, possible = words.grouped(analysis)
    rows = [
        [
            f"**{_cell(defect.code)}**, {defect.proof}",
            _cell(f"{defect.op} fails for {defect.bad}: {defect.outcome}"),
            _place(defect.source),
            _cell(words.interval(defect.bounds)),
            _cell(defect.remedy),
        ]
        for defect, _ in [*certain, *possible]
    ]
    head = ["Defect", "What", "Where", "Operand", "Cure"]
    text = _table(head, rows) if rows else "No numerical defects."
    if not analysis.is_complete:
        unknown = "; ".join(_cell(str(unknown)) for unknown in analysis.unknowns)
        text += f"\n\nIncomplete, these operators could not be bounded: {unknown}"
    return text


def _bound_table(analysis: Analysis) -> str:
    rows = [
        [
            _code(words.module(name)),
            _cell(words.interval(bound)),
            _cell(words.span(*analysis.observed[name])) if name in analysis.observed else "",
        ]
        for name, bound in analysis.bounds.items()
    ]
    text = _table(["Output of", "Bounds", "Seen in the first step"], rows)
    if len(analysis.bounds) > CHARTS:
        text += f"\n\nThe last {CHARTS} have charts."
    return text


def _incident_text(incident: Incident) -> str:
    culprit = incident.culprit
    rows = [["What was seen", _cell(incident.finding.message)]]
    if culprit is not None:
        rows.append(["Culprit", f"{_cell(words.culprit(culprit))} {_place(culprit.source)}"])
    if culprit is not None and culprit.operands:
        rows.append(["Operands", _cell(words.operands(culprit))])
    rows.append(["Done", _cell(f"{words.action(incident)}. {incident.detail}")])
    finding = incident.finding
    text = _table([f"Step {incident.step:,}", _cell(f"{finding.symptom} {finding.code}")], rows)
    if incident.patch:
        indented = "\n".join(f"    {line}" for line in words.clean(incident.patch).splitlines())
        text += f"\n\nTo keep the repair, apply this to your source:\n\n{indented}"
    return text


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _place(source: Source) -> str:
    if not source.is_known:
        return ""
    expression = source.expression
    return _cell(source.location) + (f" {_code(expression)}" if expression else "")


def _cell(text: str) -> str:
    """Text that Markdown takes literally, on one line."""
    line = escape(" ".join(words.clean(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]#|])", r"\\\1", line)


def _code(text: str) -> str:
    """Code on one line; as HTML, because a pipe or a backtick would end a Markdown span."""
    line = escape(" ".join(words.clean(text).split()), quote=False)
    return "<code>" + re.sub(r"([\\`*_{}\[\]#|])", r"\\\1", line) + "</code>"
