"""Plain descents on the bounds, to compare the search for ranges with.

Both start from the analysed ranges, and stop once the analysis finds none of the targeted defects.
They see the same analysis and the same margin as `ranum.fix`; gradients are differences of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ranum.repair.preconditions.places import Box, Pair, Place
from ranum.repair.preconditions.trial import Trial

ITERATIONS = 1000
STEP = 0.05
"""Of plain gradient descent: what the steepest end moves, of its range's width."""
SHRINK = 0.9
"""What a width keeps in each signed step, as in RANUM."""
CENTRE_STEP, CENTRE_FLOOR = 0.1, 0.01
"""Of a signed step: so much of the centre's size, which counts as this at least."""


@dataclass(frozen=True, slots=True)
class Descended:
    """Where a descent ended.

    Attributes:
        box: The ranges; None if it found none.
        seconds: CPU time.
        steps: How many it took.
    """

    box: Box | None
    seconds: float
    steps: int


def gradient_descent(trial: Trial, seconds: float) -> Descended:
    """Moves every end of every range down the margin's gradient, the steepest by `STEP`.

    Where the margin is flat, as behind a softmax that has underflowed, it stands still.
    """
    ends = [list(place.full) for place in trial.places]

    def box() -> Box:
        return tuple((low, high) for low, high in ends)

    def step() -> bool:
        here = _finite(trial.margin(box()))
        slopes = {}
        for number, place in enumerate(trial.places):
            width = place.full[1] / 2 - place.full[0] / 2
            for side, inward in ((0, 1.0), (1, -1.0)):
                was = ends[number][side]
                ends[number][side] = was + inward * 2 * PROBE * width
                slope = (_finite(trial.margin(box())) - here) / PROBE
                ends[number][side] = was
                if slope:
                    slopes[number, side] = inward * slope * width
        if not slopes:
            return False
        steepest = max(
            abs(slope) / (p.full[1] / 2 - p.full[0] / 2)
            for (n, _), slope in slopes.items()
            for p in [trial.places[n]]
        )
        for (number, side), slope in slopes.items():
            ends[number][side] += 2 * STEP * slope / steepest
            low, high = ends[number]
            if low > high:
                ends[number] = [low / 2 + high / 2] * 2
        return True

    return _descend(trial, box, step, seconds)


PROBE = 1e-3
"""How far an end is moved to see the margin change, of its range's half width."""


def signed_steps(trial: Trial, seconds: float) -> Descended:
    """RANUM's rule: centres move against the sign of the gradient, widths shrink by a tenth.

    References:
        L. Li et al., RANUM, ICSE 2023.
    """
    centres = [place.full[0] / 2 + place.full[1] / 2 for place in trial.places]
    widths = [place.full[1] / 2 - place.full[0] / 2 for place in trial.places]

    def pair(place: Place, centre: float, width: float) -> Pair:
        low, high = place.full
        return min(max(centre - width, low), high), min(max(centre + width, low), high)

    def box() -> Box:
        return tuple(map(pair, trial.places, centres, widths))

    def step() -> bool:
        here = _finite(trial.margin(box()))
        signs = []
        for number, centre in enumerate(centres):
            move = CENTRE_STEP * max(abs(centre), CENTRE_FLOOR)
            centres[number] = centre + PROBE * move
            slope = _finite(trial.margin(box())) - here
            centres[number] = centre
            signs.append(math.copysign(1.0, slope) if slope else 0.0)
        for number, sign in enumerate(signs):
            move = CENTRE_STEP * max(abs(centres[number]), CENTRE_FLOOR)
            low, high = trial.places[number].full
            centres[number] = min(max(centres[number] + sign * move, low), high)
            widths[number] *= SHRINK
        return True

    return _descend(trial, box, step, seconds)


def _descend(
    trial: Trial, box: Callable[[], Box], step: Callable[[], bool], seconds: float
) -> Descended:
    started = time.process_time()
    for taken in range(ITERATIONS):
        if trial.holds(box()):
            return Descended(box(), time.process_time() - started, taken)
        if time.process_time() - started > seconds or not step():
            break
    return Descended(None, time.process_time() - started, taken)


def _finite(margin: float) -> float:
    return min(max(margin, -1e6), 1e6)


def shares(places: Sequence[Place], box: Box) -> list[float]:
    """What each place keeps, on its own scale."""
    return [place.share(pair) for place, pair in zip(places, box, strict=True)]
