"""RN213: the optimizer's steps are as large as the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import ClassVar, Literal

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, Reading, Severity


@register
@dataclass(frozen=True, slots=True)
class LargeUpdate(Symptom):
    """One step changes the weights by as much as they are, and the loss is not better for it.

    What it finds:
        The median over matrices and kernels of (change by one optimizer step) / (size of the
        weight) was at least `once` in one of the last 16 samples, or at least `twice` in two in
        a row; and after at least `patience` samples the loss is not below the very first one by
        `progress` of that. A weight counts at least with the size of torch's default
        initialisation: it may start near zero.

    Why it matters:
        The initialisation is gone after the first step: units die or saturate, and the weights
        that are left are so large that later steps hardly turn them.

    Thresholds and their source:
        once 0.7 and twice 0.15: in 34 kinds of healthy runs the first update was 0.46 at most (a
        regression in raw units under Adam), the second sample's 0.1. Rates ten times too high
        gave 0.8 to 500. DeepDiagnosis and TheDeepChecker warn at 0.1, SageMaker at 10. progress
        0.1 after patience 4 samples: nets that recover from a rough first update had by then.

    Known misses:
        Rates that are too high later, after a good start. Runs resumed from a checkpoint. Weight
        decay that shrinks all weights evenly is `ShrinkingWeights`' case.

    Remedies:
        A learning rate ten times lower, a warm-up, clipping by norm, or a wider initialisation
        where weights were made very small.

    Example:
        Adam with a learning rate of 0.3.

    References:
        Wardat et al.: DeepDiagnosis, 2022, https://arxiv.org/abs/2112.12111.
        Amazon SageMaker Debugger, WeightUpdateRatio.
    """

    once: float = 0.7  # L2 of the change over L2 of the weight
    twice: float = 0.15  # the same, in two samples in a row
    progress: float = 0.1  # fall of the loss, of the first loss
    patience: int = 4  # samples

    code: ClassVar[str] = "RN213"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar[Literal["step", "sample"]] = "sample"

    def __post_init__(self) -> None:
        self.require("once", "twice")
        self.require("progress", to=1.0)
        self.require_count("patience", to=16)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        start = window.start
        if start is None or len(window.samples) < self.patience or not start.first:
            return None
        if not (recent := window.losses.last(32)):
            return None
        progress = (start.first - median(recent)) / abs(start.first)
        if progress >= self.progress:
            return None
        ratios = [_ratio(sample) for sample in window.samples]
        largest = max(ratios, default=0.0)
        again = max((min(pair) for pair in pairwise(ratios)), default=0.0)
        if largest < self.once and again < self.twice:
            return None
        return self.find(
            window,
            f"A step has changed the weights by {largest:.2g} of their size (median), and the "
            f"loss has fallen by {progress:.1%} since the first step; the learning rate is "
            f"{window.latest.learning_rate or 0.0:.3g}.",
            ratio=largest,
            again=again,
            progress=progress,
        )


def _ratio(sample: Reading) -> float:
    known = [update for update in sample.updates.values() if math.isfinite(update)]
    return median(known) if known else 0.0
