"""What one architecture of the control set is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Workload:
    """A model in training mode and one batch for it.

    Attributes:
        model: With random weights from its configuration.
        batch: Tensors by the name under which `loss` takes them.
        loss: From the model and the batch to a loss `[]`.
    """

    model: nn.Module
    batch: Mapping[str, Tensor]
    loss: Callable[..., Tensor]

    def to(self, dtype: torch.dtype) -> Workload:
        """The same with weights and float inputs in another type."""
        batch = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in self.batch.items()
        }
        return Workload(self.model.to(dtype), batch, self.loss)

    @property
    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for parameter in self.model.parameters())


@dataclass(frozen=True, slots=True)
class Case:
    """One architecture at one size.

    Attributes:
        name: For the table and the command line.
        make: Builds it; imports its library only then.
        real: True for the size people train; False for a tiny one of the same shape.
        half: False where the architecture's own code does not run in bfloat16.
    """

    name: str
    make: Callable[[], Workload]
    real: bool = False
    half: bool = True


CASES: dict[str, Case] = {}


def add(case: Case) -> None:
    """Puts a case into the table.

    Raises:
        ValueError: If the name is taken.
    """
    if case.name in CASES:
        raise ValueError(f"name must be new; {case.name!r} is taken.")
    CASES[case.name] = case


def own_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss that a model of `transformers` computes itself from labels."""
    loss: Tensor = model(**batch).loss
    return loss
