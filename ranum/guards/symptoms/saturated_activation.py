"""RN209: a bounded activation stays at the ends of its range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ranum.guards.symptoms.base import Symptom, register, so_far
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, Severity


@register
@dataclass(frozen=True, slots=True)
class SaturatedActivation(Symptom):
    """Nearly all outputs of a tanh or sigmoid lie at the ends of its range, and stay there.

    What it finds:
        A bounded activation of which, in `patience` samples in a row, at least `saturated` of the
        outputs lay within 1 % of an end of the range, in a run whose loss has made less than
        `progress` of the way to zero.

    Why it matters:
        There the derivative is below 0.04 (tanh) or 0.01 (sigmoid): next to nothing reaches the
        layers before, and the units act as switches that cannot be set.

    Thresholds and their source:
        saturated 0.75: at most 0.3 in healthy runs, where it is the output of a net that has
        become sure of itself; 0.8 to 1 in runs whose weights, inputs or rate were too large.
        SageMaker asks for half of the units beyond a tanh input of 9.5, where float32 has rounded
        to 1 already; TheDeepChecker for half of them beyond 85 % of the range. progress 0.25 tells
        a sure output from a dead one. patience 5 samples.

    Known misses:
        Activations called as functions, and the gates inside recurrent modules. Runs resumed from
        a checkpoint. Networks that learn although they are saturated.

    Remedies:
        Scale inputs to deviation 1, a Xavier initialisation, a lower learning rate, BatchNorm or
        LayerNorm before the activation, ReLU instead.

    Example:
        Weights of deviation 3 in front of tanh; or Adam with a learning rate of 0.5.

    References:
        Glorot, Bengio: Understanding the difficulty of training deep feedforward neural
        networks, 2010. Rakitianskaia, Engelbrecht: Measuring saturation in neural networks, 2015.
    """

    saturated: float = 0.75  # share of outputs, 0 to 1
    progress: float = 0.25  # fall of the loss, in units of the start's scale
    patience: int = 5  # samples in a row

    code: ClassVar[str] = "RN209"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar[Literal["step", "sample"]] = "sample"

    def __post_init__(self) -> None:
        self.require("saturated", "progress", to=1.0)
        self.require_count("patience", to=16)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        samples, progress = window.samples[-self.patience :], window.progress
        if len(samples) < self.patience or progress is None or progress >= self.progress:
            return None
        found: list[tuple[str, float]] = []
        for name in window.latest.activations:
            shares = [s.activations[name].saturated for s in samples if name in s.activations]
            known = [share for share in shares if share is not None]
            if len(known) == self.patience and min(known) >= self.saturated:
                found.append((name, known[-1]))
        if not found:
            return None
        where, share = found[0]
        others = f" ({len(found) - 1} more activation(s) likewise)" if len(found) > 1 else ""
        return self.find(
            window,
            f"{share:.0%} of the outputs of {where} lie at the ends of its range{others}, and "
            f"{so_far(progress)}.",
            where=where,
            saturated=share,
            progress=progress,
            activations=len(found),
        )
