"""Scores an analysis against the truth, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ranum
from benchmarks.grist.case import Built, Case, Flaw


@dataclass(frozen=True, slots=True)
class Score:
    """How one case went.

    Attributes:
        case: The case.
        found: Flaws that were reported, each with the level and growth of its report.
        missed: Flaws that had to be reported and were not.
        false: Reported defects that are none, in words.
        unknown: Operators that could not be bounded.
        seconds: CPU time of the analysis, capture excluded.
        placing: What of it was spent on the level of weights at which each defect occurs.
        operators: How many the graph has, forward and backward.
    """

    case: Case
    found: Mapping[Flaw, Any]
    missed: tuple[Flaw, ...]
    false: tuple[str, ...]
    unknown: tuple[str, ...]
    seconds: float
    placing: float
    operators: int

    @property
    def is_perfect(self) -> bool:
        """Every flaw reported, and nothing else."""
        return not (self.missed or self.false or self.unknown)

    @property
    def is_target_found(self) -> bool:
        """True if the published defect was reported (every one, where it has two)."""
        return all(flaw in self.found for flaw in self.case.targets)


def analyze(case: Case, built: Built, *, outside: bool = False) -> Any:
    """The analysis for every finite weight within the documented ranges.

    Args:
        case: The case.
        built: Its program.
        outside: Widen the ranges to what the published defect needs.
    """
    weights: Any = "anything"
    named = {**built.weight_ranges, **(case.outside if outside else {})}
    if named:
        weights = {**named, "*": "anything"}
    return ranum.analyze(
        built.target, *built.inputs.values(), inputs=dict(built.ranges), weights=weights
    )


def score(case: Case, analysis: Any, flaws: Sequence[Flaw] | None = None) -> Score:
    """Compares what was reported with the truth.

    Args:
        case: The case.
        analysis: Of its program.
        flaws: The truth; the case's own by default.
    """
    truth = case.flaws if flaws is None else tuple(flaws)
    found: dict[Flaw, Any] = {}
    false = []
    for defect in analysis.defects:
        matching = [flaw for flaw in truth if matches(flaw, defect)]
        for flaw in matching:
            found.setdefault(flaw, defect)
        if not matching:
            false.append(f"{defect.code} {defect.op} `{text(defect.source)}` {defect.bounds}")
    missed = tuple(flaw for flaw in truth if flaw.is_required and flaw not in found)
    unknown = tuple(str(one) for one in analysis.unknowns)
    return Score(
        case=case,
        found=found,
        missed=missed,
        false=tuple(false),
        unknown=unknown,
        seconds=analysis.analysis_seconds,
        placing=analysis.placing_seconds,
        operators=len(analysis.graph.nodes),
    )


def matches(flaw: Flaw, defect: Any) -> bool:
    """True if a reported defect is the flaw: the same operator in the same expression."""
    if flaw.op != defect.op or flaw.text not in text(defect.source):
        return False
    return flaw.gradient == defect.gradient_only


def text(source: Any) -> str:
    """The expression, where its columns are known, else the whole line."""
    return source.expression or " ".join(source.lines)
