"""Rules over readings, one per symptom; importing the package fills the registry.

@register
@dataclass(frozen=True, slots=True)
class MySymptom(Symptom):
'''...'''
"""

from __future__ import annotations

from collections.abc import Iterable

from ranum.errors import ArgumentError
from ranum.guards.symptoms.bad_initialisation import BadInitialisation
from ranum.guards.symptoms.bad_input import BadInput
from ranum.guards.symptoms.bad_labels import BadLabels
from ranum.guards.symptoms.base import CODES, Symptom, register
from ranum.guards.symptoms.batch_norm_statistics import BatchNormStatistics
from ranum.guards.symptoms.diverged import Diverged
from ranum.guards.symptoms.dying_relu import DyingReLU
from ranum.guards.symptoms.exploding_gradient import ExplodingGradient
from ranum.guards.symptoms.large_update import LargeUpdate
from ranum.guards.symptoms.loss_spike import LossSpike
from ranum.guards.symptoms.monitor import Monitor
from ranum.guards.symptoms.non_finite import NonFinite
from ranum.guards.symptoms.not_learning import NotLearning
from ranum.guards.symptoms.oscillating_loss import OscillatingLoss
from ranum.guards.symptoms.output_mismatch import OutputMismatch
from ranum.guards.symptoms.overfitting import Overfitting
from ranum.guards.symptoms.saturated_activation import SaturatedActivation
from ranum.guards.symptoms.shrinking_weights import ShrinkingWeights
from ranum.guards.symptoms.slow_convergence import SlowConvergence
from ranum.guards.symptoms.small_update import SmallUpdate
from ranum.guards.symptoms.vanishing_gradient import VanishingGradient
from ranum.guards.symptoms.window import Recent, Start, Summary, Trend, Validation, Window

__all__ = [
    "CODES",
    "BadInitialisation",
    "BadInput",
    "BadLabels",
    "BatchNormStatistics",
    "Diverged",
    "DyingReLU",
    "ExplodingGradient",
    "LargeUpdate",
    "LossSpike",
    "Monitor",
    "NonFinite",
    "NotLearning",
    "OscillatingLoss",
    "OutputMismatch",
    "Overfitting",
    "Recent",
    "SaturatedActivation",
    "ShrinkingWeights",
    "SlowConvergence",
    "SmallUpdate",
    "Start",
    "Summary",
    "Symptom",
    "Trend",
    "Validation",
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
        SaturatedActivation(),
        NotLearning(),
        BadInitialisation(),
        SmallUpdate(),
        LargeUpdate(),
        BatchNormStatistics(),
        Overfitting(),
        ShrinkingWeights(),
        BadInput(),
        BadLabels(),
        OutputMismatch(),
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
