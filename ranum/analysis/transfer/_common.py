"""Interval arithmetic that the families share: blocks in float64, rounded like the program.

A `Box` holds the bounds of a tensor in float64 and behaves like the arithmetic of the
program: each operation widens by a few units of the program's dtype, overflows at its
largest number, and remembers that inf - inf and 0 * inf are NaN. So a rule can be written
as the formula that it bounds.

Sums are bounded for every order of summation: n rounded additions multiply by at most
(1 + u)^n <= exp(n u), which unlike Higham's gamma_n stays finite for any n. Half types are
accumulated in float32 (as ATen, cuBLAS and oneDNN do).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ranum.analysis.interval import Interval, unit_roundoff

HALF_TYPES = (torch.float16, torch.bfloat16)
_ULPS = 8
"""Units of roundoff that one operation of a kernel may lose: covers FMA, reciprocal-multiply."""


def broadcast_shapes(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that tensors of these shapes broadcast to.

    As the function of torch, which imports a computer algebra system for it.

    Raises:
        ValueError: If two sizes differ and none of them is 1.
    """
    result: list[int] = [1] * max(map(len, shapes), default=0)
    for shape in shapes:
        for dim, size in enumerate(shape, start=len(result) - len(shape)):
            if size != 1 and result[dim] not in (1, size):
                raise ValueError(f"shapes do not broadcast: {', '.join(map(str, shapes))}.")
            if size != 1:
                result[dim] = size
    return tuple(result)


@cache
def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type in which kernels add up elements of `dtype`."""
    if dtype in HALF_TYPES:
        return torch.float32
    return dtype if dtype.is_floating_point else torch.float64


@cache
def largest(dtype: torch.dtype) -> float:
    """The largest finite number of a floating dtype."""
    return torch.finfo(dtype).max


@cache
def smallest(dtype: torch.dtype) -> float:
    """What underflow may lose, kernels that flush subnormal numbers to zero included."""
    return torch.finfo(dtype).smallest_normal


def sum_error(terms: float, dtype: torch.dtype) -> float:
    """Relative error, against the sum of magnitudes, of `terms` additions in any order."""
    exponent = (terms + _ULPS) * unit_roundoff(dtype)
    return math.expm1(exponent) if exponent < 700 else math.inf


def outward(
    lower: Tensor, upper: Tensor, shape: Sequence[int], dtype: torch.dtype, may_nan: bool = False
) -> Interval:
    """An interval in `dtype` from wider bounds, each rounded away from the other.

    NaN bounds become [-inf, inf] with `may_nan`. Integer bounds beyond the dtype wrap, so
    they become its whole range.
    """
    bad = lower.isnan() | upper.isnan()
    if bool(bad.any()):
        lower = lower.masked_fill(bad, -math.inf)
        upper = upper.masked_fill(bad, math.inf)
        may_nan = True
    if not dtype.is_floating_point:
        return _whole(lower, upper, shape, dtype)
    low, high = lower.to(dtype), upper.to(dtype)
    if dtype != lower.dtype:
        below = torch.nextafter(low, torch.full_like(low, -math.inf))
        above = torch.nextafter(high, torch.full_like(high, math.inf))
        low = torch.where(low.to(lower.dtype) > lower, below, low)
        high = torch.where(high.to(upper.dtype) < upper, above, high)
    return Interval(low, high, tuple(shape), dtype, may_nan)


def _whole(lower: Tensor, upper: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Interval:
    if dtype == torch.bool:
        return Interval(lower != 0, upper != 0, tuple(shape), dtype)
    limits = torch.iinfo(dtype)
    inside = (lower > float(limits.min)) & (upper < float(limits.max))
    low = lower.floor().masked_fill(~inside, 0).to(dtype).masked_fill(~inside, limits.min)
    high = upper.ceil().masked_fill(~inside, 0).to(dtype).masked_fill(~inside, limits.max)
    return Interval(low, high, tuple(shape), dtype)


def like(lower: float, upper: float, shape: Sequence[int], x: Interval) -> Interval:
    """One pair of numbers for all elements, in the dtype and on the device of `x`."""
    return Interval.full(lower, upper, shape, x.dtype, x.device)


def indices(count: int, shape: Sequence[int], x: Interval) -> Interval:
    """Positions among `count` elements."""
    return Interval.full(0, max(count - 1, 0), shape, torch.int64, x.device)


def unknown(shape: Sequence[int], x: Interval) -> Interval:
    """Anything, NaN included, in the dtype and on the device of `x`."""
    return like(-math.inf, math.inf, shape, x).with_nan()


def normal_dims(dim: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Dimensions counted from 0; all of them for None or an empty list."""
    if dim is None:
        return tuple(range(rank))
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    if not dims or rank == 0:
        return tuple(range(rank))
    return tuple(sorted({d % rank for d in dims}))


def reduced_shape(shape: Sequence[int], dims: Sequence[int], keepdim: bool) -> tuple[int, ...]:
    """Shape after a reduction over `dims`."""
    if keepdim:
        return tuple(1 if d in dims else n for d, n in enumerate(shape))
    return tuple(n for d, n in enumerate(shape) if d not in dims)


def squeezed(bound: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    """A bound of size 1 along `dims`, with or without these dimensions."""
    return bound if keepdim or not dims else bound.squeeze(tuple(dims))


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """Bounds in float64 that are computed with as a program in `dtype` would.

    Attributes:
        lower: Lower bounds, any layout that broadcasts.
        upper: Upper bounds, same layout.
        dtype: Floating type whose rounding and overflow the operations imitate.
        may_nan: True if an element can be NaN.
    """

    lower: Tensor
    upper: Tensor
    dtype: torch.dtype
    may_nan: bool = False

    @staticmethod
    def of(x: Interval, keep: Sequence[int] | None = None) -> Box:
        """The bounds of an interval, merged along all dimensions but `keep` if given."""
        x = x if keep is None else x.merged(keep)
        lower = x.lower.double()
        upper = lower if x.upper is x.lower else x.upper.double()
        return Box(lower, upper, accumulator(x.dtype), x.may_nan)

    @staticmethod
    def native(x: Interval, keep: Sequence[int] | None = None) -> Box:
        """As `of`, for kernels that round each step to the tensor's own dtype."""
        box = Box.of(x, keep)
        return Box(box.lower, box.upper, x.dtype, box.may_nan)

    def constant(self, lower: float, upper: float | None = None) -> Box:
        """One pair of numbers, of the same dtype and device."""
        low = torch.tensor(float(lower), dtype=torch.float64, device=self.lower.device)
        high = low if upper is None else low.new_tensor(float(upper))
        return Box(low, high, self.dtype)

    def interval(self, shape: Sequence[int], dtype: torch.dtype) -> Interval:
        """As an `Interval` of a tensor, rounded outward into its dtype."""
        lower, upper = (_ranked(bound, len(shape)) for bound in (self.lower, self.upper))
        lower, upper = torch.broadcast_tensors(lower, upper)
        return outward(lower, upper, shape, dtype, self.may_nan)

    # --- asking ----------------------------------------------------------------------------

    @property
    def magnitude(self) -> Tensor:
        """Largest absolute value per block."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    @property
    def peak(self) -> float:
        """Largest absolute value of all; 0 for no blocks."""
        return float(self.magnitude.max()) if self.lower.numel() else 0.0

    @property
    def is_finite(self) -> bool:
        """True if every element is surely finite."""
        return not self.may_nan and self.peak <= largest(self.dtype)

    @property
    def low(self) -> float:
        """Smallest lower bound."""
        return float(self.lower.min()) if self.lower.numel() else 0.0

    @property
    def high(self) -> float:
        """Largest upper bound."""
        return float(self.upper.max()) if self.upper.numel() else 0.0

    # --- changing --------------------------------------------------------------------------

    def replaced(self, lower: Tensor, upper: Tensor, may_nan: bool | None = None) -> Box:
        """Other bounds, exact; NaN bounds become infinite and `may_nan`."""
        may_nan = self.may_nan if may_nan is None else may_nan
        bad = lower.isnan() | upper.isnan()
        if bool(bad.any()):
            lower, upper = lower.masked_fill(bad, -math.inf), upper.masked_fill(bad, math.inf)
            may_nan = True
        return Box(lower, upper, self.dtype, may_nan)

    def rounded(self, ulps: float = _ULPS, absolute: float = 0.0) -> Box:
        """What the dtype makes of a result: a few ulps, underflow, overflow.

        Rounding keeps signs, so a bound of 0 stays, unless there is an `absolute` error.
        """
        relative = ulps * unit_roundoff(self.dtype)
        floor = smallest(self.dtype)
        lower = self.lower - (self.lower.abs() * relative + floor + absolute)
        upper = self.upper + (self.upper.abs() * relative + floor + absolute)
        if absolute == 0.0:
            lower = torch.where(self.lower >= 0, lower.clamp(min=0.0), lower)
            upper = torch.where(self.upper <= 0, upper.clamp(max=0.0), upper)
        lower = torch.where(self.lower.isfinite(), lower, self.lower)
        upper = torch.where(self.upper.isfinite(), upper, self.upper)
        limit = largest(self.dtype)
        lower = torch.where(lower < -limit, -math.inf, torch.where(lower > limit, limit, lower))
        upper = torch.where(upper > limit, math.inf, torch.where(upper < -limit, -limit, upper))
        # A certain infinity is not taken for a large number.
        lower = torch.where(self.lower == math.inf, self.lower, lower)
        upper = torch.where(self.upper == -math.inf, self.upper, upper)
        return Box(lower, upper, self.dtype, self.may_nan)

    def with_nan(self, may_nan: bool = True) -> Box:
        """The same bounds; NaN also if `may_nan`."""
        return Box(self.lower, self.upper, self.dtype, self.may_nan or may_nan)

    def merged(self) -> Box:
        """One block for everything."""
        if self.lower.numel() <= 1:
            return Box(self.lower.sum(), self.upper.sum(), self.dtype, self.may_nan)
        return Box(self.lower.min(), self.upper.max(), self.dtype, self.may_nan)

    def hull(self, other: Box) -> Box:
        """The smallest box that holds both."""
        return Box(
            torch.minimum(self.lower, other.lower),
            torch.maximum(self.upper, other.upper),
            self.dtype,
            self.may_nan or other.may_nan,
        )

    def with_zero(self) -> Box:
        """Joined with 0."""
        return Box(self.lower.clamp(max=0), self.upper.clamp(min=0), self.dtype, self.may_nan)

    def clamped(self, lower: float, upper: float) -> Box:
        """Elementwise clamp; exact, NaN stays."""
        return Box(
            self.lower.clamp(lower, upper),
            self.upper.clamp(lower, upper),
            self.dtype,
            self.may_nan,
        )

    # --- arithmetic ------------------------------------------------------------------------

    def __neg__(self) -> Box:
        return Box(-self.upper, -self.lower, self.dtype, self.may_nan)

    def __add__(self, other: Box | float) -> Box:
        other = other if isinstance(other, Box) else self.constant(other)
        opposite = (self.high == math.inf and other.low == -math.inf) or (
            self.low == -math.inf and other.high == math.inf
        )
        lower, upper = self.lower + other.lower, self.upper + other.upper
        if opposite:
            lower, upper = (
                lower.nan_to_num(-math.inf, math.inf, -math.inf),
                upper.nan_to_num(math.inf, math.inf, -math.inf),
            )
        return Box(lower, upper, self.dtype, self.may_nan or other.may_nan or opposite).rounded()

    def __sub__(self, other: Box | float) -> Box:
        return self + (-other)

    def __mul__(self, other: Box | float) -> Box:
        other = other if isinstance(other, Box) else self.constant(other)
        corners = tuple(
            self._product(a, b)
            for a in (self.lower, self.upper)
            for b in (other.lower, other.upper)
        )
        may_nan = self.may_nan or other.may_nan
        if not (math.isfinite(self.peak) and math.isfinite(other.peak)):
            may_nan = may_nan or self._annuls(other) or other._annuls(self)
            corners = tuple(c.nan_to_num(0.0, math.inf, -math.inf) for c in corners)
        lower = torch.minimum(
            torch.minimum(corners[0], corners[1]), torch.minimum(corners[2], corners[3])
        )
        upper = torch.maximum(
            torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3])
        )
        return Box(lower, upper, self.dtype, may_nan).rounded()

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        product = a * b
        if self.dtype == torch.float64:
            # Wider bounds do not exist, so what underflows here must keep its sign.
            lost = (product == 0) & (a != 0) & (b != 0)
            product = torch.where(lost, a.sign() * b.sign() * smallest(self.dtype), product)
        return product

    def _annuls(self, other: Box) -> bool:
        """True if an element can be 0 where the other is infinite; `rounded` is a zero too."""
        tiny = smallest(self.dtype)
        zero = (self.lower <= tiny) & (self.upper >= -tiny)
        return bool((zero & other.magnitude.isinf()).any())

    def reciprocal(self) -> Box:
        """1 / x; both infinities where x contains 0."""
        tiny = smallest(self.dtype)
        crossing = (self.lower <= tiny) & (self.upper >= -tiny)
        lower = torch.where(crossing, -math.inf, 1 / self.upper)
        upper = torch.where(crossing, math.inf, 1 / self.lower)
        positive = crossing & (self.lower >= 0)
        # -0 is not told apart from 0, so only numbers away from 0 give one sign.
        lower = torch.where(positive & (self.lower > 0), 1 / self.upper, lower)
        return Box(lower, upper, self.dtype, self.may_nan).rounded()

    def __truediv__(self, other: Box | float) -> Box:
        if not isinstance(other, Box):
            other = self.constant(other)
        quotient = self * other.reciprocal()
        zero_by_zero = bool(((self.lower <= 0) & (self.upper >= 0)).any()) and other._crosses()
        both_infinite = math.isinf(self.peak) and math.isinf(other.peak)
        return quotient.with_nan(zero_by_zero or both_infinite)

    def _crosses(self) -> bool:
        return bool(((self.lower <= smallest(self.dtype)) & (self.upper >= 0)).any())

    def square(self) -> Box:
        """X * x, which is not negative."""
        largest_square = self.magnitude * self.magnitude
        return Box(self.mignitude.square(), largest_square, self.dtype, self.may_nan).rounded()

    @property
    def mignitude(self) -> Tensor:
        """Smallest absolute value per block."""
        return torch.maximum(self.lower, -self.upper).clamp(min=0.0)

    def abs(self) -> Box:
        """|x|; exact."""
        return Box(self.mignitude, self.magnitude, self.dtype, self.may_nan)

    def sqrt(self) -> Box:
        """Increasing on [0, inf); NaN below 0."""
        negative = self.low < 0
        lower, upper = self.lower.clamp(min=0).sqrt(), self.upper.clamp(min=0).sqrt()
        return Box(lower, upper, self.dtype, self.may_nan or negative).rounded()

    def increasing(
        self, function: Callable[[Tensor], Tensor], absolute: float = 0.0, ulps: float = 32
    ) -> Box:
        """An increasing function, evaluated at both ends, with the error of a kernel.

        `ulps` covers the fastest vectorised kernels (exp_u20 of ATen: 20 ulps).
        """
        lower, upper = function(self.lower), function(self.upper)
        return Box(lower, upper, self.dtype, self.may_nan).rounded(ulps, absolute)

    # --- sums ------------------------------------------------------------------------------

    def times(self, count: float, terms: float | None = None) -> Box:
        """Sum of `count` elements of the same block, in any order."""
        if count == 0:
            zero = torch.zeros_like(self.lower)
            return Box(zero, zero, self.dtype)
        one = Box(self.lower.unsqueeze(-1), self.upper.unsqueeze(-1), self.dtype, self.may_nan)
        folded = one.sum((one.lower.dim() - 1,), repeats=count, terms=terms)
        return Box(folded.lower[..., 0], folded.upper[..., 0], self.dtype, folded.may_nan)

    def sum(self, dims: Sequence[int], repeats: float = 1, terms: float | None = None) -> Box:
        """Sum over `dims` (kept with size 1), each block standing for `repeats` elements.

        With A the sum of lower bounds, N of their negative parts and g the error of a sum:
        the computed sum is at least A - g (|A| - 2 N); above alike. A sum of numbers that
        are not negative is not negative. If the partial sums can overflow the result can be
        infinite, and NaN if they can overflow both ways.
        """
        dims = tuple(dims)
        if terms is None:
            terms = repeats * math.prod(self.lower.shape[d] for d in dims)
        error = sum_error(terms, self.dtype)
        limit = largest(self.dtype)
        low, negative = self._folded(self.lower, self.lower.clamp(max=0.0), dims, repeats)
        high, positive = self._folded(self.upper, self.upper.clamp(min=0.0), dims, repeats)
        # In float64 these sums may overflow where another order of summation does not.
        least, most = torch.full_like(low, -math.inf), torch.full_like(low, math.inf)
        doubtful = (low == math.inf) & ~self._holds(self.lower == math.inf, dims)
        low = torch.where(doubtful, least.masked_fill(negative == 0, limit), low)
        doubtful = (high == -math.inf) & ~self._holds(self.upper == -math.inf, dims)
        high = torch.where(doubtful, most.masked_fill(positive == 0, -limit), high)
        both = (positive == math.inf) & (negative == -math.inf)
        floor = terms * smallest(self.dtype)
        if error < 0.25:
            lower = low - (2 * error * (low.abs() - 2 * negative) + floor)
            upper = high + (2 * error * (high.abs() + 2 * positive) + floor)
        else:
            lower = low - (2 * error * (positive - negative) + floor)
            upper = high + (2 * error * (positive - negative) + floor)
        lower = torch.where(low == math.inf, low, lower.nan_to_num(-math.inf, math.inf, -math.inf))
        upper = torch.where(
            high == -math.inf, high, upper.nan_to_num(math.inf, math.inf, -math.inf)
        )
        lower = torch.where(negative == 0, lower.clamp(min=0.0), lower)
        upper = torch.where(positive == 0, upper.clamp(max=0.0), upper)
        above, below = positive * (1 + error) > limit, -negative * (1 + error) > limit
        upper = torch.where(above, math.inf, upper)
        lower = torch.where(below, -math.inf, lower)
        lower = torch.where((lower > limit) & (low != math.inf), limit, lower)
        upper = torch.where((upper < -limit) & (high != -math.inf), -limit, upper)
        may_nan = self.may_nan or bool((both | (above & below)).any())
        return Box(lower, upper, self.dtype, may_nan)

    @staticmethod
    def _holds(condition: Tensor, dims: tuple[int, ...]) -> Tensor:
        for d in dims:
            condition = condition.any(d, keepdim=True)
        return condition

    def _folded(
        self, bound: Tensor, part: Tensor, dims: tuple[int, ...], repeats: float
    ) -> tuple[Tensor, Tensor]:
        if not dims:
            return bound * repeats, part * repeats
        return bound.sum(dims, keepdim=True) * repeats, part.sum(dims, keepdim=True) * repeats


def _ranked(bound: Tensor, rank: int) -> Tensor:
    """Leading dimensions of size 1 up to `rank`."""
    return (
        bound if bound.dim() >= rank else bound.reshape((1,) * (rank - bound.dim()) + bound.shape)
    )


def summed(x: Interval, dims: Sequence[int]) -> Box:
    """Sum of a tensor over `dims`, kept with size 1; merged dimensions count in full."""
    box = Box.of(x)
    full = [d for d in dims if x.lower.shape[d] == x.shape[d]]
    repeats = math.prod(x.shape[d] for d in dims if d not in full)
    if repeats == 0 or any(x.shape[d] == 0 for d in full):
        sizes = [1 if d in dims else n for d, n in enumerate(box.lower.shape)]
        zero = torch.zeros(sizes, dtype=torch.float64, device=x.device)
        return Box(zero, zero, box.dtype)
    return box.sum(full, repeats, terms=repeats * math.prod(x.shape[d] for d in full))
