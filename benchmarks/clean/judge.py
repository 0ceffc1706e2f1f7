"""Analyses one case and says what was found."""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.clean.case import Case, Workload
from ranum.analysis import analyze
from ranum.analysis.result import Analysis

LEVELS = ("initial", "envelope")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one analysis said.

    Attributes:
        seconds: CPU time of the analysis, capture excluded.
        loss: Upper bound of the loss.
        unknown: Operators without a transfer function, with their number.
        alarms: One line per defect that is not known to be real.
        known: One line per defect that is, with its reason.
        faults: Transfer functions that failed.
    """

    seconds: float
    loss: float
    unknown: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
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
    def is_clean(self) -> bool:
        """True if it ran and no alarm was raised that is not known to be real."""
        return not self.error and not any(found.alarms for found in self.findings.values())


def judge(
    case: Case,
    *,
    levels: tuple[str, ...] = LEVELS,
    dtypes: tuple[str, ...] = tuple(DTYPES),
    confirm: bool = False,
) -> Row:
    """The row of a case."""
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
                row.parameters, row.forward = workload.parameters, _forward_seconds(workload)
            for level in levels:
                analysis = analyse(workload, level, confirm=confirm)
                row.operators = row.operators or len(analysis.graph.nodes)
                row.capture = row.capture or analysis.capture_seconds
                row.findings[dtype, level] = _finding(case, analysis)
    return row


def analyse(workload: Workload, level: str, *, confirm: bool = False) -> Analysis:
    """The analysis of one step with weights of one level."""
    names = tuple(workload.batch)
    step = _step(workload, names)
    return analyze(step, *workload.batch.values(), weights=level, confirm=confirm)  # type: ignore[arg-type]


def _step(workload: Workload, names: tuple[str, ...]) -> Callable[..., Any]:
    model, loss = workload.model, workload.loss

    def step(*tensors: torch.Tensor) -> torch.Tensor:
        return loss(model, dict(zip(names, tensors, strict=True)))

    return step


def _forward_seconds(workload: Workload, repeats: int = 3) -> float:
    def forward() -> float:
        started = time.process_time()
        with torch.no_grad():
            workload.loss(workload.model, workload.batch)
        return time.process_time() - started

    forward()
    return statistics.median(forward() for _ in range(repeats))


def _finding(case: Case, analysis: Analysis) -> Finding:
    alarms, known = [], []
    for defect in analysis.defects:
        reason = next((why for part, why in case.known.items() if part in str(defect.source)), "")
        line = (
            f"{defect.code} {defect.op} at {defect.source} `{defect.source.expression}`: "
            f"{defect.bounds}, {defect.outcome}"
        )
        if defect.witness is not None:
            line += f"; witness {defect.witness.to_dict()}"
        (known if reason else alarms).append(f"{line}; {reason}" if reason else line)
    bound = analysis.bounds.get("loss")
    return Finding(
        seconds=analysis.analysis_seconds,
        loss=float("nan") if bound is None else bound.high,
        unknown=tuple(f"{item.op} x{item.count}" for item in analysis.unknowns),
        alarms=tuple(alarms),
        known=tuple(known),
        faults=tuple(note for note in analysis.notes if note.startswith("transfer function")),
    )
