"""What a search for a failing input may move, and how far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ranum.analysis.evaluate import double
from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.result import Context

Point = Mapping[int, Tensor]
"""Where the search stands: float64 tensors by value number, for what was moved only; integer
inputs as they are, by the number of their `Choice`."""

SMALL = 0.1
"""A weight that starts smaller counts as this large, as it does for the growth of weights."""


@dataclass(frozen=True, eq=False)
class Variable:
    """A float input or a weight.

    Attributes:
        number: Of its value in the graph.
        name: Of the input or parameter.
        is_weight: True for a weight.
        dtype: Its own; every point is rounded to it.
        recorded: The tensor of the recorded step, float64.
        lower: Its range's lower end, float64, broadcastable to its shape.
        upper: The upper end.
    """

    number: int
    name: str
    is_weight: bool
    dtype: torch.dtype
    recorded: Tensor
    lower: Tensor
    upper: Tensor

    @cached_property
    def size(self) -> float:
        """A step that is neither small nor large for it."""
        width = float((self.upper - self.lower).max())
        usual = max(float(self.recorded.abs().max()), SMALL) if self.recorded.numel() else SMALL
        return min(width / 2, usual) if self.is_weight or width > 1e6 * usual else width / 2

    @property
    def is_movable(self) -> bool:
        """False where the range is a point."""
        return self.recorded.numel() > 0 and self.size > 0

    def within(self, tensor: Tensor) -> Tensor:
        """The nearest tensor of its own dtype inside its range, as float64."""
        inside = torch.minimum(torch.maximum(tensor, self.lower), self.upper)
        return inside.to(self.dtype).to(torch.float64)

    def moved(self, start: Tensor, direction: Tensor, length: float) -> Tensor:
        """A step of so many times its size from `start`, cut at the range."""
        return self.within(start + length * self.size * direction)

    def filled(self, value: float) -> Tensor:
        """The same number everywhere, as far as its range lets it."""
        return self.within(torch.full_like(self.recorded, value))

    def drawn(self, generator: torch.Generator, spread: float) -> Tensor:
        """A random tensor: uniform over narrow ranges, over some sizes of `spread` else."""
        share = torch.rand(self.recorded.shape, generator=generator, dtype=torch.float64)
        share = share.to(self.recorded.device)
        reach = spread * self.size
        low = torch.maximum(self.lower, -reach + torch.zeros_like(self.lower))
        high = torch.minimum(self.upper, reach + torch.zeros_like(self.upper))
        narrow = (self.upper - self.lower) <= 2 * reach
        low = torch.where(narrow | (low > high), self.lower, low)
        high = torch.where(narrow | (low > high), self.upper, high)
        return self.within(low + share * (high - low))


@dataclass(frozen=True, eq=False)
class Choice:
    """An integer input: labels, token ids, masks. The graph holds it fixed; the step does not.

    Attributes:
        number: Stands for it in a point; negative, for it is no value of the graph.
        name: Of the input.
        recorded: The tensor of the example batch.
        lower: The least number it may hold: those of the batch, and 0 for a mask of ones.
        upper: The greatest.
    """

    number: int
    name: str
    recorded: Tensor
    lower: int
    upper: int

    def drawn(self, generator: torch.Generator) -> Tensor:
        """Random numbers between both."""
        shape = self.recorded.shape
        drawn = torch.randint(self.lower, self.upper + 1, shape, generator=generator)
        return drawn.to(self.recorded)


@dataclass(frozen=True, eq=False)
class Space:
    """All that may move.

    Attributes:
        inputs: Float inputs.
        weights: Trained parameters of the program.
        choices: Integer inputs.
    """

    inputs: tuple[Variable, ...]
    weights: tuple[Variable, ...]
    choices: tuple[Choice, ...] = ()

    @classmethod
    def of(cls, context: Context) -> Space:
        """Of an analysed step."""
        known = context.program.parameters
        inputs = (
            _variable(value, context.start[value.index], is_weight=False)
            for value in context.graph.leaves("input")
            if value.data is not None and value.dtype.is_floating_point
        )
        weights = (
            _variable(value, context.start[value.index], is_weight=True)
            for value in context.graph.leaves("parameter")
            if value.data is not None and value.name in known
        )
        return cls(
            tuple(one for one in inputs if one.is_movable),
            tuple(one for one in weights if one.is_movable),
            tuple(_choices(context.program.inputs)),
        )

    @cached_property
    def variables(self) -> tuple[Variable, ...]:
        """Inputs, then weights."""
        return self.inputs + self.weights

    @cached_property
    def recorded(self) -> dict[int, Tensor]:
        """Where the recorded step stood."""
        return {one.number: one.recorded for one in self.variables}

    def at(self, fill: Callable[[Variable], Tensor], chosen: tuple[Variable, ...]) -> Point:
        """A point made variable by variable."""
        return {one.number: fill(one) for one in chosen}

    def stretched(self, point: Point, times: float) -> Point:
        """So many times as far from the recorded point, as far as the ranges let it."""
        if times == 1.0:
            return point
        known = {one.number: one for one in self.variables}
        return {
            number: known[number].within(known[number].recorded.lerp(tensor, times))
            if number in known
            else tensor
            for number, tensor in point.items()
        }

    def tensors(self, point: Point) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs and weights by name in their own dtype: those that differ from the recorded."""
        inputs = {one.name: point[one.number] for one in self.choices if one.number in point}
        weights: dict[str, Tensor] = {}
        for one in self.variables:
            tensor = point.get(one.number)
            if tensor is None or torch.equal(tensor, one.recorded):
                continue
            (weights if one.is_weight else inputs)[one.name] = tensor.to(one.dtype)
        return inputs, weights


def _choices(inputs: Mapping[str, Tensor]) -> Iterator[Choice]:
    for position, (name, tensor) in enumerate(inputs.items()):
        if tensor.is_floating_point() or tensor.is_complex() or not tensor.numel():
            continue
        lower, upper = int(tensor.min()), int(tensor.max())
        if tensor.dtype == torch.bool or (lower, upper) == (1, 1):
            lower, upper = 0, 1
        if lower < upper:
            yield Choice(-1 - position, name, tensor.detach(), lower, upper)


def _variable(value: Value, interval: Interval, *, is_weight: bool) -> Variable:
    assert value.data is not None
    limit = torch.finfo(value.dtype).max
    return Variable(
        number=value.index,
        name=value.name,
        is_weight=is_weight,
        dtype=value.dtype,
        recorded=double(value.data).detach(),
        lower=interval.lower.detach().to(torch.float64).clamp(-limit, limit),
        upper=interval.upper.detach().to(torch.float64).clamp(-limit, limit),
    )
