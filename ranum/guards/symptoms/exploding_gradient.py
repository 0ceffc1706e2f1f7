"""RN202: the gradient is out of all proportion to what it was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, Severity


@register
@dataclass(frozen=True, slots=True)
class ExplodingGradient(Symptom):
    """The gradient is finite but out of all proportion to what it was.

    What it finds:
        A global gradient norm that is (1) `spike` times the usual one, or (2) `growth` times
        the usual one while the loss has risen to `loss` times its scale above its start, or
        (3) larger than `limit`. The usual norm is the larger of the median over the last 128
        steps and the median over the run's first ones, so neither a run that has converged
        to tiny gradients nor a heavy tail raises it. The first eight steps are compared with
        the largest norm so far.

    Why it matters:
        The step that follows destroys the weights; the loss is NaN a few steps later, or
        stays at the level of guessing. This is the last moment to withhold it.

    Thresholds and their source:
        spike 1e4, growth 100: AutoTrainer compares layers at 70, StabilityGuard steps at 10,
        Megatron the largest of 100 steps at 10; on healthy runs with small batches, norms of
        a hundred times the median were measured, hence the larger numbers and the condition
        on the loss. limit 1e15: squares overflow float32 beyond 1.8e19, and with them the
        second moment of Adam. floor 1e-3: a usual norm below it counts as this much.

    Known misses:
        An initialisation that is too wide explodes in the first update under gradient descent
        (found one step later) but trains under Adam, which does not feel the gradient's scale.
        No gradient-based number tells it from a regression on targets in raw units, so the
        first step alone is not judged, except by `limit`. Growth by less than `growth`. A
        finite gradient of wrong direction.

    Remedies:
        Lower the learning rate, warm it up, clip by norm, normalise layers or inputs, use a
        He or Xavier initialisation.

    Example:
        Gradient descent on least squares with a step beyond 2 / (largest curvature).

    References:
        Pascanu, Mikolov, Bengio: On the difficulty of training recurrent neural networks,
        2013, https://arxiv.org/abs/1211.5063
    """

    spike: float = 1e4  # times the usual norm, whatever the loss does
    growth: float = 100.0  # times the usual norm, if the loss has risen too
    loss: float = 10.0  # rise above the start's level, in units of the start's scale
    limit: float = 1e15  # L2, unscaled
    floor: float = 1e-3  # L2, unscaled; least usual norm

    code: ClassVar[str] = "RN202"
    severity: ClassVar[Severity] = "fault"

    def __post_init__(self) -> None:
        self.require("spike", "growth", above=1.0)
        self.require("loss", "limit", "floor")

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        norm = window.latest.grad_norm
        if norm is None or not math.isfinite(norm):
            return None
        usual = self._usual(window)
        ratio = 0.0 if usual is None else norm / usual
        risen = self._risen(window) if ratio >= self.growth else 0.0
        if norm >= self.limit:
            message = f"Gradient norm {norm:.3g} is beyond {self.limit:.3g}."
        elif ratio >= self.spike:
            message = f"Gradient norm {norm:.3g} is {ratio:.3g} times the usual {usual:.3g}."
        elif ratio >= self.growth and risen >= self.loss:
            message = (
                f"Gradient norm {norm:.3g} is {ratio:.3g} times the usual {usual:.3g}, and the "
                f"loss {window.latest.loss:.3g} is far above its start."
            )
        else:
            return None
        return self.find(
            window,
            message,
            grad_norm=norm,
            usual=math.nan if usual is None else usual,
            ratio=ratio,
            risen=risen,
        )

    def bound(self, window: Window) -> float:
        """The least norm that is a finding after this window, whatever the loss does."""
        usual = self._usual(window)
        return self.limit if usual is None else min(self.limit, self.spike * usual)

    def _usual(self, window: Window) -> float | None:
        summary = window.norms.summary
        if summary is None:
            return None
        if summary.count < 8:
            return max(summary.upper, self.floor)
        return max(summary.median, window.first_norm or 0.0, self.floor)

    def _risen(self, window: Window) -> float:
        start, loss = window.start, window.latest.loss
        if start is None or loss is None:
            return 0.0
        return (loss - start.level) / start.scale
