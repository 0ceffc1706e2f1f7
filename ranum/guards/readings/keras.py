"""Reads one Keras training step: a row of numbers that the step itself has written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ranum.guards.types import Reading

NUMBER, CODE, LOSS, NORM, HEAD = 0, 1, 2, 3, 4
"""Places in a row: of the step (from 1), what became of it, its loss and the norm of all gradients;
the norms of single tensors follow."""
WITHHELD, TAKEN, SCALING = 0.0, 1.0, 2.0
"""What became of a step; SCALING: left to an optimizer that looks for its loss scale."""


@dataclass(slots=True)
class RowLayout:
    """What the numbers of a row are, as the step was traced.

    Attributes:
        gradients: Names of the weights whose gradients' L2 norms come first.
        weights: Names of the weights whose own norms come next.
        statistics: Names of the other variables whose norms come last: running statistics.
        has_loss: Whether the step showed its loss.
    """

    gradients: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    statistics: list[str] = field(default_factory=list)
    has_loss: bool = False

    @property
    def width(self) -> int:
        """Numbers in a row."""
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
        )
