"""Ranges in which all is well, to start from.

The ranges of the recorded tensors are tried first: they change nothing about the model as it
is. Next comes as much of them as there can be, around 0. Otherwise single numbers are tried, place
by place, so that as few places as possible leave what was recorded; then signed gradient steps on
these numbers, as in RANUM (L. Li et al., ICSE 2023); then random ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from ranum.repair.preconditions.growth import Growth
from ranum.repair.preconditions.places import Box, Pair, Place
from ranum.repair.preconditions.trial import Trial

SWEEPS = 2
STEPS = 12
"""Signed gradient steps."""
DRAWS = 40
"""Random boxes of single numbers."""


def inner_box(trial: Trial, seed: int = 0) -> Box | None:
    """A box that holds; None if none was found.

    Args:
        trial: What holds.
        seed: Of the random boxes.
    """
    box: Box = tuple(place.recorded for place in trial.places)
    if trial.holds(box):
        return box
    anchors = tuple(_point(_anchor(place)) for place in trial.places)
    as_fed = tuple(
        place.recorded if place.kind == "input" else anchor
        for place, anchor in zip(trial.places, anchors, strict=True)
    )
    for inner in (as_fed, anchors):  # weights can be moved, data are what they are
        if trial.holds(inner):
            return _widened(trial, inner)
    for start in (box, tuple(_point(_middle(place)) for place in trial.places)):
        found = _by_candidates(trial, start)
        if found is None:
            found = _by_steps(trial, start)
        if found is not None:
            return found
    return _at_random(trial, random.Random(seed))


def _by_candidates(trial: Trial, box: Box) -> Box | None:
    """One place after the other is set to the number that leaves the fewest defects."""
    fewest, margin = len(trial.left(box)), trial.margin(box)
    for _ in range(SWEEPS):
        before = fewest, margin
        for number, place in enumerate(trial.places):
            for value in _candidates(place):
                if trial.is_spent:
                    return None
                tried = _put(box, number, _point(value))
                left = len(trial.left(tried))
                if left == 0:
                    return _widened(trial, tried)
                if left > fewest:
                    continue
                room = trial.margin(tried)
                if left < fewest or room > margin:
                    box, fewest, margin = tried, left, room
        if (fewest, margin) == before:
            break
    return None


def _widened(trial: Trial, box: Box) -> Box:
    """As much of what was recorded as holds."""
    outer = tuple(place.recorded for place in trial.places)
    return Growth(trial, box, outer).roughly()


def _by_steps(trial: Trial, box: Box) -> Box | None:
    """Signed gradient steps of the numbers, by differences."""
    centres = [(low + high) / 2 for low, high in box]
    for _ in range(STEPS):
        if trial.is_spent:
            return None
        here = trial.margin(tuple(map(_point, centres)))
        moved = list(centres)
        for number, place in enumerate(trial.places):
            step = 0.1 * max(abs(centres[number]), 0.1 * place.size)
            slopes = []
            for sign in (1.0, -1.0):
                tried = list(centres)
                tried[number] = _inside(place, centres[number] + sign * step)
                slopes.append(trial.margin(tuple(map(_point, tried))) - here)
            if max(slopes) > 0:
                sign = 1.0 if slopes[0] >= slopes[1] else -1.0
                moved[number] = _inside(place, centres[number] + sign * step)
        if moved == centres:
            return None
        centres = moved
        found = tuple(map(_point, centres))
        if trial.holds(found):
            return _widened(trial, found)
    return None


def _at_random(trial: Trial, generator: random.Random) -> Box | None:
    for _ in range(DRAWS):
        if trial.is_spent:
            return None
        box = tuple(
            _point(place.between(*place.full, generator.random())) for place in trial.places
        )
        if trial.holds(box):
            return _widened(trial, box)
    return None


def _candidates(place: Place) -> Iterator[float]:
    low, high = place.recorded
    middle, size = (low + high) / 2, place.size
    numbers = (middle, 0.0, low, high, size, -size, 0.1 * size, -0.1 * size, 1.0, -1.0)
    ends = (place.between(*place.full, share) for share in (0.5, 0.25, 0.75, 0.02, 0.98))
    seen = set()
    for number in (*numbers, *ends):
        if math.isfinite(number) and (inside := _inside(place, number)) not in seen:
            seen.add(inside)
            yield inside


def _anchor(place: Place) -> float:
    low, high = place.recorded
    return 0.0 if low <= 0.0 <= high else (low + high) / 2


def _middle(place: Place) -> float:
    return _inside(place, 0.0 if place.kind == "weight" else sum(place.full) / 2)


def _inside(place: Place, value: float) -> float:
    return min(max(value, place.full[0]), place.full[1])


def _point(value: float) -> Pair:
    return value, value


def _put(box: Box, number: int, pair: Pair) -> Box:
    return (*box[:number], pair, *box[number + 1 :])
