"""RN210: weights that should be trained do not change at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, Severity


@register
@dataclass(frozen=True, slots=True)
class NotLearning(Symptom):
    """Weights that should be trained do not change: no update, or no gradient at all.

    What it finds:
        In `patience` samples in a row, (1) not one looked-at element of any trained matrix or
        kernel was changed by an optimizer step, and the loss has made less than `progress` of the
        way to zero; or (2) parameters that ask for a gradient, whose module ran in the step's
        graph, got none, and did not change from sample to sample.

    Why it matters:
        The run goes through its data and learns nothing, or learns with its last layers only,
        which is harder to see: the loss still falls.

    Thresholds and their source:
        patience 5 samples: a schedule may begin at a rate of zero, a gradient scaler skips its
        first steps, and players of a game take turns. progress 0.5: a run that has converged to
        the last bit does not change either. SageMaker's UnchangedTensor compares three saved
        steps at a relative 1e-5; exact equality is stricter, and rates that are merely small
        are `SmallUpdate`'s case.

    Known misses:
        Parts that are frozen on purpose with `requires_grad = False` or run under `no_grad` are
        left alone, also where that was a mistake; features that are detached on purpose, with
        parameters that ask for gradients, are reported. Parameters of modules that never run.
        Weights cut over several processes.

    Remedies:
        Make the optimizer after the model has its final layers, and give it the parameters of
        this model; look for `detach`, `.data`, `torch.no_grad` and numpy between the layers;
        check that the schedule does not start or end at zero.

    Example:
        `head(body(x).detach())`; or an optimizer made before the model was copied.

    References:
        Humbatova et al.: Taxonomy of real faults in deep learning systems, 2020,
        https://arxiv.org/abs/1910.11015
    """

    patience: int = 5  # samples in a row
    progress: float = 0.5  # fall of the loss, in units of the start's scale

    code: ClassVar[str] = "RN210"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar[Literal["step", "sample"]] = "sample"

    def __post_init__(self) -> None:
        self.require("progress", to=1.0)
        self.require_count("patience", to=16)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        samples = window.samples[-self.patience :]
        if len(samples) < self.patience:
            return None
        sizes = window.latest.weight_norms
        same = {
            name
            for name, size in sizes.items()
            if size and all(sample.weight_norms.get(name) == size for sample in samples)
        }
        cut_off = [
            name
            for name in window.latest.cut_off
            if name in same and all(name in sample.cut_off for sample in samples)
        ]
        if cut_off:
            others = f" and {len(cut_off) - 1} other parameters" if len(cut_off) > 1 else ""
            return self.find(
                window,
                f"{cut_off[0]}{others} took part in {self.patience} samples, got no gradient and "
                "did not change: the graph is cut behind them.",
                where=cut_off[0],
                parameters=len(cut_off),
            )
        updates = [sample.updates for sample in samples]
        is_still = all(each and not any(each.values()) for each in updates)
        progress = window.progress
        if not is_still or progress is None or progress >= self.progress:
            return None
        if any(name not in same for name in window.latest.updates):
            return None
        return self.find(
            window,
            f"None of {len(updates[-1])} weights has changed in {self.patience} samples; the "
            f"learning rate is {window.latest.learning_rate or 0.0:.3g}.",
            weights=len(updates[-1]),
            progress=progress,
        )
