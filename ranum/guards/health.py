"""Whether training goes well enough for a snapshot of it to be worth going back to."""

from __future__ import annotations

import math
from statistics import median

from ranum.guards.types import Reading

SETTLED = 5
"""Good steps in a row before a snapshot is worth taking."""
SMOOTHING = 0.9
"""Weight of the past in the loss that decides whether a snapshot is worth taking."""
FAR_ABOVE = 1.0
"""A smoothed loss above its best value by this many times that value is not worth keeping."""
NOISE = 4.0
"""... unless it is within this many mean deviations, as they were at the best value."""
WILDEST = 10.0
"""A deviation counts up to this many times the size of the first losses: beyond, it is no noise."""
NEW_NORMAL = 500
"""Steps after which a loss that stays far above its best, without a fault, is accepted."""


class Health:
    """Whether training goes well enough for a snapshot.

    It has settled, and its loss is near its best and not far above that of the first step.
    """

    def __init__(self) -> None:
        self._good = 0
        self._far = 0
        self._mean: float | None = None
        self._deviation = 0.0
        self._best = math.inf
        self._margin = 0.0
        self._first: list[float] = []

    @property
    def is_good(self) -> bool:
        """True if a snapshot of now is worth going back to."""
        return self._good >= SETTLED and self._far == 0 and not self._is_above_first

    @property
    def _is_above_first(self) -> bool:
        """True if the loss is far above the untrained model's, however settled it is."""
        if self._mean is None or not self._first:
            return False
        first, size = self._first[0], median(map(abs, self._first))
        if first == min(self._first) and size > 2 * abs(first) > 0:
            size = abs(first)  # training blew up at once
        noise = min(self._deviation, WILDEST * size)
        return self._mean - first > max(FAR_ABOVE * abs(first), NOISE * noise)

    def see(self, reading: Reading) -> None:
        """Takes up a step without a fault."""
        if not is_finite(reading):
            self._good = 0
            return
        self._good += 1
        loss = reading.loss
        if loss is None:
            return
        if len(self._first) < SETTLED:
            self._first.append(loss)
        if self._mean is None:
            self._mean = loss
        self._deviation = SMOOTHING * self._deviation + (1 - SMOOTHING) * abs(loss - self._mean)
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * loss
        if self._good < SETTLED:
            return
        self._far = self._far + 1 if self._mean - self._best > self._margin else 0
        if self._far > NEW_NORMAL:
            self._first = [self._mean]
        if self._mean < self._best or self._far > NEW_NORMAL:
            self._far = 0
            self._best = self._mean
            self._margin = max(FAR_ABOVE * abs(self._best), NOISE * self._deviation)

    def restart(self) -> None:
        """A fault: what comes next has to settle again."""
        self._good = 0
        self._mean = None


def is_finite(reading: Reading) -> bool:
    """True unless the loss or the gradient norm is known not to be."""
    return all(value is None or math.isfinite(value) for value in (reading.loss, reading.grad_norm))
