"""RN215: the validation loss rises while the training loss falls."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from ranum.guards.symptoms.base import Symptom, Window, register
from ranum.guards.types import Finding, Severity


@register
@dataclass(frozen=True, slots=True)
class Overfitting(Symptom):
    """The validation loss has risen for some time, while the training loss went on falling.

    What it finds:
        At least `patience` validations after the best one, of which the median is higher than
        the best by `rise` of it and by `share` of the training loss' scale at the start, while
        the training loss has fallen by `fall` of what it was at the best.

    Why it matters:
        What is learned from then on holds for the training data only; the best weights are
        those of the best validation.

    Thresholds and their source:
        rise 0.1: SageMaker's Overfit, which compares validation with training instead; that
        difference is large in healthy runs whose training loss is near zero. patience 5: one
        validation is noise. share 0.02: a rise from 0.010 to 0.012 is nobody's concern where the
        loss started at 2.3. fall 0.05: if training does not improve either, something else is
        wrong.

    Known misses:
        Runs without validation, or adapters that do not pass it on (`guard.validated(loss)`).
        A gap between training and validation that is there but does not grow. Metrics other
        than the loss: accuracy may still improve while the loss rises.

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
    fall: float = 0.05  # of the training loss at the best validation
    patience: int = 5  # validations

    code: ClassVar[str] = "RN215"
    severity: ClassVar[Severity] = "warning"

    def __post_init__(self) -> None:
        self.require("rise", "share")
        self.require("fall", to=1.0)
        self.require_count("patience", to=64)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        validations = list(window.validations)
        if window.latest.validation_loss is None or len(validations) <= self.patience:
            return None
        best = min(validations, key=lambda validation: validation.loss)
        since = [one for one in validations if one.step > best.step][-self.patience :]
        if len(since) < self.patience:
            return None
        now = median(one.loss for one in since)
        margin = self.rise * abs(best.loss)
        if window.start is not None:
            margin = max(margin, self.share * window.start.scale)
        training = since[-1].training
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
