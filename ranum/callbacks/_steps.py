"""Optimizer steps as a framework took them, kept so that they can be taken once more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ranum.guards.rewind import BatchLog


@dataclass(slots=True)
class MicroBatch:
    """One call of the model: what it was given, and what came of it.

    Attributes:
        arguments: Positional inputs.
        keywords: Inputs by name.
        loss: The model's own loss, detached; None if it gives none.
        scale: What the loss was multiplied by on its way to `backward`, as its gradient says.
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    loss: Tensor | None = None
    scale: Tensor | None = None


@dataclass(slots=True)
class Step:
    """The micro-batches of one optimizer step, and the random numbers before them."""

    random: Tensor
    parts: list[MicroBatch] = field(default_factory=list)

    @property
    def loss(self) -> Tensor | None:
        """Mean loss of the micro-batches; None if one has none."""
        losses = [part.loss for part in self.parts if part.loss is not None]
        if not losses or len(losses) < len(self.parts):
            return None
        return torch.stack([loss.float() for loss in losses]).mean()

    @property
    def can_run(self) -> bool:
        """True if all of it can be run again."""
        return bool(self.parts) and all(part.scale is not None for part in self.parts)


class StepLog:
    """Steps that can be trained again; see `ranum.guards.rewind.Position`.

    Attributes:
        log: The steps, by number.
        is_again: True while they are taken once more.
    """

    def __init__(self) -> None:
        self.log = BatchLog()
        self.is_again = False

    @property
    def is_nearly_full(self) -> bool:
        """True if a snapshot should be taken soon."""
        return self.log.is_nearly_full

    def mark(self) -> int:
        """The number of the step at hand."""
        # A step enters the log when it has been run; one that is run again is there.
        return self.log.number - self.is_again

    def keep_from(self, mark: int) -> None:
        """Nothing before this step will be gone back to."""
        self.log.keep_from(mark)

    def can_go_back(self, mark: int) -> bool:
        """Whether all steps since then can be taken again."""
        return self.log.can_go_back(mark) and mark < self.log.number

    def go_back(self, mark: int) -> None:
        """The step of this number comes next."""
        self.log.go_back(mark)


def nothing() -> Step:
    """Stands for fetching where there is nothing to fetch."""
    raise AssertionError("no step is left to be trained again")


def loss_of(output: Any) -> Tensor | None:
    """The loss in what a model returns, where the Trainer looks for it."""
    if isinstance(output, Mapping):
        loss = output.get("loss")
    elif isinstance(output, (tuple, list)) and output:
        loss = output[0]
    else:
        loss = None
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None
