"""Rules over readings, one per symptom; importing the package fills the registry.

@register
@dataclass(frozen=True, slots=True)
class MySymptom(Symptom):
'''...'''
"""

from __future__ import annotations

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
