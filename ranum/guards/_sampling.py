"""How many steps lie between two looks at every layer: a number, or chosen from what one costs."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

from ranum.guards._interval import checked

LEAST, MOST = 10, 1000
"""Steps. Rules need a few samples to see a layer fall silent; further apart they come too late."""
FIRST = 1000
"""Steps of a run that are sampled every `LEAST`, whatever it costs: most faults show there."""
SHARE = 0.01
"""Of the training time, at most, for samples after the first steps."""
KEPT = 50
"""Latest steps of each kind whose median is the time of one."""


class Sampling:
    """Steps between two samples.

    Times are of the wall clock, from step to step; where processes train together, the largest
    interval that one of them finds is that of all.

    Args:
        every: Steps, or "auto".
        largest: The largest of all processes' values; asked once, with "auto".
        clock: Seconds.

    Raises:
        ArgumentError: If `every` is neither "auto" nor a positive integer.

    Attributes:
        steps: Between two samples, as chosen so far.
    """

    def __init__(
        self,
        every: int | str,
        largest: Callable[[float], float] = lambda value: value,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        checked("sample_every", every)
        self.steps: int = LEAST if every == "auto" else int(every)
        self._is_timing = every == "auto"
        self._largest = largest
        self._clock = clock
        self._seen = 0
        self._began: float | None = None
        self._was_sampled = False
        self._times: dict[bool, deque[float]] = {
            True: deque(maxlen=KEPT),
            False: deque(maxlen=KEPT),
        }

    def __repr__(self) -> str:
        return f"Sampling({'auto, ' if self._is_timing else ''}{self.steps})"

    def step(self, number: int) -> None:
        """Call when a step begins. Collective in step `FIRST` of a run, with "auto".

        Args:
            number: Of the step.
        """
        if not self._is_timing:
            return
        now = self._clock()
        if self._began is not None:
            self._times[self._was_sampled].append(now - self._began)
        self._began, self._was_sampled = now, number % self.steps == 0
        self._seen += 1
        if self._seen > FIRST:
            self._is_timing = False
            self.steps = int(self._largest(self._chosen()))

    def _chosen(self) -> int:
        if not self._times[True] or not self._times[False]:
            return LEAST
        usual = max(statistics.median(self._times[False]), 1e-9)
        extra = statistics.median(self._times[True]) - usual
        return min(max(math.ceil(extra / (SHARE * usual) - 1e-6), LEAST), MOST)
