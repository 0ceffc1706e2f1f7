"""From symptoms to the edits worth trying first: tables and pure functions.

AutoTrainer (Zhang et al., ICSE 2021) tries, per symptom, in this order: vanishing gradient:
SELU, ReLU, batch normalization; exploding gradient: SELU, ReLU, clipping, tanh, batch
normalization; dying ReLU: SELU, batch normalization, initializer, leaky units; oscillating
loss: Adam, learning rate down, batch size up, momentum, initializer; slow convergence: another
optimizer, learning rate up, initializer. Of its 309 reported repairs 167 changed the optimizer,
98 the activation, 23 the learning rate, and next to none anything else.

The orders below keep those edits and differ in two points, argued rather than measured:
whatever diverges tries a lower learning rate first, as it leaves the model alone; and optimizer
and learning rate may change together, as a rate that suits one optimizer is wrong for another,
and once everything returns to its usual value, as faults come together. Gradients are clipped by
their norm, not element by element, which keeps their direction. Input noise, momentum alone and
thresholded units are left out: none of them repaired anything there.

References:
    Zhang, Zhai, Ma, Shen: AutoTrainer: An Automatic DNN Training Problem Detection and Repair
    System, ICSE 2021, https://arxiv.org/abs/2103.11561.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from ranum.repair.search.space import Range, SearchSpace

if TYPE_CHECKING:
    from ranum.guards.types import Finding

Verdict = Literal["diverged", "stuck", "slow"]

USUAL_RATES: Mapping[str, float] = {"SGD": 1e-2}
"""Learning rate to start from, by optimizer; AutoTrainer's values (0.001 for all others)."""

USUAL_RATE = 1e-3

STUCK_SHARE = 0.01
"""A run is stuck if its reported value moves by less than this share of its first value."""

SMOOTHED = 10
"""First and last value are means of this fraction of all: losses of single batches are noisy."""


@dataclass(frozen=True, slots=True)
class Change:
    """A new value for one name: `value` itself, the present one times `factor`, or the usual.

    Attributes:
        name: Which value changes.
        value: The new one; None if `factor` says it. "usual" stands, for the learning rate,
            for the one of `USUAL_RATES`.
        factor: For numbers: multiplies the present value.
    """

    name: str
    value: Any = None
    factor: float | None = None


Edit = tuple[Change, ...]


def _rate(*factors: float) -> tuple[Edit, ...]:
    return tuple((Change("learning_rate", factor=factor),) for factor in factors)


def _set(name: str, *values: str) -> tuple[Edit, ...]:
    return tuple((Change(name, value),) for value in values)


_USUAL: Edit = (Change("learning_rate", "usual"),)
_ADAM: Edit = (Change("optimizer", "Adam"), Change("learning_rate", "usual"))
_SGD: Edit = (Change("optimizer", "SGD"), Change("learning_rate", "usual"))
_REDRAW = _set("initialization", "default", "kaiming_normal")
_CLIP: tuple[Edit, ...] = ((Change("gradient_clip", 1.0),),)
_NORMALIZE = _set("normalization", "BatchNorm")
_LARGER_BATCH: tuple[Edit, ...] = tuple((Change("batch_size", factor=k),) for k in (2, 4))

# All usual values at once, for faults that come together; what was not needed is undone later.
_FRESH: Edit = (*_ADAM, Change("initialization", "default"), Change("activation", "ReLU"))
_COOL = (*_rate(0.1, 0.01), *_CLIP, _USUAL, _ADAM, _FRESH)

EDITS: Mapping[str, tuple[Edit, ...]] = {
    "NonFinite": (*_COOL, *_REDRAW, *_set("activation", "SELU", "Tanh"), *_NORMALIZE),
    "ExplodingGradient": (
        *_COOL,
        *_REDRAW,
        *_set("activation", "SELU", "ReLU", "Tanh"),
        *_NORMALIZE,
    ),
    "Diverged": (*_COOL, *_REDRAW, *_set("activation", "SELU", "ReLU", "Tanh"), *_NORMALIZE),
    "LossSpike": (*_COOL, *_LARGER_BATCH),
    "OscillatingLoss": (*_rate(0.1), _ADAM, *_rate(0.01), *_LARGER_BATCH, *_REDRAW),
    "VanishingGradient": (
        *_set("activation", "SELU", "ReLU"),
        *_NORMALIZE,
        *_REDRAW,
        _ADAM,
        *_rate(10),
    ),
    "DyingReLU": (
        *_set("activation", "LeakyReLU", "SELU", "ELU"),
        *_NORMALIZE,
        *_rate(0.1),
        *_REDRAW,
        *_rate(0.01),
    ),
    "SlowConvergence": (
        *_rate(10),
        _ADAM,
        *_rate(100),
        *_set("activation", "ReLU", "SELU"),
        *_REDRAW,
    ),
    "NotLearning": (*_REDRAW, _FRESH, *_rate(10, 0.1), *_set("activation", "ReLU", "SELU"), _ADAM),
    "BadInitialisation": (*_REDRAW, *_NORMALIZE, _FRESH),
    "SaturatedActivation": (
        *_set("activation", "ReLU", "SELU"),
        *_REDRAW,
        *_rate(0.1),
        *_NORMALIZE,
    ),
    "LargeUpdate": (*_rate(0.1, 0.01), *_CLIP, _USUAL, *_REDRAW),
    "SmallUpdate": (*_rate(10, 100), _USUAL, _ADAM),
    # What the run itself says, where no symptom does.
    "diverged": (*_COOL, *_REDRAW, *_set("activation", "SELU", "ReLU")),
    "stuck": (*_REDRAW, _FRESH, *_rate(0.1), _USUAL, *_set("activation", "ReLU", "SELU"), _ADAM),
    "slow": (*_rate(10), _ADAM, *_rate(0.1), _SGD, _FRESH),
}
"""Edits in the order they are tried, by symptom or verdict."""


def verdict(values: Sequence[float], score: float, *, lower_is_better: bool = True) -> Verdict:
    """What a run says about itself.

    Args:
        values: What it reported as it went, in order; may be empty.
        score: What it returned.
        lower_is_better: Direction of both.

    Returns:
        "diverged" if anything is not finite or the last value is worse than the first one,
        "stuck" if they differ by less than `STUCK_SHARE`, else "slow": it learns, but not
        enough.
    """
    if not math.isfinite(score) or not all(map(math.isfinite, values)):
        return "diverged"
    if len(values) < 2:
        return "slow"
    count = max(1, len(values) // SMOOTHED)
    first, last = fmean(values[:count]), fmean(values[-count:])
    gain = first - last if lower_is_better else last - first
    margin = STUCK_SHARE * abs(first)
    if gain < -margin:
        return "diverged"
    return "slow" if gain > margin else "stuck"


def order(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Names of the symptoms that edits are known for, faults first, then as they came.

    Args:
        findings: Of a guard, or of an earlier run of the same configuration.
    """
    ranked = sorted(findings, key=lambda finding: (finding.severity != "fault", finding.step))
    names = dict.fromkeys(finding.symptom for finding in ranked)
    return tuple(name for name in names if name in EDITS)


def edits(
    configuration: Mapping[str, Any], space: SearchSpace, symptoms: Iterable[str]
) -> tuple[dict[str, Any], ...]:
    """Configurations to try next, in order: the edits that symptoms suggest, inside the space.

    Args:
        configuration: The one that showed the symptoms.
        space: What may change, and to what. A number that an edit moves out of its range is
            put on the range's end; any other change outside the space is left out.
        symptoms: Keys of `EDITS`, most important first; others suggest nothing.

    Returns:
        Each configuration once, and never the present one.
    """
    found: list[dict[str, Any]] = []
    for symptom in symptoms:
        for edit in EDITS.get(symptom, ()):
            edited = _apply(edit, configuration, space)
            if edited != configuration and edited not in found:
                found.append(edited)
    return tuple(found)


def _apply(edit: Edit, configuration: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """What an edit makes of a configuration; changes outside the space are left out."""
    domains = space.domains()
    searched = space.within(configuration)
    edited = dict(configuration)
    for change in edit:
        if change.name not in searched:
            continue
        domain, value = domains[change.name], change.value
        if change.name == "learning_rate" and value == "usual":
            value = USUAL_RATES.get(str(edited.get("optimizer")), USUAL_RATE)
        elif change.factor is not None:
            value = edited[change.name] * change.factor
        if isinstance(domain, Range):
            value = domain.nearest(value)
        elif value not in domain:
            continue
        edited[change.name] = value
    return edited
