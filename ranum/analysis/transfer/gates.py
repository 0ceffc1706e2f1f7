"""Activations with a gate, a dead zone or a random slope."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box
from ranum.analysis.transfer.combinators import bent, increasing
from ranum.analysis.transfer.registry import transfer


@transfer("celu")
def celu(x: Interval, alpha: float = 1.0) -> Interval:
    """X above 0, alpha (exp(x / alpha) - 1) below: turns at 0 where alpha is negative."""

    def function(data: Tensor) -> Tensor:
        return torch.celu(data, alpha)

    return bent(function, x, [(0, 0)], absolute=2 * abs(alpha))


@transfer("softshrink")
def softshrink(x: Interval, lambd: float = 0.5) -> Interval:
    """X - lambd above lambd, x + lambd below -lambd, else 0: rising."""
    return increasing(lambda data: F.softshrink(data, lambd), x, ulps=2, absolute=2 * lambd)


@transfer("hardshrink")
def hardshrink(x: Interval, lambd: float = 0.5) -> Interval:
    """X outside [-lambd, lambd], else 0: rising for lambd >= 0; x itself for lambd < 0."""
    return increasing(lambda data: F.hardshrink(data, lambd), x, ulps=0)


@transfer("rrelu_with_noise")
def rrelu_with_noise(
    x: Interval, noise: Interval, lower: float = 0.125, upper: float = 1 / 3, training: bool = False
) -> tuple[Interval, Interval]:
    """X above 0, else a slope times x, drawn from [lower, upper]; and the slopes (1 above 0)."""
    box = Box.native(x)
    slopes = box.constant(min(lower, upper), max(lower, upper))
    if not training:
        slopes = box.constant((lower + upper) / 2)
    below = box.clamped(-torch.inf, 0.0) * slopes
    above = box.lower.clamp(min=0), box.upper.clamp(min=0)
    low = torch.where(box.lower > 0, above[0], below.lower)
    high = torch.where(box.upper > 0, torch.maximum(above[1], below.upper), below.upper)
    result = box.replaced(low, high).with_nan(below.may_nan).interval(x.shape, x.dtype)
    drawn = Interval.full(min(lower, 1.0), max(upper, 1.0), noise.shape, noise.dtype)
    return result, drawn.hull(noise) if not training else drawn


@transfer("glu")
def glu(x: Interval, dim: int = -1) -> Interval:
    """A sigmoid(b) for the halves a and b of x: between 0 and a; NaN from infinite a."""
    rank = len(x.shape)
    along = dim % rank
    half = x.shape[along] // 2
    shape = tuple(half if d == along else n for d, n in enumerate(x.shape))
    if x.lower.shape[along] > 1:
        first = Interval(
            x.lower.narrow(along, 0, half), x.upper.narrow(along, 0, half), shape, x.dtype
        )
    else:
        first = Interval(x.lower, x.upper, shape, x.dtype)
    box = Box.native(first)
    gated = (box * box.constant(0.0, 1.0)).with_nan(x.may_nan)
    return gated.interval(shape, x.dtype)
