"""How near the trained weights are to the defect: the failing batch moves along with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ranum.analysis.confirm.goals import Goal
from ranum.analysis.confirm.replay import Replay
from ranum.analysis.confirm.search import Budget
from ranum.analysis.confirm.training.data import Batch, own
from ranum.analysis.confirm.training.rows import View
from ranum.analysis.evaluate import NotExecutableError, double

LENGTHS = (2.0, 0.5, 0.1, 0.02)
"""Steps of a batch towards the goal, in sizes of the input: to the ends of its range first."""

SAME = 0.1
"""Share of the distance by which a batch of equal rows may be farther than one of others."""

Point = dict[str, Tensor]
"""Float inputs by name, float64."""


class Aim:
    """One goal, seen from weights that move.

    Args:
        goal: Which way the operator is to fail.
        view: What it is seen in: the batch, or one of its rows.
        budget: Counts evaluations.
    """

    def __init__(self, goal: Goal, view: View, budget: Budget) -> None:
        graph = view.context.graph
        self.goal = replace(goal, context=view.context, node=graph.nodes[goal.node.index])
        self._view = view
        self._replay = view.replay
        self._budget = budget
        self._slots = {
            one.name: one
            for one in view.slots
            if one.variable is not None and view.replay.depends_on(one.number)
        }
        self._weights = {
            value.name: value.index
            for value in graph.leaves("parameter")
            if value.name in goal.context.program.parameters and view.replay.depends_on(value.index)
        }
        self._rung = 0
        self.point: Point = {name: one.recorded for name, one in self._slots.items()}

    def ends(self) -> list[Point]:
        """Points at the ends of the ranges, labels as recorded."""
        found = []
        for end in (torch.inf, -torch.inf):
            point = {
                name: one.recorded
                if one.is_label
                else one.legal(torch.full_like(one.recorded, end))
                for name, one in self._slots.items()
            }
            found.append(point)
        return found

    def distance(self, weights: Mapping[str, Tensor], point: Point | None = None) -> float | None:
        """How far the operator is from failing in a batch; None if that has no answer."""
        return self._number(self._at(weights), self.point if point is None else point)

    def fails(self, weights: Mapping[str, Tensor]) -> bool:
        """True if the operator should fail in the failing batch, in its own dtypes."""
        self._budget.evaluations += 1
        leaves = {self._slots[name].number: x for name, x in self.point.items()}
        try:
            return self.goal.fails(self._at(weights).run_in_own_dtype(leaves))
        except (NotExecutableError, KeyError):
            return False

    def batch(self) -> Batch:
        """The failing batch, in own dtypes."""
        return self._view.whole(own(self._slots, self.point))

    def far(self) -> Point:
        """The failing batch."""
        return self._view.whole(self.point)

    def corner(self, number: int) -> Point:
        """The batch at the upper (0) or lower (1) ends of the ranges."""
        return self._view.whole(self.ends()[number])

    def move(
        self, weights: Mapping[str, Tensor], rounds: int, promised: float = torch.inf
    ) -> float | None:
        """Moves the failing batch downhill; returns the distance then.

        Args:
            weights: As they are now.
            rounds: Gradients taken.
            promised: Where it is farther than that, it stays where it is.
        """
        replay = self._at(weights)
        best = self._number(replay, self.point)
        if best is not None and best > promised:
            return best
        for _ in range(rounds):
            slopes = self._input_slopes(replay)
            if not slopes:
                break
            slopes = self._alike(replay, slopes, best)
            improved = False
            for rung, length in enumerate(LENGTHS):
                if rung < self._rung:
                    continue
                point = {
                    name: self._stepped(name, x, slopes[name], length) if name in slopes else x
                    for name, x in self.point.items()
                }
                if all(torch.equal(point[name], self.point[name]) for name in slopes):
                    continue
                distance = self._number(replay, point)
                if distance is not None and (best is None or distance < best):
                    best, self.point, improved = distance, point, True
                    self._rung = max(rung - 1, 0)
                    break
            if not improved and self._rung == 0:
                break
            if not improved:
                self._rung = 0
        return best

    def _alike(
        self, replay: Replay, slopes: dict[str, Tensor], best: float | None
    ) -> dict[str, Tensor]:
        """Makes all rows of the failing batch the one that the goal looks at; their slopes."""
        rows = {x.shape[0] for x in self.point.values() if x.dim()}
        if len(rows) != 1 or rows == {1} or best is None:
            return slopes
        sloped = [slope.flatten(1).abs().sum(1) for slope in slopes.values() if slope.dim() > 1]
        if not sloped:
            return slopes
        row = int(torch.stack(sloped).sum(0).argmax())
        point = {name: _repeated(x, row) for name, x in self.point.items()}
        distance = self._number(replay, point)
        if distance is None or distance > best + SAME * abs(best):
            return slopes
        self.point = point
        return {name: _repeated(slope, row) for name, slope in slopes.items()}

    def consider(self, weights: Mapping[str, Tensor], points: Iterable[Point]) -> None:
        """Takes the nearest of some batches in place of its own."""
        replay = self._at(weights)
        best = self._number(replay, self.point)
        for point in points:
            moved = {name: point.get(name, x) for name, x in self.point.items()}
            distance = self._number(replay, moved)
            if distance is not None and (best is None or distance < best):
                best, self.point = distance, moved

    def slope(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradient of the distance by the weights, by name; {} where it is flat."""
        leaves = {
            index: double(weights[name]).clone().requires_grad_()
            for name, index in self._weights.items()
        }
        inputs = {self._slots[name].number: x for name, x in self.point.items()}
        for straight in (False, True):
            found = self._gradient(self._replay, {**inputs, **leaves}, leaves, straight)
            if found:
                return {n: found[i] for n, i in self._weights.items() if i in found}
        return {}

    def _input_slopes(self, replay: Replay) -> dict[str, Tensor]:
        leaves = {
            self._slots[name].number: x.detach().clone().requires_grad_()
            for name, x in self.point.items()
        }
        for straight in (False, True):
            found = self._gradient(replay, leaves, leaves, straight)
            if found:
                return {
                    name: found[one.number]
                    for name, one in self._slots.items()
                    if one.number in found
                }
        return {}

    def _gradient(
        self,
        replay: Replay,
        known: Mapping[int, Tensor],
        leaves: Mapping[int, Tensor],
        straight: bool,
    ) -> dict[int, Tensor]:
        if not leaves:
            return {}
        self._budget.evaluations += 1
        try:
            with torch.enable_grad():
                distance = self.goal.distance(replay.run(known, straight_through=straight))
                if distance is None or not distance.requires_grad:
                    return {}
                found = torch.autograd.grad(distance, list(leaves.values()), allow_unused=True)
        except (NotExecutableError, RuntimeError):
            return {}
        return {
            number: slope
            for number, slope in zip(leaves, found, strict=True)
            if slope is not None and bool(slope.isfinite().all()) and bool(slope.any())
        }

    def _stepped(self, name: str, x: Tensor, slope: Tensor, length: float) -> Tensor:
        one = self._slots[name]
        assert one.variable is not None
        return one.legal(x - length * one.variable.size * slope.sign())

    def _number(self, replay: Replay, point: Point) -> float | None:
        self._budget.evaluations += 1
        leaves = {self._slots[name].number: x for name, x in point.items()}
        try:
            distance = self.goal.distance(replay.run(leaves))
        except NotExecutableError:
            return None
        if distance is None or bool(distance.isnan()):
            return None
        return float(distance.detach())

    def _at(self, weights: Mapping[str, Tensor]) -> Replay:
        return self._replay.holding({i: weights[name] for name, i in self._weights.items()})


def _repeated(x: Tensor, row: int) -> Tensor:
    return x[row : row + 1].expand_as(x).clone() if x.dim() else x
