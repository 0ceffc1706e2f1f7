"""Analyses every stock architecture of the control set, each in its own process."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.clean.judge import DTYPES, LEVELS, Row, judge
from benchmarks.clean.show import load, markdown, save
from benchmarks.clean.table import CASES
from benchmarks.measure import heading


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clean", description=__doc__)
    parser.add_argument("names", nargs="*", help="cases to run; all tiny ones by default")
    parser.add_argument("--real", action="store_true", help="also the sizes people train")
    parser.add_argument("--levels", nargs="+", choices=(*LEVELS, "anything"), default=list(LEVELS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=20.0, help="for witnesses, per analysis")
    parser.add_argument("--quiet", action="store_true", help="only the table")
    parser.add_argument(
        "--file", type=Path, help="where rows are kept: a run goes on where it ended"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="run nothing, print what --file has"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    unknown = sorted(set(arguments.names) - set(CASES))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are: {', '.join(CASES)}")
    if arguments.markdown and arguments.file is None:
        parser.error("--markdown prints what --file has, and needs it")
    machines, rows = load(arguments.file) if arguments.file else ([], [])
    if not arguments.markdown:
        rows += _run(arguments, {row.name for row in rows if not row.error})
        machines = list(dict.fromkeys([*machines, heading()]))
    rows = list({row.name: row for row in rows}.values())
    order = {name: i for i, name in enumerate(CASES)}
    rows.sort(key=lambda row: order.get(row.name, len(order)))
    print(f"\n{markdown(rows, machines)}")
    return 0 if all(row.is_clean for row in rows) else 1


def _run(arguments: argparse.Namespace, done: set[str]) -> list[Row]:
    """The rows of the cases asked for that are not done, each kept as soon as it is there."""
    _import_once()
    names = arguments.names or [n for n, case in CASES.items() if arguments.real or not case.real]
    rows = []
    for name in names:
        if name in done:
            continue
        row = _in_own_process(name, arguments)
        rows.append(row)
        if arguments.file:
            save(row, arguments.file)
        if not arguments.quiet:
            _tell(row)
    return rows


def _import_once() -> None:
    """What every case needs, before the processes part: imports, and an analysis that warms up."""
    import transformers.modeling_utils  # noqa: F401

    judge(CASES["MLP"], dtypes=("float32",), seconds=0)


def _in_own_process(name: str, arguments: argparse.Namespace) -> Row:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, arguments, sender))
    process.start()
    sender.close()
    try:
        row: Row = receiver.recv()
    except EOFError:
        row = Row(name=name, error="the process died")
    process.join()
    return row


def _work(name: str, arguments: argparse.Namespace, sender: Connection) -> None:
    try:
        row = judge(
            CASES[name],
            levels=tuple(arguments.levels),
            dtypes=tuple(arguments.dtypes),
            seconds=arguments.seconds,
        )
    except Exception:  # the other cases go on
        row = Row(name=name, error=traceback.format_exc())
    sender.send(row)


def _tell(row: Row) -> None:
    print(f"{row.name}: {'clean' if row.is_clean else 'NOT CLEAN'}", flush=True)
    if row.error:
        print("    " + row.error.replace("\n", "\n    "))
    for (dtype, level), found in row.findings.items():
        lines = [f"alarm: {alarm.text}" for alarm in row.unexplained(found)]
        lines += [
            f"real: {alarm.text}; {alarm.witness or 'witness at another level'}"
            for alarm in found.alarms
            if alarm.key in row.real
        ]
        lines += [f"unknown: {', '.join(found.unknown)}"] if found.unknown else []
        lines += found.faults
        print(f"  {dtype} {level}: loss <= {found.loss:.4g}, {1e3 * found.seconds:.0f} ms")
        for line in lines:
            print(f"    {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
