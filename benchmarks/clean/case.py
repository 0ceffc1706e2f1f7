"""What one architecture of the control set is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ranum.analysis import analyze
from ranum.analysis.result import Analysis


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

    def forward_seconds(self, repeats: int = 3) -> float:
        """Median CPU time of a forward pass without gradients, the first not counted."""

        def forward() -> float:
            started = time.process_time()
            with torch.no_grad():
                self.loss(self.model, self.batch)
            return time.process_time() - started

        forward()
        return statistics.median(forward() for _ in range(repeats))

    def analyse(self, level: str) -> Analysis:
        """The analysis of one step with weights of one level."""
        names = tuple(self.batch)
        model, loss = self.model, self.loss

        def step(*tensors: Tensor) -> Tensor:
            return loss(model, dict(zip(names, tensors, strict=True)))

        return analyze(step, *self.batch.values(), weights=level)  # type: ignore[arg-type]


class Subject(Protocol):
    """What can be judged: a model and a batch of some framework."""

    parameters: int

    def to(self, dtype: torch.dtype) -> Subject:
        """The same with weights and float inputs in another type."""

    def forward_seconds(self) -> float:
        """CPU time of a forward pass."""

    def analyse(self, level: str) -> Analysis:
        """The analysis of one step with weights of one level."""


@dataclass(frozen=True, slots=True)
class Case:
    """One architecture at one size.

    Attributes:
        name: For the table and the command line.
        make: Builds a `Subject`; imports its library only then.
        real: True for the size people train; False for a tiny one of the same shape.
        half: False where the architecture's own code does not run in bfloat16.
    """

    name: str
    make: Callable[[], Subject]
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
