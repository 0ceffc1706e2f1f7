"""Start boxes around a sample's tensors, and draws from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ranum.analysis.interval import Interval


@dataclass(frozen=True)
class Mode:
    """How a box is made from a sample's data.

    Attributes:
        name: For reports.
        radius: The box reaches from x - r (1 + |x|) to x + r (1 + |x|).
        merged: True for one pair of bounds per tensor, in results too.
        special: True to put numbers at the edges of the dtype into the data first.
        everything: True for [-inf, inf] whatever the data.
        draws: Points drawn from the box.
    """

    name: str
    radius: float = 0.0
    merged: bool = False
    special: bool = False
    everything: bool = False
    draws: int = 3


MODES = (
    Mode("point", draws=1),
    Mode("near", 1e-3),
    Mode("near, merged", 1e-3, merged=True),
    Mode("wide", 0.5),
    Mode("wide, merged", 0.5, merged=True),
    Mode("special points", special=True, draws=1),
    Mode("special, wide", 0.5, special=True),
    Mode("anything", everything=True),
)


def special_numbers(dtype: torch.dtype) -> list[float]:
    """Edges of a floating dtype and of common domains."""
    info = torch.finfo(dtype)
    tiny = info.smallest_normal * info.eps
    sizes = [0.0, tiny, info.smallest_normal, 1.0, 1 - info.eps / 2, math.pi / 2, 2.0, 50.0]
    sizes += [math.sqrt(info.max), info.max, math.inf]
    return [number for size in sizes for number in (size, -size)]


def box(data: Tensor, mode: Mode, generator: torch.Generator) -> Interval:
    """The interval of one input."""
    if not data.dtype.is_floating_point or data.numel() == 0:
        return Interval.point(data)
    shape = tuple(data.shape)
    if mode.everything:
        return Interval.full(-math.inf, math.inf, shape, data.dtype)
    if mode.special:
        data = sprinkled(data, generator, 0.4)
    if mode.radius:
        # In float64, so that the radius does not overflow where the box need not.
        reach = mode.radius * (1 + data.double().abs())
        lower, upper = (
            (data.double() - reach).to(data.dtype),
            (data.double() + reach).to(data.dtype),
        )
        interval = Interval.between(
            torch.where(data.isfinite(), lower, data),
            torch.where(data.isfinite(), upper, data),
            shape,
            data.dtype,
        )
    else:
        interval = Interval.point(data)
    return interval.merged() if mode.merged else interval


def sprinkled(data: Tensor, generator: torch.Generator, chance: float) -> Tensor:
    """Data with some elements replaced by special numbers."""
    numbers = torch.tensor(special_numbers(data.dtype), dtype=data.dtype)
    pick = torch.randint(0, len(numbers), data.shape, generator=generator)
    return torch.where(torch.rand(data.shape, generator=generator) < chance, numbers[pick], data)


def draw(interval: Interval, generator: torch.Generator, number: int) -> Tensor:
    """A point of the box: uniform, or its corners, or special numbers inside, in turn."""
    lower, upper = interval.expanded()
    if interval.is_point or not interval.dtype.is_floating_point:
        return lower.clone()
    low, high = lower.double(), upper.double()
    largest = torch.finfo(interval.dtype).max
    share = torch.rand(interval.shape, generator=generator, dtype=torch.float64)
    if number % 3 == 1:
        share = share.round()
    if number % 3 == 2 or interval.high - interval.low > largest:
        # Any order of magnitude, and the special numbers that lie inside.
        scale = 10 ** (torch.rand(interval.shape, generator=generator).double() * 12 - 6)
        data = (share * 2 - 1) * scale
        if number % 3 == 2:
            data = sprinkled(data.to(interval.dtype), generator, 0.5).double()
        data = torch.where((data >= low) & (data <= high), data, low.clamp(-largest, largest))
    else:
        data = low * (1 - share) + high * share
        data = torch.where(low == high, low, data)
    rounded = torch.where(data.isnan(), low, data).to(interval.dtype)
    return torch.where(rounded < lower, lower, torch.where(rounded > upper, upper, rounded))
