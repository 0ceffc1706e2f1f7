"""Transfer functions of activations. selu and celu arrive as `elu`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis.interval import Interval
from ranum.analysis.transfer.combinators import (
    REAL,
    bent,
    decreasing,
    early,
    floating,
    increasing,
    shape_of,
    working,
)
from ranum.analysis.transfer.elementwise import absolute, mul
from ranum.analysis.transfer.registry import transfer
from ranum.analysis.transfer.selection import clamp

_RISING_TO_INFINITY = (0.0, math.inf)
"""Limits of x s(x) at -inf and inf, where kernels give NaN for -inf * 0."""

_GELU_LEAST = {
    "none": (-0.75179152469356446, -0.16997120747990366),
    "tanh": (-0.75246142207101626, -0.17004075057125405),
}
_SILU_LEAST = (-1.2784645427610738, -0.27846454276107380)
_MISH_LEAST = (-1.1924312145154952, -0.30884341301725040)
"""Position and value of the minimum, by bisection of the derivative in 30 digits."""


@transfer("sigmoid")
def sigmoid(x: Interval) -> Interval:
    """1 / (1 + exp(-x)): rising, in [0, 1]; 0 where exp(-x) overflows in some kernels."""
    info = torch.finfo(working(floating(x)).dtype)
    lost = info.smallest_normal / info.eps
    return increasing(torch.sigmoid, x, image=(0, 1), absolute=lost)


@transfer("log_sigmoid_forward")
def log_sigmoid_forward(x: Interval) -> tuple[Interval, Interval]:
    """min(x, 0) - log(1 + exp(-|x|)), rising to 0; with the buffer exp(-|x|) on a CPU."""
    result = increasing(F.logsigmoid, x, image=(-math.inf, 0))
    if x.device.type != "cpu":
        return result, Interval.top((0,), x.dtype)
    buffer = decreasing(lambda size: torch.exp(-size), absolute(x), image=(0, 1))
    return result, buffer


@transfer("softplus")
def softplus(x: Interval, beta: float = 1, threshold: float = 20) -> Interval:
    """log(1 + exp(beta x)) / beta, rising; x itself, a step down, where beta x > threshold."""

    def function(data: Tensor) -> Tensor:
        return F.softplus(data, beta, threshold)

    if beta == 0:
        return Interval.top(x.shape, x.dtype)
    switch = threshold / beta
    before = (math.log1p(math.exp(-abs(threshold))) + max(threshold, 0)) / beta
    return bent(function, x, [(switch, switch), (switch, before)])


@transfer("relu")
def relu(x: Interval) -> Interval:
    """max(x, 0); NaN passes."""
    return increasing(torch.relu, x, ulps=0)


@transfer("relu6")
def relu6(x: Interval) -> Interval:
    """min(max(x, 0), 6); NaN passes."""
    return clamp(x, 0, 6)


@transfer("hardtanh")
def hardtanh(x: Interval, min_val: float = -1, max_val: float = 1) -> Interval:
    """min(max(x, min_val), max_val); NaN passes."""
    return clamp(x, min_val, max_val)


@transfer("hardsigmoid")
def hardsigmoid(x: Interval) -> Interval:
    """min(max(x + 3, 0), 6) / 6: rising, in [0, 1]."""
    return increasing(F.hardsigmoid, x, image=(0, 1))


@transfer("hardswish")
def hardswish(x: Interval) -> Interval:
    """`x min(max(x + 3, 0), 6) / 6`: least at -1.5, where it is -0.375; NaN at -inf."""
    knots = [(-3, 0), (-1.5, -0.375)]
    result = bent(F.hardswish, x, knots, at_infinity=_RISING_TO_INFINITY, absolute=4)
    return early(result, 8)


@transfer("leaky_relu")
def leaky_relu(x: Interval, negative_slope: float = 0.01) -> Interval:
    """`x` above 0, `negative_slope x` below; turns at 0 where the slope is negative."""

    def function(data: Tensor) -> Tensor:
        return F.leaky_relu(data, negative_slope)

    return bent(function, x, [(0, 0)], at_infinity=_RISING_TO_INFINITY, ulps=0)


@transfer("_prelu_kernel")
def prelu(x: Interval, weight: Interval) -> Interval:
    """`x` above 0, `weight x` below."""
    below = mul(clamp(x, None, 0), weight)
    crossing = torch.maximum(below.upper, x.upper)
    return Interval.between(
        torch.where(x.lower > 0, x.lower, below.lower),
        torch.where(x.lower > 0, x.upper, torch.where(x.upper > 0, crossing, below.upper)),
        shape_of(x, weight),
        below.dtype,
        below.may_nan,
    )


@transfer("elu")
def elu(x: Interval, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Interval:
    """Scale x above 0, scale alpha (exp(input_scale x) - 1) below.

    Plain elu is at least -1 in every float16, bfloat16 and float32 (all were tried), so that
    elu + 1, the feature map of linear attention, is never negative.
    """

    def function(data: Tensor) -> Tensor:
        result: Tensor = torch.ops.aten.elu(data, alpha, scale, input_scale)
        return result

    plain = (alpha, scale, input_scale) == (1, 1, 1)
    return bent(function, x, [(0, 0)], image=(-1, math.inf) if plain else REAL)


@transfer("gelu")
def gelu(x: Interval, approximate: str = "none") -> Interval:
    """`x Phi(x)`: falls to -0.17 at -0.75, then rises; NaN at -inf.

    Without an approximation also NaN at inf, which the kernels of some processors give.
    """

    def function(data: Tensor) -> Tensor:
        return F.gelu(data, approximate=approximate)

    least = _GELU_LEAST[approximate]
    result = bent(function, x, [least], at_infinity=_RISING_TO_INFINITY, absolute=8)
    return result.with_nan() if approximate == "none" and x.high == math.inf else result


@transfer("silu")
def silu(x: Interval) -> Interval:
    """`x sigmoid(x)`: falls to -0.28 at -1.28, then rises; NaN at -inf."""
    # Where exp(x) is flushed to zero, x times a subnormal number is lost.
    return bent(F.silu, x, [_SILU_LEAST], at_infinity=_RISING_TO_INFINITY, absolute=1e-28)


@transfer("mish")
def mish(x: Interval) -> Interval:
    """`x tanh(softplus(x))`: falls to -0.31 at -1.19, then rises; NaN at -inf."""
    return bent(F.mish, x, [_MISH_LEAST], at_infinity=_RISING_TO_INFINITY, absolute=2)


@transfer("threshold")
def threshold(x: Interval, threshold: float, value: float) -> Interval:
    """`x` above the threshold, else `value`; NaN passes."""
    if x.is_point:
        return Interval.point(F.threshold(x.lower, threshold, value))
    replaced, kept = x.lower <= threshold, x.upper > threshold
    low, high = x.lower.clamp(min=threshold), x.upper
    low = torch.where(replaced, torch.where(kept, low.clamp(max=value), value), low)
    high = torch.where(replaced, torch.where(kept, high.clamp(min=value), value), high)
    return Interval.between(low, high, x.shape, x.dtype, x.may_nan)
