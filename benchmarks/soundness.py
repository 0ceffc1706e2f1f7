"""Whether the intervals hold: torch's operator database and mpmath against every bound.

Counts the database's entries that are covered, unknown, violated and so on, and the numbers
compared. Takes ten minutes or so; `--samples 1 --dtypes float32` gives a first impression.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
from measure import heading, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from oracles.boxes import MODES, Mode
from oracles.opdb import STATUSES, Outcome, entries, judge
from oracles.references import REFERENCES, faults

from ranum.analysis.transfer.registry import rules, twins

DTYPES = ("float32", "float16", "bfloat16", "float64")


def some(number: int) -> tuple[Mode, ...]:
    """Three boxes a sample, different ones from sample to sample."""
    return tuple(MODES[(number + step) % len(MODES)] for step in (0, 3, 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4, help="per entry and dtype")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="judge only each n-th entry")
    options = parser.parse_args()
    dtypes = [getattr(torch, name) for name in options.dtypes]

    outcomes: list[Outcome] = [
        judge(op, dtypes=dtypes, samples=options.samples, modes=some, seed=options.seed)
        for op in entries()[:: options.every]
    ]
    found = Counter(outcome.status for outcome in outcomes)
    print(heading(), end="\n\n")
    rows = [
        ["entries of the operator database", f"{len(outcomes):,}"],
        *[[f"- {status}: {text}", f"{found[status]:,}"] for status, text in STATUSES.items()],
        ["samples recorded", f"{sum(item.samples for item in outcomes):,}"],
        ["nodes in them", f"{sum(item.nodes for item in outcomes):,}"],
        ["- never run again on a draw", f"{sum(item.unseen_nodes for item in outcomes):,}"],
        ["operators in them", f"{len(set().union(*(item.ops for item in outcomes))):,}"],
        ["results compared", f"{sum(item.results for item in outcomes):,}"],
        ["numbers compared", f"{sum(item.elements for item in outcomes):,}"],
        ["violations", f"{sum(len(item.violations) for item in outcomes):,}"],
        ["transfer functions that raised", f"{sum(len(item.faults) for item in outcomes):,}"],
        ["operators with a transfer function", f"{len(rules()):,}"],
        ["operators with a twin on one pair of bounds", f"{len(twins()):,}"],
    ]
    missed = [
        fault for item in REFERENCES for dtype in item.dtypes for fault in faults(item, dtype)
    ]
    rows.append([f"functions against mpmath: {len(REFERENCES)}; violations", f"{len(missed):,}"])
    print(table(["", "count"], rows))
    for outcome in outcomes:
        for line in [*map(str, outcome.violations[:2]), *sorted(outcome.faults)[:2]]:
            print("-", line)
    print(*missed[:20], sep="\n")
    names = {name for outcome in outcomes for name in outcome.unknown}
    print("Unknown:", ", ".join(sorted(names)))
    for status in ("unseen", "silent"):
        chosen = [item for item in outcomes if item.status == status]
        print(f"{status.capitalize()}:", ", ".join(item.entry for item in chosen))


if __name__ == "__main__":
    main()
