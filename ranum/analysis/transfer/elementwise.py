"""Transfer functions of arithmetic: sums, products, quotients, powers.

+ - * / sqrt are correctly rounded, so bounds computed in the same dtype hold as they are.
Where a kernel may round in between or fuse (`alpha`, `value`), products are pushed outward
and half precision is computed in float32, as kernels do.
"""

from __future__ import annotations

import math
import operator
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.interval import Interval
from ranum.analysis.transfer.combinators import (
    HALF_PRECISION,
    ULPS,
    Operand,
    bent,
    coarsened,
    converted,
    corners,
    decreasing,
    dtype_of,
    ends,
    floating,
    has_infinity,
    has_zero,
    increasing,
    inexact,
    is_known,
    is_possible,
    lower,
    may_nan,
    monotone,
    seen,
    shape_of,
    unbounded_where,
    union,
    upper,
    working,
    wraps,
)
from ranum.analysis.transfer.registry import transfer

EXPONENT_ULPS = 50
"""Error of a power whose exponent has to be rounded to float32.

It is |log result| u relatively, at most 88.7 / 2 units in the last place, and the power's own."""


# --- sums ----------------------------------------------------------------------------------


@transfer("add")
def add(x: Operand, other: Operand, alpha: float = 1) -> Interval:
    """`x + alpha other`, rising in both for alpha > 0; NaN from inf - inf."""
    if alpha != 1:
        return converted_back(add(working(x), _scaled(other, alpha, x)), x, other)
    result = monotone(operator.add, x, other)
    if wraps(operator.add, result, x, other):
        return Interval.top(result.shape, result.dtype)
    return result.with_nan(result.may_nan or _may_cancel(x, other, result.dtype, -1))


@transfer("sub")
def sub(x: Operand, other: Operand, alpha: float = 1) -> Interval:
    """`x - alpha other`; NaN from inf - inf."""
    if alpha != 1:
        return converted_back(sub(working(x), _scaled(other, alpha, x)), x, other)
    result = monotone(operator.sub, x, other, falling=(1,))
    if wraps(operator.sub, result, x, other):
        return Interval.top(result.shape, result.dtype)
    return result.with_nan(result.may_nan or _may_cancel(x, other, result.dtype, 1))


@transfer("rsub")
def rsub(x: Interval, other: Operand, alpha: float = 1) -> Interval:
    """Other - alpha x."""
    return sub(other, x, alpha)


def _may_cancel(x: Operand, other: Operand, dtype: torch.dtype, sign: int) -> bool:
    """True if x can be infinite while `other` is infinite with the same sign, times `sign`."""
    if not dtype.is_floating_point:
        return False
    x, other = seen(x, dtype), seen(other, dtype)
    low, high = (other.lower, other.upper) if sign > 0 else (-other.upper, -other.lower)
    both = (x.upper == math.inf) & (high == math.inf)
    return is_possible(both | (x.lower == -math.inf) & (low == -math.inf))


def _scaled(x: Operand, factor: float, beside: Operand) -> Operand:
    """`factor x`, for kernels that round the factor or the product, or fuse the sum."""
    if not isinstance(x, Interval):
        x = Interval.point(torch.tensor(x, dtype=dtype_of(x, beside)))
    product = mul(working(x), factor)
    return product if factor == -1 else coarsened(product, x.dtype)


def converted_back(result: Interval, *operands: Operand) -> Interval:
    """A result computed in float32, in the dtype that torch promotes the operands to."""
    return converted(result, promoted(*operands))


def promoted(*operands: Operand) -> torch.dtype:
    """The dtype that torch promotes any number of operands to."""
    total: Any = lower(operands[0])
    for operand in operands[1:]:
        dtype = torch.result_type(total, lower(operand))
        ranks = [item.dim() for item in (total, lower(operand)) if isinstance(item, Tensor)]
        total = torch.empty((0,) * max(ranks, default=0), dtype=dtype)
    return torch.result_type(total, total)


# --- products and quotients ----------------------------------------------------------------


@transfer("mul")
def mul(x: Operand, other: Operand) -> Interval:
    """`x other`: extremes at the corners of the box; NaN from 0 * inf."""
    known = is_known(x, other)
    result = (monotone if known else corners)(operator.mul, x, other)
    if wraps(operator.mul, result, x, other):
        return Interval.top(result.shape, result.dtype)
    x, other = seen(x, result.dtype), seen(other, result.dtype)
    undefined = (has_zero(x) & has_infinity(other)) | (has_infinity(x) & has_zero(other))
    return result.with_nan(result.may_nan or is_possible(undefined))


@transfer("div", domain="nonzero")
def div(x: Interval, other: Operand, rounding_mode: str | None = None) -> Interval:
    """`x / other`: extremes at the corners where other keeps its sign.

    A divisor that can be 0 gives [-inf, inf], also when it ends at 0: a bound of 0 stands
    for both zeros, and x / -0.0 has the opposite sign. NaN from 0 / 0 and inf / inf.
    """
    if rounding_mode is not None:
        return _rounded_quotient(x, other, rounding_mode)
    if is_known(x, other):
        return monotone(torch.div, x, other)
    result = corners(torch.div, x, other)
    x, other = seen(x, result.dtype), seen(other, result.dtype)
    zero = has_zero(other)
    undefined = (has_zero(x) & zero) | (has_infinity(x) & has_infinity(other))
    result = unbounded_where(zero, result)
    return result.with_nan(result.may_nan or is_possible(undefined))


@transfer("floor_divide", domain="nonzero")
def floor_divide(x: Interval, other: Operand) -> Interval:
    """`x // other`, as division rounded down."""
    return _rounded_quotient(x, other, "floor")


def _rounded_quotient(x: Interval, other: Operand, rounding_mode: str) -> Interval:
    """Quotients rounded to integers; in floor division inf // y is NaN and -1 // inf is -1."""

    def divide(a: Any, b: Any) -> Tensor:
        return torch.div(a, b, rounding_mode=rounding_mode)

    dtype, zero = dtype_of(x, other), has_zero(other)
    if not dtype.is_floating_point and is_possible(zero):
        return Interval.top(shape_of(x, other), dtype)
    if is_known(x, other):
        return monotone(divide, x, other)
    result = corners(divide, x, other)
    if wraps(divide, result, x, other):
        return Interval.top(result.shape, dtype)
    if not dtype.is_floating_point:
        return result
    x, other = seen(x, dtype), seen(other, dtype)
    zero, endless = has_zero(other), has_infinity(other)
    undefined = (has_zero(x) & zero) | has_infinity(x)
    nan = result.may_nan or is_possible(undefined)
    # The floor is derived from fmod and may be off by an ulp; a kernel for half precision
    # may round the quotient before it truncates it.
    result = inexact(result, 1)
    less = endless.to(dtype) if rounding_mode == "floor" else torch.zeros((), dtype=dtype)
    step = 1 if dtype in HALF_PRECISION else 0
    result = Interval.between(
        result.lower - less - step, result.upper + step, result.shape, dtype, nan
    )
    return unbounded_where(zero | undefined, result)


@transfer("reciprocal", domain="nonzero")
def reciprocal(x: Interval) -> Interval:
    """1 / x, falling on either side of 0; [-inf, inf] if it can be 0, as in division."""
    x = floating(x)
    if x.is_point:
        return monotone(torch.reciprocal, x)
    return unbounded_where(has_zero(x), decreasing(torch.reciprocal, x, ulps=0))


@transfer("addcmul")
def addcmul(x: Interval, tensor1: Interval, tensor2: Interval, value: float = 1) -> Interval:
    """`x + value tensor1 tensor2`, multiplied in either order, rounded each time or fused."""
    first, second = working(tensor1), working(tensor2)
    product = inexact(mul(first, second), 2)
    if value != 1:
        other_order = mul(inexact(mul(first, value), 2), second)
        product = inexact(union(mul(product, value), other_order), 2)
    return converted_back(add(working(x), product), x, tensor1, tensor2)


@transfer("addcdiv", domain="nonzero")
def addcdiv(x: Interval, tensor1: Interval, tensor2: Interval, value: float = 1) -> Interval:
    """`x + value tensor1 / tensor2`, rounded two or three times, or fused."""
    dividend = converted(tensor1, promoted(working(tensor1), 1.0))
    if value != 1:
        dividend = inexact(mul(dividend, value), 2)
    quotient = inexact(div(dividend, working(tensor2)), 2)
    return converted_back(add(working(x), quotient), x, tensor1, tensor2)


@transfer("lerp")
def lerp(x: Interval, end: Interval, weight: Operand) -> Interval:
    """`x + weight (end - x)`: rising in both for weights in [0, 1].

    torch computes it so for |w| < 0.5 and as end - (end - x) (1 - w) above. Where a weight
    leaves [0, 1] or end - x can overflow, both formulas are bounded term by term.
    """
    start, stop, share = working(x), working(end), working(weight)
    difference = sub(stop, start)
    rest = sub(1.0, share) if isinstance(share, Interval) else 1 - share
    forward = add(start, inexact(mul(difference, share), 2))
    result = union(forward, sub(stop, inexact(mul(difference, rest), 4)))
    inside = torch.as_tensor((lower(weight) >= 0) & (upper(weight) <= 1))
    inside = inside & difference.magnitude.isfinite()
    slack = 4 * torch.finfo(result.dtype).eps * (difference.magnitude + start.magnitude)
    low, high = (
        [first + part * (last - first) for part in ends(share)]
        for first, last in ((start.lower, stop.lower), (start.upper, stop.upper))
    )
    return converted_back(
        Interval.between(
            torch.where(inside, reduce(torch.minimum, low) - slack, result.lower),
            torch.where(inside, reduce(torch.maximum, high) + slack, result.upper),
            result.shape,
            result.dtype,
            result.may_nan,
        ),
        x,
        end,
    )


@transfer("remainder")
def remainder(x: Operand, other: Operand) -> Interval:
    """`x mod other`, with the sign of `other`: in [0, other]; NaN for other = 0 or infinite x."""
    if not (dtype := dtype_of(x, other)).is_floating_point and is_possible(has_zero(other)):
        return Interval.top(shape_of(x, other), dtype)
    if is_known(x, other):
        return monotone(torch.remainder, x, other)
    low, high = _as(lower(other), dtype).clamp(max=0), _as(upper(other), dtype).clamp(min=0)
    return _modulus(x, other, low, high)


@transfer("fmod")
def fmod(x: Interval, other: Operand) -> Interval:
    """`x mod other`, with the sign of x: no larger than either; NaN as in `remainder`."""
    if not (dtype := dtype_of(x, other)).is_floating_point and is_possible(has_zero(other)):
        return Interval.top(shape_of(x, other), dtype)
    if is_known(x, other):
        return monotone(torch.fmod, x, other)
    size = torch.maximum(_as(lower(other), dtype).abs(), _as(upper(other), dtype).abs())
    low = torch.maximum(-size, _as(x.lower, dtype).clamp(max=0))
    high = torch.minimum(size, _as(x.upper, dtype).clamp(min=0))
    return _modulus(x, other, low, high)


def _as(bound: Any, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(bound).to(dtype)


def _modulus(x: Operand, other: Operand, low: Tensor, high: Tensor) -> Interval:
    dtype, undefined = dtype_of(x, other), has_zero(other) | has_infinity(x)
    nan = may_nan(x, other) or (dtype.is_floating_point and is_possible(undefined))
    return Interval.between(low, high, shape_of(x, other), dtype, nan)


# --- signs ---------------------------------------------------------------------------------


@transfer("neg")
def neg(x: Interval) -> Interval:
    """-x, falling."""
    result = decreasing(torch.neg, x, ulps=0)
    wrapped = wraps(lambda end, _: -end, result, x)
    return Interval.top(x.shape, x.dtype) if wrapped else result


@transfer("abs")
def absolute(x: Interval) -> Interval:
    """|x|, turning at 0."""
    result = bent(torch.abs, x, [(0, 0)], ulps=0)
    wrapped = wraps(lambda end, _: end.abs(), result, x)
    return Interval.top(x.shape, x.dtype) if wrapped else result


@transfer("sign", "sgn")
def sign(x: Interval) -> Interval:
    """-1, 0 or 1, rising; torch gives 0 for NaN."""
    result = increasing(torch.sign, x, ulps=0)
    if not x.may_nan:
        return result
    return Interval(result.lower.clamp(max=0), result.upper.clamp(min=0), x.shape, x.dtype)


# --- powers --------------------------------------------------------------------------------


@transfer("sqrt", domain="nonnegative")
def sqrt(x: Interval) -> Interval:
    """Rising on [0, inf]; NaN below. MKL's vector kernel is not correctly rounded."""
    return increasing(torch.sqrt, floating(x), domain=(0, math.inf), ulps=1, image=(0, math.inf))


@transfer("rsqrt", domain="positive")
def rsqrt(x: Interval) -> Interval:
    """1 / sqrt(x): falling on (0, inf], inf at 0, -inf at -0.0; NaN below.

    A bound of 0 stands for both zeros, so an operand that can be 0 gives [-inf, inf].
    """
    return unbounded_where(has_zero(x), decreasing(torch.rsqrt, x, domain=(0, math.inf)))


@transfer("square")
def square(x: Interval) -> Interval:
    """x^2, correctly rounded."""
    return power(x, 2)


@transfer("pow")
def power(x: Operand, exponent: Operand) -> Interval:
    """x^exponent, by kind of exponent; a tensor of one number counts as that number."""
    if isinstance(exponent, Interval) and exponent.is_point and exponent.shape == ():
        if isinstance(x, Interval) and x.shape:
            return _number_power(x, exponent.lower.item(), dtype_of(x, exponent))
    elif isinstance(x, Interval) and not isinstance(exponent, Interval):
        return _number_power(x, exponent, dtype_of(x, exponent))
    return _tensor_power(x, exponent)


def _number_power(x: Interval, exponent: float, dtype: torch.dtype) -> Interval:
    """Even, odd, negative and fractional exponents; squares are correctly rounded."""

    def raised(base: Tensor) -> Tensor:
        return torch.pow(base, exponent)

    if exponent == 0:
        return Interval.point(torch.ones((), dtype=dtype).expand(x.shape))
    if not dtype.is_floating_point:
        return _integer_power(x, int(exponent))
    x = converted(x, dtype)
    if exponent == 1:
        return x
    if not float(exponent).is_integer():
        return _fractional_power(x, exponent)
    is_even = exponent % 2 == 0
    if exponent > 0:
        return bent(raised, x, [(0, 0)] if is_even else [], ulps=0 if exponent == 2 else 4)
    if is_even:
        return decreasing(raised, absolute(x), image=(0, math.inf))
    return unbounded_where(has_zero(x), decreasing(raised, x))


def _integer_power(x: Interval, exponent: int) -> Interval:
    """Integers to a positive power; anything where the result can wrap around."""
    largest = x.lower.double().abs().maximum(x.upper.double().abs()).pow(exponent)
    if x.dtype == torch.bool or is_possible(largest >= torch.iinfo(x.dtype).max):
        return Interval.top(x.shape, x.dtype)
    return bent(lambda base: base.pow(exponent), x, [] if exponent % 2 else [(0, 0)], ulps=0)


def _fractional_power(x: Interval, exponent: float) -> Interval:
    """Rising for exponent > 0, else falling, on [0, inf]; NaN below 0.

    At -inf the C standard asks for inf or 0, which torch.pow follows except for 0.5 and
    -0.5: these are sqrt and rsqrt, and rsqrt(-0.0) is -inf.
    """
    if not math.isfinite(exponent):
        result = Interval.full(0, math.inf, x.shape, x.dtype)
        return result.with_nan(x.may_nan or math.isnan(exponent))
    rule = increasing if exponent > 0 else decreasing
    if x.dtype in HALF_PRECISION:
        # Kernels for CPUs round the exponent to the half type too, others do not.
        wide = _fractional_power(converted(x, torch.float32), exponent)
        rounded = float(torch.tensor(exponent, dtype=x.dtype))
        other = _fractional_power(converted(x, torch.float32), rounded)
        if exponent == -0.5:  # rsqrt, rounded twice by kernels that take the root in the half type
            return inexact(converted(union(wide, other), x.dtype))
        return converted(union(wide, other), x.dtype)
    is_exact = torch.tensor(exponent, dtype=x.dtype).item() == exponent
    result = rule(
        lambda base: base.pow(exponent),
        x,
        domain=(0, math.inf),
        image=(0, math.inf),
        ulps=ULPS if is_exact else EXPONENT_ULPS,
    )
    low, high, endless = result.lower, result.upper, x.lower == -math.inf
    if exponent > 0:
        high = high.masked_fill(endless, math.inf)
    else:
        low = low.masked_fill(endless, 0)
    result = Interval.between(low, high, x.shape, x.dtype, result.may_nan)
    return unbounded_where(has_zero(x), result) if exponent == -0.5 else result


def _tensor_power(x: Operand, exponent: Operand) -> Interval:
    """Over x >= 0 extremes lie at the corners; a base that can be negative gives anything."""
    dtype, shape = dtype_of(x, exponent), shape_of(x, exponent)
    if not dtype.is_floating_point:
        known = is_known(x, exponent)
        return monotone(torch.pow, x, exponent) if known else Interval.top(shape, dtype)
    result = inexact(corners(torch.pow, x, exponent)).intersect(0, math.inf)
    negative = torch.as_tensor(lower(x) < 0)
    result = unbounded_where(negative | has_zero(x) & (lower(exponent) < 0), result)
    return result.with_nan(result.may_nan or is_possible(negative))
