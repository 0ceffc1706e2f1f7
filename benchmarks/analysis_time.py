"""What `ranum.analyze` costs: recording against one training step, analysis against a forward.

Stock models need transformers; without it they are left out, and the heading says so.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from analysis_models import Step, layered, transformers_steps
from measure import heading, median_seconds, table
from models import Workload, cnn, gpt, mlp

from ranum.analysis.capture.program import Program
from ranum.analysis.defects import find_defects
from ranum.analysis.graph import Graph
from ranum.analysis.levels import with_reach
from ranum.analysis.ranges import starting_ranges

LEVELS = ("envelope", "initial")
LAYERS = (2, 4, 8, 16, 32, 64, 96)


def _own(make: Callable[[], Workload]) -> Callable[[], Step]:
    def build() -> Step:
        workload = make()
        return Step(model=workload.model, loss=workload.loss)

    return build


OWN: dict[str, Callable[[], Step]] = {
    "MLP": _own(mlp),
    "MLP, large": _own(lambda: mlp(width=2048, layers=6)),
    "CNN with BatchNorm": _own(cnn),
    "CNN with BatchNorm, large": _own(lambda: cnn(width=64, blocks=6)),
    "small GPT": _own(gpt),
    "small GPT, large": _own(lambda: gpt(width=512, layers=8, context=128, vocabulary=8192)),
}


def analysis(graph: Graph, level: str) -> tuple[float, int]:
    """CPU seconds of an analysis as `ranum.analyze` does it, and the defects it found."""
    graph.derived.clear()  # nothing is left from the run before
    started = time.process_time()
    start = starting_ranges(graph, weights=level)
    found, propagation = find_defects(graph, start)
    with_reach(graph, propagation.intervals, level, found)
    return time.process_time() - started, len(found)


def measure(make: Callable[[], Step], repeats: int) -> tuple[Step, dict[str, float]]:
    """Median CPU seconds of a forward pass, a step, and the parts of an analysis, interleaved."""
    torch.manual_seed(0)
    step = make()
    program = Program(
        step=step.loss,
        arguments=(),
        model=step.model,
        parameters=dict(step.model.named_parameters()),
    )

    def forward() -> None:
        with torch.no_grad():
            step.loss()

    def train() -> None:
        step.loss().backward()
        step.model.zero_grad()

    def capture() -> None:
        program.capture(observe=False)  # as `ranum.analyze` does

    graph = program.capture(observe=False)
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, function in (
            ("forward", forward), ("step", train), ("capture", capture)
        ):  # fmt: skip
            times.setdefault(name, []).append(median_seconds(function, 1))
        for level in LEVELS:
            analysis(graph, level)
            seconds, _ = analysis(graph, level)
            times.setdefault(level, []).append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    medians["operators"] = len(graph.nodes)
    medians["defects"] = analysis(graph, LEVELS[0])[1]
    return step, medians


def row(name: str, step: Step, seconds: dict[str, float]) -> tuple[str, ...]:
    """One line of the table."""
    per_operator = (f"{1e6 * seconds[level] / seconds['operators']:.0f}" for level in LEVELS)
    ratios = (f"{seconds[level] / seconds['forward']:.2f}" for level in LEVELS)
    return (
        f"{name} ({step.parameters / 1e6:.1f} M)",
        f"{seconds['operators']:.0f}",
        f"{1e3 * seconds['forward']:.1f}",
        f"{seconds['capture'] / seconds['step']:.2f}",
        *(f"{1e3 * seconds[level]:.1f}" for level in LEVELS),
        *ratios,
        *per_operator,
        f"{seconds['defects']:.0f}",
    )


def curve(repeats: int) -> str:
    """The cost from 2 to 96 layers: linear if the time per operator stays."""
    rows = []
    for layers in LAYERS:
        step, seconds = measure(lambda layers=layers: layered(layers), repeats)
        rows.append(row(f"{layers} layers", step, seconds))
    return table(COLUMNS, rows)


COLUMNS = (
    "model", "operators", "forward ms", "capture / step", "envelope ms", "initial ms",
    "envelope / forward", "initial / forward", "envelope us / operator", "initial us / operator",
    "defects",
)  # fmt: skip


def main() -> None:
    stock = transformers_steps()
    workloads = {**stock, **OWN}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="*", choices=workloads, default=list(workloads))
    parser.add_argument("--no-curve", action="store_true", help="leave out 2 to 96 layers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{heading()}; medians of {arguments.repeats}.\n")
    if not stock:
        print("transformers is not installed: its five models are left out.\n")
    rows = [row(name, *measure(workloads[name], arguments.repeats)) for name in arguments.models]
    if rows:
        print(table(COLUMNS, rows), flush=True)
    if not arguments.no_curve:
        print(f"\n{curve(max(arguments.repeats // 2, 1))}")


if __name__ == "__main__":
    main()
