"""Scores the analysis on the 79 cases, operator by operator."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.grist.case import Case, load
from benchmarks.grist.score import Score, analyze, score
from benchmarks.measure import heading, table

COLUMNS = ("case", "target", "weights", "flaws", "false alarms", "CPU ms")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grist", description=__doc__)
    parser.add_argument("names", nargs="*", help="cases; all 79 by default")
    parser.add_argument("--framework", choices=("torch", "tensorflow"), help="only its cases")
    parser.add_argument("--repeats", type=int, default=1, help="analyses per case; the best counts")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = load(arguments.framework)
    unknown = sorted(set(arguments.names) - set(cases))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are: {', '.join(cases)}")
    chosen = [cases[name] for name in arguments.names] or list(cases.values())
    scores = []
    for case in chosen:
        scores.append(scored(case, arguments.seed, arguments.repeats))
        for line in problems(scores[-1]):
            print(f"{case.name}: {line}", flush=True)
    print(f"\n{heading()}.\n\n{table(COLUMNS, [row(one) for one in scores])}\n")
    print(summary(scores))
    outside = [beyond(case, arguments.seed) for case in chosen if case.beyond]
    print("\n".join(outside))
    return 0 if all(one.is_perfect for one in scores) else 1


def scored(case: Case, seed: int, repeats: int = 1) -> Score:
    """The score of one case; its time is that of the fastest of some analyses."""
    analyses = [analyze(case, case.build(seed)) for _ in range(repeats)]
    return score(case, min(analyses, key=lambda one: one.analysis_seconds))


def problems(one: Score) -> list[str]:
    """What is wrong with a score, a line each."""
    lines = [f"missed: {flaw.op} `{flaw.text}`, {flaw.why}" for flaw in one.missed]
    lines += [f"false alarm: {defect}" for defect in one.false]
    return lines + [f"unknown operator: {operator}" for operator in one.unknown]


def row(one: Score) -> list[str]:
    """The table's row of one case."""
    case = one.case
    inside = [flaw for flaw in case.flaws if flaw.is_target]
    target = "found" if one.is_target_found else "missed"
    if not inside:
        target = "only beyond its range"
    defect = next((one.found[flaw] for flaw in inside if flaw in one.found), None)
    required = [flaw for flaw in case.flaws if flaw.is_required]
    found = sum(flaw in one.found for flaw in required)
    return [
        case.name,
        target,
        "" if defect is None else reach(defect),
        f"{found}/{len(required)}",
        str(len(one.false)),
        f"{1000 * one.seconds:.1f}",
    ]


def reach(defect: Any) -> str:
    """The level of weights at which a defect occurs, and by how much they must have grown."""
    return f"{defect.reach} ({defect.times}x)" if defect.times else str(defect.reach)


def summary(scores: Sequence[Score]) -> str:
    """Totals over all cases."""
    inside = [one for one in scores if any(flaw.is_target for flaw in one.case.flaws)]
    required = sum(flaw.is_required for one in scores for flaw in one.case.flaws)
    missed = sum(len(one.missed) for one in scores)
    false = sum(len(one.false) for one in scores)
    reported = sum(len(one.found) for one in scores)
    precision = reported / max(reported + false, 1)
    recall = (required - missed) / max(required, 1)
    operators = sum(one.operators for one in scores)
    seconds, placing = sum(one.seconds for one in scores), sum(one.placing for one in scores)
    return (
        f"{sum(one.is_target_found for one in inside)} of {len(inside)} published defects found, "
        f"{required - missed} of {required} defective operators (recall {recall:.3f}), "
        f"{false} false alarms (precision {precision:.3f}) among {operators} operators; "
        f"{seconds:.2f} s of CPU time for all analyses, captures excluded: "
        f"{seconds - placing:.2f} s to find the defects, {placing:.2f} s to tell by how much "
        "weights must have grown for each."
    )


def beyond(case: Case, seed: int) -> str:
    """What is found of a defect that lies outside the documented ranges, once they are widened."""
    one = score(case, analyze(case, case.build(seed), outside=True), case.flaws + case.beyond)
    found = all(flaw in one.found for flaw in case.beyond)
    ranges = ", ".join(f"{name} in [{a:g}, {b:g}]" for name, (a, b) in case.outside.items())
    why = ", ".join(flaw.why for flaw in case.beyond)
    return (
        f"{case.name}: not reachable within its documented ranges ({why}); with {ranges} "
        f"it is {'found' if found else 'missed'}."
    )


if __name__ == "__main__":
    sys.exit(main())
