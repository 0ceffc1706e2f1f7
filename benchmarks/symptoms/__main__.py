"""Judges healthy and broken training runs, by Ranum's symptoms and by peers' rules.

python -m benchmarks.symptoms                       # every run, five seeds, Ranum alone
python -m benchmarks.symptoms --peers               # and the peers' rules on the same runs
python -m benchmarks.symptoms "rate low, Adam" --seeds 5-9
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from benchmarks.measure import heading, table
from benchmarks.symptoms.broken import BROKEN
from benchmarks.symptoms.healthy import HEALTHY
from benchmarks.symptoms.held_out import BROKEN_HELD_OUT, HEALTHY_HELD_OUT
from benchmarks.symptoms.judge import Outcome, run

JUDGES = ("Ranum", "AutoTrainer", "SageMaker", "TheDeepChecker", "Lightning")


def seeds(text: str) -> range:
    """A count, from 0, or the first and the last: 5 is 0 to 4, 5-9 is 5 to 9."""
    first, dash, last = text.partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a healthy run raised an alarm or a broken one was not named in time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="cases; all by default")
    parser.add_argument("--seeds", type=seeds, default=range(5), help="count, or first-last")
    parser.add_argument("--peers", action="store_true", help="ask the peers' rules too")
    parser.add_argument("--held-out", action="store_true", help="kinds no threshold was chosen on")
    options = parser.parse_args(arguments)
    held_out = [*HEALTHY_HELD_OUT, *BROKEN_HELD_OUT]
    cases = held_out if options.held_out else [*HEALTHY, *BROKEN]
    if options.names:
        every = {case.name: case for case in (*HEALTHY, *BROKEN, *held_out)}
        unknown = [name for name in options.names if name not in every]
        if unknown:
            parser.error(f"unknown cases {unknown}; known: {sorted(every)}")
        cases = [every[name] for name in options.names]
    torch.set_num_threads(1)
    outcomes = []
    for case in cases:
        begun = time.process_time()
        mine = [run(case, seed, peers=options.peers) for seed in options.seeds]
        outcomes += mine
        took = time.process_time() - begun
        print(f"{case.name}: {took:.1f} s; {_said(mine)}", file=sys.stderr, flush=True)
    print(report(outcomes, peers=options.peers))
    return int(any(not is_right(outcome, "Ranum") for outcome in outcomes))


def is_right(outcome: Outcome, judge: str) -> bool:
    """A healthy run without a word, or a broken one named in time."""
    if outcome.case.is_healthy:
        return not outcome.others(judge)
    return outcome.is_in_time(judge)


def report(outcomes: Sequence[Outcome], *, peers: bool) -> str:
    """The tables, in Markdown."""
    healthy = [outcome for outcome in outcomes if outcome.case.is_healthy]
    broken = [outcome for outcome in outcomes if not outcome.case.is_healthy]
    parts = [heading()]
    if healthy:
        parts.append(table(("healthy run", "steps", "loss from", "to", "alarms"), _quiet(healthy)))
    if broken:
        columns = ("broken run", "is", "named", "in time", "within", "median step", "besides")
        parts.append(table(columns, _named(broken)))
    judges = JUDGES if peers else JUDGES[:1]
    columns = (
        "judge", "healthy runs with an alarm", "checks with one",
        "broken runs named", "in time", "with a wrong name besides",
    )  # fmt: skip
    parts.append(table(columns, [_summary(judge, healthy, broken) for judge in judges]))
    return "\n\n".join(parts)


def _groups(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.case.name, []).append(outcome)
    return list(groups.values())


def _quiet(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    rows = []
    for group in _groups(outcomes):
        case = group[0].case
        first = sorted(outcome.first for outcome in group)[len(group) // 2]
        last = sorted(outcome.last for outcome in group)[len(group) // 2]
        rows.append((case.name, str(case.steps), f"{first:.3g}", f"{last:.3g}", _said(group)))
    return rows


def _named(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    rows = []
    for group in _groups(outcomes):
        case = group[0].case
        steps = sorted(step for o in group if (step := o.named("Ranum")) is not None)
        in_time = sum(outcome.is_in_time("Ranum") for outcome in group)
        rows.append(
            (
                case.name,
                case.expected[0],
                _names(group),
                f"{in_time}/{len(group)}",
                str(case.within),
                str(steps[len(steps) // 2]) if steps else "",
                _said(group),
            )
        )
    return rows


def _names(group: Sequence[Outcome]) -> str:
    """The code that named each run first, with how many runs."""
    firsts: dict[str, int] = {}
    for outcome in group:
        for verdict in outcome.verdicts:
            if verdict.judge == "Ranum" and set(verdict.codes) & set(outcome.case.expected):
                firsts[verdict.codes[0]] = firsts.get(verdict.codes[0], 0) + 1
                break
    return ", ".join(f"{code} {count}" for code, count in sorted(firsts.items())) or "-"


def _said(group: Sequence[Outcome]) -> str:
    """Codes beyond the expected ones, with how many runs."""
    counts: dict[str, int] = {}
    for outcome in group:
        for verdict in outcome.others("Ranum"):
            counts[verdict.codes[0]] = counts.get(verdict.codes[0], 0) + 1
    return ", ".join(f"{code} {count}" for code, count in sorted(counts.items())) or "-"


def _summary(judge: str, healthy: Sequence[Outcome], broken: Sequence[Outcome]) -> tuple[str, ...]:
    alarmed = sum(bool(outcome.others(judge)) for outcome in healthy)
    checks = sum(outcome.checks.get(judge, 0) for outcome in healthy)
    fired = sum(v.times for outcome in healthy for v in outcome.others(judge))
    named = sum(outcome.named(judge) is not None for outcome in broken)
    in_time = sum(outcome.is_in_time(judge) for outcome in broken)
    wrong = sum(bool(outcome.others(judge)) for outcome in broken)
    share = f"{fired / checks:.1%}" if checks else "-"
    return (
        judge,
        f"{alarmed} of {len(healthy)}",
        f"{share} of {checks}",
        f"{named} of {len(broken)}",
        str(in_time),
        str(wrong),
    )


if __name__ == "__main__":
    raise SystemExit(main())
