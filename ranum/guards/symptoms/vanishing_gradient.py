"""RN203: the first layers receive next to no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, Reading, Severity


@register
@dataclass(frozen=True, slots=True)
class VanishingGradient(Symptom):
    """The first layers receive next to no gradient, while the last ones do.

    What it finds:
        In `patience` samples in a row, the gradient of every weight in the first quarter of
        the model is, relative to the weight's own norm, below `relative`, and below `ratio`
        times that of the last quarter. The order is that of the parameters in the model.

    Why it matters:
        The first layers stay as they were initialised: the rest of the network learns from
        random features, or nothing at all.

    Thresholds and their source:
        ratio 1e-4: AutoTrainer compares the first and the last layer at 1e-3; in healthy
        small runs of seven architectures the smallest ratio measured was 3e-3 (an LSTM before
        it had found its task). relative 1e-5: DeepDiagnosis' lower bound for the update of a
        weight. patience 5 samples: one layer may be quiet for a moment, behind a layer that
        was initialised with zeros for instance.

        Biases are left out (before BatchNorm their gradient is zero by construction), and so
        are frozen parameters and runs whose loss has fallen by 99 %.

    Known misses:
        Models with fewer than three weights. Models that register their layers in another
        order than they run. All gradients exactly zero, which is `DyingReLU`'s case.

    Remedies:
        ReLU or SELU in place of sigmoid and tanh, BatchNorm or LayerNorm, skip connections, a
        Xavier or He initialisation, gates in recurrent networks.

    Example:
        Twelve layers with sigmoid: each multiplies the gradient by at most 1/4.

    References:
        Zhang et al.: AutoTrainer, 2021, https://arxiv.org/abs/2103.01421.
        Glorot, Bengio: Understanding the difficulty of training deep feedforward neural
        networks, 2010.
    """

    ratio: float = 1e-4  # first quarter's relative gradient over the last quarter's
    relative: float = 1e-5  # L2 of gradient over L2 of weight
    patience: int = 5  # samples in a row

    code: ClassVar[str] = "RN203"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar[Literal["step", "sample"]] = "sample"

    def __post_init__(self) -> None:
        self.require("ratio", "relative", to=1.0)
        self.require_count("patience", to=16)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        samples = window.samples[-self.patience :]
        if len(samples) < self.patience:
            return None
        ends = [_ends(sample) for sample in samples]
        last = ends[-1]
        if last is None or not all(end and self._vanishes(*end[1:]) for end in ends):
            return None
        if (window.progress or 0.0) >= 0.99:
            return None
        where, early, late = last
        return self.find(
            window,
            f"The gradient of {where} is {early:.1e} of its weight, {early / late:.1e} of what "
            f"the last layers get, for {self.patience} samples.",
            where=where,
            early=early,
            late=late,
            ratio=early / late,
        )

    def _vanishes(self, early: float, late: float) -> bool:
        return late > 0 and early < self.relative and early < self.ratio * late


def _ends(sample: Reading) -> tuple[str, float, float] | None:
    """First weight, and the largest relative gradients of the first and the last quarter."""
    relative = [
        (name, norm / sample.weight_norms[name])
        for name, norm in sample.grad_norms.items()
        if "bias" not in name.rpartition(".")[2] and sample.weight_norms.get(name)
    ]
    if len(relative) < 3:
        return None
    quarter = max(1, len(relative) // 4)
    return (
        relative[0][0],
        max(value for _, value in relative[:quarter]),
        max(value for _, value in relative[-quarter:]),
    )
