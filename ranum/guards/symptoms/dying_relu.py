"""RN204: a rectifier's units are dead and stay so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ranum.guards.symptoms.base import Symptom, register, so_far
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, Severity


@register
@dataclass(frozen=True, slots=True)
class DyingReLU(Symptom):
    """Nearly all units of a rectifier are zero for whole batches, and stay so.

    What it finds:
        A rectifier whose share of dead units (zero for every example of the batch) was at
        least `dead` in `patience` samples in a row and varied by no more than `drift`, in a
        run whose loss has made less than `progress` of the way to zero.

    Why it matters:
        A dead unit has no gradient, so it cannot come back; a layer of them passes nothing
        on, and the layers before it stop learning.

    Thresholds and their source:
        dead 0.9: published rules fire from 0.5 (SageMaker) over 0.7 (DeepDiagnosis) to 0.9
        (NeuralDBG); a healthy convolutional network was measured at 0.64 to 0.72 in its
        classifier while it learned. drift 0.05 and progress 0.1 are what tells harm from
        sparsity: dead units move and the loss falls in a network that learns; runs that died
        of a high learning rate were measured at 0.98 to 1.0, unchanged. patience 5 samples.

    Known misses:
        Rectifiers called as functions. A dead branch beside a skip connection, while the rest
        learns. Units that die after the loss has fallen, or while it blows up: its way back from
        there counts as progress (one run of five at a rate of 3 with momentum). Runs resumed from
        a checkpoint, whose start was not seen. With very small batches the share is larger by
        nature.

    Remedies:
        A lower learning rate, LeakyReLU, ELU or SELU, BatchNorm before the rectifier, a He
        initialisation and zero biases.

    Example:
        Biases of -5; or Adam with a learning rate of 0.3.

    References:
        Lu et al.: Dying ReLU and Initialization, 2019, https://arxiv.org/abs/1903.06733
    """

    dead: float = 0.9  # share of units, 0 to 1
    drift: float = 0.05  # largest difference of the share between the samples
    progress: float = 0.1  # fall of the loss, in units of the start's scale
    patience: int = 5  # samples in a row

    code: ClassVar[str] = "RN204"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar[Literal["step", "sample"]] = "sample"

    def __post_init__(self) -> None:
        self.require("dead", "drift", "progress", to=1.0)
        self.require_count("patience", to=16)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        samples = window.samples[-self.patience :]
        if len(samples) < self.patience:
            return None
        dying: list[tuple[str, float]] = []
        for name, latest in window.latest.activations.items():
            if latest.dead is None or latest.dead < self.dead:
                continue
            shares = [s.activations[name].dead for s in samples if name in s.activations]
            known = [share for share in shares if share is not None]
            if len(known) < self.patience or min(known) < self.dead:
                continue
            if max(known) - min(known) <= self.drift:
                dying.append((name, latest.dead))
        progress = window.progress
        if not dying or progress is None or progress >= self.progress:
            return None
        where, share = dying[0]
        others = f" ({len(dying) - 1} more rectifier(s) likewise)" if len(dying) > 1 else ""
        return self.find(
            window,
            f"{share:.0%} of the units of {where} are dead{others}, and {so_far(progress)}.",
            where=where,
            dead=share,
            progress=progress,
            rectifiers=len(dying),
        )
