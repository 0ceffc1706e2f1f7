"""Proofs for all defects of an analysis, in one budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ranum.analysis.confirm.training import is_trainable, train_into
from ranum.analysis.confirm.unit import attempt
from ranum.analysis.result import Analysis, Defect, Effort

LEAST = 0.05
"""Seconds that each defect gets at least, while there is time at all."""


def confirm_all(
    analysis: Analysis,
    *,
    seconds: float = 10.0,
    seed: int = 0,
    optimizer: Any = None,
    training: float = 0.0,
) -> Analysis:
    """The analysis with a proof for every defect that has one, certain defects first.

    Every defect that was searched carries the effort; `Defect.proof` says how far it is proved.

    Args:
        analysis: A result of `analyze`.
        seconds: Time budget for inputs and weights of all defects together, wall clock.
        seed: Of the searches.
        optimizer: As for `confirm_training`.
        training: Time budget for training runs into the defects that are certain for some
            weights only; 0 looks for none.

    Raises:
        ArgumentError: If `training` is positive and there is no optimizer to train with.
    """
    defects = _each(
        analysis.defects, seconds, lambda defect, share: _with_unit(defect, share, seed)
    )
    if training > 0:
        defects = _each(
            defects, training, lambda defect, share: _with_training(defect, share, seed, optimizer)
        )
    defects.sort(key=lambda defect: defect.severity != "certain")
    return replace(analysis, defects=tuple(defects))


def _each(defects: Any, seconds: float, prove: Callable[[Defect, float], Defect]) -> list[Defect]:
    deadline = time.monotonic() + seconds
    found = []
    for position, defect in enumerate(defects):
        left = deadline - time.monotonic()
        share = left / (len(defects) - position)
        found.append(prove(defect, max(share, LEAST)) if left > 0 else defect)
    return found


def _with_unit(defect: Defect, seconds: float, seed: int) -> Defect:
    witness, effort = attempt(defect, seconds=seconds, seed=seed)
    searched = replace(defect, effort=effort)
    return searched if witness is None else searched.certain(witness)


def _with_training(defect: Defect, seconds: float, seed: int, optimizer: Any) -> Defect:
    is_settled = defect.proof == "certain in training" or defect.witness is None
    if is_settled or defect.context is None or not is_trainable(defect.context):
        return defect
    training, effort = train_into(defect, optimizer, seconds=seconds, seed=seed)
    return replace(defect, training=training, effort=(defect.effort or Effort()) + effort)


__all__ = ["confirm_all"]
