"""ONNX's own node tests: how many are lowered, equal, soundly bounded, unknown, per operator."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path

from measure import heading, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from onnx_cases import oracle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="tests whose name holds it")
    parser.add_argument("--all", action="store_true", help="also operators without any fault")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the reference cases divide by zero on purpose
    cases = [case for name, case in sorted(oracle.cases().items()) if options.only in name]
    started = time.process_time()
    outcomes = [oracle.judge(case) for case in cases]
    seconds = time.process_time() - started
    by_operator: dict[str, list[oracle.Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_operator[outcome.op].append(outcome)
    print(heading())
    print(
        f"{len(by_operator)} operators, {len(outcomes)} tests in {seconds:.0f} s of CPU time; "
        f"{sum(o.checks for o in outcomes)} results set against their intervals.\n"
    )
    rows = [row("all", outcomes)]
    for op, group in sorted(by_operator.items()):
        cells = row(op, group)
        if options.all or len(set(cells[1:5])) > 1 or cells[5] != "0":
            rows.append(cells)
    columns = ["operator", "tests", "lowered", "equal", "sound", "unbounded", "on numbers"]
    print(table(columns, rows))
    missing = Counter(op for outcome in outcomes for op in outcome.unbounded)
    print("\nWithout a transfer function: " + ", ".join(f"{op} ({n})" for op, n in missing.items()))
    for outcome in outcomes:
        for violation in outcome.violations[:1]:
            print(f"unsound: {outcome.name}: {violation}")
        if outcome.status in ("different", "failed"):
            print(f"{outcome.status}: {outcome.name}: {outcome.detail}")


def row(name: str, outcomes: list[oracle.Outcome]) -> list[str]:
    lowered = [o for o in outcomes if o.status in ("equal", "different")]
    equal = [o for o in outcomes if o.status == "equal"]
    counts = (
        len(outcomes),
        len(lowered),
        len(equal),
        sum(o.is_sound for o in equal),
        sum(bool(o.unbounded) for o in equal),
        sum(o.depends for o in equal),
    )
    return [name, *map(str, counts)]


if __name__ == "__main__":
    main()
