"""Complex numbers: one bound on |z| per tensor.

An operator with a complex operand or result is bounded by a rule of its own. It gets the values
it makes and, in place of every tensor, the largest magnitude of its elements; it gives one pair
of bounds for all outputs: (0, most) on |z| where an output is complex, on the number itself where
it is real.

Real and imaginary part are at most |z|; a real operand has the magnitude of its numbers. Each
operation rounds both parts, so that |z| moves by a few units in the last place.

There is no rule for quotients, nor for z / |z| (`sgn`, in the gradient of `abs`): torch's kernel
for single numbers gives Inf and NaN where |z| is subnormal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval

Pair: TypeAlias = tuple[float, float]
Outputs: TypeAlias = Sequence[Value | None]
Rule: TypeAlias = Callable[..., Any]

RULES: dict[str, Rule] = {}


class Endless(Exception):  # noqa: N818 - a way out, not a fault
    """An operand is not finite, or a result may overflow: it can be anything."""


class Unbounded(Exception):  # noqa: N818
    """Nothing is known of this case."""


def magnitude(*ops: str) -> Callable[[Rule], Rule]:
    """Registers a rule for operators on complex numbers."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


class Size(float):
    """The largest magnitude of a tensor's elements, and its shape."""

    shape: tuple[int, ...]

    @staticmethod
    def of(x: Interval) -> Size:
        """Of a finite interval; NaN and infinities have no bound."""
        if x.dtype.is_floating_point and not (x.is_finite or x.is_empty_tensor):
            raise Endless
        size = Size(0.0 if x.is_empty_tensor else max(-x.low, x.high))
        size.shape = x.shape
        return size


def bounded(rule: Rule, arguments: Mapping[str, Any], values: Outputs) -> list[Interval] | None:
    """The output intervals of an operator on complex numbers; None if nothing is known of them."""
    try:
        pair = rule(values, **{name: _sizes(item) for name, item in arguments.items()})
        return [_interval(pair, value) for value in values]
    except (Endless, OverflowError):
        return [
            Interval.top(() if value is None else value.shape, _real(value)) for value in values
        ]
    except Unbounded:
        return None


def _real(value: Value | None) -> torch.dtype:
    return torch.float32 if value is None else value.dtype


def _sizes(argument: Any) -> Any:
    """A `Size` in place of every interval."""
    if isinstance(argument, (list, tuple)):
        return type(argument)(_sizes(item) for item in argument)
    return Size.of(argument) if isinstance(argument, Interval) else argument


def _interval(pair: Pair, value: Value | None) -> Interval:
    """Rounded outward by a few units, for a result far from the limits of its dtype."""
    if value is None:
        return Interval.full(0, 0, (), torch.float32)
    if not (value.dtype.is_floating_point or value.dtype.is_complex):
        raise Unbounded
    info, slack = torch.finfo(value.dtype), 32 * _unit([value])
    low = pair[0] - slack * abs(pair[0]) - 32 * info.smallest_normal
    high = pair[1] + slack * abs(pair[1]) + 32 * info.smallest_normal
    if not max(-low, high) < info.max / 64:
        raise Endless
    dtype = Interval.top((), value.dtype).dtype
    return Interval.full(0.0 if value.dtype.is_complex else low, high, value.shape, dtype)


def _unit(values: Outputs) -> float:
    """The largest unit roundoff of the outputs."""
    dtypes = [value.dtype for value in values if value is not None]
    return max((torch.finfo(dtype).eps / 2 for dtype in dtypes), default=0.0)


def _both_signs(most: float) -> Pair:
    return -most, most


# --- between real and complex --------------------------------------------------------------


@magnitude(
    "identity", "reshape", "permute", "expand", "slice", "select", "copy", "cast", "flip", "roll",
    "squeeze", "unsqueeze", "diagonal", "index_select", "gather", "index", "neg", "_conj",
    "_conj_physical", "conj_physical", "real", "imag", "_neg_view", "resolve_conj", "repeat",
    "slice_backward", "select_backward", "diagonal_backward", "constant_pad_nd", "tril", "triu",
    "diag_embed", "as_strided", "_to_copy",
)  # fmt: skip
def moved(
    out: Outputs,
    x: float = 0.0,
    grad_output: float = 0.0,
    src: float = 0.0,
    value: complex = 0.0,
    **_: Any,
) -> Pair:
    """Elements in other places, negated, conjugated, one part of them, or beside a number."""
    return _both_signs(max(x, grad_output, src, abs(value)))


@magnitude("join", "cat", "stack", "where", "masked_fill", "slice_scatter", "select_scatter",
           "diagonal_scatter")  # fmt: skip
def joined(
    out: Outputs,
    x: Any = 0.0,
    other: Any = 0.0,
    src: float = 0.0,
    value: complex = 0.0,
    tensors: Sequence[float] = (),
    values: Sequence[float] = (),
    **_: Any,
) -> Pair:
    """Elements of several tensors."""
    return _both_signs(max(*map(abs, (x, other, src, value)), *tensors, *values))


@magnitude("view_as_real")
def view_as_real(out: Outputs, x: float) -> Pair:
    """Both parts, each at most |z|."""
    return -x, x


@magnitude("view_as_complex")
def view_as_complex(out: Outputs, x: float) -> Pair:
    """|a + bi| <= sqrt(2) max(|a|, |b|)."""
    return 0.0, math.sqrt(2) * x


@magnitude("complex")
def complex_(out: Outputs, real: float, imag: float) -> Pair:
    """|a + bi| = hypot(a, b)."""
    return 0.0, math.hypot(real, imag)


@magnitude("polar")
def polar(out: Outputs, abs: float, angle: float) -> Pair:
    """|r exp(i phi)| = |r|."""
    return 0.0, abs


@magnitude("abs")
def abs_(out: Outputs, x: float) -> Pair:
    """|z|."""
    return 0.0, x


@magnitude("angle")
def angle(out: Outputs, x: float) -> Pair:
    """In [-pi, pi]."""
    return -math.pi, math.pi


# --- arithmetic ----------------------------------------------------------------------------


@magnitude("add", "sub", "rsub")
def add(out: Outputs, x: Any, other: Any, alpha: Any = 1) -> Pair:
    """No larger than |a| + |b|."""
    return _both_signs((abs(x) + abs(other)) * max(abs(alpha), 1))


@magnitude("sum", "mean")
def sum_(out: Outputs, x: Size, **_: Any) -> Pair:
    """At most n |z|, in any order; a mean is made of the sum."""
    return _sum_of(math.prod(x.shape), x, out)


@magnitude("mm", "bmm")
def mm(out: Outputs, x: Size, mat2: Size) -> Pair:
    """K products."""
    return _sum_of(2 * x.shape[-1], x * mat2, out)


def _sum_of(terms: int, size: float, out: Outputs) -> Pair:
    return _both_signs(terms * size * math.exp(4 * (terms + 8) * _unit(out)))


@magnitude("mul")
def mul(out: Outputs, x: Any, other: Any) -> Pair:
    """|a b| = |a| |b|; all four products of parts are no larger."""
    return _both_signs(abs(x) * abs(other))


@magnitude("div")
def div(out: Outputs, x: Any, other: Any, **_: Any) -> Pair:
    """By a number; quotients of tensors are not bounded."""
    if isinstance(other, Size) or other == 0:
        raise Unbounded
    return _both_signs(abs(x) / abs(other))


@magnitude("exp")
def exp(out: Outputs, x: float) -> Pair:
    """At most e to the power of |z|."""
    return _both_signs(math.exp(x) * (1 + 16 * (x + 1) * _unit(out)))


# --- Fourier -------------------------------------------------------------------------------

_SCALES: tuple[Callable[[int], float], ...] = (lambda n: 1.0, math.sqrt, float)
"""By how much a transform of n points is divided, by ATen's number for it."""


def _transformed(out: Outputs, size: float, points: int, normalization: int) -> Pair:
    """At most the sum over all points; the factors of unit size are rounded at each level."""
    whole = size * points * (1 + 64 * _unit(out) * (math.log2(max(points, 2)) + 4))
    # On the way, lengths that are large primes go through a convolution.
    limits = [torch.finfo(value.dtype).max for value in out if value is not None]
    if not whole * points < min(limits, default=0.0) / 64:
        raise Endless
    return _both_signs(whole / _SCALES[normalization](max(points, 1)))


def _points(shape: Sequence[int], dim: Sequence[int]) -> int:
    return math.prod(shape[d] for d in dim)


@magnitude("_fft_c2c", "_fft_r2c")
def fft(out: Outputs, x: Size, dim: Sequence[int], normalization: int, **_: Any) -> Pair:
    """|sum z_k w^k| <= n max |z|, over sqrt(n) or n where it is normalised so."""
    return _transformed(out, x, _points(x.shape, dim), normalization)


@magnitude("_fft_c2r")
def fft_c2r(out: Outputs, x: Size, dim: Sequence[int], normalization: int, **_: Any) -> Pair:
    """Real, from the half of a spectrum that is taken to be symmetric."""
    whole = out[0].shape if out[0] is not None else x.shape
    return _transformed(out, x, _points(whole, dim), normalization)
