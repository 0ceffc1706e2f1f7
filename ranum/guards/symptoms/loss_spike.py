"""RN207: the loss jumps far out of its usual range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Summary, Window
from ranum.guards.types import Finding, Severity


@register
@dataclass(frozen=True, slots=True)
class LossSpike(Symptom):
    """The loss jumps far out of its usual range.

    What it finds:
        A finite loss that lies above the mean of the last 128 by `deviations` standard
        deviations, by `jump` of that mean, and by twice the largest excess among them; and
        that either stays there for `patience` steps or, in a single step, is far worse than
        an untrained model (`worse` scales above the start). Values that are not finite are
        kept out of the statistics.

    Why it matters:
        A batch that does not belong to the data, or the first sign of divergence: large
        models have been set back by thousands of steps.

    Thresholds and their source:
        deviations 6 over 128 steps, from 64 on: OLMo-core and Levanter. jump 0.5: a spike of
        6 deviations is invisible where the loss hardly varies. The comparison with the
        largest excess, patience 3 and worse 8 keep single hard examples quiet: with batches
        of one, an overconfident model was measured at 5 times the loss of an untrained one.

    Known misses:
        A single step that is worse than usual but no worse than an untrained model. The first
        64 steps. Spikes that grow slowly.

    Remedies:
        Look at the batch; clip gradients by norm; lower the learning rate or Adam's second
        decay rate; go back and skip the batches around it.

    Example:
        One batch whose images were not scaled to [0, 1].

    References:
        OLMo et al.: 2 OLMo 2 Furious, 2024, https://arxiv.org/abs/2501.00656.
        Chowdhery et al.: PaLM, 2022, https://arxiv.org/abs/2204.02311
    """

    deviations: float = 6.0  # standard deviations of the last 128 losses
    jump: float = 0.5  # of their mean
    worse: float = 8.0  # above the start, in units of its scale; for a single step
    patience: int = 3  # steps in a row, for a spike below that

    code: ClassVar[str] = "RN207"
    severity: ClassVar[Severity] = "warning"

    def __post_init__(self) -> None:
        self.require("deviations", "jump", "worse")
        self.require_count("patience", to=64)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        loss, recent = window.latest.loss, window.losses.summary
        if loss is None or not math.isfinite(loss) or recent is None:
            return None
        if loss - recent.mean <= self.jump * abs(recent.mean):
            return None
        # A spike's own first steps must not raise the bar for its last one.
        held = self.patience - 1
        past = window.losses.last(128 + held)
        spike, past = past[len(past) - held :], past[: len(past) - held]
        summary = Summary.of(past)
        if summary is None or summary.count < 64 or loss <= (bound := self._bound(summary)):
            return None
        start = window.start
        single = start is not None and loss > start.level + self.worse * start.scale
        if not single and min(spike, default=loss) <= bound:
            return None
        return self.find(
            window,
            f"Loss {loss:.4g} against a mean of {summary.mean:.4g} and a largest value of "
            f"{summary.upper:.4g} over {summary.count} steps.",
            loss=loss,
            mean=summary.mean,
            upper=summary.upper,
            deviations=(loss - summary.mean) / (summary.deviation or math.inf),
        )

    def _bound(self, summary: Summary) -> float:
        return summary.mean + max(
            self.deviations * summary.deviation,
            self.jump * abs(summary.mean),
            2 * (summary.upper - summary.mean),
        )
