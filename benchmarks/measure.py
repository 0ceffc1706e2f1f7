"""What the benchmarks share: the heading, CPU time, tables."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch


def heading() -> str:
    """Where the numbers come from, for the line above a table."""
    return (
        f"{_processor()}, {torch.get_num_threads()} thread, Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, {platform.system()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of one call: other processes on the machine do not count."""
    started = time.process_time()
    function()
    return time.process_time() - started


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median CPU time of a call, after one that is not counted."""
    function()
    return statistics.median(cpu_seconds(function) for _ in range(repeats))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, middle, upper


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
