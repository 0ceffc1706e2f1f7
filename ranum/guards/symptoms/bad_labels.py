"""RN302: the labels are outside the range of the loss, or say nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, LossReading, Severity


@register
@dataclass(frozen=True, slots=True)
class BadLabels(Symptom):
    """Labels lie outside what loss and output can express, or say nothing.

    What it finds:
        Targets as the loss function got them. (1) Of a binary cross entropy, any outside [0, 1];
        of a squared error or Huber loss right after a sigmoid, tanh, softmax or rectifier, more
        than `outside` of them beyond its range. (2) Of a cross entropy, more than `ignored` of
        the labels are the one to be ignored. (3) Of a cross entropy with at least `examples`
        labels, all are the same class, in `patience` or more samples in a row, and not the same
        one in all of these samples.

    Why it matters:
        A binary cross entropy of a label 2 falls without end. A target beyond the output's range
        pushes the activation into saturation. The mean over no label at all is NaN. Batches of
        one class make the model forget the others, and the loss is low just before it jumps.

    Thresholds and their source:
        outside 0.01, with a margin of 0.01 of the range's unit: rounding and rare outliers.
        ignored 0.999: prompts of which only the answer counts have been seen at 0.95 and more.
        examples 8 and patience 3: with ten equally likely classes, eight labels alike are a
        matter of 1e-7. All ours. Where one class is all there is, sample after sample, nothing
        is said: with one positive in thousands that is how batches look.

    Known misses:
        Labels that belong to other examples: nothing in them shows it (`SlowConvergence` does).
        Labels of classes that the model does not have: torch raises by itself on the CPU.
        Losses written out by hand, compiled steps, adapters that do not show the loss before
        the backward pass.

    Remedies:
        Map labels to 0 and 1, or scale targets into the output's range, or leave the last
        activation out; shuffle the data; check what marks a label as ignored.

    Example:
        Labels 1 and 2 for `binary_cross_entropy_with_logits`.

    References:
        Humbatova et al.: Taxonomy of real faults in deep learning systems, 2020,
        https://arxiv.org/abs/1910.11015
    """

    outside: float = 0.01  # share of targets beyond the output's range
    ignored: float = 0.999  # share of labels
    examples: int = 8  # labels in a step
    patience: int = 3  # samples in a row, for batches of one class

    code: ClassVar[str] = "RN302"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar[Literal["step", "sample"]] = "sample"

    def __post_init__(self) -> None:
        self.require("outside", "ignored", to=1.0)
        self.require_count("patience", to=16)
        self.require_count("examples", to=10**9)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        for place, term in enumerate(window.latest.loss_terms):
            message = self._problem(term)
            if not message and (classes := self._classes(window, place)):
                message = (
                    f"All {term.count} labels of the batch are {term.lower:g}; in {len(classes)} "
                    f"samples in a row all were alike: {', '.join(f'{c:g}' for c in classes)}."
                )
            if message:
                return self.find(
                    window,
                    message,
                    where=term.kind,
                    lower=term.lower,
                    upper=term.upper,
                    ignored=term.ignored,
                    outside=term.outside,
                )
        return None

    def _problem(self, term: LossReading) -> str:
        if not term.count:
            return ""
        if term.ignored > self.ignored:
            return f"{term.ignored:.1%} of {term.count} labels are ones to be ignored."
        span = f"[{term.lower:.4g}, {term.upper:.4g}]"
        if term.kind.startswith("binary"):
            if term.outside > 0:
                return f"Targets of a {term.kind} are in {span}; they must be in [0, 1]."
        elif term.outside > self.outside:
            return (
                f"{term.outside:.0%} of the targets, in {span}, are beyond what the "
                f"{term.activation} in front of the {term.kind} can give."
            )
        return ""

    def _classes(self, window: Window, place: int) -> list[float]:
        """The only class of each sample up to now, oldest first; empty if that is no problem."""
        classes: list[float] = []
        for sample in reversed(window.samples):
            term = sample.loss_terms[place] if len(sample.loss_terms) > place else None
            if (
                term is None
                or term.kind not in ("cross entropy", "negative log likelihood")
                or term.count * (1 - term.ignored) < self.examples
                or term.lower != term.upper
            ):
                break
            classes.insert(0, term.lower)
        return classes if len(classes) >= self.patience and len(set(classes)) > 1 else []
