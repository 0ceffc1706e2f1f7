"""RN205: the loss swings and gets nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import ClassVar

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, Severity


@register
@dataclass(frozen=True, slots=True)
class OscillatingLoss(Symptom):
    """The smoothed loss swings widely and gets nowhere.

    What it finds:
        Over the last 256 losses, smoothed to medians of 16 each: at least `turns` turning
        points, whose swings average at least `amplitude` of the loss' scale at the start; the
        second half no better than the first by a swing; and less than `progress` of the way
        to zero made since the start.

    Why it matters:
        The step is too large for the curvature: training jumps across the valley and a
        smaller step would go down.

    Thresholds and their source:
        amplitude 0.5: losses of single batches rise and fall all the time (a count of
        direction changes fired in 81 to 100 % of the steps of healthy runs), so the series is
        smoothed; batches of one example still give swings of 0.42 of the scale, and runs with
        a learning rate a hundred times too high 0.5 to 3 and more. progress 0.5: the noise of
        a run that has learned is large relative to its loss. turns 4. AutoTrainer counts
        swings of accuracy per epoch larger than 0.03.

    Known misses:
        Swings around a low loss. Swings within fewer than 16 steps that cancel in the median.
        Losses of both signs (critics, policy gradients), which do not measure progress; other
        adversarial learning should leave this rule out.

    Remedies:
        Lower or decay the learning rate, lower the momentum, larger batches, Adam.

    Example:
        A tanh network under Adam with a learning rate of 0.5.

    References:
        Zhang et al.: AutoTrainer, 2021, https://arxiv.org/abs/2103.01421
    """

    amplitude: float = 0.5  # mean swing, in units of the start's scale
    progress: float = 0.5  # fall of the loss, in the same units
    turns: int = 4  # turning points among the 16 medians

    code: ClassVar[str] = "RN205"
    severity: ClassVar[Severity] = "warning"
    every: ClassVar[int] = 20

    def __post_init__(self) -> None:
        self.require("amplitude")
        self.require("progress", to=1.0)
        self.require_count("turns", to=14)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        start, losses = window.start, window.losses.last(256)
        if start is None or len(losses) < 256 or window.crosses_zero:
            return None
        smooth = [median(losses[i : i + 16]) for i in range(0, 256, 16)]
        progress = (start.level - fmean(smooth)) / start.scale
        if progress >= self.progress:
            return None
        peaks = [
            value
            for before, value, after in zip(smooth, smooth[1:], smooth[2:], strict=False)
            if (value - before) * (after - value) < 0
        ]
        if len(peaks) < self.turns:
            return None
        swing = fmean(abs(b - a) for a, b in pairwise(peaks))
        gained = fmean(smooth[:8]) - fmean(smooth[8:])
        if swing < self.amplitude * start.scale or gained >= swing:
            return None
        return self.find(
            window,
            f"The loss swings by {swing:.3g} around {fmean(smooth):.3g}, {len(peaks)} turns in "
            f"256 steps, and is not getting lower; it started at {start.level:.3g}.",
            swing=swing,
            level=fmean(smooth),
            turns=len(peaks),
            progress=progress,
        )
