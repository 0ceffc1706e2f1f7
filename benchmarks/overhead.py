"""What `ranum.Guard` costs per training step: CPU time with it over CPU time without.

    python benchmarks/overhead.py            # the guard
    python benchmarks/overhead.py --peers    # ... and what else guards a step, as far as installed

Peers are no dependency of Ranum; install them into an environment that can be thrown away:
`pip install stabilityguard neuraldbg`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from measure import cpu_seconds, heading, quartiles, table
from models import Workload, cnn, gpt, mlp
from torch.optim import Optimizer

from ranum import Guard

WORKLOADS: dict[str, Callable[[], Workload]] = {"cnn": cnn, "mlp": mlp, "gpt": gpt}
NEVER = 10**9

Step = Callable[[], object]
Variant = Callable[[Workload, Optimizer], Step]
"""Makes one training step of a workload."""


def bare(workload: Workload, optimizer: Optimizer) -> Step:
    """Nothing looks at the step."""

    def step() -> None:
        optimizer.zero_grad()  # at the start, as the guard does it: memory is reused
        workload.loss().backward()
        optimizer.step()

    return step


def guarded(workload: Workload, optimizer: Optimizer, **arguments: Any) -> Step:
    """Under `ranum.Guard` with these arguments."""
    guard = Guard(workload.model, optimizer, **arguments)

    def step() -> None:
        with guard.step(workload.batch) as one:
            one.backward(workload.loss)

    return step


def anomaly_mode(workload: Workload, optimizer: Optimizer) -> Step:
    """Under torch's `detect_anomaly`, which Lightning's argument of that name switches on."""
    plain = bare(workload, optimizer)

    def step() -> None:
        with torch.autograd.detect_anomaly(check_nan=True):
            plain()

    return step


def stability_guard(workload: Workload, optimizer: Optimizer, action: str) -> Step:
    """With the optimizer in StabilityGuard's wrapper."""
    from stabilityguard import GuardedOptimizer

    logs = tempfile.mkdtemp()
    wrapped = GuardedOptimizer(
        optimizer, workload.model, nan_action=action, log_dir=logs, log_every=NEVER, verbose=False
    )
    return bare(workload, wrapped)


def neural_dbg(workload: Workload, optimizer: Optimizer) -> Step:
    """Inside NeuralDBG's context."""
    from neuraldbg import NeuralDbg

    watched = NeuralDbg(workload.model)
    watched.__enter__()
    return bare(workload, optimizer)


GUARD: Mapping[str, Variant] = {
    "every step only": partial(guarded, sample_every=NEVER, snapshot_every=NEVER),
    "+ statistics every 10": partial(guarded, sample_every=10, snapshot_every=NEVER),
    "+ snapshot every 50": partial(guarded, sample_every=10, snapshot_every=50),
    "as it comes": guarded,
}
PEERS: Mapping[str, tuple[str, Variant]] = {
    "torch anomaly mode": ("torch", anomaly_mode),
    "StabilityGuard, skip": ("stabilityguard", partial(stability_guard, action="skip")),
    "StabilityGuard, rollback": ("stabilityguard", partial(stability_guard, action="rollback")),
    "NeuralDBG": ("neuraldbg", neural_dbg),
}
"""By name, the package that it needs and the variant."""


@dataclass
class Runner:
    """One variant in training, on a model of its own."""

    workload: Workload
    step: Step
    seconds: list[float] = field(default_factory=list)


def variants(peers: bool) -> dict[str, Variant]:
    """What is compared; the first is what the others are divided by."""
    found: dict[str, Variant] = {"without": bare, "without, again": bare, **GUARD}
    for name, (package, variant) in PEERS.items() if peers else ():
        if importlib.util.find_spec(package) is not None:
            found[name] = variant
    return found


def measure(
    make: Callable[[], Workload], compared: Mapping[str, Variant], *, rounds: int, steps: int
) -> dict[str, list[float]]:
    """CPU seconds of each round by variant; the variants take turns, step by step.

    Taking turns within a round gives slow and fast moments of the machine to all variants
    alike; each variant goes first equally often.
    """
    runners = {}
    for name, variant in compared.items():
        torch.manual_seed(0)
        workload = make()
        optimizer = torch.optim.AdamW(workload.model.parameters(), lr=1e-4)
        runners[name] = Runner(workload, variant(workload, optimizer))
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
    reference = runners["without"].workload.model.state_dict()
    for name, runner in runners.items():
        state = runner.workload.model.state_dict()
        if any(not torch.equal(reference[key], state[key]) for key in reference):
            raise RuntimeError(f"{name!r} changed the training; the times say nothing")
    return {name: runner.seconds for name, runner in runners.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=50, help="per round; a multiple of 50")
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--peers", action="store_true", help="what else is installed as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{heading()}; {arguments.rounds} rounds of {arguments.steps} steps.\n")
    rows = []
    for model in arguments.models:
        with contextlib.redirect_stdout(io.StringIO()):  # peers print
            seconds = measure(
                WORKLOADS[model],
                variants(arguments.peers),
                rounds=arguments.rounds,
                steps=arguments.steps,
            )
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
