"""Makes a witness small: as few tensors as will do, as near to the recorded ones as will do."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ranum.analysis.confirm.search import Budget
from ranum.analysis.confirm.space import Point, Space

HALVINGS = 7
"""Of the way back to the recorded step: to within a hundredth of it."""


def minimized(space: Space, point: Point, fails: Callable[[Point], bool], budget: Budget) -> Point:
    """A point at which the step still fails, and from which less differs.

    Tensors are put back to what was recorded one by one, inputs before weights and large ones
    before small ones; then all that is left is moved back together, and at last the elements
    that moved least are put back.

    Args:
        space: What moves.
        point: Where the step fails.
        fails: Runs the user's step at a point.
        budget: Ends the search; what was found by then is returned.
    """
    best = dict(point)
    moved = sorted(
        (one for one in space.variables if one.number in best),
        key=lambda one: (one.is_weight, -one.recorded.numel()),
    )
    chosen = [one.number for one in space.choices if one.number in best]
    for number in [*chosen, *(one.number for one in moved)]:
        if len(best) == 1 or budget.is_spent:
            break
        without = {other: tensor for other, tensor in best.items() if other != number}
        if fails(without):
            best = without
    best = _nearer(space, best, fails, budget)
    return _fewer(space, best, fails, budget)


def _nearer(
    space: Space, point: dict[int, torch.Tensor], fails: Callable[[Point], bool], budget: Budget
) -> dict[int, torch.Tensor]:
    variables = {one.number: one for one in space.variables}
    low, best = 0.0, point
    high = 1.0
    for _ in range(HALVINGS):
        if budget.is_spent:
            break
        middle = (low + high) / 2
        between = {
            number: variables[number].within(variables[number].recorded.lerp(tensor, middle))
            if number in variables
            else tensor
            for number, tensor in point.items()
        }
        if fails(between):
            high, best = middle, between
        else:
            low = middle
    return best


def _fewer(
    space: Space, point: dict[int, torch.Tensor], fails: Callable[[Point], bool], budget: Budget
) -> dict[int, torch.Tensor]:
    best = point
    for one in space.variables:
        if one.number not in best or one.recorded.numel() == 1:
            continue
        distance = (best[one.number] - one.recorded).abs()
        order = distance.flatten().argsort(descending=True)
        low, high = 0, int((distance > 0).sum())  # fails with the first `high`, not with `low`
        while high - low > max(1, high // 8) and not budget.is_spent:
            middle = (low + high) // 2
            kept = torch.zeros_like(distance, dtype=torch.bool).flatten()
            kept[order[:middle]] = True
            fewer = torch.where(kept.view_as(distance), best[one.number], one.recorded)
            if fails({**best, one.number: fewer}):
                best, high = {**best, one.number: fewer}, middle
            else:
                low = middle
    return best
