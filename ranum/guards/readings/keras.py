"""Reads one Keras training step: a row of numbers that the step itself has written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ranum.guards.types import ActivationReading, InputReading, Reading

NUMBER, CODE, LOSS, NORM, HEAD = 0, 1, 2, 3, 4
"""Places in a row: of the step (from 1), what became of it, its loss and the norm of all gradients;
the norms of single tensors follow."""
WITHHELD, TAKEN, SCALING = 0.0, 1.0, 2.0
"""What became of a step; SCALING: left to an optimizer that looks for its loss scale."""


INPUT_PARTS = ("lower", "upper", "mean", "deviation", "spread")
"""What a row holds of the model's input."""
FIRST_SAMPLES = 5
"""Samples of a run's beginning in which its initialisation is looked at."""


@dataclass(frozen=True, slots=True)
class LayerPart:
    """What a row holds of one layer.

    Attributes:
        where: Its path.
        parts: Names of the numbers: fields of an `ActivationReading` or `InputReading`.
        is_normalized: The layer is a normalization.
    """

    where: str
    parts: tuple[str, ...]
    is_normalized: bool = False


@dataclass(slots=True)
class RowLayout:
    """What the numbers of a row are, as the step was traced.

    Attributes:
        gradients: Names of the weights whose gradients' L2 norms come first.
        weights: Names of the weights whose own norms come next.
        statistics: Names of the other variables whose norms come last: running statistics.
        has_loss: Whether the step showed its loss.
        outputs: Layers whose outputs come after these, behind a 1 if they were measured in this
            step and a 0 if not; then `given`, and last the spread of each layer's output, -1 where
            it was not measured.
        given: The first layer, for what it was given.
    """

    gradients: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    statistics: list[str] = field(default_factory=list)
    has_loss: bool = False
    outputs: list[LayerPart] = field(default_factory=list)
    given: LayerPart | None = None

    @property
    def width(self) -> int:
        """Numbers in a row, without those of layers."""
        return HEAD + len(self.gradients) + len(self.weights) + len(self.statistics)

    def reading(
        self,
        row: Sequence[float],
        *,
        step: int,
        learning_rate: float | None = None,
        epoch: int = 0,
        sampled: bool = False,
    ) -> Reading:
        """The reading of a row.

        Args:
            row: `width` numbers.
            step: Optimizer steps attempted before this one.
            learning_rate: Of the optimizer.
            epoch: Counting from 0.
            sampled: With the norms of every layer.
        """
        middle = HEAD + len(self.gradients)
        gradients = row[HEAD:middle]
        state = row[middle : self.width]
        names = [*self.weights, *self.statistics]
        bad = next(
            (name for name, norm in zip(names, state, strict=True) if not math.isfinite(norm)), ""
        )
        return Reading(
            step=step,
            loss=row[LOSS] if self.has_loss else None,
            grad_norm=row[NORM] if self.gradients else None,
            learning_rate=learning_rate,
            epoch=epoch,
            grad_norms=dict(zip(self.gradients, gradients, strict=True)) if sampled else {},
            weight_norms=dict(zip(self.weights, state, strict=False)) if sampled else {},
            bad_state=bad,
            **self._seen(row[self.width :]),
        )

    def _seen(self, numbers: Sequence[float]) -> dict[str, Any]:
        """Fields of a reading, of what the layers have put out."""
        if not numbers or not numbers[0]:
            return {}
        rest = iter(numbers[1:])
        found = {one.where: {part: next(rest) for part in one.parts} for one in self.outputs}
        inputs = None
        if self.given is not None:
            values: dict[str, Any] = {part: next(rest) for part in self.given.parts}
            values["spread"] = _spread(values["spread"])
            inputs = InputReading(
                where=self.given.where, is_normalized=self.given.is_normalized, **values
            )
        spreads = {one.where: _spread(next(rest)) for one in self.outputs}
        return {
            "activations": {
                where: ActivationReading(**values, spread=spreads[where])
                for where, values in found.items()
            },
            "inputs": inputs,
        }


def _spread(value: float) -> float | None:
    return None if value < 0 else value
