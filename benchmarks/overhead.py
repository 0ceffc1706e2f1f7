"""What `ranum.Guard` costs per training step: CPU time with it over CPU time without."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from measure import cpu_seconds, heading, quartiles, table
from models import Workload, cnn, gpt, mlp

from ranum import Guard

WORKLOADS: dict[str, Callable[[], Workload]] = {"cnn": cnn, "mlp": mlp, "gpt": gpt}
NEVER = 10**9
VARIANTS: dict[str, dict[str, int] | None] = {
    "without": None,
    "without, again": None,
    "every step only": {"sample_every": NEVER, "snapshot_every": NEVER},
    "+ statistics every 10": {"sample_every": 10, "snapshot_every": NEVER},
    "+ snapshot every 50": {"sample_every": 10, "snapshot_every": 50},
}
"""By name, the guard's arguments; None trains without a guard."""


@dataclass
class Runner:
    """One variant in training, on a model of its own."""

    workload: Workload
    arguments: dict[str, int] | None
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.workload.model.parameters(), lr=1e-4)
        self.guard = (
            None
            if self.arguments is None
            else Guard(self.workload.model, self.optimizer, **self.arguments)
        )

    def step(self) -> None:
        """One training step."""
        if self.guard is None:
            self.optimizer.zero_grad()  # at the start, as the guard does it: memory is reused
            self.workload.loss().backward()
            self.optimizer.step()
        else:
            with self.guard.step(self.workload.batch) as step:
                step.backward(self.workload.loss)


def measure(make: Callable[[], Workload], *, rounds: int, steps: int) -> dict[str, list[float]]:
    """CPU seconds of each round by variant; the variants take turns, step by step.

    Taking turns within a round gives slow and fast moments of the machine to all variants
    alike; each variant goes first equally often.
    """
    runners = {}
    for name, arguments in VARIANTS.items():
        torch.manual_seed(0)
        runners[name] = Runner(make(), arguments)
    turns = list(runners.values())
    for runner in turns:
        for _ in range(5):
            runner.step()
    for _ in range(rounds):
        for runner in turns:
            runner.seconds.append(0.0)
        for step in range(steps):
            first = step % len(turns)
            for runner in turns[first:] + turns[:first]:
                runner.seconds[-1] += cpu_seconds(runner.step)
    bare, *others = (runner.workload.model.state_dict() for runner in turns)
    for other in others:
        if any(not torch.equal(bare[name], other[name]) for name in bare):
            raise RuntimeError("a guard changed the training; the times say nothing")
    return {name: runner.seconds for name, runner in runners.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=50, help="per round; a multiple of 50")
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{heading()}; {arguments.rounds} rounds of {arguments.steps} steps.\n")
    rows = []
    for model in arguments.models:
        seconds = measure(WORKLOADS[model], rounds=arguments.rounds, steps=arguments.steps)
        workload, base = WORKLOADS[model](), seconds["without"]
        for name, values in seconds.items():
            lower, middle, upper = quartiles(
                [value / of for value, of in zip(values, base, strict=True)]
            )
            _, step, _ = quartiles([1e3 * value / arguments.steps for value in values])
            rows.append(
                (
                    f"{workload.name} ({workload.parameters / 1e6:.2f} M)",
                    name,
                    f"{step:.2f}",
                    f"{middle:.3f}",
                    f"{lower:.3f} - {upper:.3f}",
                )
            )
    print(table(("model", "guard", "ms per step", "ratio", "quartiles"), rows))


if __name__ == "__main__":
    main()
