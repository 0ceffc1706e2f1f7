"""Analyses every stock architecture of the control set, each in its own process."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import traceback
from multiprocessing.connection import Connection

import torch

from benchmarks.clean.judge import DTYPES, LEVELS, Finding, Row, judge
from benchmarks.clean.table import CASES
from benchmarks.measure import heading, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clean", description=__doc__)
    parser.add_argument("names", nargs="*", help="cases to run; all tiny ones by default")
    parser.add_argument("--real", action="store_true", help="also the sizes people train")
    parser.add_argument("--levels", nargs="+", choices=(*LEVELS, "anything"), default=list(LEVELS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=20.0, help="for witnesses, per analysis")
    parser.add_argument("--quiet", action="store_true", help="only the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    _import_once()
    unknown = sorted(set(arguments.names) - set(CASES))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are: {', '.join(CASES)}")
    names = arguments.names or [n for n, case in CASES.items() if arguments.real or not case.real]
    rows = []
    for name in names:
        row = _in_own_process(name, arguments)
        rows.append(row)
        if not arguments.quiet:
            _tell(row)
    print(f"\n{heading()}.\n\n{_table(rows, arguments.levels, arguments.dtypes)}\n")
    bad = [row.name for row in rows if not row.is_clean]
    incomplete = [r.name for r in rows if any(f.unknown for f in r.findings.values())]
    print(f"{len(rows)} architectures, {len(rows) - len(bad)} without an unexplained alarm, "
          f"{len(incomplete)} incomplete.")  # fmt: skip
    if bad:
        print(f"not clean: {', '.join(bad)}")
    return 1 if bad else 0


def _import_once() -> None:
    """What every case needs, before the processes part."""
    import transformers.modeling_utils  # noqa: F401


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


def _table(rows: list[Row], levels: list[str], dtypes: list[str]) -> str:
    keys = [(dtype, level) for dtype in dtypes for level in levels]
    columns = ["model", "parameters", "operators", "forward ms", "capture ms", "analysis ms",
               "unknown"]  # fmt: skip
    columns += [f"{dtype} {level}" for dtype, level in keys]
    lines = []
    for row in rows:
        if row.error:
            lines.append([row.name, *["-"] * (len(columns) - 2), "failed"])
            continue
        first = next(iter(row.findings.values()))
        cells = [row.name, f"{row.parameters:,}", str(row.operators)]
        cells += [f"{1e3 * s:.1f}" for s in (row.forward, row.capture, first.seconds)]
        cells.append(str(sum(int(u.rsplit("x", 1)[1]) for u in first.unknown)))
        for key in keys:
            found = row.findings.get(key)
            cells.append(_verdict(row, found) if found else "-")
        lines.append(cells)
    return table(columns, lines)


def _verdict(row: Row, found: Finding) -> str:
    alarms, proven = row.unexplained(found), sum(1 for a in found.alarms if a.witness)
    shown = len(found.alarms) - len(alarms) - proven
    text = str(len(alarms))
    text += f" + {proven} real" if proven else ""
    return text + (f" + {shown} real at another level" if shown else "")


if __name__ == "__main__":
    sys.exit(main())
