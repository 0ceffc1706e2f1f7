"""The run as a short story in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import rich
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.panel import Panel
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ranum.analysis.result import Analysis, Defect
from ranum.guards.types import Finding, History, Incident
from ranum.report import words
from ranum.report.excerpt import excerpt
from ranum.source import Source

WIDEST = 100
"""Columns used at most; longer lines are hard to read."""

SHOWN = 5
"""Possible defects, unknown operators or incidents listed; the HTML report holds all."""

EXPRESSION = 28
"""Columns of an expression in the list of possible defects; of a longer one only the operator."""

Rows = list[tuple[str, RenderableType]]


class Story:
    """Tells what Ranum found and did, a few whole lines at a time.

    It prints through rich's own console by default, which Lightning's rich progress bar
    uses too; bars of tqdm are taken away for the moment of printing and drawn again below.

    Args:
        console: Where to print; rich's global console by default.
        quiet: Prints nothing. The calls stay allowed, so a caller needs no condition.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._untold: list[Finding] = []

    @property
    def console(self) -> Console:
        """The console printed to."""
        return self._console if self._console is not None else rich.get_console()

    def analysis(self, analysis: Analysis, *, diffs: Mapping[str, str] | None = None) -> None:
        """Certain defects in full, possible ones in a line each.

        Args:
            analysis: What was found before training.
            diffs: Proposed changes of the source, unified diffs by title. One whose title
                is a defect's `file:line` is shown with that defect.
        """
        certain, possible = words.grouped(analysis)
        proposed = dict(diffs or {})
        parts: list[RenderableType] = [_verdict(analysis, len(certain), len(possible))]
        for defect, times in certain:
            diff = proposed.pop(defect.source.location, "")
            parts += [Text(), _indented(self._defect(defect, times, diff))]
        if possible:
            parts += [Text(), _indented(_possible(possible))]
        for title, diff in proposed.items():
            parts += [Text(), _indented(Group(_plain(title, "bold"), _changed_lines(diff)))]
        if analysis.advice:
            parts += [Text(), _indented(_advice(analysis))]
        if not analysis.is_complete:
            parts += [Text(), _indented(_incomplete(analysis))]
        self._print(*parts)

    def finding(self, finding: Finding) -> None:
        """A warning, at once. A fault is told with its incident, or at the end if none came."""
        if finding.severity == "fault":
            self._untold.append(finding)
            return
        text = Text.assemble(
            (words.clean(finding.symptom), "bold"),
            (f" {words.clean(finding.code)} at step {finding.step:,}  ", "dim"),
            words.clean(finding.message),
        )
        if finding.where and finding.where not in finding.message:
            text.append(f" ({words.clean(finding.where)})", style="dim")
        grid = Table.grid(padding=(0, 1))
        grid.add_row(Text("!", style="bold yellow"), text)
        self._print(grid)

    def incident(self, incident: Incident) -> None:
        """A fault: what happened, the culprit, what was done."""
        self._untold = [finding for finding in self._untold if finding.step != incident.step]
        parts: list[RenderableType] = [_plain(incident.finding.message), Text()]
        rows: Rows = []
        culprit = incident.culprit
        if culprit is not None:
            parts.append(
                Text.assemble((words.culprit(culprit), "bold"), "  ", _place(culprit.source))
            )
            parts += self._code(culprit.source, self._width - 8)
            if culprit.operands:
                rows.append(("operands", Text(words.operands(culprit))))
        done = "bold red" if incident.action == "stop" else "bold green"
        rows.append(("done", Text(words.action(incident), style=done)))
        if incident.detail:
            rows.append(("", _plain(incident.detail)))
        if incident.file:
            rows.append(("again", _plain(f"ranum replay {incident.file}")))
        parts.append(_facts(rows))
        if incident.patch:
            parts += [Text(), _changed_lines(incident.patch)]
        title = Text.assemble(
            (f"Step {incident.step:,} withheld ", "not dim bold red"),
            (f"{words.clean(incident.finding.symptom)} ", "not dim bold"),
            words.clean(incident.finding.code),
        )
        self._print(
            Panel(
                Group(*parts),
                title=title,
                title_align="left",
                box=box.ROUNDED,
                border_style="dim",
                padding=(1, 2),
            )
        )

    def searching(self, step: int, finding: Finding) -> None:
        """A search begins: the run as it is configured cannot be saved."""
        self._print(
            Text.assemble(
                ("… ", "bold yellow"),
                ("Searching a configuration that trains", "bold"),
                (f"  step {step:,}: {words.clean(finding.message)}", "dim"),
            )
        )

    def trial(self, record: Any, faulty: Mapping[str, Any]) -> None:
        """One training of a search, in a line: its score and what differs from `faulty`."""
        changed = [
            f"{name} {words.number(value) if isinstance(value, float) else value}"
            for name, value in record.configuration.items()
            if value != faulty.get(name)
        ]
        score = words.number(record.score) if record.state == "complete" else record.state
        grid = Table.grid(padding=(0, 1))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(no_wrap=True, justify="right", min_width=8)
        grid.add_column(style="dim", overflow="fold")
        what = words.clean(", ".join(changed)) or "as configured"
        grid.add_row(Text(f"  trial {record.number:2d}"), Text(score), Text(what))
        self._print(grid, spaced=False)

    def repair(self, result: Any) -> None:
        """The changed values of a repaired configuration, the trials and the score."""
        effort = f"{words.count(len(result.trials), 'trial')}, {words.seconds(result.seconds)}"
        if not result.is_repaired:
            self._print(
                Text.assemble(
                    ("✗ ", "bold red"),
                    ("No configuration found that trains", "bold"),
                    (f"  {effort}", "dim"),
                )
            )
            return
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
        for header, style in (("setting", ""), ("was", ""), ("is now", "bold green")):
            table.add_column(header, style=style, overflow="fold")
        for row in words.changes(result.patch):
            table.add_row(*(Text(cell) for cell in row))
        changed = (
            f"{len(result.patch)} of {words.count(len(words.settings(result)), 'value')} changed"
        )
        score = f"score {words.number(result.faulty_score)} → {words.number(result.score)}"
        head = Text.assemble(
            ("✓ ", "bold green"),
            ("Found a configuration that trains", "bold"),
            (f"  {changed}, {effort}, {score}", "dim"),
        )
        self._print(head, Text(), _indented(table))

    def end(self, history: History, outcome: str = "") -> None:
        """The run in three to eight lines.

        Args:
            history: What the guard has seen.
            outcome: One sentence on how it ended, shown first.
        """
        rows: Rows = []
        if outcome:
            rows.append(("outcome", _plain(outcome)))
        if history.readings:
            rows.append(("steps", Text(_steps(history))))
        rows.append(("faults", _faults(history.incidents, self._untold)))
        warned = [finding for finding in history.findings if finding.severity == "warning"]
        if warned:
            rows.append(("warnings", Text(_by_symptom(warned))))
        for fault in history.internal_faults:
            rows.append(("ranum", _plain(fault, "yellow")))
        stopped = any(incident.action == "stop" for incident in history.incidents)
        fine = not stopped and not self._untold
        mark = ("✓ ", "bold green") if fine else ("✗ ", "bold red")
        self._untold = []
        head = Text.assemble(mark, ("The run in short", "bold"))
        self._print(head, _indented(_facts(rows)))

    # --- parts that need to know the width ---------------------------------------------------

    def _defect(self, defect: Defect, times: int, diff: str) -> RenderableType:
        head = Text.assemble(
            (f"{words.clean(defect.code)} ", "bold red"),
            (words.clean(f"{defect.op} fails for {defect.bad}  "), "bold"),
            _place(defect.source),
        )
        if times > 1:
            head.append(f"  {times} times", style="dim")
        gives = words.clean(defect.outcome)
        if defect.gradient_only:
            gives += " (in the gradient; the value itself stays finite)"
        rows: Rows = [("operand", Text(words.interval(defect.bounds))), ("gives", Text(gives))]
        if defect.consequence:
            rows.append(("then", _plain(defect.consequence)))
        rows.append(("when", _plain(defect.drift)))
        if defect.witness is not None:
            rows.append(("proof", Text(words.witness(defect.witness, defect.op))))
        if defect.training is not None:
            rows.append(("training", Text(words.training(defect.training, defect.op))))
        if defect.prospect:
            rows.append(("so", Text(words.prospect(defect))))
        if defect.remedy:
            rows.append(("cure", _plain(defect.remedy, "green")))
        patch = [Text(), _changed_lines(diff)] if diff else []
        return Group(head, *self._code(defect.source, self._width - 4), _facts(rows), *patch)

    def _code(self, source: Source, room: int) -> Iterator[RenderableType]:
        """The lines of an expression, with carets below the marked part, in `room` columns."""
        for line in excerpt(source, limit=4):
            before, marked, after = line.window(max(room - 2, 20)).parts
            code = Text.assemble("  ", before, (marked, "red"), after)
            code.no_wrap, code.overflow = True, "ellipsis"
            yield code
            if marked:
                carets = "  " + " " * cell_len(before) + "^" * cell_len(marked)
                yield Text(carets, style="red", no_wrap=True, overflow="crop")

    # --- printing --------------------------------------------------------------------------

    @property
    def _width(self) -> int:
        return min(self.console.width, WIDEST)

    def _print(self, *parts: RenderableType, spaced: bool = True) -> None:
        if self._quiet:
            return
        with _bars_aside(self.console):
            page = _Encodable(Group(*((Text(),) if spaced else ()), *parts))
            self.console.print(page, width=self._width, highlight=False)


def _verdict(analysis: Analysis, certain: int, possible: int) -> Text:
    took = words.seconds(analysis.capture_seconds + analysis.analysis_seconds)
    scope = f"  {words.count(len(analysis.graph.nodes), 'operator')} analysed in {took}"
    others = f", {possible} possible" if possible else ""
    if certain:
        text = f"{words.count(certain, 'certain defect')}{others}"
        return Text.assemble(("✗ ", "bold red"), (text, "bold"), (scope, "dim"))
    text = f"No {'certain ' if possible else ''}numerical defect{others}"
    return Text.assemble(("✓ ", "bold green"), (text, "bold green"), (scope, "dim"))


def _possible(defects: Sequence[tuple[Defect, int]]) -> RenderableType:
    title = "Possible by the bounds, not proven"
    if len(defects) > SHOWN:
        title += f"; {SHOWN} of {len(defects)}"
    parts: list[RenderableType] = []
    left = SHOWN
    for level, group in words.by_reach(defects):
        if left > 0:
            parts += [_plain(f"{title}, {level}:", "dim"), _lines(group[:left])]
        title = "And"  # the figure at the end of a line is the growth that it takes
        left -= len(group)
    return Group(*parts)


def _lines(defects: Sequence[tuple[Defect, int]]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for least in (5, None, None, None, 6):
        grid.add_column(no_wrap=True, overflow="ellipsis", style="dim", min_width=least)
    for defect, times in defects:
        repeated = f" ({times} times)" if times > 1 else ""
        grid.add_row(
            _plain(defect.code),
            _plain(f"{_named(defect)} if {defect.bad}"),
            _plain(defect.source.location + repeated),
            Text(words.interval(defect.bounds)),
            _plain(f"× {defect.times}" if defect.times else ""),
        )
    return grid


def _named(defect: Defect) -> str:
    """The expression if it is short, else the operator: two of a kind in a line differ."""
    expression = " ".join(defect.source.expression.split())
    return expression if 0 < len(expression) <= EXPRESSION else defect.op


def _advice(analysis: Analysis) -> RenderableType:
    shown = analysis.advice[:SHOWN]
    title = "Advice on precision"
    if len(analysis.advice) > SHOWN:
        title += f"; {SHOWN} of {len(analysis.advice)}"
    lines = [
        _plain(
            f"{advice.code} {words.clean(advice.source.location)}  {words.clean(advice.loss)}; "
            f"write {words.clean(advice.rewrite)}"
        )
        for advice in shown
    ]
    return Group(_plain(f"{title}:", "dim"), *lines)


def _incomplete(analysis: Analysis) -> Text:
    amount = words.count(len(analysis.unknowns), "operator")
    first = "; ".join(words.clean(str(unknown)) for unknown in analysis.unknowns[:SHOWN])
    more = len(analysis.unknowns) - SHOWN
    return Text.assemble(
        ("Incomplete: ", "bold yellow"),
        f"{amount} could not be bounded, their results count as anything: {first}",
        f"; and {more} more" if more > 0 else "",
    )


def _faults(incidents: Sequence[Incident], untold: Sequence[Finding]) -> RenderableType:
    if not incidents and not untold:
        return Text("none", style="green")
    lines = [
        _plain(f"step {incident.step:,}: {incident.finding.symptom} → {words.action(incident)}")
        for incident in incidents[:SHOWN]
    ]
    if len(incidents) > SHOWN:
        lines.append(Text(f"and {len(incidents) - SHOWN} more", style="dim"))
    lines += [_plain(f"step {told.step:,}: {told.message} Nothing was done.") for told in untold]
    return Group(*lines)


def _steps(history: History) -> str:
    losses = [reading.loss for reading in history.readings if reading.loss is not None]
    norms = [reading.grad_norm for reading in history.readings if reading.grad_norm is not None]
    text = f"{words.steps_seen(history):,}"
    if losses:
        text += f", loss {words.number(losses[0])} → {words.number(losses[-1])}"
    if norms:
        text += f", largest gradient norm {words.largest(norms)}"
    return text


def _by_symptom(findings: Sequence[Finding]) -> str:
    places: dict[str, list[str]] = {}
    for finding in findings:
        seen = places.setdefault(finding.symptom, [])
        if finding.where and finding.where not in seen:
            seen.append(finding.where)
    return words.clean(
        "; ".join(
            f"{symptom} ({words.listed(where)})" if where else symptom
            for symptom, where in places.items()
        )
    )


def _place(source: Source) -> Text:
    if not source.is_known:
        return Text()
    text = Text(words.clean(source.location), style="cyan")
    if source.module:
        text.append(f"  in {words.module(source.module)}", style="dim")
    return text


def _changed_lines(diff: str) -> RenderableType:
    """The added and removed lines of a unified diff, dedented; the file is named elsewhere."""
    lines = [
        line
        for line in diff.splitlines()
        if line.startswith(("+", "-")) and not line.startswith(("+++", "---"))
    ]
    margin = min((len(line[1:]) - len(line[1:].lstrip()) for line in lines), default=0)
    return Group(
        *(
            _plain(f"{line[0]} {line[1 + margin :]}", "green" if line[0] == "+" else "red")
            for line in lines
        )
    )


def _facts(rows: Rows) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=8)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), value)
    return grid


def _plain(text: str, style: str = "") -> Text:
    return Text(words.clean(text), style=style)


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, 2), expand=False)


class _Encodable:
    """Replaces what the console's encoding cannot write; old Windows consoles, pipes."""

    _SIMPLE = str.maketrans("✓✗→…", "+x>.")

    def __init__(self, part: RenderableType) -> None:
        self._part = part

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        encoding = console.encoding
        for text, style, control in console.render(self._part, options):
            shown = text
            try:
                text.encode(encoding)
            except UnicodeEncodeError:
                shown = text.translate(self._SIMPLE).encode(encoding, "replace").decode(encoding)
            yield Segment(shown, style, control)


@contextmanager
def _bars_aside(console: Console) -> Iterator[None]:
    """Takes tqdm's bars off the screen while lines are printed; tqdm is never imported."""
    with ExitStack() as stack:
        tqdm = sys.modules.get("tqdm")
        if tqdm is not None and console.file in {sys.stdout, sys.stderr}:
            stack.enter_context(tqdm.tqdm.external_write_mode(file=console.file))
        yield
