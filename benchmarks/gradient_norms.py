"""Ways to the norm of all gradients: what `Guard` could do in every step instead of what it does.

    python benchmarks/gradient_norms.py

The first table times each way alone: *cold* after 64 MB of other memory were written, *warm* at
once again. `sum` and `copy` of the same bytes, in one piece, show what memory allows. The second
puts the ways into training and gives what a step costs more; *hooks* take each norm as soon as
its gradient is there (`register_post_accumulate_grad_hook`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from measure import cpu_seconds, heading, table
from models import Workload, cnn, gpt, mlp
from torch import Tensor

WORKLOADS: dict[str, Callable[[], Workload]] = {"cnn": cnn, "mlp": mlp, "gpt": gpt}
LARGE = 1 << 15
"""Elements from which on a hook may pay: it costs some microseconds itself."""

Read = Callable[[list[Tensor]], object]


def fused(gradients: list[Tensor]) -> list[float]:
    """As the guard does it."""
    norms: list[float] = torch.stack(torch._foreach_norm(gradients, 2)).tolist()
    return norms


def dots(gradients: list[Tensor]) -> list[float]:
    """A dot product of each with itself, by BLAS."""
    flat = [gradient.view(-1) for gradient in gradients]
    squares: list[float] = torch.stack([torch.dot(one, one) for one in flat]).tolist()
    return squares


def joined(gradients: list[Tensor]) -> list[float]:
    """Small ones copied together first: fewer calls."""
    small = [one for one in gradients if one.numel() < LARGE]
    large = [one for one in gradients if one.numel() >= LARGE]
    if small:
        large.append(torch.cat([one.view(-1) for one in small]))
    return fused(large)


def nothing(gradients: list[Tensor]) -> None:
    """For comparison."""


WAYS: dict[str, Read] = {"fused norm": fused, "dot of each": dots, "small ones joined": joined}


def hooked(model: torch.nn.Module, least: int) -> Read:
    """Norms of large gradients while these are in the cache, of the others at the end."""
    squares: list[Tensor] = []

    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        flat = parameter.grad.view(-1)
        squares.append(torch.dot(flat, flat))

    for parameter in model.parameters():
        if parameter.numel() >= least:
            parameter.register_post_accumulate_grad_hook(hook)

    def read(gradients: list[Tensor]) -> list[float]:
        rest = [one for one in gradients if one.numel() < least]
        found = [*squares, *(torch._foreach_norm(rest, 2) if rest else ())]
        squares.clear()
        norms: list[float] = torch.stack(found).tolist()
        return norms

    return read


def alone(make: Callable[[], Workload], rounds: int) -> list[tuple[str, float, float]]:
    """Name, cold and warm microseconds of each way."""
    workload = make()
    workload.loss().backward()
    gradients = [one.grad for one in workload.model.parameters() if one.grad is not None]
    whole = torch.cat([one.view(-1) for one in gradients])
    room, other = torch.empty_like(whole), torch.zeros(1 << 24)
    works: dict[str, Callable[[], object]] = {
        **{name: partial(way, gradients) for name, way in WAYS.items()},
        "norm in one piece": partial(torch.linalg.vector_norm, whole),
        "sum in one piece": whole.sum,
        "copy in one piece": partial(room.copy_, whole),
    }
    rows = []
    for name, work in works.items():
        cold, warm = [], []
        for _ in range(rounds):
            other.add_(1.0)
            cold.append(1e6 * cpu_seconds(work))
            warm.append(1e6 * cpu_seconds(work))
        rows.append((name, median(cold), median(warm)))
    return rows


def in_training(make: Callable[[], Workload], steps: int) -> list[tuple[str, float, float]]:
    """Name, milliseconds of a step, and microseconds more than without; the ways take turns."""
    runners: dict[str, Callable[[], None]] = {}
    names = ["without", "without, again", *WAYS, "hooks on all", "hooks on large ones"]
    for name in names:
        torch.manual_seed(0)
        workload = make()
        optimizer = torch.optim.AdamW(workload.model.parameters(), lr=1e-4)
        ways = {"hooks on all": 0, "hooks on large ones": LARGE}
        read = WAYS.get(name, nothing)
        read = hooked(workload.model, ways[name]) if name in ways else read
        runners[name] = partial(_step, workload, optimizer, read)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(steps + 5):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(cpu_seconds(runners[name]))
    base = seconds["without"][5:]
    return [
        (
            name,
            1e3 * median(values[5:]),
            1e6 * median(a - b for a, b in zip(values[5:], base, strict=True)),
        )
        for name, values in seconds.items()
    ]


def _step(workload: Workload, optimizer: torch.optim.Optimizer, read: Read) -> None:
    optimizer.zero_grad()
    workload.loss().backward()
    read([one.grad for one in workload.model.parameters() if one.grad is not None])
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{heading()}; medians of {arguments.steps}.\n")
    apart, trained = [], []
    for name in arguments.models:
        make = WORKLOADS[name]
        for way, cold, warm in alone(make, arguments.steps):
            apart.append((name, way, f"{cold:.0f}", f"{warm:.0f}"))
        for way, step, more in in_training(make, arguments.steps):
            trained.append((name, way, f"{step:.2f}", f"{more:+.0f}"))
    print(table(("model", "way", "cold, us", "warm, us"), apart), "\n")
    print(table(("model", "way", "ms per step", "more, us"), trained))


if __name__ == "__main__":
    main()
