"""The thread between a user's training and the search."""

from __future__ import annotations

import math
import operator
import time
from statistics import fmean
from typing import Any

from ranum.errors import ArgumentError
from ranum.repair.search.diagnosis import SMOOTHED
from ranum.repair.search.result import Pruned

GAINING = 0.01
"""A run that gained this share over the second half of its reports is not pruned."""


class Reporter:
    """What a training function gets to say how it is doing: `report(step, value)`.

    Attributes:
        seed: Use it for weights, shuffling and dropout. It is the same in every trial, so that
            only the configuration makes a difference, and a fresh one in a confirmation run.
        values: What was reported, by step.
        reason: Why the training was told to stop; "" if it was not.
    """

    __slots__ = ("_deadline", "_prune_after", "_sign", "_trial", "reason", "seed", "values")

    def __init__(
        self,
        seed: int,
        trial: Any = None,
        *,
        prune_after: float = math.inf,
        sign: float = 1.0,
        deadline: float = math.inf,
    ) -> None:
        self.seed = seed
        self.values: dict[int, float] = {}
        self.reason = ""
        self._trial = trial
        self._prune_after = prune_after
        self._sign = sign
        self._deadline = deadline

    def __call__(self, step: int, value: float) -> None:
        """Notes a value; ends the training if it is not worth going on with.

        Args:
            step: Growing, at least 0, and the same amount of training in every trial: an epoch
                rather than a batch, whose size may change.
            value: The score as it stands now; a number or a tensor of one element.

        Raises:
            Pruned: If the value is not finite, time is up, or the run gains nothing and does worse
                than half of the finished ones did at this step.
            ArgumentError: If `step` is not a whole number of at least 0.
        """
        try:
            step = operator.index(step)
        except TypeError:
            step = -1
        if step < 0:
            raise ArgumentError("step must be a whole number of at least 0, such as the epoch.")
        number = to_float(value)
        is_new = step not in self.values
        self.values[step] = number
        if not math.isfinite(number):
            self._stop(f"reported {number} at step {step}")
        if time.monotonic() > self._deadline:
            self._stop(f"time was up at step {step}")
        if self._trial is not None and is_new:
            self._trial.report(number, step)
            if self._may_prune() and self._trial.should_prune():
                self._stop(f"{number:.4g} at step {step} is worse than half of the trials before")

    def _may_prune(self) -> bool:
        """True unless the run is young, or gained over its second half.

        A model that is stuck at guessing starts out better than one that learns from fresh
        weights: among faulty configurations, being behind is no reason to end a run that moves.
        """
        values = list(self.values.values())
        if len(values) <= self._prune_after:
            return False
        half, count = (len(values) + 1) // 2, max(1, len(values) // SMOOTHED)
        middle, last = fmean(values[half - count : half]), fmean(values[-count:])
        return self._sign * (middle - last) <= GAINING * abs(middle)

    def _stop(self, reason: str) -> None:
        self.reason = reason
        raise Pruned(reason)


def to_float(value: Any) -> float:
    """A number, or a tensor of one element, as a float."""
    return float(value.detach() if hasattr(value, "detach") else value)
