"""What a guard says about a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ranum.errors import RanumError
from ranum.guards.symptoms import CODES
from ranum.guards.types import Culprit, Finding, Incident, Reading
from ranum.source import UNKNOWN


class TrainingStopped(RanumError):  # noqa: N818 - not an error of the program's
    """The recovery ladder is used up; raised by `Guard.step` in plain loops.

    Attributes:
        incident: The last one.
    """

    def __init__(self, incident: Incident) -> None:
        super().__init__(f"step {incident.step}: {incident.detail}")
        self.incident = incident


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the guard says about a step, before the optimizer.

    Attributes:
        proceed: Take the optimizer step. If False, the gradients have been dropped; with an
            incident, they have been mended.
        incident: What was done; None if nothing had to be.
        stop: Training should end.
        restart: Training should start over: a remedy has prepared a new configuration.
        leaves_out: Training goes on from the state before this batch, with the next one.
        reading: What was measured; None if measuring has been switched off.
        findings: What is new about it.
    """

    proceed: bool
    incident: Incident | None = None
    stop: bool = False
    restart: bool = False
    leaves_out: bool = False
    reading: Reading | None = None
    findings: tuple[Finding, ...] = ()


def damage(name: str, growth: float = 0.0) -> Culprit:
    """The culprit where a weight, buffer or moment has been found not to be finite at rest.

    Args:
        name: Of the tensor.
        growth: Where it is finite, how many times it has grown in one step.
    """
    outcome = f"{growth:.3g} times what was there" if growth else "NaN or Inf"
    return Culprit(
        op="", phase="forward", source=UNKNOWN, outcome=outcome, cause="weights", name=name
    )


def left_out(reading: Reading) -> Finding:
    """Why the device has left a step out, where no rule that runs says so."""
    values = (reading.loss, reading.grad_norm)
    is_finite = all(value is None or math.isfinite(value) for value in values)
    code = "RN202" if is_finite and not reading.bad_state else "RN201"
    message = "Loss, gradients or weights are not finite."
    if code == "RN202":
        message = f"Gradient norm {reading.grad_norm:.3g} is far beyond the usual."
    return Finding(
        code=code,
        symptom=CODES[code].__name__,
        step=reading.step,
        severity="fault",
        message=message,
    )
