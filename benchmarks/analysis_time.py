"""What `ranum.analyze` costs: recording against one training step, analysis against a forward."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from measure import heading, median_seconds, table
from models import Workload, cnn, gpt, mlp

from ranum import analyze

WORKLOADS: dict[str, Callable[[], Workload]] = {
    "MLP": mlp,
    "MLP, large": lambda: mlp(width=2048, layers=6),
    "CNN with BatchNorm": cnn,
    "CNN with BatchNorm, large": lambda: cnn(width=64, blocks=6),
    "small GPT": gpt,
    "small GPT, large": lambda: gpt(width=512, layers=8, context=128, vocabulary=8192),
}


def measure(make: Callable[[], Workload], repeats: int) -> tuple[Workload, dict[str, float]]:
    """Median CPU seconds of a forward pass, a step, and the two parts of an analysis."""
    torch.manual_seed(0)
    workload = make()
    (inputs, targets), model = workload.batch, workload.model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def forward() -> None:
        with torch.no_grad():
            workload.loss()

    def step() -> None:
        workload.loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    def analysis() -> tuple[float, float, int]:
        result = analyze(model, inputs, loss=lambda output: workload.criterion(output, targets))
        return result.capture_seconds, result.analysis_seconds, len(result.graph.nodes)

    seconds = {
        name: median_seconds(f, repeats) for name, f in (("forward", forward), ("step", step))
    }
    analysis()
    parts = [analysis() for _ in range(repeats)]
    seconds["capture"] = statistics.median(part[0] for part in parts)
    seconds["analysis"] = statistics.median(part[1] for part in parts)
    seconds["operators"] = parts[0][2]
    return workload, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{heading()}; medians of {arguments.repeats}.\n")
    rows = []
    for name in arguments.models:
        workload, seconds = measure(WORKLOADS[name], arguments.repeats)
        rows.append(
            (
                f"{name} ({workload.parameters / 1e6:.1f} M)",
                f"{seconds['operators']:.0f}",
                f"{1e3 * seconds['forward']:.1f}",
                f"{1e3 * seconds['step']:.1f}",
                f"{1e3 * seconds['capture']:.1f}",
                f"{seconds['capture'] / seconds['step']:.2f}",
                f"{1e3 * seconds['analysis']:.1f}",
                f"{seconds['analysis'] / seconds['forward']:.2f}",
            )
        )
    columns = (
        "model", "operators", "forward ms", "step ms",
        "capture ms", "/ step", "analysis ms", "/ forward",
    )  # fmt: skip
    print(table(columns, rows))


if __name__ == "__main__":
    main()
