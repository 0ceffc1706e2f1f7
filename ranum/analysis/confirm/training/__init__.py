"""A failing training run: data inside the stated ranges that drive ordinary training into a defect.

Ordinary means: from the user's own initial weights, by the user's own step, with the user's own
optimizer and its settings. What is found is trained again from the beginning before it counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.confirm.goals import goals
from ranum.analysis.confirm.limits import limits
from ranum.analysis.confirm.search import Budget
from ranum.analysis.confirm.space import Space
from ranum.analysis.confirm.training.course import Search
from ranum.analysis.confirm.training.data import Batch, slots
from ranum.analysis.confirm.training.optimizers import Recipe, recipe
from ranum.analysis.confirm.training.trainer import Trainer
from ranum.analysis.confirm.unit import confirm
from ranum.analysis.graph import fits
from ranum.analysis.result import Context, Defect, Effort, TrainingWitness
from ranum.errors import ArgumentError

STEPS = 20_000
"""Training steps a run may take, unless another number is given."""


def confirm_training(
    defect: Defect,
    optimizer: Any = None,
    *,
    steps: int = STEPS,
    seconds: float = 60.0,
    seed: int = 0,
    free: Collection[str] = (),
) -> TrainingWitness | None:
    """Searches training data, inside the analysed ranges, that train into a defect.

    Batches have the shape of the example's. Labels stay labels: rows that are one-hot in the
    example, and inputs that hold nothing but 0 and 1, are chosen among such.

    Args:
        defect: From `Analysis.defects`.
        optimizer: The optimizer you train with, of torch or, for a TensorFlow program, of Keras;
            or a function from parameters to a torch optimizer. Its kind and settings are taken,
            its state is not touched. By default what a LightningModule configures, or what a
            Keras model was compiled with.
        steps: The most steps a run may take.
        seconds: Time budget, wall clock.
        seed: Of the run's random numbers.
        free: Names and patterns of parameters whose initial values are data as well, such as an
            image that is optimised: they may begin anywhere in their range.

    Returns:
        The data and how the run goes; None if none were found in the budget.

    Raises:
        ArgumentError: If an argument breaks its rule, the step returns no loss to train on, or
            the defect is detached from the analysis it came from.
    """
    return train_into(defect, optimizer, steps=steps, seconds=seconds, seed=seed, free=free)[0]


def train_into(
    defect: Defect,
    optimizer: Any = None,
    *,
    steps: int = STEPS,
    seconds: float = 60.0,
    seed: int = 0,
    free: Collection[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> tuple[TrainingWitness | None, Effort]:
    """As `confirm_training`, with what the search did; a clock says how long a second is."""
    context = defect.context
    if context is None:
        raise ArgumentError("defect must come from an Analysis; this one has lost its context.")
    if steps < 0:
        raise ArgumentError(f"steps must be 0 or more; got {steps!r}.")
    if not seconds > 0:
        raise ArgumentError(f"seconds must be positive; got {seconds!r}.")
    unknown = [
        each for each in free if not any(fits(name, each) for name in context.program.parameters)
    ]
    if unknown:
        raise ArgumentError(f"free must name parameters; there is none like {unknown[0]!r}.")
    if not context.program.backward and context.program.parameters:
        raise ArgumentError(
            "defect must come from an analysis of a training step; this one has no backward pass."
        )
    made = recipe(optimizer, context.program)
    started = clock()
    budget = Budget(started + seconds, clock=clock)
    start = _start(defect, context, free, seconds, seed)
    trainer = Trainer(context, defect, made, seed)
    tried: list[str] = []
    with trainer.training():
        search = Search(
            context,
            defect,
            trainer,
            slots(context),
            normalises=made.normalises,
            budget=budget,
            most=steps,
            start=start,
            agrees=_judge(defect, context, made, start),
            tried=tried,
        )
        course = search.run(goals(context, defect))
    effort = Effort(
        runs=budget.evaluations + trainer.all_steps,
        steps=trainer.all_steps,
        seconds=clock() - started,
        tried=tuple(tried),
        limits=limits(context),
    )
    if course is None:
        return None, effort
    witness = TrainingWitness(
        batches=course.batches,
        order=course.order,
        optimizer=made.words,
        operand=course.failure.operand,
        outcome=course.failure.outcome,
        loss=course.failure.loss,
        evaluations=budget.evaluations,
        steps_tried=trainer.all_steps,
        seed=seed,
        start=start,
        recipe=made,
        defect=defect,
    )
    return witness, effort


def _judge(defect: Defect, context: Context, made: Recipe, start: Mapping[str, Tensor]) -> Any:
    """Asks the framework that the step was lowered from; None if there is no other."""
    program = context.program
    if program.origin is None or made.original is None:
        return None
    origin = program.origin

    def agrees(batches: Sequence[Batch], order: Sequence[int]) -> bool:
        complete = [{**program.inputs, **batch} for batch in batches]
        answer = origin.fails_after(
            complete,
            order,
            made.original,
            start,
            defect.source.node or "",
            gradient_only=defect.gradient_only,
        )
        return answer is not False

    return agrees


def _start(
    defect: Defect, context: Context, free: Collection[str], seconds: float, seed: int
) -> dict[str, Tensor]:
    """Initial values of free parameters: those of a failing unit, where they suffice."""
    if not free:
        return {}
    witness = defect.witness or confirm(defect, seconds=seconds / 4, seed=seed)
    if witness is None:
        return {}
    return {
        name: tensor.detach().clone()
        for name, tensor in witness.weights.items()
        if any(fits(name, each) for each in free)
    }


def is_trainable(context: Context) -> bool:
    """True if there is something to train, and something to train on."""
    space = Space.of(context)
    inputs = bool(space.inputs or space.choices)
    with torch.no_grad():
        return inputs and bool(context.program.parameters) and context.program.backward


__all__ = ["STEPS", "confirm_training", "is_trainable", "train_into"]
