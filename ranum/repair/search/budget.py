"""How much a search may cost."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence

from ranum.errors import ArgumentError
from ranum.repair.search.result import TrialRecord

TRIALS_PER_COST = 10
"""A budget of "<k>x" ends after 10 k trainings at the latest, were they ever so short."""


class Budget:
    """How much training is left, in trainings or in costs of the faulty configuration."""

    def __init__(self, budget: int | str, timeout: float | None) -> None:
        self.total: float
        self.per_cost = isinstance(budget, str)
        if isinstance(budget, str):
            match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*x\s*", budget)
            if match is None or float(match[1]) < 1:
                raise ArgumentError(
                    "budget must be a number of trainings or '<k>x', k times the cost of the "
                    f"faulty configuration with k at least 1, such as '20x'; got {budget!r}."
                )
            self.total = float(match[1])
        elif isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise ArgumentError(
                f"budget must be at least 1 training, or a string such as '20x'; got {budget!r}."
            )
        else:
            self.total = float(budget)
        if timeout is not None and not timeout > 0:
            raise ArgumentError(f"timeout must be positive, in seconds, or None; got {timeout!r}.")
        self.started = time.monotonic()
        self.deadline = math.inf if timeout is None else self.started + timeout

    def allows(self, trials: Sequence[TrialRecord], reserve: float = 0.0) -> bool:
        """True if another training may start and leave `reserve` of the budget."""
        if time.monotonic() > self.deadline:
            return False
        if not self.per_cost:
            return len(trials) + 1 <= self.total - reserve
        left = self.total - reserve
        if len(trials) >= TRIALS_PER_COST * left:
            return False
        # A faulty run that died early says nothing on what a training costs.
        cost = next((trial.seconds for trial in trials if trial.state == "complete"), math.inf)
        return sum(trial.seconds for trial in trials) < cost * left
