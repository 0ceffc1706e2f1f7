"""RN215: the validation loss rises, or stays, while the training loss falls."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import ClassVar

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Validation, Window
from ranum.guards.types import Finding, Severity


@register
@dataclass(frozen=True, slots=True)
class Overfitting(Symptom):
    """What is learned holds for the training data only: the validation loss no longer follows.

    What it finds:
        (1) At least `patience` validations after the best one, of which the median is higher than
        the best by `rise` of it, by `share` of the training loss' scale at the start and by twice
        the usual change between validations, while the training loss has fallen by `fall` since.
        (2) A validation loss that lies above the training loss by `gap` of the scale at the
        start, is `times` as large, and has gained less than `fall` in the last 2 x `patience`.

    Why it matters:
        The best weights are those of the best validation; from there on training only learns
        its examples by heart.

    Thresholds and their source:
        rise 0.1: SageMaker's Overfit, which compares validation with training instead; that
        difference is large in healthy runs whose training loss is near zero. share 0.02: a rise
        from 0.010 to 0.012 is nobody's concern where the loss started at 2.3. patience 5: one
        validation is noise. gap 0.2 and times 5: forty examples learned by heart left 0.3 and
        more, healthy runs 0.05. fall 0.05. All but the first ours.

    Known misses:
        Runs without validation, or adapters that do not pass it on (`guard.validated(loss)`).
        Metrics other than the loss: accuracy may still improve while the loss rises. The second
        condition in runs resumed from a checkpoint.

    Remedies:
        Keep the weights of the best validation and stop earlier; more data or augmentation,
        dropout, weight decay, fewer parameters.

    Example:
        A wide net on forty examples.

    References:
        Prechelt: Early stopping - but when?, 1998. Amazon SageMaker Debugger, Overfit rule.
    """

    rise: float = 0.1  # of the best validation loss
    share: float = 0.02  # of the training loss' scale at the start
    fall: float = 0.05  # of the training loss at the best validation; of the validation loss
    gap: float = 0.2  # in units of the training loss' scale at the start
    times: float = 5.0  # validation loss over training loss
    patience: int = 5  # validations

    code: ClassVar[str] = "RN215"
    severity: ClassVar[Severity] = "warning"

    def __post_init__(self) -> None:
        self.require("rise", "share", "gap", "times")
        self.require("fall", to=1.0)
        self.require_count("patience", to=64)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        if window.latest.validation_loss is None or len(window.validations) <= self.patience:
            return None
        validations = list(window.validations)
        return self._risen(window, validations) or self._stuck(window, validations)

    def _risen(self, window: Window, validations: list[Validation]) -> Finding | None:
        best = min(validations, key=lambda validation: validation.loss)
        since = [one for one in validations if one.step > best.step][-self.patience :]
        if len(since) < self.patience:
            return None
        now, training = median(one.loss for one in since), since[-1].training
        usual = median(abs(b.loss - a.loss) for a, b in pairwise(validations))
        margin = max(self.rise * abs(best.loss), 2 * usual)
        if window.start is not None:
            margin = max(margin, self.share * window.start.scale)
        if now - best.loss < margin or training > best.training - self.fall * abs(best.training):
            return None
        return self.find(
            window,
            f"The validation loss is {now:.4g}, after {best.loss:.4g} at step {best.step}, while "
            f"the training loss has fallen from {best.training:.4g} to {training:.4g}.",
            validation=now,
            best=best.loss,
            best_step=best.step,
            training=training,
        )

    def _stuck(self, window: Window, validations: list[Validation]) -> Finding | None:
        start, last = window.start, validations[-2 * self.patience :]
        if start is None or len(last) < 2 * self.patience:
            return None
        before = median(one.loss for one in last[: self.patience])
        now = median(one.loss for one in last[self.patience :])
        training = last[-1].training
        if now - training < self.gap * start.scale or now < self.times * training:
            return None
        if before - now >= self.fall * abs(before):
            return None
        return self.find(
            window,
            f"The validation loss stays at {now:.4g}, while the training loss is {training:.4g}.",
            validation=now,
            before=before,
            training=training,
        )
