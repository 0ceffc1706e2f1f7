"""Intervals that are sound in the tensor's own dtype.

An `Interval` bounds every element of a tensor of a known shape and dtype. `lower` and
`upper` have the tensor's rank; each dimension is either full or merged to size 1, where one
bound holds for all elements along it (a *block*).

Reading of the bounds: every element is NaN, only if `may_nan`, or lies in [lower, upper] on
the extended real line. So `upper == inf` says that +inf can occur; "any finite number" is
written with the largest finite number of the dtype. A bound itself is never NaN.

Rounding (design section 4): bounds are computed in the dtype the program computes in.
Correctly rounded operators (+ - * /, sqrt, min, max, casts, comparisons) need no widening,
since rounding is monotone. Transcendental functions are widened by `widen` in units in the
last place plus an absolute term; sums, matrix products and convolutions by `gamma`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ctypes import c_float
from functools import cache
from typing import Any

import torch
from torch import Tensor

_CPU = torch.device("cpu")

MERGE_ABOVE = 1 << 16
"""Results with more bound elements than this are merged to one bound per channel (dim 1)."""


class Interval:
    """Bounds on every element of a tensor. Never changed once made.

    Attributes:
        lower: Lower bounds, rank of `shape`, each dimension full or 1.
        upper: Upper bounds, same layout as `lower`. `lower is upper` marks exact data.
        shape: Shape of the bounded tensor.
        dtype: Element type of the bounded tensor; the bounds have it too.
        may_nan: True if an element can be NaN.

    One pair of bounds for all elements is kept as two Python numbers: such an interval
    `is_uniform`, and its tensors `lower` and `upper` are made when somebody asks for them.
    """

    __slots__ = (
        "_finite", "_high", "_low", "_lower", "_normal", "_upper", "dtype", "may_nan", "shape"
    )  # fmt: skip

    def __init__(
        self,
        lower: Tensor,
        upper: Tensor,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        may_nan: bool = False,
    ) -> None:
        self._lower: Tensor | None = lower
        self._upper: Tensor | None = upper
        self._low: Any = None
        self._high: Any = None
        self._finite: bool | None = None
        self._normal: bool | None = None
        self.shape = shape
        self.dtype = dtype
        self.may_nan = may_nan

    # --- making ----------------------------------------------------------------------------

    @staticmethod
    def uniform(
        low: float, high: float, shape: tuple[int, ...], dtype: torch.dtype, may_nan: bool = False
    ) -> Interval:
        """One pair of bounds, which must be numbers of `dtype` already; `full` rounds them."""
        interval = Interval.__new__(Interval)
        interval._lower = interval._upper = None
        interval._low, interval._high = low, high
        interval._finite = interval._normal = None
        interval.shape, interval.dtype, interval.may_nan = shape, dtype, may_nan
        return interval

    @staticmethod
    def point(data: Tensor) -> Interval:
        """The exact interval of known data, `[...]` any shape; NaN elements become anything.

        Of complex data only the size |z| is known.
        """
        data = data.detach()
        if data.dtype.is_complex:
            return _size_of(data)
        interval = Interval(data, data, tuple(data.shape), data.dtype)
        if data.dtype.is_floating_point and data.numel():
            least, most = (end.item() for end in torch.aminmax(data))
            if math.isnan(least):  # of which there is one if there is any NaN
                nan = data.isnan()
                lower = data.masked_fill(nan, -math.inf)
                upper = data.masked_fill(nan, math.inf)
                return Interval(lower, upper, tuple(data.shape), data.dtype, may_nan=True)
            interval._low, interval._high = least, most
        return interval

    @staticmethod
    def between(
        lower: Any, upper: Any, shape: Sequence[int], dtype: torch.dtype, may_nan: bool = False
    ) -> Interval:
        """An interval from numbers or tensors that broadcast to `shape`.

        NaN bounds, the sign of a rule that met inf - inf, become [-inf, inf] with `may_nan`.
        """
        if isinstance(lower, (int, float)) and isinstance(upper, (int, float)):
            if math.isnan(lower) or math.isnan(upper):
                lower, upper, may_nan = -math.inf, math.inf, True
            return Interval.full(lower, upper, shape, dtype).with_nan(may_nan)
        low = _into(dtype, _ranked(torch.as_tensor(lower), len(shape)))
        high = _into(dtype, _ranked(torch.as_tensor(upper), len(shape)))
        if low.shape != high.shape:
            low, high = torch.broadcast_tensors(low, high)
        if low.numel() == 1 and not (low.requires_grad or high.requires_grad):
            least, most = low.item(), high.item()
            if math.isnan(least) or math.isnan(most):
                least, most, may_nan = -math.inf, math.inf, True
            return Interval.uniform(least, most, tuple(shape), dtype, may_nan)
        if not dtype.is_floating_point or not low.numel():
            return Interval(low, high, tuple(shape), dtype, may_nan)
        # The least and the largest are NaN if one is; comparing each element takes far longer.
        least, most = low.detach().min().item(), high.detach().max().item()
        if math.isnan(least) or math.isnan(most):
            bad = low.isnan() | high.isnan()
            low = low.masked_fill(bad, -math.inf)
            high = high.masked_fill(bad, math.inf)
            return Interval(low, high, tuple(shape), dtype, may_nan=True)
        interval = Interval(low, high, tuple(shape), dtype, may_nan)
        if low.numel() > 1:
            interval._low, interval._high = least, most
        return interval

    @staticmethod
    def full(
        lower: float, upper: float, shape: Sequence[int], dtype: torch.dtype, device: Any = None
    ) -> Interval:
        """One pair of numbers for all elements, rounded outward into `dtype`."""
        low, high = round_down(lower, dtype), round_up(upper, dtype)
        if not dtype.is_floating_point:
            low, high = _whole(low, dtype), _whole(high, dtype)
        interval = Interval.uniform(low, high, tuple(shape), dtype)
        if device is not None and torch.device(device).type != "cpu":
            ones = (1,) * len(shape)
            interval._lower = torch.full(ones, low, dtype=dtype, device=device)
            interval._upper = torch.full(ones, high, dtype=dtype, device=device)
        return interval

    @staticmethod
    def top(shape: Sequence[int], dtype: torch.dtype) -> Interval:
        """Knows nothing: [-inf, inf] and NaN for floats, the dtype's limits otherwise."""
        if dtype.is_complex:
            dtype = torch.float64 if dtype == torch.complex128 else torch.float32
        if dtype == torch.bool:
            return Interval.full(0, 1, shape, dtype)
        if not dtype.is_floating_point:
            limits = torch.iinfo(dtype)
            return Interval.full(limits.min, limits.max, shape, dtype)
        return Interval.uniform(-math.inf, math.inf, tuple(shape), dtype, may_nan=True)

    # --- asking ----------------------------------------------------------------------------

    @property
    def lower(self) -> Tensor:
        """Lower bounds, rank of `shape`, each dimension full or 1."""
        if self._lower is None:
            self._lower = self._filled(self._low)
        return self._lower

    @property
    def upper(self) -> Tensor:
        """Upper bounds, same layout as `lower`."""
        if self._upper is None:
            self._upper = self._filled(self._high)
        return self._upper

    def _filled(self, bound: float) -> Tensor:
        value = bound if self.dtype.is_floating_point else _whole(bound, self.dtype)
        return torch.full((1,) * len(self.shape), value, dtype=self.dtype)

    @property
    def device(self) -> torch.device:
        """Where the bounds live."""
        return _CPU if self._lower is None else self._lower.device

    @property
    def is_uniform(self) -> bool:
        """True if one pair of bounds holds for all elements, of which there is at least one."""
        lower = self._lower
        if lower is None or self._low is not None:
            return 0 not in self.shape and (lower is None or lower.numel() == 1)
        return lower.numel() == 1 and 0 not in self.shape and not lower.requires_grad

    @property
    def is_point(self) -> bool:
        """True if the exact data is known."""
        lower = self._lower
        return lower is not None and lower is self._upper and lower.shape == self.shape

    @property
    def is_empty_tensor(self) -> bool:
        """True if the bounded tensor has no elements."""
        return 0 in self.shape

    @property
    def low(self) -> float:
        """Smallest lower bound over all elements; inf for an empty tensor."""
        if 0 in self.shape:
            return math.inf
        if self._low is None:
            self._measure()
        return float(self._low)

    @property
    def high(self) -> float:
        """Largest upper bound over all elements; -inf for an empty tensor."""
        if 0 in self.shape:
            return -math.inf
        if self._high is None:
            self._measure()
        return float(self._high)

    def _measure(self) -> None:
        lower, upper = self.lower.detach(), self.upper.detach()
        if lower.numel() == 1:
            self._low, self._high = lower.item(), upper.item()
        elif lower is upper and lower.dtype != torch.bool:
            least, most = torch.aminmax(lower)
            self._low, self._high = least.item(), most.item()
        else:
            self._low, self._high = lower.min().item(), upper.max().item()

    @property
    def may_posinf(self) -> bool:
        """True if an element can be +inf."""
        return self.dtype.is_floating_point and self.high == math.inf

    @property
    def may_neginf(self) -> bool:
        """True if an element can be -inf."""
        return self.dtype.is_floating_point and self.low == -math.inf

    @property
    def may_inf(self) -> bool:
        """True if an element can be infinite."""
        return self.may_posinf or self.may_neginf

    @property
    def is_finite(self) -> bool:
        """True if every element is surely finite."""
        if self._finite is None:
            if self._low is None or 0 in self.shape:
                self._finite = not (self.may_nan or self.may_inf)
            else:
                within = self._low > -math.inf and self._high < math.inf
                self._finite = not self.may_nan and (within or not self.dtype.is_floating_point)
        return self._finite

    @property
    def has_normal_ends(self) -> bool:
        """False if a lower bound may be a positive subnormal number, or an upper one a negative."""
        if self._normal is None:
            tiny = _SMALLEST_NORMAL[self.dtype]
            if self._lower is None:
                self._normal = not (0 < self._low < tiny or -tiny < self._high < 0)
            elif self.is_uniform:
                self._normal = not (0 < self.low < tiny or -tiny < self.high < 0)
            elif self.lower is self.upper:
                one_sign = self.low >= tiny or self.high <= -tiny or self.low == 0 == self.high
                self._normal = one_sign or not _has_subnormal(self.lower, tiny)
            else:
                self._normal = self._has_normal_bounds(tiny)
        return self._normal

    @has_normal_ends.setter
    def has_normal_ends(self, known: bool) -> None:
        self._normal = known

    def _has_normal_bounds(self, tiny: float) -> bool:
        """As `has_normal_ends`. Bounds are often of one sign, which needs no second look."""
        lower, upper = self.lower.detach(), self.upper.detach()
        positive = self.low < tiny and lower.numel() > 0 and lower.max().item() > 0
        if positive and _has_subnormal(lower, tiny):
            return False
        negative = self.high > -tiny and upper.numel() > 0 and upper.min().item() < 0
        return not (negative and _has_subnormal(upper, tiny))

    @property
    def is_anything(self) -> bool:
        """True if nothing is known: [-inf, inf] and NaN, for every element."""
        return self.may_nan and self.is_uniform and self._low == -math.inf == -self._high

    @property
    def magnitude(self) -> Tensor:
        """Largest absolute value per block."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def contains_zero(self) -> bool:
        """True if some element can be exactly 0."""
        if self.low > 0 or self.high < 0:  # an empty tensor too
            return False
        if self.is_uniform:
            return True
        return bool(((self.lower <= 0) & (self.upper >= 0)).any())

    def contains(self, data: Tensor) -> bool:
        """True if concrete data of the bounded tensor's shape lies inside."""
        if data.numel() == 0:
            return True
        if data.dtype.is_floating_point:
            nan = data.isnan()
            if bool(nan.any()) and not self.may_nan:
                return False
            inside = (data >= self.lower) & (data <= self.upper) | nan
        else:
            inside = (data >= self.lower) & (data <= self.upper)
        return bool(inside.all())

    # --- changing --------------------------------------------------------------------------

    def merged(self, keep: Sequence[int] = ()) -> Interval:
        """One bound along every dimension that is not in `keep`."""
        if self._lower is None:
            return self
        blocks, rank = self._lower.shape, len(self.shape)
        kept = {dim % rank for dim in keep} if rank else set()
        dims = tuple(dim for dim in range(rank) if dim not in kept and blocks[dim] > 1)
        if not dims:
            return self
        if not (kept or 0 in self.shape or self._lower.requires_grad):
            if self._low is None:
                self._measure()
            return Interval.uniform(self._low, self._high, self.shape, self.dtype, self.may_nan)
        lower, upper = self.lower.amin(dims, keepdim=True), self.upper.amax(dims, keepdim=True)
        return Interval(lower, upper, self.shape, self.dtype, self.may_nan)

    def limited(self) -> Interval:
        """Merged to channels, then wholly, once there are more than `MERGE_ABOVE` bounds."""
        if self._lower is None or self._lower.numel() <= MERGE_ABOVE or self.is_empty_tensor:
            return self
        by_channel = self.merged(keep=(1,)) if len(self.shape) >= 2 else self.merged()
        return by_channel if by_channel.lower.numel() <= MERGE_ABOVE else by_channel.merged()

    def expanded(self) -> tuple[Tensor, Tensor]:
        """Both bounds broadcast to the full shape (a view, no copy)."""
        return self.lower.expand(self.shape), self.upper.expand(self.shape)

    def hull(self, other: Interval) -> Interval:
        """The smallest interval of the layout that holds both."""
        may_nan = self.may_nan or other.may_nan
        if self._lower is None and other._lower is None and self.dtype == other.dtype:
            low, high = min(self._low, other._low), max(self._high, other._high)
            return Interval.uniform(low, high, self.shape, self.dtype, may_nan)
        return Interval(
            torch.minimum(self.lower, other.lower.to(self.dtype)),
            torch.maximum(self.upper, other.upper.to(self.dtype)),
            self.shape,
            self.dtype,
            may_nan,
        )

    def intersect(self, lower: float = -math.inf, upper: float = math.inf) -> Interval:
        """Cut to [lower, upper]; for facts known to hold. NaN is not cut away."""
        if self._lower is None and self.dtype.is_floating_point:
            if self._low >= lower and self._high <= upper:
                return self
            least, most = round_down(lower, self.dtype), round_up(upper, self.dtype)
            low = min(max(self._low, least), most)
            high = min(max(self._high, least), most)
            return Interval.uniform(low, high, self.shape, self.dtype, self.may_nan)
        return Interval(
            self.lower.clamp(lower, upper),
            self.upper.clamp(lower, upper),
            self.shape,
            self.dtype,
            self.may_nan,
        )

    def with_nan(self, may_nan: bool = True) -> Interval:
        """The same bounds, with NaN possible (or not)."""
        if may_nan == self.may_nan:
            return self
        if self._lower is None:
            return Interval.uniform(self._low, self._high, self.shape, self.dtype, may_nan)
        return Interval(self.lower, self.upper, self.shape, self.dtype, may_nan)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the outermost bounds, not the blocks."""
        return {
            "lower": self.low,
            "upper": self.high,
            "may_nan": self.may_nan,
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def __str__(self) -> str:
        text = f"[{format_number(self.low)}, {format_number(self.high)}]"
        return f"{text} or NaN" if self.may_nan else text

    __repr__ = __str__


def _has_subnormal(bound: Tensor, tiny: float) -> bool:
    """True if a bound lies between 0 and a smallest normal number, looked for in small parts."""
    flat = bound.detach().reshape(-1)
    for part in flat.split(1 << 16) if flat.numel() > 1 << 16 else (flat,):
        size = part.abs()
        if size.numel() and size.amin().item() < tiny and bool(((size > 0) & (size < tiny)).any()):
            return True
    return False


def format_number(value: float) -> str:
    """Short decimal text: four significant digits, integers plain."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def _size_of(data: Tensor) -> Interval:
    """The largest magnitude of complex data, one for all."""
    top = Interval.top(tuple(data.shape), data.dtype)
    if not data.numel():
        return top
    largest = data.to(torch.complex128).abs().max().item() * (1 + 2.0**-40)
    if not largest <= torch.finfo(top.dtype).max:
        return top
    return Interval.full(0.0, largest, top.shape, top.dtype)


# --- rounding ------------------------------------------------------------------------------


@cache
def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of one correctly rounded operation: eps / 2."""
    return torch.finfo(dtype).eps / 2


def gamma(terms: int, dtype: torch.dtype) -> float:
    """Relative error of a sum of `terms` products in any order: n u / (1 - n u).

    References:
        N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, section 3.1.
    """
    product = max(terms, 1) * unit_roundoff(dtype)
    return product / (1 - product) if product < 0.5 else math.inf


def widen(interval: Interval, ulps: int = 4, absolute: float = 0.0) -> Interval:
    """Outward by `ulps` units in the last place and an absolute term.

    For functions that the hardware does not round correctly (exp, log, tanh, erf, ...). A
    widened bound may overflow to infinity, which is then possible. A lower bound of +inf
    becomes the largest number, since overflow itself may come an ulp later elsewhere.
    """
    if not interval.dtype.is_floating_point or interval.is_empty_tensor:
        return interval
    info = torch.finfo(interval.dtype)
    relative = ulps * info.eps
    floor = max(absolute, ulps * info.smallest_normal * info.eps)
    if interval.is_uniform:
        return _widened(interval, relative, floor)
    lower, upper = interval.lower, interval.upper
    low = lower - (lower.abs() * relative + floor)
    high = upper + (upper.abs() * relative + floor)
    return Interval(
        torch.where(lower.isinf(), lower.clamp(max=info.max), low),
        torch.where(upper.isinf(), upper.clamp(min=info.min), high),
        interval.shape,
        interval.dtype,
        interval.may_nan,
    )


def _widened(interval: Interval, relative: float, floor: float) -> Interval:
    low, high, dtype = interval.low, interval.high, interval.dtype
    largest = torch.finfo(dtype).max
    low = min(low, largest) if math.isinf(low) else low - (abs(low) * relative + floor)
    high = max(high, -largest) if math.isinf(high) else high + (abs(high) * relative + floor)
    low, high = round_down(low, dtype), round_up(high, dtype)
    return Interval.uniform(low, high, interval.shape, dtype, interval.may_nan)


def round_down(value: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` that is not above `value`."""
    return _round(value, dtype, math.floor)


def round_up(value: float, dtype: torch.dtype) -> float:
    """The smallest number of `dtype` that is not below `value`."""
    return _round(value, dtype, math.ceil)


def round_nearest(value: float, dtype: torch.dtype) -> float:
    """The number of `dtype` next to `value`, ties to even; infinite beyond the largest."""
    return _round(value, dtype, round)


_FLOAT32 = torch.float32
_FORMATS = {
    torch.float32: (24, -149),
    torch.float16: (11, -24),
    torch.bfloat16: (8, -133),
}
"""Bits of precision, and the exponent of the smallest positive number."""
_SMALLEST_NORMAL = {
    dtype: torch.finfo(dtype).smallest_normal for dtype in (*_FORMATS, torch.float64)
}
_TINY32 = _SMALLEST_NORMAL[_FLOAT32]
_LARGEST = {dtype: torch.finfo(dtype).max for dtype in _FORMATS}


def _round(value: float, dtype: torch.dtype, whole: Callable[[float], float]) -> float:
    if dtype is _FLOAT32:  # by the processor's own rounding, where that is the one asked for
        near = c_float(value).value
        if value == near:
            return value
        if _TINY32 <= abs(near) < math.inf and (
            whole is round or (near < value) is (whole is math.floor)
        ):
            return near
    form = _FORMATS.get(dtype)
    if form is None or value - value != 0.0:  # exact, infinite or NaN
        return value
    largest = _LARGEST[dtype]
    near = min(max(value, -2 * largest), 2 * largest)
    step = max(math.frexp(near)[1] - form[0], form[1])
    rounded = math.ldexp(whole(math.ldexp(near, -step)), step)
    if rounded > largest:
        return largest if whole is math.floor else math.inf
    if rounded < -largest:
        return -largest if whole is math.ceil else -math.inf
    return rounded if rounded else 0.0 * value


def _whole(number: float, dtype: torch.dtype) -> int:
    """An integer bound inside its dtype; floats hold its ends only roughly."""
    if dtype == torch.bool:
        return bool(number)
    limits = torch.iinfo(dtype)
    return int(min(max(number, limits.min), limits.max))


def _into(dtype: torch.dtype, bound: Tensor) -> Tensor:
    """A bound in another dtype; what lies beyond an integer dtype becomes its nearer end."""
    if dtype.is_floating_point or not bound.is_floating_point() or dtype == torch.bool:
        return bound.to(dtype)
    limits = torch.iinfo(dtype)
    inside = bound.to(dtype).masked_fill(bound >= limits.max, limits.max)
    return inside.masked_fill(bound <= limits.min, limits.min)


def _ranked(bound: Tensor, rank: int) -> Tensor:
    """Leading dimensions of size 1 up to `rank`."""
    return (
        bound if bound.dim() >= rank else bound.reshape((1,) * (rank - bound.dim()) + bound.shape)
    )
