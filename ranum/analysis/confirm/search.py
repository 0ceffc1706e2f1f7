"""Descends towards a goal: signed gradient steps, with the length of each found by trying.

Ranges may be as wide as the numbers of the dtype, so no share of the range is a sensible step.
A step's length is tried on a ladder instead, from a fraction of a variable's own size upwards,
and the first rung on which the operator fails is taken: it is the nearest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ranum.analysis.confirm.goals import Goal
from ranum.analysis.confirm.replay import Replay
from ranum.analysis.confirm.space import Point, Variable
from ranum.analysis.evaluate import NotExecutableError

ROUNDS = 12
"""Gradients taken from one start."""
RUNGS = 26
"""Lengths tried along one direction at most."""
RATIO = 4.0
"""From rung to rung."""
HALVINGS = 6
"""Between a rung that fails and the one before."""
BISECTIONS = 80
"""Between two rungs on either side of a single bad number: until no float lies between."""
SLOW = 0.05
"""A round that brings less than this share of what all have brought is the last."""
FIRST = 2.0**-6
"""The shortest step, in sizes of the variable."""
WORSE = 3
"""Rungs without progress after which a direction is given up."""


@dataclass(slots=True)
class Budget:
    """What a search may use.

    Attributes:
        deadline: By the clock.
        evaluations: Runs of the graph or of the step so far.
        clock: Seconds, of wall time unless told otherwise.
    """

    deadline: float
    evaluations: int = 0
    clock: Callable[[], float] = time.monotonic

    @contextmanager
    def share(self, parts: float) -> Iterator[None]:
        """Inside the block, one of so many equal parts of the time that is left."""
        whole = self.deadline
        self.deadline = min(whole, self.clock() + self.left / parts)
        try:
            yield
        finally:
            self.deadline = whole

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - self.clock()

    @property
    def is_spent(self) -> bool:
        """True once the time is up."""
        return self.left < 0


Verify = Callable[[Point], bool]
"""Runs the user's step at a point; True if the operator fails there."""


class Descent:
    """The search towards one goal.

    Args:
        goal: Where to.
        replay: Of the graph, for what the goal looks at.
        verify: Called with points that should fail.
        budget: Ends the search.
    """

    def __init__(self, goal: Goal, replay: Replay, verify: Verify, budget: Budget) -> None:
        self._goal = goal
        self._replay = replay
        self._verify = verify
        self._budget = budget

    def run(self, movable: tuple[Variable, ...], start: Point) -> Point | None:
        """A point at which the operator fails in the user's own code, or None.

        Args:
            movable: The variables to move.
            start: Where to begin; other variables stay as recorded.

        Raises:
            NotExecutableError: If the graph cannot be run again.
        """
        point = {one.number: start.get(one.number, one.recorded) for one in movable}
        here = _Rung(point, self._evaluate(point), FIRST)
        if self._goal.fails(here.known) and self._verify(point):
            return point
        here.distance = first = self._distance(here.known)
        for _ in range(ROUNDS):
            if here.distance is None or first is None or self._budget.is_spent:
                return None
            found = here
            for direction in self._directions(movable, here.point):
                found = self._along(movable, here, direction)
                if found is not here:
                    break
            if found is here:
                return None
            if found.fails or self._verify(found.point):  # float64 does not show all rounding
                return found.point
            gain = here.distance - found.distance  # type: ignore[operator]
            here = found
            if gain < SLOW * (first - here.distance):  # type: ignore[operator]
                return None
        return None

    # --- directions -------------------------------------------------------------------------

    def _directions(
        self, movable: tuple[Variable, ...], point: Point
    ) -> Iterable[Mapping[int, Tensor]]:
        """Downhill: by sign, then in proportion; where all is flat, straight through."""
        slopes = self._slopes(movable, point, straight_through=False)
        if not slopes:
            slopes = self._slopes(movable, point, straight_through=True)
        if slopes:
            yield {number: -slope.sign() for number, slope in slopes.items()}
            most = max(float(slope.abs().max()) for slope in slopes.values())
            yield {number: -slope / most for number, slope in slopes.items()}

    def _slopes(
        self, movable: tuple[Variable, ...], point: Point, *, straight_through: bool
    ) -> dict[int, Tensor]:
        leaves = {one.number: point[one.number].detach().requires_grad_() for one in movable}
        try:
            with torch.enable_grad():
                known = self._evaluate(leaves, straight_through=straight_through)
                distance = self._goal.distance(known)
                if distance is None or not distance.requires_grad:
                    return {}
                found = torch.autograd.grad(distance, list(leaves.values()), allow_unused=True)
        except RuntimeError:
            return {}
        return {
            number: slope
            for number, slope in zip(leaves, found, strict=True)
            if slope is not None and bool(slope.isfinite().all()) and bool(slope.any())
        }

    # --- lengths ----------------------------------------------------------------------------

    def _along(
        self, movable: tuple[Variable, ...], start: _Rung, direction: Mapping[int, Tensor]
    ) -> _Rung:
        """The first rung that fails, else the lowest; `start` itself if none is lower."""
        best, previous = start, start
        worse = 0
        length = start.length
        for _ in range(RUNGS):
            if self._budget.is_spent or worse >= WORSE:
                break
            stepped = {
                one.number: one.moved(start.point[one.number], direction[one.number], length)
                if one.number in direction
                else start.point[one.number]
                for one in movable
            }
            shorter, length = length, length * RATIO
            if all(torch.equal(stepped[number], previous.point[number]) for number in stepped):
                if previous is not start:
                    break  # at the ends of all ranges
                continue
            rung = _Rung(stepped, self._evaluate(stepped), max(shorter / RATIO**2, FIRST))
            for failing in self._failing(movable, start, previous, rung):
                if self._verify(failing):
                    return _Rung(failing, {}, shorter, fails=True)
            rung.distance = self._distance(rung.known)
            if rung.distance is not None and rung.distance < best.distance:  # type: ignore[operator]
                best, worse = rung, 0
            else:
                worse += 1
            previous = rung
        return best

    def _failing(
        self, movable: tuple[Variable, ...], start: _Rung, previous: _Rung, rung: _Rung
    ) -> Iterator[Point]:
        """Points on the way to a rung at which the operator should fail."""
        if self._goal.fails(rung.known):
            yield rung.point
            yield self._nearest(start.point, rung.point)
        element = self._goal.crossed(previous.known, rung.known)
        if element is not None:
            met = self._met(movable, previous.point, rung.point, element)
            if met is not None:
                yield met

    def _met(
        self, movable: tuple[Variable, ...], point: Point, beyond: Point, element: int
    ) -> Point | None:
        """The very numbers at which one element of the operand meets the edge, if there are any."""
        replay, goal = self._replay, self._goal
        low, high = dict(point), dict(beyond)
        below = goal.is_above(replay.run_in_own_dtype(low), element)
        for _ in range(BISECTIONS):
            middle = {
                one.number: one.within(low[one.number].lerp(high[one.number], 0.5))
                for one in movable
            }
            if all(torch.equal(middle[n], low[n]) or torch.equal(middle[n], high[n]) for n in low):
                return None
            self._budget.evaluations += 1
            known = replay.run_in_own_dtype(middle)
            if goal.fails(known):
                return middle
            if goal.is_above(known, element) == below:
                low = middle
            else:
                high = middle
        return None

    def _nearest(self, point: Point, beyond: Point) -> Point:
        """Where the operator just fails, on the way to a point at which nobody notices.

        Behind a clamp, say: its gradient no longer reaches a weight that was moved too far.
        """
        low, high, best = 0.0, 1.0, beyond
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            between = {n: point[n].lerp(beyond[n], middle) for n in beyond}
            if self._goal.fails(self._evaluate(between)):
                high, best = middle, between
            else:
                low = middle
        return best

    def _evaluate(
        self, point: Mapping[int, Tensor], *, straight_through: bool = False
    ) -> dict[int, Tensor]:
        self._budget.evaluations += 1
        return self._replay.run(point, straight_through=straight_through)

    def _distance(self, known: Mapping[int, Tensor]) -> float | None:
        try:
            distance = self._goal.distance(known)
        except NotExecutableError:
            return None
        if distance is None or bool(distance.isnan()):
            return None
        return float(distance.detach())


@dataclass(slots=True)
class _Rung:
    """One point of the search: where, what was computed there, and the first step from there."""

    point: Point
    known: Mapping[int, Tensor]
    length: float
    distance: float | None = None
    fails: bool = False
