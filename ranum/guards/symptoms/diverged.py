"""RN208: the loss stays far above where it started."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, Severity


@register
@dataclass(frozen=True, slots=True)
class Diverged(Symptom):
    """Training has ended up far above the untrained model's loss and stays there.

    What it finds:
        `patience` losses in a row whose median lies more than `worse` times the start's scale
        above the start's level, and which are not falling: the median of their second half is
        at least `recovery` of the way above the start that the first half's is.

    Why it matters:
        All numbers are finite, so nothing else objects, and the run would go on to its end
        knowing less than it did before its first step: saturated outputs, dead units, a clip
        that turned a NaN into a constant. It is also how a remedy that did not help is seen.

    Thresholds and their source:
        worse 2.0: three times the untrained loss, for a loss that cannot be negative;
        guessing costs about once. AutoTrainer's clause is an absolute loss of 1e3. patience
        64 steps: a spike of the loss (RN207) is over sooner. recovery 0.9. All ours, quiet
        on the thirteen kinds of healthy runs in the tests.

    Known misses:
        A run stuck at the level of guessing (RN206 after longer). Runs whose beginning was
        not seen; losses of both signs. A generator's loss, a loss whose terms are weighted up
        during training, or a return in reinforcement learning may rise for good reasons: leave
        the rule out there. When no remedy is left for it, training goes on.

    Remedies:
        Go back, lower the learning rate; a narrower initialisation; another optimizer.

    Example:
        Momentum with a learning rate of 10 on a classifier whose log is clamped.

    References:
        X. Zhang et al., AUTOTRAINER, ICSE 2021, section 3 (not converging).
    """

    patience: int = 64  # steps
    worse: float = 2.0  # rise above the start's level, in units of the start's scale
    recovery: float = 0.9  # share of the rise that must still be there

    code: ClassVar[str] = "RN208"
    severity: ClassVar[Severity] = "fault"
    every: ClassVar[int] = 8
    is_of_run: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.require_count("patience", to=256)
        self.require("worse")
        self.require("recovery", to=1.0)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        start = window.start
        losses = window.losses.last(self.patience)
        if start is None or len(losses) < self.patience or window.crosses_zero:
            return None
        if median(losses) - start.level < self.worse * start.scale:
            return None
        half = len(losses) // 2
        before, now = median(losses[:half]) - start.level, median(losses[half:]) - start.level
        if now < self.recovery * before:
            return None
        return self.find(
            window,
            f"The loss has been around {median(losses):.4g} for {self.patience} steps; "
            f"it started at {start.level:.4g}.",
            level=median(losses),
            start=start.level,
            scale=start.scale,
        )
