"""Steps that the device leaves out by itself, so that the host need not wait to decide.

Torch's fused optimizers skip their update where a tensor on the device says so; gradient scalers
use the same way. The host reads one step later what the device has done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ranum.errors import ArgumentError
from ranum.guards._content import Content
from ranum.guards.readings._norms import norms_of, together
from ranum.guards.readings.torch import Measurement

RENEW = 1.1
"""The bound on the device follows the one of the rules when they differ by this factor."""


@dataclass(slots=True)
class Outstanding:
    """A step whose reading has not been looked at yet.

    Attributes:
        step: Its number.
        measurement: What its reading will be.
        content: What it trained on.
        here: Where it stood in the data.
        is_noted: The state before it has been put aside, for the next step has begun.
    """

    step: int
    measurement: Measurement
    content: Content
    here: Any
    is_noted: bool = False


class Withholding:
    """Lets the device leave out a step whose loss or gradients are not as they should be.

    Args:
        optimizers: Those that step.

    Raises:
        ArgumentError: If one of them cannot leave out a step.
    """

    def __init__(self, optimizers: Sequence[Any]) -> None:
        for optimizer in optimizers:
            if not getattr(optimizer, "_step_supports_amp_scaling", False):
                raise ArgumentError(
                    "late needs optimizers that can leave a step out on the device: torch's SGD, "
                    f"Adam, AdamW or Adagrad with fused=True; got {type(optimizer).__name__}."
                )
        self._optimizers = list(optimizers)
        self._limit = math.inf
        self._stepped: set[int] = set()
        self._scalars: tuple[Tensor, Tensor] | None = None
        self.is_captured = False

    def __repr__(self) -> str:
        return f"Withholding({len(self._optimizers)} optimizers, bound={self._limit:g})"

    def saw(self, trained: Sequence[Tensor]) -> None:
        """These parameters, at least one, have been stepped: their optimizer has a state for them.

        Fused SGD makes its momentum in the first step, and leaves it unwritten if that step is
        left out.
        """
        self._stepped.update(map(id, trained))
        if self._scalars is None and trained:
            limit = torch.tensor(self._limit, device=trained[0].device)
            self._scalars = limit, torch.zeros_like(limit)

    def knows(self, trained: Iterable[Tensor]) -> bool:
        """True if all of these have been stepped."""
        return self._stepped.issuperset(map(id, trained))

    def forget(self) -> None:
        """The optimizers may have lost their state."""
        self._stepped.clear()

    def set_bound(self, norm: float) -> None:
        """From now on, a step with a gradient norm of at least this much is left out."""
        if self._limit / RENEW < norm < self._limit * RENEW or norm == self._limit:
            return
        self._limit = norm
        if self._scalars is not None:
            self._scalars[0].fill_(norm)

    def hold(self, measurement: Measurement) -> None:
        """The step that follows is left out, if the device finds the measurement bad.

        The answer is sent to the host along with the measurement.
        """
        bad = badness(*measurement.checked, self._at_hand()[0])
        for optimizer in self._optimizers:
            optimizer.found_inf = bad
        measurement.send(bad)

    def hold_in_graph(self, loss: Tensor, gradients: Sequence[Tensor]) -> None:
        """The same for a step that is captured: its replays leave out what they find bad.

        After a bad one, all of them are left out until `clear`: the host launches the next replay
        before it knows.

        Raises:
            ArgumentError: If no step has been seen.
        """
        bound, verdict = self._at_hand()
        verdict.copy_(torch.maximum(badness(norms_of(gradients), [loss.detach()], bound), verdict))
        for optimizer in self._optimizers:
            optimizer.found_inf = verdict
        self.is_captured = True

    def send(self, measurement: Measurement) -> None:
        """Sends a measurement of a replay to the host, and whether the replay was left out."""
        measurement.send(self._at_hand()[1])

    def clear(self) -> None:
        """The replays that follow are taken again."""
        if self._scalars is not None:
            self._scalars[1].zero_()

    def _at_hand(self) -> tuple[Tensor, Tensor]:
        """The bound, and the verdict on replays: a graph writes to those there are before it."""
        if self._scalars is None:
            raise ArgumentError("hold needs some steps of `step` before the capture.")
        return self._scalars

    def release(self) -> None:
        """The steps that follow are taken."""
        for optimizer in self._optimizers:
            if hasattr(optimizer, "found_inf"):
                del optimizer.found_inf


def badness(norms: Sequence[Tensor], others: Sequence[Tensor], bound: Tensor) -> Tensor:
    """1 if a number is not finite, or the norm of the norms is too large; else 0.

    Args:
        norms: Of the gradients, `[]` each.
        others: Loss and the like, `[]` each.
        bound: The least norm that is too large, `[]`.

    Returns:
        `[]`, float32, where the first norm is.
    """
    fine = torch.linalg.vector_norm(together(norms).float()) < bound
    if others:
        fine = fine & together(others).isfinite().all().to(fine.device)
    bad: Tensor = ~fine
    return bad.float()
