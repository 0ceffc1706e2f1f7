"""RN216: weights shrink to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import ClassVar, Literal

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, Severity


@register
@dataclass(frozen=True, slots=True)
class ShrinkingWeights(Symptom):
    """The weights lose most of their size within a few samples.

    What it finds:
        The median over matrices and kernels of (size now) / (size in the oldest of the last 16
        samples) is below `left`.

    Why it matters:
        Weight decay acts on every step, whatever the gradient: where it outweighs the loss, the
        net forgets faster than it learns and ends as a constant.

    Thresholds and their source:
        left 0.3: within 150 steps at the default of one sample in ten. In 34 kinds of healthy
        runs, some with weight decay of 0.1, no median fell below 0.8. Decay times rate of 0.1 per
        step leaves 0.04 after 30 steps. Ours.

    Known misses:
        Decay that takes thousands of steps to its end; decay of some layers only.

    Remedies:
        A lower weight decay: decoupled decay (AdamW) of 0.01 to 0.1, an L2 penalty of 1e-4 to
        1e-3. None for biases and gains of normalizations.

    Example:
        AdamW with `weight_decay=30`.

    References:
        Loshchilov, Hutter: Decoupled weight decay regularization, 2019,
        https://arxiv.org/abs/1711.05101
    """

    left: float = 0.3  # of the size of the weights, median

    code: ClassVar[str] = "RN216"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar[Literal["step", "sample"]] = "sample"

    def __post_init__(self) -> None:
        self.require("left", to=1.0)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        if not window.samples:
            return None
        first, latest = window.samples[0], window.latest
        shares = {
            name: latest.weight_norms[name] / first.weight_norms[name]
            for name in latest.updates
            if name in latest.weight_norms and first.weight_norms.get(name)
        }
        if not shares or not (share := median(shares.values())) < self.left:
            return None
        where = min(shares, key=shares.__getitem__)
        return self.find(
            window,
            f"The weights have shrunk to {share:.0%} of their size (median) since step "
            f"{first.step}; {where} to {shares[where]:.0%}.",
            where=where,
            share=share,
            since=first.step,
        )
