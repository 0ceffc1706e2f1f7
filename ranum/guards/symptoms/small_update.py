"""RN212: the optimizer's steps are too small to matter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median, pstdev
from typing import ClassVar, Literal

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import START, Window
from ranum.guards.types import Finding, Severity


@register
@dataclass(frozen=True, slots=True)
class SmallUpdate(Symptom):
    """Weights change by next to nothing per step, and the loss does not fall.

    What it finds:
        From a run's first sample on, in at least `patience` of them, the median over matrices
        and kernels of (change by one optimizer step) / (size of the weight) is below `ratio`,
        without being zero, while the loss has made less than `progress` of the way from its first
        values to zero and the learning rate is not rising.

    Why it matters:
        At a ratio of 1e-6, moving a weight by its own size takes a million steps. The slow loss
        shows it after hundreds of steps, the ratio after a few.

    Thresholds and their source:
        ratio 5e-6: the least in 34 kinds of healthy runs whose loss had not fallen yet was 2e-5
        (fine-tuning at the floor); runs with a rate a hundred times too low had 2e-6. The
        resolution of float32 is 6e-8. Rules of thumb want 1e-3 (Karpathy); DeepDiagnosis warns
        below 1e-5, TheDeepChecker below 1e-4, which a healthy GPT was under. progress 0.05, and
        two standard errors of it, since batches differ. patience 5 samples.

    Known misses:
        Runs resumed from a checkpoint, whose start was not seen; updates that become small later.
        A single layer that is slow among others. Biases and gains are not looked at.
        A warm-up over thousands of steps is told from a low rate by its rising only.

    Remedies:
        A learning rate ten or a hundred times higher, Adam, normalised inputs; check the
        schedule, and whether the loss is divided once too often.

    Example:
        Adam with a learning rate of 1e-7.

    References:
        Wardat et al.: DeepDiagnosis, 2022, https://arxiv.org/abs/2112.12111.
        Ben Braiek, Khomh: Testing feedforward neural networks training programs, 2022,
        https://arxiv.org/abs/2204.00694
    """

    ratio: float = 5e-6  # L2 of the change over L2 of the weight
    progress: float = 0.05  # fall of the loss, in units of the start's scale
    patience: int = 5  # samples

    code: ClassVar[str] = "RN212"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar[Literal["step", "sample"]] = "sample"

    def __post_init__(self) -> None:
        self.require("ratio", "progress", to=1.0)
        self.require_count("patience", to=16)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        # All there are: updates that have become small are those of a net that has died.
        samples, start = window.samples, window.start
        if start is None or len(samples) <= self.patience or samples[0].step > START:
            return None
        ratios = []
        for sample in samples[1:]:
            changed = [update for update in sample.updates.values() if update]
            if not changed or not (ratio := median(changed)) < self.ratio:
                return None
            ratios.append(ratio)
        rates = [sample.learning_rate for sample in samples[-self.patience :]]
        if rates[0] is not None and rates[-1] is not None and rates[-1] > rates[0]:
            return None
        if not (recent := window.losses.last(32)):
            return None
        progress = (start.median - median(recent)) / start.scale
        # Of the difference between two medians; 1.25 is what a median's error is over a mean's.
        error = 1.25 * pstdev(recent) * math.sqrt(1 / START + 1 / len(recent)) / start.scale
        if progress >= self.progress + 2 * error:
            return None
        return self.find(
            window,
            f"A step changes the weights by {ratios[-1]:.1e} of their size (median), in "
            f"{len(ratios)} samples, and the loss has made {progress:.1%} of its way; the "
            f"learning rate is {rates[-1] or 0.0:.3g}.",
            ratio=ratios[-1],
            progress=progress,
        )
