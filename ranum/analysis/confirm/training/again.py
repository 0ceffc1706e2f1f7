"""What the search has found, trained again from the beginning: only that counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ranum.analysis.confirm.rerun import Failure
from ranum.analysis.confirm.training.aim import Aim
from ranum.analysis.confirm.training.data import Batch
from ranum.analysis.confirm.training.proposals import Cycle
from ranum.analysis.confirm.training.trainer import Trainer

LOOKS = 64
"""Times at most that a run is looked at on its way: it may fail before its end."""

Taken = list[tuple[Cycle, int]]
"""Data trained on, each with the number of steps."""
Agrees = Callable[[Sequence[Batch], Sequence[int]], bool]
"""Told batches and their order, says whether they fail in the framework a step came from."""


@dataclass(frozen=True, slots=True)
class Course:
    """Training that fails.

    Attributes:
        batches: The distinct batches.
        order: For each step, the position of its batch; the last is the one that fails.
        failure: What happened there.
    """

    batches: tuple[Batch, ...]
    order: tuple[int, ...]
    failure: Failure


def trained_again(
    trainer: Trainer,
    start: Mapping[str, Tensor],
    taken: Taken,
    failing: Batch,
    *,
    aim: Aim | None = None,
    agrees: Agrees | None = None,
) -> Course | None:
    """The course up to the first step that fails; None if none does, all steps taken then.

    Args:
        trainer: Runs the program's own step from the beginning.
        start: Weights that begin elsewhere than recorded, by name.
        taken: The data.
        failing: The batch that should fail at last.
        aim: Tells where that batch may fail before.
        agrees: Has the last word.
    """
    batches, order = _listed(taken)
    with trainer.in_earnest():
        trainer.begin(start)
        every = max(1, len(order) // LOOKS)
        failure = None
        for position, number in enumerate(order):
            if aim is not None and position % every == 0 and aim.fails(trainer.weights):
                failure = _failure(trainer, failing)
                if failure is not None:
                    order = order[:position]
                    break
            if trainer.step(batches[number]) != "stepped":
                failing, order = batches[number], order[:position]
                break
        failure = failure or _failure(trainer, failing)
    if failure is None:
        return None
    kept = sorted(set(order))
    again = {number: place for place, number in enumerate(kept)}
    distinct = (*(batches[number] for number in kept), failing)
    places = (*(again[number] for number in order), len(kept))
    if agrees is not None and not agrees(distinct, places):
        return None
    return Course(distinct, places, failure)


def _failure(trainer: Trainer, batch: Batch) -> Failure | None:
    """How a batch fails now; if it does not, random numbers go on as if nobody had asked."""
    random = torch.get_rng_state()
    failure = trainer.failure(batch)
    if failure is None:
        torch.set_rng_state(random)
    return failure


def _listed(taken: Taken) -> tuple[list[Batch], list[int]]:
    """The distinct batches, and for each step the number of its batch."""
    batches: list[Batch] = []
    seen: dict[int, int] = {}
    order: list[int] = []
    for cycle, count in taken:
        for number in range(count):
            batch = cycle[number % len(cycle)]
            if id(batch) not in seen:
                seen[id(batch)] = len(batches)
                batches.append(batch)
            order.append(seen[id(batch)])
    return batches, order


def length(taken: Taken) -> int:
    """Steps."""
    return sum(count for _, count in taken)


__all__ = ["Agrees", "Course", "Taken", "length", "trained_again"]
