"""A failing input, and weights, for one defect.

Search by gradients through the recorded graph towards the bad set of the operator, inside
the analysed ranges. The analysis chooses where to start and which way to go: whether inputs
alone can do it, on which side of its domain the operand can leave, and how large weights must
become. What is found is re-run in the user's own code; only what fails there is a witness.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ranum.analysis.confirm.goals import Goal, goals
from ranum.analysis.confirm.limits import limits
from ranum.analysis.confirm.minimize import minimized
from ranum.analysis.confirm.replay import RANDOM, Replay
from ranum.analysis.confirm.rerun import Failure, rerun
from ranum.analysis.confirm.search import Budget, Descent
from ranum.analysis.confirm.space import Point, Space, Variable
from ranum.analysis.evaluate import NotExecutableError
from ranum.analysis.result import Context, Defect, Effort, Witness
from ranum.errors import ArgumentError

DRAWS = 30
"""Random points tried without a gradient, as the last resort."""
DEARER = 16
"""Times the cost of the nearest weights beyond which inputs are tried after them."""
MARGINS = (1.0, 1.02, 1.2, 1.5, 2.0, 4.0)
"""Times as far as the nearest failing point of the graph, for which the user's code is tried:
its rounding and its random numbers are others."""
_WORDS = {
    "_recorded": "the recorded step",
    "_descents": "gradients towards the bad set",
    "_special": "zeros and the ends of the ranges",
    "_integers": "other integers",
    "_again": "gradients from random points",
    "_blind": "random points",
}
"""The stages of a search, for its reader."""
NEAREST = 2
"""Weights nearest to the operator that are tried before all: a layer's matrix and its bias."""


def confirm(
    defect: Defect, *, seconds: float = 10.0, restarts: int = 3, seed: int = 0
) -> Witness | None:
    """Searches inputs and weights, inside the analysed ranges, that make a defect happen.

    Args:
        defect: From `Analysis.defects`.
        seconds: Time budget, wall clock.
        restarts: Random starts after the recorded one, for inputs alone and for both.
        seed: Of the random starts, and of random numbers in the step; the same seed finds the
            same witness.

    Returns:
        The witness, re-run in the user's own code; None if none was found in the budget: the
        defect stays possible.

    Raises:
        ArgumentError: If an argument breaks its rule, or the defect is detached from the
            analysis it came from.
    """
    return attempt(defect, seconds=seconds, restarts=restarts, seed=seed)[0]


def attempt(
    defect: Defect, *, seconds: float = 10.0, restarts: int = 3, seed: int = 0
) -> tuple[Witness | None, Effort]:
    """As `confirm`, with what the search did."""
    if defect.context is None:
        raise ArgumentError("defect must come from an Analysis; this one has lost its context.")
    if not seconds > 0:
        raise ArgumentError(f"seconds must be positive; got {seconds!r}.")
    if restarts < 0:
        raise ArgumentError(f"restarts must be 0 or more; got {restarts!r}.")
    started = time.monotonic()
    hunt = _Hunt(defect, defect.context, seconds, restarts, seed)
    witness = hunt.run()
    effort = Effort(
        runs=hunt.evaluations,
        seconds=time.monotonic() - started,
        tried=tuple(hunt.tried),
        limits=limits(defect.context),
    )
    return witness, effort


class _Hunt:
    def __init__(
        self, defect: Defect, context: Context, seconds: float, restarts: int, seed: int
    ) -> None:
        self._defect = defect
        self._context = context
        self._restarts = restarts
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._budget = Budget(time.monotonic() + seconds)
        self._space = Space.of(context)
        self._failure: tuple[Point, Failure] | None = None
        self._draws: list[Tensor] = []
        self.tried: list[str] = []

    @property
    def evaluations(self) -> int:
        """Runs of the graph or the step so far."""
        return self._budget.evaluations

    def run(self) -> Witness | None:
        stages = (
            self._recorded,
            self._descents,
            self._special,
            self._integers,
            self._again,
            self._blind,
        )
        for stage in stages:
            self.tried.append(_WORDS[stage.__name__])
            point = stage()
            if point is not None:
                return self._witness(self._minimized(point))
            if self._budget.is_spent:
                return None
        return None

    # --- the stages -------------------------------------------------------------------------

    def _recorded(self) -> Point | None:
        """The step as it was recorded; its random numbers are kept for the search."""
        if any(node.op in RANDOM for node in self._context.graph.nodes):
            return {} if self._fails({}, draws=self._draws) else None
        if not self._is_without_growth or not self._would_fail({}):
            return None
        return {} if self._fails({}) else None

    def _descents(self) -> Point | None:
        """From the recorded step, towards every goal."""
        tried = [(movable, goal) for movable in self._sets for goal in self._goals]
        for position, (movable, goal) in enumerate(tried):
            with self._budget.share(len(tried) - position + 1):
                found = self._descend(goal, movable, {})
            if found is not None:
                return found
        return None

    def _special(self) -> Point | None:
        """Zeros and the ends of the ranges."""
        for movable in self._sets:
            for value in (0.0, -torch.inf, torch.inf, self._reach, -self._reach):
                point = self._space.at(lambda one, v=value: one.filled(v), movable)  # type: ignore[misc]
                if self._budget.is_spent:
                    return None
                if self._fails(point):
                    return point
        return None

    def _integers(self) -> Point | None:
        """Other labels, token ids and masks: all least, all greatest, one by one, and random."""
        choices = self._space.choices
        points: list[Point] = []
        for number in ("lower", "upper"):
            full = {
                one.number: torch.full_like(one.recorded, getattr(one, number)) for one in choices
            }
            points += [full, *({key: tensor} for key, tensor in full.items())]
        points += [
            {one.number: one.drawn(self._generator) for one in choices} for _ in range(DRAWS)
        ]
        for point in points if choices else []:
            if self._budget.is_spent:
                return None
            if self._fails(point):
                return point
        return None

    def _again(self) -> Point | None:
        """From random points."""
        for movable in reversed(self._sets):
            for start in self._random(movable, self._restarts):
                for goal in self._goals:
                    found = self._descend(goal, movable, start)
                    if found is not None:
                        return found
        return None

    def _blind(self) -> Point | None:
        """Random points, as they are."""
        for movable in self._sets:
            for point in self._random(movable, DRAWS):
                if self._budget.is_spent:
                    return None
                if self._fails(point):
                    return point
        return None

    # --- what the analysis knows ------------------------------------------------------------

    @cached_property
    def _is_without_growth(self) -> bool:
        """True if the weights need not move: inputs alone may do it."""
        return self._defect.growth is None

    @cached_property
    def _reach(self) -> float:
        """How far weights must go, in their own sizes."""
        return max(self._defect.growth or 1.0, 1.0)

    @cached_property
    def _sets(self) -> list[tuple[Variable, ...]]:
        """What may move: inputs alone, the weights nearest to the operator, all weights, all.

        Inputs come second where most of the network lies between them and the operator.
        """
        inputs = self._reaching(self._space.inputs)
        weights = self._reaching(self._space.weights)
        nearest = weights[:NEAREST]
        sets = [inputs] if self._is_without_growth else []
        sets += [nearest, weights]
        if inputs and weights:
            sets.append(inputs + weights)
        if self._is_without_growth and self._cost(inputs) > DEARER * self._cost(nearest) > 0:
            sets[:2] = [nearest, inputs]
        return [one for one in dict.fromkeys(sets) if one]

    def _cost(self, variables: tuple[Variable, ...]) -> int:
        return max((self._replay.cost(one.number) for one in variables), default=0)

    def _reaching(self, variables: tuple[Variable, ...]) -> tuple[Variable, ...]:
        """Those the operator depends on, cheapest to try first; all if that is unknown."""
        replay = self._replay
        reaching = [one for one in variables if replay.depends_on(one.number)]
        return tuple(sorted(reaching, key=lambda one: replay.cost(one.number))) or variables

    @cached_property
    def _replay(self) -> Replay:
        node = self._context.graph.nodes[self._defect.node]
        return Replay(self._context, (self._defect.operand, *node.operands), self._draws)

    @cached_property
    def _goals(self) -> tuple[Goal, ...]:
        return goals(self._context, self._defect)

    # --- points -----------------------------------------------------------------------------

    def _descend(self, goal: Goal, movable: tuple[Variable, ...], start: Point) -> Point | None:
        if self._budget.is_spent:
            return None
        try:
            return Descent(goal, self._replay, self._fails, self._budget).run(movable, start)
        except (NotExecutableError, KeyError):
            return None

    def _random(self, movable: tuple[Variable, ...], count: int) -> Iterator[Point]:
        for _ in range(count):
            exponent = float(torch.rand((), generator=self._generator)) * 2 - 1
            spread = self._reach * 10.0**exponent
            yield self._space.at(
                lambda one, s=spread: one.drawn(self._generator, s),  # type: ignore[misc]
                movable,
            )

    def _minimized(self, point: Point) -> Point:
        """By the graph, which is quick, and then as much further as the user's code needs."""
        smaller = minimized(self._space, point, self._would_fail, self._budget)
        for stretch in MARGINS:
            further = self._space.stretched(smaller, stretch)
            if self._fails(further):
                return further
        return point

    def _would_fail(self, point: Point) -> bool:
        if any(one.number in point for one in self._space.choices):
            return self._fails(point)  # the graph holds integer inputs fixed
        try:
            known = self._replay.run_in_own_dtype(point)
        except NotExecutableError:
            return self._fails(point)
        self._budget.evaluations += 1
        return any(goal.fails(known) for goal in self._goals[:1])

    def _fails(self, point: Point, draws: list[Tensor] | None = None) -> bool:
        self._budget.evaluations += 1
        inputs, weights = self._space.tensors(point)
        failure = rerun(self._context, self._defect, inputs, weights, seed=self._seed, draws=draws)
        if failure is not None:
            self._failure = (point, failure)
        return failure is not None

    def _witness(self, point: Point) -> Witness:
        inputs, weights = self._space.tensors(point)
        if self._failure is None or self._failure[0] is not point:
            self._fails(point)
        assert self._failure is not None
        failure = self._failure[1]
        return Witness(
            inputs=inputs,
            weights=weights,
            operand=failure.operand,
            outcome=failure.outcome,
            loss=failure.loss,
            evaluations=self._budget.evaluations,
            seed=self._seed,
            defect=self._defect,
        )
