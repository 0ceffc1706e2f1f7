"""What training data may look like: which inputs move, how far, and which are labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ranum.analysis.confirm.space import Choice, Space, Variable
from ranum.analysis.result import Context

Kind = Literal["free", "one-hot", "binary", "choice"]
Batch = dict[str, Tensor]
"""Tensors by input name, in their own dtype; inputs that are missing are as recorded."""


@dataclass(frozen=True, eq=False)
class Slot:
    """One input of the step.

    Attributes:
        name: Of the input.
        kind: "free" within its range; "one-hot" rows and "binary" numbers stay that, as labels
            are that held nothing else in the example; "choice" for integers.
        variable: What the graph knows of a float input.
        choice: What the space knows of an integer input.
        dim: The dimension along which one-hot rows add up to 1.
    """

    name: str
    kind: Kind
    variable: Variable | None = None
    choice: Choice | None = None
    dim: int = -1

    @property
    def number(self) -> int:
        """Its number in a point of the search for a failing input."""
        one = self.variable or self.choice
        assert one is not None
        return one.number

    @property
    def recorded(self) -> Tensor:
        """As in the example batch, float64 or integers."""
        one = self.variable or self.choice
        assert one is not None
        return one.recorded

    @property
    def is_label(self) -> bool:
        """True for what takes separate values only."""
        return self.kind != "free"

    def legal(self, tensor: Tensor) -> Tensor:
        """The nearest tensor that it may hold, float64 or integers."""
        if self.choice is not None:
            return tensor.round().clamp(self.choice.lower, self.choice.upper).to(self.recorded)
        assert self.variable is not None
        if self.kind == "one-hot":
            best = tensor.argmax(self.dim, keepdim=True)
            return torch.zeros_like(tensor).scatter_(self.dim, best, 1.0)
        if self.kind == "binary":
            return (tensor > 0.5).to(tensor.dtype)
        return self.variable.within(tensor.clamp(*self._ends))

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """The ends of a float range, without the last digit that rounding outwards added."""
        assert self.variable is not None
        lower, upper = self.variable.lower, self.variable.upper
        if lower.numel() != 1 or upper.numel() != 1 or self.variable.dtype != torch.float32:
            return -torch.inf, torch.inf
        low, high = np.float32(lower.item()), np.float32(upper.item())
        ends = (np.nextafter(low, high), np.nextafter(high, low))
        return tuple(  # type: ignore[return-value]
            float(inner if len(str(inner)) < len(str(outer)) else outer)
            for outer, inner in zip((low, high), ends, strict=True)
        )

    def own(self, tensor: Tensor) -> Tensor:
        """In its own dtype."""
        return tensor.to(self.recorded.dtype if self.variable is None else self.variable.dtype)

    @cached_property
    def classes(self) -> int:
        """Numbers a label can take."""
        if self.kind == "one-hot":
            return self.recorded.shape[self.dim]
        if self.choice is not None:
            return self.choice.upper - self.choice.lower + 1
        return 2

    def labelled(self, number: int) -> Tensor:
        """The same label everywhere."""
        if self.choice is not None:
            return torch.full_like(self.recorded, self.choice.lower + number)
        if self.kind == "one-hot":
            rows = torch.zeros_like(self.recorded)
            rows.select(self.dim, number).fill_(1.0)
            return rows
        return torch.full_like(self.recorded, float(number))


def slots(context: Context) -> tuple[Slot, ...]:
    """The inputs that training data may change."""
    space = Space.of(context)
    found = [_slot(one) for one in space.inputs]
    found += [Slot(one.name, "choice", choice=one) for one in space.choices]
    return tuple(found)


def _slot(one: Variable) -> Slot:
    x = one.recorded
    is_01 = bool(((x == 0) | (x == 1)).all()) and bool((one.lower >= 0).all())
    if not is_01 or bool((one.upper > 1).any()):
        return Slot(one.name, "free", one)
    for dim in (-1, 1) if x.dim() > 1 else ():
        if x.shape[dim] > 1 and bool((x.sum(dim) == 1).all()):
            return Slot(one.name, "one-hot", one, dim=dim)
    return Slot(one.name, "binary", one)


def own(chosen: Mapping[str, Slot], point: Mapping[str, Tensor]) -> Batch:
    """A batch in the inputs' own dtypes."""
    return {name: chosen[name].own(tensor).detach() for name, tensor in point.items()}
