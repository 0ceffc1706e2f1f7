"""How the range of an operator follows from its shape: rising, falling, bent, cornered.

Every helper computes bounds with torch's own kernel in the tensor's own dtype, so that type
promotion, overflow and rounding come out as in the program. Correctly rounded operators
are used as they are; the others are pushed outward by `ULPS` units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import zip_longest
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor

from ranum.analysis.interval import Interval, widen

Operand: TypeAlias = Interval | float | int | bool
"""An operand as rules get it: an interval in place of a tensor, or a Python number."""

Limits: TypeAlias = tuple[float, float]

REAL: Limits = (-math.inf, math.inf)

ULPS = 4
"""Error of elementary functions in float32 and float64, units in the last place.

The libraries torch calls promise 1 (SLEEF u10) to 4 (CUDA's math functions, programming
guide, table of maximum ulp errors); float16 and bfloat16 are computed in float32."""

HALF_PRECISION = (torch.float16, torch.bfloat16)
"""Dtypes that kernels compute in float32 and round once: a quarter of the ulps will do."""


# --- operands ------------------------------------------------------------------------------


def lower(operand: Operand) -> Any:
    """The lower bound, or the number itself."""
    return operand.lower if isinstance(operand, Interval) else operand


def upper(operand: Operand) -> Any:
    """The upper bound, or the number itself."""
    return operand.upper if isinstance(operand, Interval) else operand


def ends(operand: Operand) -> tuple[Any, ...]:
    """The different bounds: one for numbers and exact data, else two."""
    low, high = lower(operand), upper(operand)
    return (low,) if low is high else (low, high)


def shape_of(*operands: Operand) -> tuple[int, ...]:
    """The shape that the operands broadcast to."""
    shapes = [reversed(operand.shape) for operand in operands if isinstance(operand, Interval)]
    sizes = [next((n for n in dim if n != 1), 1) for dim in zip_longest(*shapes, fillvalue=1)]
    return tuple(reversed(sizes))


def dtype_of(x: Operand, other: Operand) -> torch.dtype:
    """The dtype that torch promotes two operands to."""
    return torch.result_type(lower(x), lower(other))


def is_known(*operands: Operand) -> bool:
    """True if every operand is a number or exact data."""
    return all(not isinstance(item, Interval) or item.is_point for item in operands)


def may_nan(*operands: Operand) -> bool:
    """True if an operand can be NaN."""
    return any(
        item.may_nan if isinstance(item, Interval) else math.isnan(item) for item in operands
    )


def has_zero(operand: Operand) -> Tensor:
    """Per block: the operand can be 0."""
    return torch.as_tensor((lower(operand) <= 0) & (upper(operand) >= 0))


def has_infinity(operand: Operand) -> Tensor:
    """Per block: the operand can be infinite."""
    low, high = torch.as_tensor(lower(operand)), torch.as_tensor(upper(operand))
    return low.isinf() | high.isinf()


def seen(operand: Operand, dtype: torch.dtype) -> Interval:
    """The operand as a kernel for `dtype` sees it: numbers and wider tensors may overflow."""
    if isinstance(operand, Interval):
        return converted(operand, dtype) if dtype.is_floating_point else operand
    return Interval.point(torch.tensor(operand, dtype=dtype))


def is_possible(condition: Tensor) -> bool:
    """True if a condition holds in some block."""
    return bool(condition.any())


def floating(x: Interval) -> Interval:
    """Integers and booleans as torch's functions see them: in the default dtype."""
    if x.dtype.is_floating_point:
        return x
    return converted(x, torch.get_default_dtype())


@overload
def working(operand: Interval) -> Interval: ...
@overload
def working(operand: Operand) -> Operand: ...
def working(operand: Operand) -> Operand:
    """The dtype in which kernels compute: float32 for float16 and bfloat16."""
    if isinstance(operand, Interval) and operand.dtype in HALF_PRECISION:
        return converted(operand, torch.float32)
    return operand


def converted(x: Interval, dtype: torch.dtype) -> Interval:
    """Rounded to a floating dtype; rounding is monotone."""
    if x.dtype == dtype:
        return x
    if x.is_point:
        return Interval.point(x.lower.to(dtype)).with_nan(x.may_nan)
    return Interval(x.lower.to(dtype), x.upper.to(dtype), x.shape, dtype, x.may_nan)


# --- ranges of functions -------------------------------------------------------------------


def monotone(
    function: Callable[..., Tensor], *operands: Operand, falling: Sequence[int] = ()
) -> Interval:
    """Range of a correctly rounded function that rises in every operand.

    Args:
        function: Takes one value per operand.
        operands: Intervals and numbers.
        falling: Positions of operands in which the function falls instead.
    """
    if is_known(*operands):
        return Interval.point(function(*map(lower, operands)))
    least = [upper(x) if i in falling else lower(x) for i, x in enumerate(operands)]
    most = [lower(x) if i in falling else upper(x) for i, x in enumerate(operands)]
    low, high = function(*least), function(*most)
    return Interval.between(low, high, shape_of(*operands), low.dtype, may_nan(*operands))


def corners(function: Callable[[Any, Any], Tensor], x: Operand, other: Operand) -> Interval:
    """Range of a correctly rounded function that is monotone in each operand by itself.

    A corner that is NaN (0 * inf, inf / inf) counts as 0, the limit on the way there; the
    caller says whether NaN itself can occur.
    """
    values = [_zero_nan(function(a, b)) for a in ends(x) for b in ends(other)]
    low, high = reduce(torch.minimum, values), reduce(torch.maximum, values)
    return Interval.between(low, high, shape_of(x, other), low.dtype, may_nan(x, other))


def _zero_nan(value: Tensor) -> Tensor:
    return value.masked_fill(value.isnan(), 0) if value.dtype.is_floating_point else value


def increasing(function: Callable[[Tensor], Tensor], x: Interval, **options: Any) -> Interval:
    """Range of a rising function of one operand; options as in `bent`."""
    return bent(function, x, (), **options)


def decreasing(function: Callable[[Tensor], Tensor], x: Interval, **options: Any) -> Interval:
    """Range of a falling function of one operand; options as in `bent`."""
    return bent(function, x, (), **options)


def bent(
    function: Callable[[Tensor], Tensor],
    x: Interval,
    knots: Sequence[tuple[float, float]],
    *,
    domain: Limits = REAL,
    image: Limits = REAL,
    at_infinity: Limits = REAL,
    ulps: int = ULPS,
    absolute: float = 0.0,
) -> Interval:
    """Range of a continuous function that is monotone between its knots.

    Args:
        function: The operator.
        x: Its operand.
        knots: Where it turns, and its value there.
        domain: Where it is defined; NaN outside.
        image: Its mathematical range, which rounding does not leave.
        at_infinity: Limits at -inf and inf, for functions that give NaN there.
        ulps: Error in units in the last place; 0 for correctly rounded functions.
        absolute: Further error, in units of the rounding error of 1.
    """
    if ulps:
        x = floating(x)
    elif x.is_point:
        return Interval.point(function(x.lower))
    if x.is_uniform and x.dtype.is_floating_point:
        return _bent_pair(function, x, knots, domain, image, at_infinity, ulps, absolute)
    nan = x.may_nan
    if domain != REAL:
        nan = nan or is_possible((x.lower < domain[0]) | (x.upper > domain[1]))
        x = x.intersect(*domain)
    first, nan_first = _with_limit(function(x.lower), x.lower, at_infinity)
    last, nan_last = _with_limit(function(x.upper), x.upper, at_infinity)
    low, high = torch.minimum(first, last), torch.maximum(first, last)
    for position, value in knots:
        crossed = (x.lower <= position) & (x.upper >= position)
        low = torch.where(crossed, low.clamp(max=value), low)
        high = torch.where(crossed, high.clamp(min=value), high)
    nan = nan or nan_first or nan_last
    return inexact(Interval.between(low, high, x.shape, low.dtype, nan), ulps, absolute, image)


def _bent_pair(
    function: Callable[[Tensor], Tensor],
    x: Interval,
    knots: Sequence[tuple[float, float]],
    domain: Limits,
    image: Limits,
    at_infinity: Limits,
    ulps: int,
    absolute: float,
) -> Interval:
    """The range for one pair of bounds, in Python numbers but for the function itself."""
    low, high, nan = x.low, x.high, x.may_nan
    if low < domain[0] or high > domain[1]:
        nan = True
        low, high = (min(max(end, domain[0]), domain[1]) for end in (low, high))
    ends = function(torch.tensor((low, high), dtype=x.dtype))
    values = ends.tolist()
    for index, end in enumerate((low, high)):
        if math.isnan(values[index]):
            nan = True
            values[index] = at_infinity[end > 0] if end else values[index]
    low, high = (values[0], values[1]) if values[0] <= values[1] else (values[1], values[0])
    if math.isnan(low) or math.isnan(high):
        low, high = -math.inf, math.inf
    for position, value in knots:
        if x.low <= position <= x.high:
            low, high = min(low, value), max(high, value)
    result = Interval.uniform(low, high, x.shape, ends.dtype, nan)
    return inexact(result, ulps, absolute, image)


def _with_limit(value: Tensor, at: Tensor, limits: Limits) -> tuple[Tensor, bool]:
    if not value.dtype.is_floating_point:
        return value, False
    nan = value.isnan()
    if not is_possible(nan):
        return value, False
    value = value.masked_fill(nan & (at < 0), limits[0])
    return value.masked_fill(nan & (at > 0), limits[1]), True


def inexact(
    result: Interval, ulps: int = ULPS, absolute: float = 0.0, image: Limits = REAL
) -> Interval:
    """Outward by an operator's error, but not out of its mathematical range."""
    if not result.dtype.is_floating_point or (ulps == 0 and absolute == 0):
        return result
    half = result.dtype in HALF_PRECISION
    eps = torch.finfo(torch.float32 if half else result.dtype).eps
    result = widen(result, max(1, ulps // 4) if half else ulps, absolute * eps)
    return result if image == REAL else result.intersect(*image)


def coarsened(result: Interval, dtype: torch.dtype) -> Interval:
    """For a value that may have been rounded twice to `dtype`, coarser than its own, or not.

    Beyond the coarser dtype's limits it may have become infinite.
    """
    if not (dtype.is_floating_point and result.dtype.is_floating_point):
        return inexact(result, 2)
    info = torch.finfo(dtype)
    result = widen(result, max(1, math.ceil(info.eps / torch.finfo(result.dtype).eps)))
    return Interval(
        result.lower.masked_fill(result.lower < info.min, -math.inf),
        result.upper.masked_fill(result.upper > info.max, math.inf),
        result.shape,
        result.dtype,
        result.may_nan,
    )


def early(result: Interval, factor: float) -> Interval:
    """For kernels whose intermediate steps overflow by up to `factor` before the result does.

    Infinity seen at a bound may then be a large number where another kernel computes it.
    """
    largest = torch.finfo(result.dtype).max / factor
    low, high = result.lower.clamp(max=largest), result.upper.clamp(min=-largest)
    return Interval.between(low, high, result.shape, result.dtype, result.may_nan)


def unbounded_where(condition: Tensor, result: Interval) -> Interval:
    """[-inf, inf] in the blocks where a condition holds."""
    return Interval.between(
        result.lower.masked_fill(condition, -math.inf),
        result.upper.masked_fill(condition, math.inf),
        result.shape,
        result.dtype,
        result.may_nan,
    )


def union(*intervals: Interval) -> Interval:
    """The smallest interval that holds all, which have one dtype and broadcast."""
    shape, dtype = shape_of(*intervals), intervals[0].dtype
    low = reduce(torch.minimum, [item.lower.to(dtype) for item in intervals])
    high = reduce(torch.maximum, [item.upper.to(dtype) for item in intervals])
    return Interval.between(low, high, shape, dtype, may_nan(*intervals))


def wraps(function: Callable[..., Tensor], result: Interval, *operands: Operand) -> bool:
    """True if an integer result may have left its dtype's limits and come back.

    The function is run again on the corners in float64.
    """
    if result.dtype.is_floating_point or result.dtype == torch.bool:
        return False
    limits = torch.iinfo(result.dtype)
    exact = [
        tuple(torch.as_tensor(end).to(torch.float64) for end in ends(item)) for item in operands
    ]
    values = [function(a, b) for a in exact[0] for b in exact[-1]]
    return any(is_possible((value < limits.min) | (value > limits.max)) for value in values)
