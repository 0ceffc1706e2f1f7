"""RN301: what goes into the model is not finite, constant, or out of scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import ClassVar, Literal

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, InputReading, Severity


@register
@dataclass(frozen=True, slots=True)
class BadInput(Symptom):
    """The model's input is not finite, is the same for every example, or is out of scale.

    What it finds:
        In what the first module that ran was given: (1) a NaN or an infinity; (2) in `patience`
        samples in a row, the same values for every example of the batch; (3) a scale (the larger
        of mean and standard deviation) of more than `scale`, in front of layers whose outputs at
        the start are typically larger than `passed`; (4) a scale more than `jump` times the
        largest of at least five samples before.

    Why it matters:
        A loader that returns zeros, a column with missing values or pixels of 0 to 255 do not
        stop training, they only make it bad: the first updates have to undo the scale, rectifiers
        die, bounded activations saturate.

    Thresholds and their source:
        scale 20: pixels of 0 to 255 have 70 to 130; pixels of 0 to 16 train well. passed 8: the
        median over modules of the largest output; below 5 in healthy runs, and in nets that
        normalize the scale away. jump 20. patience 3. All ours; SageMaker asks for an image mean
        below 0.2, DeepDiagnosis for inputs in [-1, 1].

    Known misses:
        Batches between samples: there a NaN is `NonFinite`'s case, and its culprit "data". Inputs
        beyond the first module's; single columns out of scale; integers are looked at for being
        constant only. Batches of one.

    Remedies:
        Standardise each feature with the training set's mean and deviation (pixels: divide by
        255), fill missing values, look at a batch, or start with BatchNorm.

    Example:
        `torch.from_numpy(images).float()` without `/ 255`.

    References:
        LeCun et al.: Efficient BackProp, 1998, section 4.3. Zhang et al.: AutoTrainer, 2021
        (abnormal data).
    """

    scale: float = 20.0  # mean or standard deviation, in the input's unit
    passed: float = 8.0  # median over modules of the largest absolute output
    jump: float = 20.0  # times the largest scale before
    patience: int = 3  # samples in a row, for constant input

    code: ClassVar[str] = "RN301"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar[Literal["step", "sample"]] = "sample"

    def __post_init__(self) -> None:
        self.require("scale", "passed")
        self.require("jump", above=1.0)
        self.require_count("patience", to=16)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        given = window.latest.inputs
        if given is None:
            return None
        message = self._problem(window, given)
        if not message:
            return None
        return self.find(
            window,
            message,
            where=given.where,
            lower=given.lower,
            upper=given.upper,
            mean=given.mean,
            deviation=given.deviation,
        )

    def _problem(self, window: Window, given: InputReading) -> str:
        name = f"The input of {given.where or 'the model'}"
        if not (math.isfinite(given.lower) and math.isfinite(given.upper)):
            return f"{name} holds values that are not finite: NaN or infinities in the batch."
        samples = [sample.inputs for sample in window.samples]
        last = samples[-self.patience :]
        if len(last) == self.patience and all(one is not None and one.spread == 0 for one in last):
            return (
                f"{name} was the same for every example of the batch, in {self.patience} samples "
                f"in a row; its values are in [{given.lower:.4g}, {given.upper:.4g}]."
            )
        if given.is_normalized:
            return ""
        scale = _scale(given)
        before = [_scale(one) for one in samples[:-1] if one is not None]
        if len(before) >= 5 and 0 < self.jump * max(before) < scale:
            return f"{name} has a scale of {scale:.4g}; it was {max(before):.4g} at most before."
        sizes = [one.size for one in window.latest.activations.values()]
        if window.count > 1 or not sizes or scale < self.scale or median(sizes) < self.passed:
            return ""
        return (
            f"{name} has mean {given.mean:.4g}, deviation {given.deviation:.4g}, and half of the "
            f"modules put out values beyond {median(sizes):.3g}: inputs should be scaled."
        )


def _scale(given: InputReading) -> float:
    return max(abs(given.mean), given.deviation)
