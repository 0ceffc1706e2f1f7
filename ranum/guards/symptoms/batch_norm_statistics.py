"""RN214: BatchNorm's running statistics are not those of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, NormalizationReading, Severity


@register
@dataclass(frozen=True, slots=True)
class BatchNormStatistics(Symptom):
    """The running statistics of a BatchNorm, which evaluation uses, are not the data's.

    What it finds:
        Running variances (median over channels) that are off from the batch's by (1) `factor` in
        `patience` samples in a row, when they have had the time to follow (`waits` / momentum
        steps; at once where they do not follow at all: a momentum below 1e-4, or evaluation
        mode); or (2) `spoiled`, in three samples in a row, after they had fitted. (3) A momentum
        and a batch from which the running mean is off by `noise` standard deviations on average.

    Why it matters:
        Training uses the batch's own statistics and looks fine; evaluation uses the running
        ones and is wrong. One bad batch can stay in them for thousands of steps.

    Thresholds and their source:
        factor 5: 0.8 to 1.3 in healthy runs once they had followed. spoiled 100. waits 3: the
        start then weighs 5 %. noise 0.25, from sqrt(m / (2 - m) / n) for momentum m and n values
        per channel: 0.12 for batches of four with the usual 0.1, 0.5 with momentum 1. patience 5
        samples. All ours.

    Known misses:
        Statistics that fit the training data and not the evaluation's; means that are off while
        variances fit. Normalizations without running statistics have nothing to go wrong here.

    Remedies:
        Momentum 0.1 (that is 0.9 where the past is weighted); larger batches, SyncBatchNorm,
        GroupNorm or LayerNorm; leave the bad batch out (a guard does, if it sees it), or estimate
        the statistics again with `torch.optim.swa_utils.update_bn`.

    Example:
        `nn.BatchNorm2d(64, momentum=0.99)` by someone who knows it from Keras.

    References:
        Ioffe, Szegedy: Batch normalization, 2015, https://arxiv.org/abs/1502.03167.
        Wu, Johnson: Rethinking "Batch" in BatchNorm, 2021, https://arxiv.org/abs/2105.07576
    """

    factor: float = 5.0  # of the variance, up or down
    spoiled: float = 100.0  # the same, after it had fitted
    noise: float = 0.25  # standard deviations of the data
    waits: float = 3.0  # steps times momentum
    patience: int = 5  # samples in a row

    code: ClassVar[str] = "RN214"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar[Literal["step", "sample"]] = "sample"

    def __post_init__(self) -> None:
        self.require("factor", "spoiled", above=1.0)
        self.require("noise", "waits")
        self.require_count("patience", to=16)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        for name, latest in window.latest.normalizations.items():
            series = [s.normalizations[name] for s in window.samples if name in s.normalizations]
            message = self._problem(window, latest, series)
            if message:
                return self.find(
                    window,
                    f"{name}: {message}",
                    where=name,
                    ratio=latest.ratio,
                    shift=latest.shift,
                    momentum=latest.momentum,
                    values=latest.count,
                )
        return None

    def _problem(
        self, window: Window, latest: NormalizationReading, series: list[NormalizationReading]
    ) -> str:
        if len(series) < self.patience:
            return ""
        momentum = latest.momentum
        noise = math.sqrt(momentum / (2 - momentum) / latest.count) if latest.count else 0.0
        if noise >= self.noise:
            return (
                f"with momentum {momentum:g} and {latest.count} values per channel, the running "
                f"mean is off by {noise:.2g} standard deviations on average."
            )
        errors = [_error(one) for one in series]
        if min(errors[-3:]) >= self.spoiled and min(errors[:-3], default=math.inf) < self.factor:
            return (
                f"the running variance is {1 / latest.ratio if latest.ratio else math.inf:.3g} "
                "times the batch's; it fitted before. A batch has spoiled it."
            )
        follows = momentum >= 1e-4
        if min(errors[-self.patience :]) < self.factor or (
            follows and window.latest.step < self.waits / momentum
        ):
            return ""
        return (
            f"the variance of the batch is {latest.ratio:.3g} times the running one, in "
            f"{self.patience} samples, with momentum {momentum:g}: evaluation will not see what "
            "training sees."
        )


def _error(one: NormalizationReading) -> float:
    """Factor between the variances, at least 1."""
    if not one.ratio > 0:
        return math.inf
    return max(one.ratio, 1 / one.ratio)
