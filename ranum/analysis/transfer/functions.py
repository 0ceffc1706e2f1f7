"""Transfer functions of the mathematics library: exponentials, logarithms, angles, erf.

None of them is correctly rounded: bounds are pushed outward by the library's error and then
cut to the function's mathematical range.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch
from torch import Tensor

from ranum.analysis.interval import Interval
from ranum.analysis.transfer.combinators import (
    HALF_PRECISION,
    Operand,
    bent,
    coarsened,
    converted,
    corners,
    decreasing,
    early,
    floating,
    has_infinity,
    has_zero,
    increasing,
    inexact,
    is_possible,
    lower,
    may_nan,
    monotone,
    upper,
    working,
)
from ranum.analysis.transfer.registry import transfer

_NONNEGATIVE = (0.0, math.inf)


# --- exponentials and logarithms -----------------------------------------------------------


@transfer("exp")
def exp(x: Interval) -> Interval:
    """Rising, in [0, inf]."""
    return increasing(torch.exp, x, image=_NONNEGATIVE)


@transfer("exp2")
def exp2(x: Interval) -> Interval:
    """2^x: rising, in [0, inf]."""
    return increasing(torch.exp2, x, image=_NONNEGATIVE)


@transfer("expm1")
def expm1(x: Interval) -> Interval:
    """exp(x) - 1: rising, in [-1, inf]."""
    return increasing(torch.expm1, x, image=(-1, math.inf))


@transfer("log", domain="positive")
def log(x: Interval) -> Interval:
    """Rising on [0, inf], -inf at 0; NaN below."""
    return increasing(torch.log, x, domain=_NONNEGATIVE)


@transfer("log2", domain="positive")
def log2(x: Interval) -> Interval:
    """Rising on [0, inf], -inf at 0; NaN below."""
    return increasing(torch.log2, x, domain=_NONNEGATIVE)


@transfer("log10", domain="positive")
def log10(x: Interval) -> Interval:
    """Rising on [0, inf], -inf at 0; NaN below."""
    return increasing(torch.log10, x, domain=_NONNEGATIVE)


@transfer("log1p")
def log1p(x: Interval) -> Interval:
    """log(1 + x): rising on [-1, inf], -inf at -1; NaN below."""
    return increasing(torch.log1p, x, domain=(-1, math.inf))


@transfer("logaddexp")
def logaddexp(x: Interval, other: Interval) -> Interval:
    """log(exp(x) + exp(other)): rising in both."""
    return inexact(monotone(torch.logaddexp, x, other), absolute=2)


@transfer("logit", domain="unit")
def logit(x: Interval, eps: float | None = None) -> Interval:
    """log(x / (1 - x)): rising on [0, 1], infinite at both ends; NaN outside.

    With `eps`, x is first cut to [eps, 1 - eps].
    """

    def function(data: Tensor) -> Tensor:
        return torch.logit(data, eps)

    domain = (0.0, 1.0) if eps is None else (-math.inf, math.inf)
    # Half types may be divided in half precision: an error relative to 1, before the log.
    half = x.dtype in HALF_PRECISION
    steps = torch.finfo(x.dtype).eps / torch.finfo(torch.float32).eps if half else 1.0
    return increasing(function, x, domain=domain, absolute=4 * steps)


@transfer("xlogy")
def xlogy(x: Operand, other: Operand) -> Interval:
    """`x log(other)`, 0 where x is 0; NaN for a negative `other` beside any other x."""
    dtype = torch.result_type(lower(x) * 1.0, lower(other) * 1.0)
    if not isinstance(other, Interval):
        other = Interval.point(torch.tensor(float(other), dtype=dtype))
    logarithm = log(working(floating(other)))
    product = coarsened(corners(operator.mul, working(x), logarithm), dtype)
    nonzero = torch.as_tensor((lower(x) != 0) | (upper(x) != 0))
    undefined = nonzero & (other.lower < 0) | has_infinity(x) & has_zero(logarithm)
    nan = may_nan(x, other) or is_possible(undefined)
    return converted(product, dtype).with_nan(nan)


# --- angles --------------------------------------------------------------------------------

FAR = 1e6
"""Beyond it, positions within a period are not looked at: only the function's whole range."""


@transfer("sin")
def sin(x: Interval) -> Interval:
    """In [-1, 1], reached where a crest or trough lies inside; NaN at infinities."""
    return _wave(torch.sin, x, trough=-math.pi / 2, crest=math.pi / 2)


@transfer("cos")
def cos(x: Interval) -> Interval:
    """In [-1, 1], reached where a crest or trough lies inside; NaN at infinities."""
    return _wave(torch.cos, x, trough=math.pi, crest=0.0)


def _wave(
    function: Callable[[Tensor], Tensor], x: Interval, trough: float, crest: float
) -> Interval:
    x = floating(x)
    first, last = function(x.lower), function(x.upper)
    far = x.magnitude >= FAR
    low = torch.minimum(first, last).masked_fill(far | _passes(x, trough, 2 * math.pi), -1)
    high = torch.maximum(first, last).masked_fill(far | _passes(x, crest, 2 * math.pi), 1)
    nan = x.may_nan or is_possible(has_infinity(x))
    return inexact(Interval.between(low, high, x.shape, low.dtype, nan), image=(-1, 1))


def _passes(x: Interval, position: float, period: float) -> Tensor:
    """Per block: position + k period lies in the interval for an integer k."""
    first = ((x.lower.double() - position) / period - 1e-9).ceil()
    last = ((x.upper.double() - position) / period + 1e-9).floor()
    return first <= last


@transfer("tan")
def tan(x: Interval) -> Interval:
    """Rising between the poles pi/2 + k pi; NaN at infinities.

    No number is a pole: values stay below 1e20 and overflow in float16 only.
    """
    x = floating(x)
    pole = (x.magnitude >= FAR) | _passes(x, math.pi / 2, math.pi)
    end = math.inf if x.dtype == torch.float16 else 1e20
    low = torch.tan(x.lower).masked_fill(pole, -end)
    high = torch.tan(x.upper).masked_fill(pole, end)
    nan = x.may_nan or is_possible(has_infinity(x))
    return inexact(Interval.between(low, high, x.shape, low.dtype, nan))


@transfer("asin", domain="unit")
def asin(x: Interval) -> Interval:
    """Rising on [-1, 1]; NaN outside."""
    return increasing(torch.asin, x, domain=(-1, 1))


@transfer("acos", domain="unit")
def acos(x: Interval) -> Interval:
    """Falling on [-1, 1] from pi to 0; NaN outside."""
    return decreasing(torch.acos, x, domain=(-1, 1), image=_NONNEGATIVE)


@transfer("atan")
def atan(x: Interval) -> Interval:
    """Rising, in [-pi/2, pi/2]."""
    return increasing(torch.atan, x)


@transfer("atan2")
def atan2(x: Interval, other: Interval) -> Interval:
    """The angle of the point (other, x), in [-pi, pi]; finer where other > 0."""
    inside = inexact(corners(torch.atan2, x, other))
    right = other.lower > 0
    low = torch.where(right, inside.lower, -math.pi)
    high = torch.where(right, inside.upper, math.pi)
    result = Interval.between(low, high, inside.shape, inside.dtype, inside.may_nan)
    return inexact(result, 1)


@transfer("deg2rad")
def deg2rad(x: Interval) -> Interval:
    """`x pi / 180`, rising."""
    return increasing(torch.deg2rad, x)


@transfer("rad2deg")
def rad2deg(x: Interval) -> Interval:
    """`x 180 / pi`, rising."""
    return increasing(torch.rad2deg, x)


# --- hyperbolic functions ------------------------------------------------------------------


@transfer("sinh")
def sinh(x: Interval) -> Interval:
    """Rising; infinite where a kernel's exp(x) overflows."""
    result = early(increasing(torch.sinh, x), 4)
    limit = _exp_limit(result.dtype)
    low = result.lower.masked_fill(x.lower < -limit, -math.inf)
    high = result.upper.masked_fill(x.upper > limit, math.inf)
    return Interval.between(low, high, x.shape, result.dtype, result.may_nan)


@transfer("cosh")
def cosh(x: Interval) -> Interval:
    """Even, in [1, inf], least at 0; infinite where a kernel's exp(x) overflows."""
    result = early(bent(torch.cosh, x, [(0, 1)], image=(1, math.inf)), 4)
    limit = _exp_limit(result.dtype)
    high = result.upper.masked_fill((x.lower < -limit) | (x.upper > limit), math.inf)
    return Interval.between(result.lower, high, x.shape, result.dtype, result.may_nan)


def _exp_limit(dtype: torch.dtype) -> float:
    return math.log(torch.finfo(torch.float32 if dtype in HALF_PRECISION else dtype).max)


@transfer("tanh")
def tanh(x: Interval) -> Interval:
    """Rising, in [-1, 1]."""
    return increasing(torch.tanh, x, image=(-1, 1))


@transfer("asinh")
def asinh(x: Interval) -> Interval:
    """Rising."""
    return increasing(torch.asinh, x)


@transfer("acosh")
def acosh(x: Interval) -> Interval:
    """Rising on [1, inf] from 0; NaN below."""
    return increasing(torch.acosh, x, domain=(1, math.inf), image=_NONNEGATIVE)


@transfer("atanh", domain="unit")
def atanh(x: Interval) -> Interval:
    """Rising on [-1, 1], infinite at both ends; NaN outside."""
    return increasing(torch.atanh, x, domain=(-1, 1))


# --- the error function --------------------------------------------------------------------


@transfer("erf")
def erf(x: Interval) -> Interval:
    """Rising, in [-1, 1]; some kernels have an absolute error near 0."""
    return increasing(torch.erf, x, image=(-1, 1), absolute=2)


@transfer("erfc")
def erfc(x: Interval) -> Interval:
    """1 - erf(x): falling, in [0, 2]."""
    return decreasing(torch.erfc, x, image=(0, 2))


@transfer("erfinv", domain="unit")
def erfinv(x: Interval) -> Interval:
    """Rising on [-1, 1], infinite at both ends; NaN outside."""
    return increasing(torch.erfinv, x, domain=(-1, 1), ulps=16)
