"""RN201: the loss, a gradient or the state of the run is NaN or infinite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, Severity


@register
@dataclass(frozen=True, slots=True)
class NonFinite(Symptom):
    """The loss, a gradient or the state of the run is NaN or infinite.

    What it finds:
        A reading whose loss or global gradient norm is not a finite number; a buffer of ordinary
        size that is not (BatchNorm's statistics); and, in steps before which a snapshot is due, a
        weight, any buffer or a moment of the optimizer. What was so from the start is a mask. And
        a running variance of BatchNorm that is finite and has grown 1e8 times in one step, once:
        if it does so again on the same batches, they explain it.

    Why it matters:
        One optimizer step with such a gradient makes every weight it reaches, and the
        optimizer's moments, NaN for good. Clipping by norm spreads it to all of them.

    Thresholds and their source:
        None: every such value is a fault. That 1e8 is no batch's doing follows from what a step
        does to a running variance: see `ranum/guards/readings/_jumps.py`.

    Known misses:
        A NaN that does not reach the loss or a gradient: in a metric; in a moment of the
        optimizer until it is used, or until the next snapshot is due.

    Remedies:
        Skip the batch or go back to a snapshot, and repair the operator that made it: a
        logarithm of zero, a division by zero, an overflow in low precision. With float16, use
        loss scaling.

    Example:
        `torch.log(torch.softmax(logits, -1))` is -inf once a logit is 104 below the largest.

    References:
        PyTorch, Automatic mixed precision, `torch.amp.GradScaler`, which skips such steps.
    """

    code: ClassVar[str] = "RN201"
    severity: ClassVar[Severity] = "fault"

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        reading = window.latest
        bad = [
            f"{name} is {value}"
            for name, value in (("loss", reading.loss), ("gradient norm", reading.grad_norm))
            if value is not None and not math.isfinite(value)
        ]
        if reading.bad_state:
            grown = f"has grown {reading.growth:.3g} times in one step"
            bad.append(f"{reading.bad_state} {grown if reading.growth else 'is not finite'}")
        if not bad:
            return None
        return self.find(
            window,
            f"The {' and the '.join(bad)}.",
            where=reading.bad_state,
            loss=math.nan if reading.loss is None else reading.loss,
            grad_norm=math.nan if reading.grad_norm is None else reading.grad_norm,
        )
