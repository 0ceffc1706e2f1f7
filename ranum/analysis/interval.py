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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MERGE_ABOVE = 1 << 16
"""Results with more bound elements than this are merged to one bound per channel (dim 1)."""


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """Bounds on every element of a tensor.

    Attributes:
        lower: Lower bounds, rank of `shape`, each dimension full or 1.
        upper: Upper bounds, same layout as `lower`. `lower is upper` marks exact data.
        shape: Shape of the bounded tensor.
        dtype: Element type of the bounded tensor; the bounds have it too.
        may_nan: True if an element can be NaN.
    """

    lower: Tensor
    upper: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    may_nan: bool = False

    # --- making ----------------------------------------------------------------------------

    @staticmethod
    def point(data: Tensor) -> Interval:
        """The exact interval of known data, `[...]` any shape; NaN elements become anything."""
        data = data.detach()
        if data.dtype.is_complex:
            return Interval.top(tuple(data.shape), data.dtype)
        if data.dtype.is_floating_point:
            nan = data.isnan()
            if bool(nan.any()):
                lower = data.masked_fill(nan, -math.inf)
                upper = data.masked_fill(nan, math.inf)
                return Interval(lower, upper, tuple(data.shape), data.dtype, may_nan=True)
        return Interval(data, data, tuple(data.shape), data.dtype)

    @staticmethod
    def between(
        lower: Any, upper: Any, shape: Sequence[int], dtype: torch.dtype, may_nan: bool = False
    ) -> Interval:
        """An interval from numbers or tensors that broadcast to `shape`.

        NaN bounds, the sign of a rule that met inf - inf, become [-inf, inf] with `may_nan`.
        """
        low = _ranked(torch.as_tensor(lower), len(shape)).to(dtype)
        high = _ranked(torch.as_tensor(upper), len(shape)).to(dtype)
        low, high = torch.broadcast_tensors(low, high)
        if dtype.is_floating_point:
            bad = low.isnan() | high.isnan()
            if bool(bad.any()):
                low = low.masked_fill(bad, -math.inf)
                high = high.masked_fill(bad, math.inf)
                may_nan = True
        return Interval(low, high, tuple(shape), dtype, may_nan)

    @staticmethod
    def full(
        lower: float, upper: float, shape: Sequence[int], dtype: torch.dtype, device: Any = None
    ) -> Interval:
        """One pair of numbers for all elements, rounded outward into `dtype`."""
        ones = (1,) * len(shape)
        low, high = round_down(lower, dtype), round_up(upper, dtype)
        return Interval(
            torch.full(ones, low, dtype=dtype, device=device),
            torch.full(ones, high, dtype=dtype, device=device),
            tuple(shape),
            dtype,
        )

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
        ones = (1,) * len(shape)
        return Interval(
            torch.full(ones, -math.inf, dtype=dtype),
            torch.full(ones, math.inf, dtype=dtype),
            tuple(shape),
            dtype,
            may_nan=True,
        )

    # --- asking ----------------------------------------------------------------------------

    @property
    def is_point(self) -> bool:
        """True if the exact data is known."""
        return self.lower is self.upper and self.lower.shape == self.shape

    @property
    def is_empty_tensor(self) -> bool:
        """True if the bounded tensor has no elements."""
        return 0 in self.shape

    @property
    def low(self) -> float:
        """Smallest lower bound over all elements; inf for an empty tensor."""
        return math.inf if self.is_empty_tensor else float(self.lower.min())

    @property
    def high(self) -> float:
        """Largest upper bound over all elements; -inf for an empty tensor."""
        return -math.inf if self.is_empty_tensor else float(self.upper.max())

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
        return not (self.may_nan or self.may_inf)

    @property
    def magnitude(self) -> Tensor:
        """Largest absolute value per block."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def contains_zero(self) -> bool:
        """True if some element can be exactly 0."""
        crossing = (self.lower <= 0) & (self.upper >= 0)
        return not self.is_empty_tensor and bool(crossing.any())

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
        kept = {dim % len(self.shape) for dim in keep} if self.shape else set()
        dims = tuple(
            dim for dim in range(len(self.shape)) if dim not in kept and self.lower.shape[dim] > 1
        )
        if not dims:
            return self
        return Interval(
            self.lower.amin(dims, keepdim=True),
            self.upper.amax(dims, keepdim=True),
            self.shape,
            self.dtype,
            self.may_nan,
        )

    def limited(self) -> Interval:
        """Merged to channels, then wholly, once there are more than `MERGE_ABOVE` bounds."""
        if self.lower.numel() <= MERGE_ABOVE or self.is_empty_tensor:
            return self
        by_channel = self.merged(keep=(1,)) if len(self.shape) >= 2 else self.merged()
        return by_channel if by_channel.lower.numel() <= MERGE_ABOVE else by_channel.merged()

    def expanded(self) -> tuple[Tensor, Tensor]:
        """Both bounds broadcast to the full shape (a view, no copy)."""
        return self.lower.expand(self.shape), self.upper.expand(self.shape)

    def hull(self, other: Interval) -> Interval:
        """The smallest interval of the layout that holds both."""
        return Interval(
            torch.minimum(self.lower, other.lower.to(self.dtype)),
            torch.maximum(self.upper, other.upper.to(self.dtype)),
            self.shape,
            self.dtype,
            self.may_nan or other.may_nan,
        )

    def intersect(self, lower: float = -math.inf, upper: float = math.inf) -> Interval:
        """Cut to [lower, upper]; for facts known to hold. NaN is not cut away."""
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


def format_number(value: float) -> str:
    """Short decimal text: four significant digits, integers plain."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


# --- rounding ------------------------------------------------------------------------------


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


def round_down(value: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` that is not above `value`."""
    return _round(value, dtype, -math.inf)


def round_up(value: float, dtype: torch.dtype) -> float:
    """The smallest number of `dtype` that is not below `value`."""
    return _round(value, dtype, math.inf)


def _round(value: float, dtype: torch.dtype, towards: float) -> float:
    if not dtype.is_floating_point or math.isinf(value):
        return value
    if value == int(value) and abs(value) <= 256:  # exact in every dtype
        return value
    rounded = torch.tensor(value, dtype=dtype)
    wrong = float(rounded) > value if towards < 0 else float(rounded) < value
    if wrong:
        rounded = torch.nextafter(rounded, torch.tensor(towards, dtype=dtype))
    return float(rounded)


def _ranked(bound: Tensor, rank: int) -> Tensor:
    """Leading dimensions of size 1 up to `rank`."""
    return (
        bound if bound.dim() >= rank else bound.reshape((1,) * (rank - bound.dim()) + bound.shape)
    )
