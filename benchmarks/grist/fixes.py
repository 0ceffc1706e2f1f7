"""Cures the published defects at their operators, and verifies each cure.

    python -m benchmarks.grist.fixes                  # all 79
    python -m benchmarks.grist.fixes 11c 28d --diff   # some, with their diffs

A program is patched while it runs: it is recorded (TensorFlow: traced) and analysed again, for
the same ranges, with the edits that `ranum.fix` makes in its source. It is cured if the published
defect is gone, no new one came, and loss and gradients of the batch are the same within the
stated tolerance, in TensorFlow's own run of the function too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch

import ranum
from benchmarks.grist.case import Case, load
from benchmarks.grist.score import analyze, matches
from benchmarks.measure import heading, table
from ranum.repair.clipping import Clip, Rewrite

COLUMNS = ("case", "cure of the published defect", "cured", "all defects", "change", "s")


@dataclass(frozen=True, slots=True)
class Cure:
    """How the cure of one case went.

    Attributes:
        case: Its name.
        words: What is written, or clamped.
        problem: Why the published defect is not cured; "" if it is.
        cured: How many of all reported defects are gone, and how many there were.
        change: Of the batch's loss and gradients, relative; NaN where nothing was run.
        seconds: CPU time of the search, verification included.
        diff: For `git apply`; "" if none is made.
    """

    case: str
    words: str
    problem: str
    cured: tuple[int, int]
    change: float
    seconds: float
    diff: str = ""


def cure(case: Case, seed: int) -> Cure:
    """Cures one case and says how it went."""
    built = case.build(seed)
    torch.manual_seed(seed)
    outside = bool(case.beyond) and not any(flaw.is_target for flaw in case.flaws)
    analysis = analyze(case, built, outside=outside)
    targets = [d for d in analysis.defects if any(matches(flaw, d) for flaw in case.targets)]
    if not targets:
        return Cure(case.name, "", "not reported", (0, len(analysis.defects)), float("nan"), 0.0)
    started = time.process_time()
    words, problem, cured, change, diff = _in_source(analysis, targets)
    total = len(analysis.defects)
    seconds = time.process_time() - started
    return Cure(case.name, words, problem, (cured, total), change, seconds, diff)


def _in_source(analysis: Any, targets: Sequence[Any]) -> tuple[str, str, int, float, str]:
    cures = ranum.fix(analysis)
    own = [one for one in cures if _is_for(one, targets)]
    words = "; ".join(_words(one) for one in own)
    if not cures.edits:
        return words, "; ".join(one.reason for one in cures), 0, float("nan"), ""
    found = cures.verify()
    left = {(one.op, one.source.line) for one in found.remaining}
    problem = found.problem or ("; ".join(f"new: {one}" for one in found.new))
    if not problem and any((one.op, one.source.line) in left for one in targets):
        problem = "it is still there"
    if not problem and found.change > found.tolerance:
        problem = f"results change by {found.change:.1g}"
    cured = len(analysis.defects) - len(found.remaining)
    return words, problem, cured, found.change, cures.diff()


def _is_for(one: Clip | Rewrite, targets: Sequence[Any]) -> bool:
    cures = one.cures if isinstance(one, Rewrite) else (one.defect,)
    return any(defect is target for defect in cures for target in targets)


def _words(one: Clip | Rewrite) -> str:
    if isinstance(one, Rewrite):
        return " ".join(one.edit.new.split())
    if one.distance is not None:
        return f"{one.defect.op}: {one.distance:.3g} away from 0"
    bounds = {"min": one.lower, "max": one.upper}
    shown = ", ".join(f"{name}={value:.3g}" for name, value in bounds.items() if value is not None)
    return f"{one.defect.op}: clamp({shown})" if shown else f"{one.defect.op}: none"


def row(found: Cure) -> list[str]:
    """The table's row of one case."""
    return [
        found.case,
        found.words,
        found.problem or "yes",
        f"{found.cured[0]} of {found.cured[1]}",
        "" if found.change != found.change else f"{found.change:.1g}",
        f"{found.seconds:.2f}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grist.fixes", description=__doc__)
    parser.add_argument("names", nargs="*", help="cases; all 79 by default")
    parser.add_argument("--framework", choices=("torch", "tensorflow"), help="only its cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--diff", action="store_true", help="print the diffs as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = load(arguments.framework)
    cures = []
    for name in arguments.names or cases:
        cures.append(cure(cases[name], arguments.seed))
        if cures[-1].problem:
            print(f"{name}: {cures[-1].problem}", flush=True)
        if arguments.diff:
            print(cures[-1].diff, flush=True)
    good = sum(not one.problem for one in cures)
    gone, total = (sum(one.cured[n] for one in cures) for n in (0, 1))
    spent = [one.seconds for one in cures]
    print(f"\n{heading()}.\n\n{table(COLUMNS, [row(one) for one in cures])}\n")
    print(
        f"{good} of {len(cures)} cured at the operator; of all {total} defects reported, {gone}. "
        f"{mean(spent):.2f} s of CPU time on average, {median(spent):.2f} s in the middle, "
        f"{max(spent):.1f} s at most."
    )
    return 0 if good == len(cures) else 1


if __name__ == "__main__":
    sys.exit(main())
