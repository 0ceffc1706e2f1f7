"""Analyses one case and says what was found."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field

import torch

from benchmarks.clean.case import Case
from ranum.analysis.confirm import confirm_all
from ranum.analysis.result import Analysis, Defect

LEVELS = ("initial", "envelope")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One defect of an analysis.

    Attributes:
        key: Code, operator, file and line: the same at every level.
        text: For the reader.
        witness: How the model's own code failed; "" if no witness was found.
    """

    key: tuple[str, ...]
    text: str
    witness: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one analysis said.

    Attributes:
        seconds: CPU time of the analysis, capture excluded.
        loss: Upper bound of the loss.
        unknown: Operators without a transfer function, with their number.
        alarms: All defects.
        faults: Transfer functions that failed.
    """

    seconds: float
    loss: float
    unknown: tuple[str, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        name: Of the case.
        parameters: Number of trained numbers.
        operators: Recorded operators, backward included.
        forward: CPU seconds of a forward pass, without recording.
        capture: CPU seconds of recording one training step.
        findings: By element type and level of the weights.
        error: Why there is nothing else, if something broke.
    """

    name: str
    parameters: int = 0
    operators: int = 0
    forward: float = 0.0
    capture: float = 0.0
    findings: dict[tuple[str, str], Finding] = field(default_factory=dict)
    error: str = ""

    @property
    def real(self) -> set[tuple[str, ...]]:
        """Keys of the defects that have a witness at some level."""
        return {
            alarm.key for found in self.findings.values() for alarm in found.alarms if alarm.witness
        }

    def unexplained(self, found: Finding) -> list[Alarm]:
        """The alarms of a finding that no witness explains."""
        return [alarm for alarm in found.alarms if alarm.key not in self.real]

    @property
    def is_clean(self) -> bool:
        """True if it ran and every alarm is explained.

        Weights of any size do not count: what fails there is the architecture's own doing.
        """
        usual = [found for (_, level), found in self.findings.items() if level in LEVELS]
        return not self.error and not any(map(self.unexplained, usual))


def judge(
    case: Case,
    *,
    levels: tuple[str, ...] = LEVELS,
    dtypes: tuple[str, ...] = tuple(DTYPES),
    seconds: float = 20.0,
) -> Row:
    """The row of a case; `seconds` is the time for the search of witnesses per analysis."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    row = Row(name=case.name)
    for dtype in dtypes:
        if dtype == "bfloat16" and not case.half:
            continue
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries about their own defaults
            workload = case.make().to(DTYPES[dtype])
            if not row.parameters:
                row.parameters, row.forward = workload.parameters, workload.forward_seconds()
            for level in levels:
                analysis = workload.analyse(level)
                row.operators = row.operators or len(analysis.graph.nodes)
                row.capture = row.capture or analysis.capture_seconds
                if analysis.defects and level != "initial" and seconds > 0:
                    analysis = confirm_all(analysis, seconds=seconds)
                row.findings[dtype, level] = _finding(analysis)
    return row


def _finding(analysis: Analysis) -> Finding:
    bound = analysis.bounds.get("loss")
    return Finding(
        seconds=analysis.analysis_seconds,
        loss=float("nan") if bound is None else bound.high,
        unknown=tuple(f"{item.op} x{item.count}" for item in analysis.unknowns),
        alarms=tuple(_alarm(defect) for defect in analysis.defects),
        faults=tuple(note for note in analysis.notes if note.startswith("transfer function")),
    )


def _alarm(defect: Defect) -> Alarm:
    source = defect.source
    witness = ""
    if defect.witness is not None:
        low, high = defect.witness.operand
        witness = f"{defect.witness.outcome} for operands in [{low:.4g}, {high:.4g}]"
    return Alarm(
        key=(defect.code, defect.op, source.file, str(source.line)),
        text=f"{defect.code} {defect.op} at {source} `{source.expression}`: "
        f"{defect.bounds}, {defect.outcome}",
        witness=witness,
    )
