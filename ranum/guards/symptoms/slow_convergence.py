"""RN206: the loss hardly falls from where it started."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, pvariance
from typing import ClassVar

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, Severity


@register
@dataclass(frozen=True, slots=True)
class SlowConvergence(Symptom):
    """The loss has hardly fallen since the start, and is not about to.

    What it finds:
        After `patience` losses: the mean of the last quarter of the run is less than
        `progress` below the start, and less than `improvement` below the mean of the quarter
        before, both in units of the loss' scale at the start and both with two standard
        errors in favour of the run, so that noise alone never raises it.

    Why it matters:
        The time is spent without learning anything: the learning rate is too small, gradients
        do not arrive, or the data does not say what is asked.

    Thresholds and their source:
        patience 500, progress 0.05, improvement 0.01: healthy small runs of thirteen kinds,
        some with batches of one and two, were past this progress by then, improved faster or
        were too noisy to tell (of 14 runs with batches of one and a low rate, one was called
        slow that got going later).
        AutoTrainer asks for 0.01 of accuracy per epoch, DeepDiagnosis for any change in 20
        epochs.

    Known misses:
        A plateau after a good start cannot be told from convergence by the loss alone. A loss
        with a large constant offset, and fine-tuning that begins near its floor, look slow
        when they are not. Runs resumed from a checkpoint are not judged, nor losses of both signs
        (critics, policy gradients): their fall measures nothing. Other adversarial learning
        should leave this rule out.

    Remedies:
        A learning rate ten times higher, Adam, normalised inputs, another initialisation;
        check that the labels belong to the inputs.

    Example:
        Adam with a learning rate of 1e-7.

    References:
        Zhang et al.: AutoTrainer, 2021, https://arxiv.org/abs/2103.01421
    """

    patience: int = 500  # losses
    progress: float = 0.05  # fall since the start, in units of the start's scale
    improvement: float = 0.01  # fall over the last quarter of the run, in the same units

    code: ClassVar[str] = "RN206"
    severity: ClassVar[Severity] = "warning"
    every: ClassVar[int] = 50

    def __post_init__(self) -> None:
        self.require_count("patience", to=10**9)
        self.require("progress", "improvement", to=1.0)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        start, means = window.start, window.trend.means
        if start is None or window.trend.count < self.patience or len(means) < 16:
            return None
        if window.crosses_zero:
            return None
        quarter = len(means) // 4
        before, last = means[-2 * quarter : -quarter], means[-quarter:]
        error = math.sqrt((pvariance(before) + pvariance(last)) / quarter)
        progress = (start.level - fmean(last)) / start.scale
        improvement = (fmean(before) - fmean(last)) / start.scale
        margin = 2 * error / start.scale
        if progress + margin >= self.progress or improvement + margin >= self.improvement:
            return None
        return self.find(
            window,
            f"The loss is {fmean(last):.4g} after {window.trend.count} steps; it started at "
            f"{start.level:.4g} and changed by {-improvement:+.1%} of that lately.",
            level=fmean(last),
            start=start.level,
            progress=progress,
            improvement=improvement,
        )
