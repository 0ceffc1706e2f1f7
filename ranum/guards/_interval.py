"""How many steps lie between two snapshots: a number, or chosen from what one costs."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

from ranum.errors import ArgumentError

AT_FIRST = 50
"""Steps, until a snapshot has been timed."""
LEAST, MOST = 10, 1000
"""Steps. Below, a way back would not save much more; above, a rollback would cost too much work."""
SHARE = 0.01
"""Of the training time, at most, for snapshots."""
TIMED = 3
"""Snapshots after which the interval is settled; the first, which allocates, is not timed."""
STEPS_KEPT = 25
"""Latest steps whose median is the time of a step."""


class Interval:
    """Steps between two snapshots.

    Times are of the wall clock; where processes train together, the largest interval that one of
    them finds is that of all.

    Args:
        every: Steps, or "auto".
        largest: The largest of all processes' values; asked after each timed snapshot.
        clock: Seconds.

    Raises:
        ArgumentError: If `every` is neither "auto" nor a positive integer.
    """

    def __init__(
        self,
        every: int | str,
        largest: Callable[[float], float] = lambda value: value,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        checked("snapshot_every", every)
        self.is_auto = every == "auto"
        self.steps: int = AT_FIRST if self.is_auto else int(every)
        self._largest = largest
        self._clock = clock
        self._taken = 0
        self._step_times: deque[float] = deque(maxlen=STEPS_KEPT)
        self._began: float | None = None

    def __repr__(self) -> str:
        return f"Interval({'auto, ' if self.is_auto else ''}{self.steps})"

    def step(self) -> None:
        """Call when a step begins."""
        if not self._is_timing:
            return
        now = self._clock()
        if self._began is not None:
            self._step_times.append(now - self._began)
        self._began = now

    def time(self, work: Callable[[], object]) -> None:
        """Takes a snapshot, and chooses the interval anew from what it has cost.

        Collective, where processes train together.
        """
        if not self._is_timing:
            work()
            return
        before = self._clock()
        try:
            work()
        finally:
            seconds = self._clock() - before
            self._began = None  # the step that a snapshot is part of does not count
            self._taken += 1
            if self._taken > 1 and self._step_times:
                self.steps = int(self._largest(self._chosen(seconds)))

    @property
    def _is_timing(self) -> bool:
        return self.is_auto and self._taken < TIMED

    def _chosen(self, seconds: float) -> int:
        step = max(statistics.median(self._step_times), 1e-9)
        return min(max(math.ceil(seconds / (SHARE * step) - 1e-6), LEAST), MOST)


def checked(name: str, every: int | str) -> None:
    """Refuses what is neither "auto" nor a number of steps.

    Args:
        name: Of the argument.
        every: Its value.

    Raises:
        ArgumentError: If it is neither.
    """
    is_number = isinstance(every, int) and not isinstance(every, bool) and every >= 1
    if every != "auto" and not is_number:
        raise ArgumentError(f"{name} must be a positive integer or 'auto'; got {every!r}.")
