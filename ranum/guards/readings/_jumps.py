"""Running variances that jump: damage that nothing in a training step shows.

In training BatchNorm uses the batch's own statistics; the running ones are read in evaluation
only. A flipped bit in one of them is seen by neither loss nor gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

JUMP = 1e8
"""Times by which the norm of a running variance may grow in one step. It is (1 - m) times the old
one plus m times the batch's, so with momentum 0.1 this takes a batch whose deviation is 30,000
times the usual one; inputs that were not scaled (255 times) make it grow 6,500 times. A flipped bit
of a float32's exponent multiplies by 2 to the power of 128, 64, 32 (4e9), 16, ..."""
SETTLED = 5
"""Steps before that: the first batches bring it from 1 to the size of the data, whatever it is."""
AGAIN = 1000
"""Steps within which a jump that comes again is the data's doing."""


class Jumps:
    """Watches the norms of running variances from step to step.

    A jump is told once. Then the guard goes back and trains on the same batches; if it comes again,
    the batches explain it, and it is accepted.
    """

    def __init__(self) -> None:
        self._norms: dict[str, tuple[int, float]] = {}
        self._told: dict[str, int] = {}

    def see(self, step: int, norms: Iterable[tuple[str, float]]) -> tuple[str, float] | None:
        """The first that has jumped, and its norm before.

        Args:
            step: Steps attempted before this one.
            norms: Of buffers, by name, as they were before the batch.
        """
        found = None
        for name, norm in norms:
            if not name.endswith("(running_var)") or math.isnan(norm):
                continue
            seen, before = self._norms.get(name, (0, 0.0))
            self._norms[name] = (seen + 1, norm)
            if seen < SETTLED or not before or not norm / before > JUMP:
                continue
            told = self._told.pop(name, None)
            if told is None or step - told > AGAIN:
                self._told[name] = step
                found = found or (name, before)
        return found
