"""Hardware and infrastructure that fail under a run: flipped bits, damaged snapshots, full disks.

    python -m benchmarks.faults.damage --runs 80

A bit is flipped in a random element of a weight, a gradient, a moment or a BatchNorm statistic:
the highest bit of the exponent (a number near 1 becomes huge), or any of the 32. Or the newest
snapshot is damaged, or all further ones meet a full disk, before a gradient becomes NaN. Or a rule
raises. The reference is the same training without any of it.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import resource
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.faults.tally import Result, tell
from benchmarks.faults.training import (
    SNAPSHOT_EVERY,
    STEPS,
    Batch,
    Fault,
    Net,
    batches,
    optimizer_of,
    remedies,
)
from benchmarks.faults.training import _state as state_of
from ranum import Guard
from ranum.guards import Rollback
from ranum.guards.symptoms import NonFinite

PLACES = ("weight", "gradient", "moment", "statistic")
OTHERS = ("snapshot damaged", "disk full", "rule raises")
KINDS = (
    *(f"exponent bit, {place}" for place in PLACES),
    *(f"any bit, {place}" for place in PLACES),
    *OTHERS,
)
EXPONENT = 30
"""The highest bit of a float32's exponent; set, it multiplies by 2 to the 128."""


@dataclass(slots=True)
class Trouble:
    """What is done to a run, once.

    Attributes:
        kind: One of `KINDS`.
        step: Before which it is done, counting those that are attempted.
        bit: Which one is flipped.
        element: Which element of the tensor, as a share of its length.
    """

    kind: str
    step: int
    bit: int
    element: float
    done_at: int | None = None

    def before(self, guard: Guard, model: Net, optimizer: Any) -> None:
        """Called before each step."""
        if self.done_at is not None or guard.current_step < self.step:
            return
        place = self.kind.partition(", ")[2]
        if place == "moment" and not optimizer.state:
            return
        self.done_at = guard.current_step
        if place == "weight":
            flip(model.net[0].weight, self.bit, self.element)
        elif place == "statistic":
            flip(model.net[1].running_var, self.bit, self.element)
        elif place == "moment":
            flip(optimizer.state[model.net[4].weight]["exp_avg"], self.bit, self.element)
        elif place == "gradient":
            handle = model.net[0].weight.register_hook(self._flipped)
            self._handles = [handle]
        elif self.kind == "snapshot damaged":
            memory = guard.snapshots._ring[0].memory if guard.snapshots._ring else None
            if memory is None:
                memory = guard.snapshots._all()[0].memory
            flip(memory._used[0], self.bit, self.element)
            Fault("gradient", math.nan, 0).before(model, optimizer)
        elif self.kind == "disk full":
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))

    _handles: list[Any] | None = None

    def _flipped(self, gradient: Tensor) -> Tensor:
        for handle in self._handles or []:
            handle.remove()
        gradient = gradient.clone()
        flip(gradient, self.bit, self.element)
        return gradient


def flip(tensor: Tensor, bit: int, element: float) -> None:
    """Flips one bit of one element of a float32 tensor, in place."""
    with torch.no_grad():
        words = tensor.detach().view(-1).view(torch.int32)
        mask = 1 << bit if bit < 31 else -(1 << 31)
        words[int(element * len(words))] ^= mask


class Raising(NonFinite):
    """A rule with a mistake in it."""

    def check(self, *args: Any) -> Any:
        """Fails."""
        raise ZeroDivisionError("a mistake in a rule")


def train(
    listed: Sequence[Batch], trouble: Trouble | None, place: str = "device"
) -> tuple[list[Tensor], Guard]:
    """A loop with a guard, and with trouble."""
    torch.manual_seed(0)
    model = Net()
    optimizer = optimizer_of(model)
    ladder = remedies()
    if trouble is not None and trouble.kind in ("snapshot damaged", "disk full"):
        ladder = [Rollback(1.0)]  # what needs the snapshots
    guard = Guard(
        model,
        optimizer,
        snapshot_every=SNAPSHOT_EVERY,
        remedies=ladder,
        snapshot_to=place,
    )
    fault = None
    for batch in guard.batches(listed):
        if trouble is not None:
            trouble.before(guard, model, optimizer)
            if trouble.kind == "rule raises" and trouble.done_at == guard.current_step:
                guard._monitor._active[:] = [Raising(), *guard._monitor._active]
            if trouble.kind == "disk full" and fault is None and guard.current_step == STEPS - 4:
                fault = Fault("gradient", math.nan, 0)
                fault.before(model, optimizer)
        with guard.step(batch) as step:
            step.backward(lambda batch=batch: model(**batch)["loss"])
    return state_of(model, optimizer), guard


def run(kind: str, step: int, bit: int, element: float, reference: Sequence[Tensor]) -> Result:
    """Trains with one trouble, and compares the end with the reference."""
    trouble = Trouble(kind, step, bit, element)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        state, guard = train(batches(), trouble, "disk" if kind == "disk full" else "device")
    except Exception as error:
        note = f"{kind}: {type(error).__name__}: {error}"
        return Result(kind=kind, seen=False, at_once=False, same=False, lost=True, note=note)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    incidents, told = guard.history.incidents, guard.history.internal_faults
    floats = [tensor for tensor in state if tensor.is_floating_point()]
    is_same = all(map(torch.equal, state, reference))
    actions = " ".join(one.action for one in incidents)
    if not incidents and not told:
        actions = "nothing, harmless" if is_same or _is_near(state, reference) else "nothing"
    return Result(
        kind=kind,
        seen=bool(incidents or told),
        at_once=bool(told) or bool(incidents and incidents[0].step == trouble.done_at),
        same=is_same,
        lost=not all(bool(tensor.isfinite().all()) for tensor in floats),
        done=actions or "told once" * bool(told),
    )


NEAR = 0.01
"""Relative distance of the weights at the end that a flipped bit may make and count as harmless."""


def _is_near(state: Sequence[Tensor], reference: Sequence[Tensor]) -> bool:
    pairs = [
        (one, other) for one, other in zip(state, reference, strict=True) if one.is_floating_point()
    ]
    distance = sum(float((one - other).square().sum()) for one, other in pairs)
    size = sum(float(other.square().sum()) for _, other in pairs)
    return math.sqrt(distance / size) < NEAR


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.damage", description=__doc__)
    parser.add_argument("--runs", type=int, default=110)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    draw = random.Random(arguments.seed)
    reference, _ = train(batches(), None)
    results = []
    for number in range(arguments.runs):
        kind = KINDS[number % len(KINDS)]
        bit = EXPONENT if kind.startswith("exponent") else draw.randrange(32)
        step = draw.randrange(SNAPSHOT_EVERY + 2, STEPS - 6)
        results.append(run(kind, step, bit, draw.random(), reference))
    return 0 if tell(results) else 1


if __name__ == "__main__":
    sys.exit(main())
