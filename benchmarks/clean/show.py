"""Rows as text: kept in a file between runs, printed as Markdown tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.clean.judge import LEVELS, Alarm, Finding, Row
from benchmarks.measure import heading, table


def save(row: Row, path: Path) -> None:
    """Appends a row to a file of JSON lines, with the machine it was measured on."""
    entry = asdict(row)
    entry["findings"] = [
        {"dtype": dtype, "level": level, **asdict(found)}
        for (dtype, level), found in row.findings.items()
    ]
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"machine": heading(), **entry}) + "\n")


def load(path: Path) -> tuple[list[str], list[Row]]:
    """Machines and rows of a file that `save` wrote; of one name the last row counts."""
    if not path.exists():
        return [], []
    machines: dict[str, None] = {}
    rows: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        machines[entry.pop("machine")] = None
        findings = {(f.pop("dtype"), f.pop("level")): _finding(f) for f in entry.pop("findings")}
        rows[entry["name"]] = Row(findings=findings, **entry)
    return list(machines), list(rows.values())


def _finding(entry: dict[str, object]) -> Finding:
    alarms = tuple(
        Alarm(key=tuple(a["key"]), text=a["text"], witness=a["witness"])
        for a in entry.pop("alarms")  # type: ignore[attr-defined]
    )
    lists = {name: tuple(entry.pop(name)) for name in ("unknown", "faults")}  # type: ignore[arg-type]
    return Finding(**entry, **lists, alarms=alarms)  # type: ignore[arg-type]


def markdown(rows: Sequence[Row], machines: Sequence[str]) -> str:
    """The machines, the table, the defects that remain, and one line that counts."""
    found = {key: None for row in rows for key in row.findings}
    keys = [key for key in found if key[1] in LEVELS]
    parts = ["; ".join(machines) + "."] if machines else []
    if keys:
        parts.append(_table(rows, keys))
    if any(level == "anything" for _, level in found):
        parts.append(_of_any_size(rows))
    parts += [_remaining(rows), _summary(rows)]
    return "\n\n".join(part for part in parts if part)


def _table(rows: Sequence[Row], keys: Sequence[tuple[str, str]]) -> str:
    columns = ["model", "parameters", "operators", "unknown", "forward ms", "capture ms"]
    columns += [f"{dtype} {level} ms" for dtype, level in keys] + ["defects"]
    lines = []
    for row in rows:
        if row.error:
            lines.append([row.name, *["-"] * (len(columns) - 2), "failed"])
            continue
        unknown = max(
            (sum(int(u.rsplit("x", 1)[1]) for u in f.unknown) for f in row.findings.values()),
            default=0,
        )
        cells = [row.name, f"{row.parameters:,}", f"{row.operators:,}", str(unknown)]
        cells += [f"{1e3 * seconds:.0f}" for seconds in (row.forward, row.capture)]
        for key in keys:
            cells.append(f"{1e3 * row.findings[key].seconds:.0f}" if key in row.findings else "-")
        lines.append([*cells, _verdicts(row, keys)])
    return table(columns, lines)


def _verdicts(row: Row, keys: Sequence[tuple[str, str]]) -> str:
    alarms, real = _counts(row, keys)
    parts = [f"{real} real"] if real else []
    parts += [f"**{alarms} unexplained**"] if alarms else []
    return ", ".join(parts) or "0"


def _counts(row: Row, keys: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """Places with an alarm that no witness explains, and places with one that does."""
    places = {a.key for key in keys if key in row.findings for a in row.findings[key].alarms}
    return len(places - row.real), len(places & row.real)


def _remaining(rows: Sequence[Row]) -> str:
    """Every defect at the levels that should be quiet, with its witness."""
    lines = []
    for row in rows:
        seen: dict[tuple[str, ...], list[str]] = {}
        proofs: dict[tuple[str, ...], str] = {}
        for (dtype, level), found in row.findings.items():
            for alarm in found.alarms if level in LEVELS else ():
                seen.setdefault(alarm.key, []).append(f"{dtype} {level}")
                if alarm.witness and alarm.key not in proofs:
                    proofs[alarm.key] = f"witness at {dtype} {level}: {alarm.witness}"
        for key, where in seen.items():
            proof = proofs.get(key, "**no witness**")
            place = f"{key[2].rsplit('/', 1)[-1]}:{key[3]}"
            lines.append(
                f"- {row.name}, {', '.join(where)}: {key[0]} `{key[1]}` at {place}; {proof}"
            )
    return "\n".join(lines)


def _of_any_size(rows: Sequence[Row]) -> str:
    """Which rules an architecture breaks by itself, and how many do not at all."""
    lines, quiet = [], 0
    for row in rows:
        for (dtype, level), found in row.findings.items():
            if level != "anything":
                continue
            quiet += not found.alarms
            shown = sum(1 for alarm in found.alarms if alarm.key in row.real)
            rules = Counter(f"{a.key[0]} {a.key[1]}" for a in found.alarms)
            text = ", ".join(f"{n} x {r}" if n > 1 else r for r, n in sorted(rules.items()))
            if rules:
                lines.append([row.name, dtype, str(len(found.alarms)), str(shown), text])
    text = f"{quiet} analyses with weights of any size found no defect of the architecture itself."
    if not lines:
        return text
    columns = ["model", "dtype", "of any size", "with witness", "rules"]
    return text + " The others:\n\n" + table(columns, lines)


def _summary(rows: Sequence[Row]) -> str:
    bad = [row.name for row in rows if not row.is_clean]
    incomplete = [r.name for r in rows if any(f.unknown for f in r.findings.values())]
    operators = sum(row.operators for row in rows)
    text = (
        f"{len(rows)} architectures, {operators:,} operators, {len(rows) - len(bad)} without an "
        f"unexplained alarm, {len(incomplete)} incomplete"
    )
    text += f" ({', '.join(incomplete)})." if incomplete else "."
    return text + (f"\nNot clean: {', '.join(bad)}." if bad else "")
