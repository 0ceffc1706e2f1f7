"""One of two processes that train replicas, with more or fewer batches in each; see `processes`.

Each argument is a run. One that is "expected" has neither guard nor, in the step that matters, a
wrapper: it says what the guarded run has to end with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from guard_runs.several import digest
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ranum import Guard
from ranum.guards import Skip

STEPS, AT = 8, 4

Case = tuple[Tensor, Tensor]
HAD: dict[str, Callable[[int], list[int]]] = {
    # What each process has of the micro-batches in the step AT, by their numbers.
    "all": lambda rank: [0, 1, 2, 3],
    "both lose two": lambda rank: [0, 2],
    "three quarters": lambda rank: [0, 1, 2, 3] if rank == 0 else [0, 2],
    "second has none": lambda rank: [0, 1, 2, 3] if rank == 0 else [],
    "first has none": lambda rank: [0, 1, 2, 3] if rank == 1 else [],
    "none": lambda rank: [],
}


class Run:
    """A model in both processes, its optimizer, and data that differs between them."""

    def __init__(self, batches: int) -> None:
        self.rank = distributed.get_rank()
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Dropout(0.1), nn.Linear(9, 3)
        )
        self.called = DistributedDataParallel(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(self.rank)
        self.steps = [
            [(torch.randn(4, 4, generator=generator), torch.arange(4) % 3) for _ in range(batches)]
            for _ in range(STEPS)
        ]
        torch.manual_seed(self.rank)

    def loss(self, x: Tensor, y: Tensor, model: nn.Module | None = None) -> Tensor:
        out = (self.called if model is None else model)(x)
        return nn.functional.cross_entropy(out, y) / len(self.steps[0])

    def accumulate(self, backward: Callable[..., Any], parts: list[Case | None]) -> None:
        """As a user writes it: gradients are exchanged with the last micro-batch."""
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            with nullcontext() if is_last else self.called.no_sync():
                backward(part)

    def by_hand(self, had: list[int]) -> None:
        """A step on some of the micro-batches, without a replica that exchanges gradients."""
        parts = self.steps[AT]
        count = torch.tensor(float(len(had)))
        distributed.all_reduce(count)
        if not count:
            return
        for buffer in self.model.buffers():
            distributed.broadcast(buffer, 0)
        self.optimizer.zero_grad()
        for number in had:
            self.loss(*parts[number], self.model).backward()
        for p in self.model.parameters():
            gradient = torch.zeros_like(p) if p.grad is None else p.grad / 2
            distributed.all_reduce(gradient)
            p.grad = gradient * (2 * len(parts) / float(count))
        self.optimizer.step()

    @property
    def end(self) -> dict[str, Any]:
        state = [*self.model.parameters(), *self.model.buffers(), torch.get_rng_state()]
        state += [v for entries in self.optimizer.state.values() for v in entries.values()]
        return {
            "all": digest(state),
            "weights": digest(self.model.parameters()),
        }


def expected(batches: int, had: str) -> dict[str, Any]:
    """The run by hand."""
    run = Run(batches)
    for number in range(STEPS):
        if number == AT:
            run.by_hand([n for n in HAD[had](run.rank) if n < batches])
            continue
        run.optimizer.zero_grad()
        run.accumulate(lambda part: run.loss(*part).backward(), list(run.steps[number]))
        run.optimizer.step()
    return run.end


def guarded(batches: int, fault: str, *, uneven: bool, had: str = "all") -> dict[str, Any]:
    """The run under a guard; what a process has not is NaN ("bad"), or not there ("absent")."""
    run = Run(batches)
    guard = Guard(run.model, run.optimizer, remedies=[Skip()], uneven=uneven, strict=True)
    for number in range(STEPS):
        parts: list[Any] = list(run.steps[number])
        missing = sorted({*range(batches)} - {*HAD[had](run.rank)}) if number == AT else []
        if fault == "bad":
            for one in missing:
                parts[one][0][1, 2] = torch.nan
        elif fault == "absent":
            parts = [None if n in missing else part for n, part in enumerate(parts)]
        with guard.step(parts) as step:
            if fault == "nothing called" and missing:
                continue
            run.accumulate(
                lambda part, step=step: (
                    step.skip() if part is None else step.backward(run.loss, *part)
                ),
                parts,
            )
    incidents = guard.history.incidents
    return {
        **run.end,
        "incidents": [[i.action, i.step, i.detail, str(i.culprit)] for i in incidents],
        "norms": [repr(reading.grad_norm) for reading in guard.history.readings],
    }


def sharded(*, is_guarded: bool) -> dict[str, Any]:
    """Shards, of which each process meets a bad micro-batch; or the run without those two."""
    mesh = init_device_mesh("cpu", (2,))
    run = Run(4)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.1), nn.Linear(9, 3))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    guard = Guard(model, optimizer, remedies=[Skip()], strict=True)
    torch.manual_seed(run.rank)

    def loss(x: Tensor, y: Tensor, share: int) -> Tensor:
        return nn.functional.cross_entropy(model(x), y) / share

    if is_guarded:
        run.steps[AT][1 + 2 * run.rank][0][1, 2] = torch.nan
    else:
        run.steps[AT] = run.steps[AT][::2]
    for parts in run.steps:
        with guard.step(parts) as step:
            for x, y in parts:
                step.backward(loss, x, y, len(parts))
    state = [*model.parameters(), torch.get_rng_state()]
    state += [v for entries in optimizer.state.values() for v in entries.values()]
    return {
        "all": digest(state),
        "incidents": [[i.action, i.step, i.detail] for i in guard.history.incidents],
    }


def train(name: str) -> dict[str, Any]:
    """A run by its name: guarded or not, batches a step, what each process has, fault, option."""
    if name.startswith("sharded"):
        return sharded(is_guarded=name.endswith("guarded"))
    kind, batches, had, *rest = name.split("/")
    if kind == "expected":
        return expected(int(batches), had)
    fault, option = rest
    return guarded(int(batches), fault, uneven=option == "uneven", had=had)


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    runs = {name: train(name) for name in sys.argv[2:]}
    with open(f"{sys.argv[1]}/{distributed.get_rank()}.json", "w") as file:
        json.dump(runs, file)
    distributed.destroy_process_group()
