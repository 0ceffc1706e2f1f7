"""What `import ranum` costs on top of `import torch`, in fresh processes."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys

from measure import heading, table

STATEMENTS = {
    "import ranum": (),
    "from ranum import Guard": (),
    "from ranum import analyze": (),
    "from ranum import RanumCallback": ("lightning.pytorch",),
}
"""Statements, and what a user of each has imported anyway."""

PROGRAM = """
import importlib, sys, time
import torch
for name in {before!r}:
    importlib.import_module(name)
count, started = len(sys.modules), time.perf_counter()
{statement}
print(time.perf_counter() - started, len(sys.modules) - count)
"""


def measure(statement: str, before: tuple[str, ...], repeats: int) -> tuple[list[float], int]:
    """Seconds of wall time in each process, and how many modules were loaded."""
    program = PROGRAM.format(statement=statement, before=before)
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout.split()
        for _ in range(repeats + 1)
    ]
    return [float(seconds) for seconds, _ in outputs[1:]], int(outputs[1][1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    print(f"{heading()}; {arguments.repeats} processes each, after one to write bytecode.\n")
    rows = []
    for statement, before in STATEMENTS.items():
        known = tuple(name for name in before if importlib.util.find_spec(name.split(".")[0]))
        if known != before:
            continue
        seconds, modules = measure(statement, known, arguments.repeats)
        middle = statistics.median(seconds)
        rows.append(
            (
                f"`{statement}`",
                " and ".join(("torch", *known)),
                f"{1e3 * middle:.1f}",
                f"{1e3 * min(seconds):.1f}",
                str(modules),
            )
        )
    print(table(("statement", "on top of", "median ms", "least ms", "modules"), rows))


if __name__ == "__main__":
    main()
