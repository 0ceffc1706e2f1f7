"""Transfer functions of the special functions: gamma, Bessel, error integrals, entropies.

Their kernels are series and recurrences whose error nobody promises; a relative error of
`LOOSE` units in the last place and an absolute one are allowed for, and where a function is
neither monotone nor bounded nothing is said.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.interval import Interval
from ranum.analysis.transfer.combinators import (
    Operand,
    bent,
    coarsened,
    converted,
    corners,
    decreasing,
    dtype_of,
    early,
    floating,
    has_infinity,
    has_zero,
    increasing,
    inexact,
    is_possible,
    may_nan,
    monotone,
    shape_of,
    unbounded_where,
    working,
)
from ranum.analysis.transfer.registry import transfer

LOOSE = 512
"""Error allowed for a series, units in the last place."""

_NONNEGATIVE = (0.0, math.inf)
_special = torch.special

GAMMA_LEAST = (1.4616321449683623, -0.12148629053584961)
"""Where log gamma turns on the positive axis, and its value there."""


def _within(x: Interval, lower: float, upper: float) -> Interval:
    """A function's whole range; NaN for NaN and infinities."""
    dtype = floating(x).dtype
    nan = x.may_nan or is_possible(has_infinity(x))
    return inexact(Interval.full(lower, upper, x.shape, dtype), 4, 16).with_nan(nan)


# --- gamma ---------------------------------------------------------------------------------


@transfer("lgamma")
def lgamma(x: Interval) -> Interval:
    """Log |gamma(x)|: falls to -0.121 at 1.46, then rises; poles at 0, -1, -2, ..."""
    x = floating(x)
    positive = bent(torch.lgamma, x.intersect(lower=0.0), [GAMMA_LEAST], ulps=LOOSE, absolute=64)
    poles = x.lower <= 0
    return unbounded_where(poles, positive).with_nan(x.may_nan)


@transfer("digamma")
def digamma(x: Interval) -> Interval:
    """Slope of log gamma: rising on (0, inf); poles at 0, -1, -2, ..., NaN at the negative."""
    x = floating(x)
    # Near its zero at 1.46 digits cancel: the error is absolute.
    positive = increasing(torch.digamma, x.intersect(lower=0.0), ulps=LOOSE, absolute=64)
    poles = x.lower <= 0
    nan = x.may_nan or is_possible(x.lower < 0)
    return unbounded_where(poles, positive).with_nan(nan)


@transfer("polygamma")
def polygamma(n: int, x: Interval) -> Interval:
    """The n-th slope of digamma: on (0, inf) falling in size, positive for odd n.

    Anything from 0 down, where the poles are.
    """
    if n == 0:
        return digamma(x)
    x = floating(x)
    poles = x.lower <= 0
    nan = x.may_nan or is_possible(poles | has_infinity(x))
    image = _NONNEGATIVE if n % 2 else (-math.inf, 0.0)

    def function(data: Tensor) -> Tensor:
        return torch.polygamma(n, data)

    slope = decreasing if n % 2 else increasing
    positive = slope(function, x.intersect(lower=0.0), ulps=LOOSE * (n + 1), image=image)
    return unbounded_where(poles | has_infinity(x), positive).with_nan(nan)


@transfer(
    "mvlgamma", "special_zeta", "special_chebyshev_polynomial_t", "special_chebyshev_polynomial_u",
    "special_chebyshev_polynomial_v", "special_chebyshev_polynomial_w",
    "special_shifted_chebyshev_polynomial_t", "special_shifted_chebyshev_polynomial_u",
    "special_shifted_chebyshev_polynomial_v", "special_shifted_chebyshev_polynomial_w",
    "special_hermite_polynomial_h", "special_hermite_polynomial_he",
    "special_laguerre_polynomial_l", "special_legendre_polynomial_p",
)  # fmt: skip
def polynomial(**_: Any) -> None:
    """Families with a degree or a second argument, and functions with poles: no bound."""


@transfer("igamma", "igammac")
def incomplete_gamma(x: Interval, other: Interval) -> Interval:
    """Shares of the gamma integral: in [0, 1] for a > 0 and a finite limit from 0 up, else NaN."""
    shape, dtype = shape_of(x, other), dtype_of(x, other)
    known = x.low > 0 and other.low >= 0 and x.is_finite and other.is_finite
    share = Interval.full(0.0, 1.0, shape, floating(Interval.top(shape, dtype)).dtype)
    return inexact(share, LOOSE).intersect(lower=0.0).with_nan(not known)


# --- Bessel --------------------------------------------------------------------------------


@transfer("special_bessel_j0")
def bessel_j0(x: Interval) -> Interval:
    """In [-0.403, 1]."""
    return _within(x, -0.40276, 1.0)


@transfer("special_bessel_j1")
def bessel_j1(x: Interval) -> Interval:
    """In [-0.582, 0.582]."""
    return _within(x, -0.58187, 0.58187)


@transfer("special_bessel_y0")
def bessel_y0(x: Interval) -> Interval:
    """From -inf at 0 up to 0.522; NaN below 0."""
    return _second_kind(x, 0.5215)


@transfer("special_bessel_y1")
def bessel_y1(x: Interval) -> Interval:
    """From -inf at 0 up to 0.417; NaN below 0."""
    return _second_kind(x, 0.4172)


def _second_kind(x: Interval, most: float) -> Interval:
    x = floating(x)
    nan = x.may_nan or is_possible((x.lower < 0) | has_infinity(x))
    return Interval.full(-math.inf, most, x.shape, x.dtype).with_nan(nan)


@transfer("special_spherical_bessel_j0")
def spherical_bessel_j0(x: Interval) -> Interval:
    """sin(x) / x: in [-0.2173, 1]."""
    return _within(x, -0.21724, 1.0)


@transfer("special_airy_ai")
def airy_ai(x: Interval) -> Interval:
    """In [-0.419, 0.536]; kernels give NaN far from 0."""
    return _within(x, -0.41902, 0.53566).with_nan()


@transfer("i0", "special_modified_bessel_i0")
def bessel_i0(x: Interval) -> Interval:
    """Even, rising in |x| from 1 to inf; NaN at infinities."""
    knots, nan = [(0.0, 1.0)], x.may_nan or is_possible(has_infinity(x))
    result = bent(torch.i0, x, knots, ulps=LOOSE, at_infinity=(math.inf, math.inf))
    return early(result, 64).with_nan(nan)


@transfer("special_i1", "special_modified_bessel_i1")
def bessel_i1(x: Interval) -> Interval:
    """Odd and rising; NaN at infinities."""
    nan = x.may_nan or is_possible(has_infinity(x))
    limits = (-math.inf, math.inf)
    result = increasing(_special.i1, x, ulps=LOOSE, at_infinity=limits)
    return early(result, 64).with_nan(nan)


@transfer("special_i0e")
def bessel_i0e(x: Interval) -> Interval:
    """exp(-|x|) i0(x): in [0, 1]."""
    return _within(x, 0.0, 1.0)


@transfer("special_i1e")
def bessel_i1e(x: Interval) -> Interval:
    """exp(-|x|) i1(x): in [-0.22, 0.22]."""
    return _within(x, -0.2195, 0.2195)


@transfer(
    "special_modified_bessel_k0", "special_modified_bessel_k1",
    "special_scaled_modified_bessel_k0", "special_scaled_modified_bessel_k1",
)  # fmt: skip
def bessel_k(x: Interval) -> Interval:
    """Falling from inf at 0 to 0; NaN below 0, and where torch's series is Inf times 0."""
    x = floating(x)
    tiny = 64 * torch.finfo(x.dtype).tiny
    nan = x.may_nan or is_possible((x.lower < tiny) | has_infinity(x))
    return Interval.full(0.0, math.inf, x.shape, x.dtype).with_nan(nan)


# --- error integrals -----------------------------------------------------------------------


@transfer("special_erfcx")
def erfcx(x: Interval) -> Interval:
    """exp(x^2) erfc(x): falling, positive."""
    return decreasing(_special.erfcx, x, ulps=LOOSE, image=_NONNEGATIVE)


@transfer("special_ndtri", domain="unit")
def ndtri(x: Interval) -> Interval:
    """Quantile of the normal distribution: rising on [0, 1], infinite at both ends."""
    return increasing(_special.ndtri, x, domain=(0.0, 1.0), ulps=LOOSE, absolute=64)


@transfer("special_log_ndtr")
def log_ndtr(x: Interval) -> Interval:
    """Log of the normal distribution function: rising, not positive."""
    image = (-math.inf, 0.0)
    return increasing(_special.log_ndtr, x, ulps=LOOSE, absolute=1, image=image)


# --- entropies and logarithms --------------------------------------------------------------


@transfer("special_entr")
def entropy(x: Interval) -> Interval:
    """-x log x: rises to 1/e at 1/e, then falls; -inf below 0."""
    x = floating(x)
    peak = (1 / math.e, 1 / math.e)
    result = bent(_special.entr, x.intersect(lower=0.0), [peak], absolute=2)
    below = x.lower < 0
    lower = result.lower.masked_fill(below, -math.inf)
    upper = torch.where(x.upper < 0, -math.inf, result.upper)
    return Interval.between(lower, upper, x.shape, result.dtype, x.may_nan)


@transfer("special_xlog1py")
def xlog1py(x: Operand, other: Operand) -> Interval:
    """`x log(1 + other)`, 0 where x is 0; NaN for other < -1 beside any other x."""
    dtype = torch.result_type(_end(x) * 1.0, _end(other) * 1.0)
    if not isinstance(other, Interval):
        other = Interval.point(torch.tensor(float(other), dtype=dtype))
    logarithm = increasing(torch.log1p, working(floating(other)), domain=(-1, math.inf))
    product = coarsened(corners(torch.mul, working(x), logarithm), dtype)
    nan = may_nan(x, other) or other.low < -1
    nan = nan or is_possible(has_infinity(x) & has_zero(logarithm))
    return _with_zero(converted(product, dtype)).with_nan(nan)


def _end(operand: Operand) -> Any:
    return operand.lower if isinstance(operand, Interval) else operand


def _with_zero(x: Interval) -> Interval:
    low, high = x.lower.clamp(max=0), x.upper.clamp(min=0)
    return Interval.between(low, high, x.shape, x.dtype, x.may_nan)


@transfer("logaddexp2")
def logaddexp2(x: Interval, other: Interval) -> Interval:
    """log2(2^x + 2^other): rising in both."""
    return inexact(monotone(torch.logaddexp2, x, other), absolute=4)


@transfer("sinc")
def sinc(x: Interval) -> Interval:
    """sin(pi x) / (pi x), 1 at 0: in [-0.2173, 1]; NaN once pi x is infinite."""
    largest = torch.finfo(floating(x).dtype).max / 4
    far = x.low < -largest or x.high > largest
    return _within(x, -0.21724, 1.0).with_nan(x.may_nan or far)


@transfer("hypot")
def hypot(x: Interval, other: Interval) -> Interval:
    """sqrt(x^2 + other^2): rising in both sizes; inf beside NaN is inf."""
    sizes = [bent(torch.abs, item, [(0, 0)], ulps=0) for item in (x, other)]
    return inexact(monotone(torch.hypot, *sizes), 4, image=_NONNEGATIVE)
