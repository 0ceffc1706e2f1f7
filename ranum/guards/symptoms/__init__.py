"""Rules over readings, one per symptom; importing the package fills the registry.

@register
@dataclass(frozen=True, slots=True)
class MySymptom(Symptom):
'''...'''
"""

from __future__ import annotations

from collections.abc import Iterable

from ranum.errors import ArgumentError
from ranum.guards.symptoms.base import (
    CODES,
    Monitor,
    Recent,
    Start,
    Summary,
    Symptom,
    Trend,
    Window,
    register,
)
from ranum.guards.symptoms.diverged import Diverged
from ranum.guards.symptoms.dying_relu import DyingReLU
from ranum.guards.symptoms.exploding_gradient import ExplodingGradient
from ranum.guards.symptoms.loss_spike import LossSpike
from ranum.guards.symptoms.non_finite import NonFinite
from ranum.guards.symptoms.oscillating_loss import OscillatingLoss
from ranum.guards.symptoms.slow_convergence import SlowConvergence
from ranum.guards.symptoms.vanishing_gradient import VanishingGradient

__all__ = [
    "CODES",
    "Diverged",
    "DyingReLU",
    "ExplodingGradient",
    "LossSpike",
    "Monitor",
    "NonFinite",
    "OscillatingLoss",
    "Recent",
    "SlowConvergence",
    "Start",
    "Summary",
    "Symptom",
    "Trend",
    "VanishingGradient",
    "Window",
    "codes_of",
    "default_symptoms",
    "register",
]


def default_symptoms() -> tuple[Symptom, ...]:
    """Every built-in symptom with its default thresholds, in the order of their codes."""
    return (
        NonFinite(),
        ExplodingGradient(),
        VanishingGradient(),
        DyingReLU(),
        OscillatingLoss(),
        SlowConvergence(),
        LossSpike(),
        Diverged(),
    )


def codes_of(symptoms: Iterable[str]) -> frozenset[str]:
    """The codes of symptoms given by code or by name.

    Raises:
        ArgumentError: If one is not known.
    """
    names = {rule.__name__: code for code, rule in CODES.items()}
    given = tuple(symptoms)
    if isinstance(symptoms, str) or not all(one in CODES or one in names for one in given):
        known = ", ".join(f"{name} ({code})" for name, code in names.items())
        raise ArgumentError(f"act_on must hold symptoms out of {known}; got {symptoms!r}.")
    return frozenset(names.get(one, one) for one in given)
