"""mpmath as the reference for functions of one number, at the ends of each dtype's range.

Around every special point lies a box of three neighbouring floating-point numbers. mpmath
gives an enclosure of the function at each of them, far narrower than any dtype; rounded to
the dtype it has to lie in the interval of the box.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mpmath
import torch
from mpmath import iv, mp
from torch import Tensor

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.propagate import twin_intervals
from ranum.analysis.transfer.registry import Rule, rule_for

mp.prec = 240
iv.prec = 240

UNDEFINED = "undefined"
"""Stands for NaN among references."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Reference:
    """A function of one number.

    Attributes:
        op: Canonical operator name.
        function: Takes an exact mpmath number; gives a number, an mpmath interval, plus or
            minus infinity, or `UNDEFINED`.
        options: Further arguments of the operator.
        points: Where it does something of its own: turns, poles, ends of its domain.
        dtypes: Those with a CPU kernel.
        second: Another operand's name, and the number that all its elements are, a number of
            every dtype.
    """

    op: str
    function: Callable[[Any], Any]
    options: tuple[tuple[str, Any], ...] = ()
    points: tuple[float, ...] = ()
    dtypes: tuple[torch.dtype, ...] = DTYPES
    second: tuple[str, float] | None = None


def _where(
    condition: Callable[[Any], bool], function: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    return lambda x: function(x) if condition(x) else UNDEFINED


def _log(function: Callable[[Any], Any], pole: float = 0.0) -> Callable[[Any], Any]:
    def value(x: Any) -> Any:
        if x == pole:
            return -mp.inf
        return function(x) if x > pole else UNDEFINED

    return value


def _ended(function: Callable[[Any], Any], at_minus_one: Any, at_one: Any) -> Callable[[Any], Any]:
    def value(x: Any) -> Any:
        if abs(x) > 1:
            return UNDEFINED
        return at_one if x == 1 else at_minus_one if x == -1 else function(x)

    return value


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + mp.exp(-x)) if x > -1e6 else mp.mpf(0)


def _softplus(x: Any) -> Any:
    return x if x > 20 else mp.log1p(mp.exp(x))


def _gelu(x: Any) -> Any:
    return mp.mpf(0) if x < -1e4 else x * mp.ncdf(x)


def _lgamma(x: Any) -> Any:
    if x <= 0 and x == mp.floor(x):
        return mp.inf
    return mp.re(mp.loggamma(x))


def _digamma(x: Any) -> Any:
    return mp.digamma(x) if x else -mp.inf


def _exp(x: Any) -> Any:
    return mp.mpf(0) if x < -1e4 else mp.inf if x > 1e4 else iv.exp(iv.mpf(x))


def _bounded(function: Callable[[Any], Any], limit: float) -> Callable[[Any], Any]:
    """Left out beyond a limit, where mpmath takes forever."""
    return lambda x: function(x) if abs(x) <= limit else None


REFERENCES = (
    Reference("exp", _exp),
    Reference("exp2", lambda x: mp.mpf(0) if x < -1e4 else mp.inf if x > 1e4 else mp.power(2, x)),
    Reference("expm1", lambda x: mp.mpf(-1) if x < -1e4 else mp.inf if x > 1e4 else mp.expm1(x)),
    Reference("log", _log(lambda x: iv.log(iv.mpf(x)))),
    Reference("log2", _log(lambda x: mp.log(x, 2)), points=(0.25, 8.0)),
    Reference("log10", _log(mp.log10), points=(0.1, 10.0, 1000.0)),
    Reference("log1p", _log(mp.log1p, -1.0)),
    Reference("sin", _bounded(lambda x: iv.sin(iv.mpf(x)), 1e30)),
    Reference("cos", _bounded(lambda x: iv.cos(iv.mpf(x)), 1e30)),
    Reference("tan", _bounded(lambda x: iv.tan(iv.mpf(x)), 1e30)),
    Reference("asin", _where(lambda x: abs(x) <= 1, mp.asin)),
    Reference("acos", _where(lambda x: abs(x) <= 1, mp.acos)),
    Reference("atan", mp.atan),
    Reference("sinh", lambda x: mp.sign(x) * mp.inf if abs(x) > 1e4 else mp.sinh(x)),
    Reference("cosh", lambda x: mp.inf if abs(x) > 1e4 else mp.cosh(x)),
    Reference("tanh", lambda x: mp.sign(x) if abs(x) > 1e4 else mp.tanh(x)),
    Reference("asinh", mp.asinh),
    Reference("acosh", _where(lambda x: x >= 1, mp.acosh)),
    Reference("atanh", _ended(mp.atanh, -mp.inf, mp.inf)),
    Reference("erf", lambda x: mp.sign(x) if abs(x) > 1e3 else mp.erf(x)),
    Reference(
        "erfc", lambda x: (mp.mpf(0) if x > 0 else mp.mpf(2)) if abs(x) > 1e3 else mp.erfc(x)
    ),
    Reference("erfinv", _ended(mp.erfinv, -mp.inf, mp.inf)),
    Reference("sqrt", _where(lambda x: x >= 0, lambda x: iv.sqrt(iv.mpf(x)))),
    Reference("rsqrt", lambda x: mp.inf if x == 0 else UNDEFINED if x < 0 else 1 / mp.sqrt(x)),
    Reference("reciprocal", lambda x: mp.inf if x == 0 else 1 / x),
    Reference("square", lambda x: x * x),
    Reference("neg", lambda x: -x),
    Reference("abs", abs),
    Reference("sigmoid", _sigmoid),
    Reference("silu", lambda x: x * _sigmoid(x), points=(-1.2784645, -80.0)),
    Reference(
        "mish", lambda x: x * mp.tanh(_softplus(x)) if x > -1e4 else mp.mpf(0), points=(-1.19,)
    ),
    Reference("gelu", _gelu, points=(-0.7518, -5.0, -13.0)),
    Reference("softplus", _softplus, points=(20.0, -20.0, -80.0)),
    Reference("elu", lambda x: x if x > 0 else mp.expm1(x)),
    Reference("celu", lambda x: x if x > 0 else mp.expm1(x)),
    Reference(
        "hardsigmoid", lambda x: max(mp.mpf(0), min(mp.mpf(6), x + 3)) / 6, points=(-3.0, 3.0)
    ),
    Reference(
        "hardswish",
        lambda x: x * max(mp.mpf(0), min(mp.mpf(6), x + 3)) / 6,
        points=(-3.0, -1.5, 3.0),
    ),
    Reference("relu", lambda x: max(x, mp.mpf(0))),
    Reference("leaky_relu", lambda x: x if x > 0 else x / 4, (("negative_slope", 0.25),)),
    Reference("deg2rad", mp.radians),
    Reference("rad2deg", mp.degrees),
    Reference(
        "logit", lambda x: _ended(lambda y: mp.log((1 + y) / (1 - y)), -mp.inf, mp.inf)(2 * x - 1)
    ),
    Reference("pow", lambda x: x**3, (("exponent", 3),)),
    Reference(
        "pow", _where(lambda x: x >= 0, lambda x: mp.power(x, mp.mpf(1.7))), (("exponent", 1.7),)
    ),
    Reference("pow", lambda x: mp.inf if x == 0 else 1 / x**2, (("exponent", -2),)),
    Reference("lgamma", _bounded(_lgamma, 1e9), points=(1.4616, 2.0, -0.5, -1.0, -1.5)),
    Reference("digamma", _where(lambda x: x >= 0, _bounded(_digamma, 1e9)), points=(1.4616, 2.0)),
    Reference("i0", _bounded(lambda x: mp.besseli(0, x), 700.0), points=(8.0,)),
    Reference("special_i1", _bounded(lambda x: mp.besseli(1, x), 700.0), (), (8.0,), DTYPES[:1]),
    Reference("special_i0e", _bounded(lambda x: mp.besseli(0, x) * mp.exp(-abs(x)), 700.0)),
    Reference(
        "special_i1e",
        _bounded(lambda x: mp.besseli(1, x) * mp.exp(-abs(x)), 700.0),
        (),
        (),
        DTYPES[:1],
    ),
    Reference("special_bessel_j0", _bounded(mp.j0, 1e5), (), (3.8317, 2.4048), DTYPES[:1]),
    Reference("special_bessel_j1", _bounded(mp.j1, 1e5), (), (1.8412,), DTYPES[:1]),
    Reference(
        "special_entr",
        lambda x: -mp.inf if x < 0 else mp.mpf(0) if x == 0 else -x * mp.log(x),
        points=(math.exp(-1),),
    ),
    Reference("special_log_ndtr", _bounded(lambda x: mp.log(mp.ncdf(x)), 1e3), (), (), DTYPES[:1]),
    Reference(
        "special_ndtri",
        lambda x: _ended(lambda y: mp.sqrt(2) * mp.erfinv(y), -mp.inf, mp.inf)(2 * x - 1),
        (),
        (),
        DTYPES[:1],
    ),
    Reference("sinc", _bounded(mp.sincpi, 1e30)),
)


def _clamped(low: float, high: float) -> Callable[[Any], Any]:
    return lambda x: min(max(x, mp.mpf(low)), mp.mpf(high))


def _shrunk(x: Any, by: float) -> Any:
    return mp.sign(x) * max(abs(x) - by, mp.mpf(0))


def _tanh_gelu(x: Any) -> Any:
    inner = mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)
    return x if x > 100 else mp.mpf(0) if x < -100 else x / 2 * (1 + mp.tanh(inner))


def _erfcx(x: Any) -> Any:
    if x > 1e3:
        return 1 / (x * mp.sqrt(mp.pi)) * (1 - 1 / (2 * x * x))
    return mp.inf if x < -1e3 else mp.exp(x * x) * mp.erfc(x)


def _bessel_k(order: int, scaled: bool) -> Callable[[Any], Any]:
    """On (0, 100]: at 0 it is infinite, far away mpmath takes long."""

    def value(x: Any) -> Any:
        with mpmath.workprec(80):
            return mp.besselk(order, x) * (mp.exp(x) if scaled else 1)

    return _above_zero(_bounded(value, 100.0))


def _above_zero(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Left out at 0 and below, where signs of zeros, or conventions, decide."""
    return lambda x: function(x) if x > 0 else None


def _log_of_exps(x: Any, base: Any, other: float) -> Any:
    first, second = max(x, mp.mpf(other)), min(x, mp.mpf(other))
    gap = (second - first) * mp.log(base)
    return first if gap < -1e4 else first + mp.log1p(mp.exp(gap)) / mp.log(base)


_WIDE = (torch.float32,)
_SMALL = 1e30

REFERENCES += (
    Reference("sign", mp.sign),
    Reference("sgn", mp.sign),
    Reference("floor", mp.floor, points=(1.5, 2.5)),
    Reference("ceil", mp.ceil, points=(1.5, 2.5)),
    Reference("trunc", lambda x: mp.sign(x) * mp.floor(abs(x)), points=(1.5, 2.5)),
    Reference("round", mp.nint, points=(0.5, 1.5, 2.5, -2.5)),
    Reference("frac", lambda x: x - mp.sign(x) * mp.floor(abs(x)), points=(1.5, -1.5)),
    Reference("relu6", _clamped(0, 6)),
    Reference("hardtanh", _clamped(-1, 1)),
    Reference("clamp", _clamped(-0.5, 2), (("min", -0.5), ("max", 2.0))),
    Reference("clamp_min", lambda x: max(x, mp.mpf(0.25)), (("min", 0.25),)),
    Reference("clamp_max", lambda x: min(x, mp.mpf(0.25)), (("max", 0.25),)),
    Reference("hardshrink", lambda x: x if abs(x) > 0.5 else mp.mpf(0), (("lambd", 0.5),)),
    Reference("softshrink", lambda x: _shrunk(x, 0.5), (("lambd", 0.5),)),
    Reference(
        "log_sigmoid_forward", lambda x: x if x < -1e4 else -mp.log1p(mp.exp(-x)), points=(-80.0,)
    ),
    Reference("gelu", _tanh_gelu, (("approximate", "tanh"),), (-0.7525, -5.0)),
    Reference(
        "softplus",
        lambda x: x if 2 * x > 20 else mp.log1p(mp.exp(2 * x)) / 2,
        (("beta", 2),),
        (10.0, -40.0),
    ),
    Reference("elu", lambda x: x if x > 0 else 2 * mp.expm1(x), (("alpha", 2.0),)),
    Reference("pow", lambda x: x * x, (("exponent", 2),)),
    Reference("pow", _where(lambda x: x >= 0, mp.sqrt), (("exponent", 0.5),)),
    Reference("polygamma", _above_zero(_bounded(lambda x: mp.polygamma(1, x), 1e9)), (("n", 1),)),
    Reference("polygamma", _above_zero(_bounded(lambda x: mp.polygamma(2, x), 1e9)), (("n", 2),)),
    Reference("special_erfcx", _erfcx, dtypes=_WIDE),
    Reference("special_airy_ai", _bounded(mp.airyai, 20.0), points=(-1.0188,), dtypes=_WIDE),
    Reference(
        "special_modified_bessel_i0", _bounded(lambda x: mp.besseli(0, x), 700.0), dtypes=_WIDE
    ),
    Reference(
        "special_modified_bessel_i1", _bounded(lambda x: mp.besseli(1, x), 700.0), dtypes=_WIDE
    ),
    Reference("special_modified_bessel_k0", _bessel_k(0, False), dtypes=_WIDE),
    Reference("special_modified_bessel_k1", _bessel_k(1, False), dtypes=_WIDE),
    Reference("special_scaled_modified_bessel_k0", _bessel_k(0, True), dtypes=_WIDE),
    Reference("special_scaled_modified_bessel_k1", _bessel_k(1, True), dtypes=_WIDE),
    Reference("special_xlog1py", lambda x: x * mp.log1p(mp.mpf(3)), second=("other", 3.0)),
    Reference("xlogy", lambda x: x * mp.log(3), second=("other", 3.0)),
    Reference("logaddexp", lambda x: _log_of_exps(x, mp.e, 3.0), second=("other", 3.0)),
    Reference("logaddexp2", lambda x: _log_of_exps(x, 2, 3.0), second=("other", 3.0)),
    Reference("hypot", lambda x: mp.sqrt(x * x + 9), second=("other", 3.0)),
    Reference("atan2", lambda x: mp.atan2(x, 3), second=("other", 3.0)),
    Reference("atan2", lambda x: None if x == 0 else mp.atan2(x, -3), second=("other", -3.0)),
    Reference("copysign", lambda x: -abs(x), second=("other", -3.0)),
    Reference("add", lambda x: x + mp.mpf(0.75), second=("other", 0.75)),
    Reference("sub", lambda x: x - mp.mpf(0.75), second=("other", 0.75)),
    Reference("rsub", lambda x: mp.mpf(0.75) - x, second=("other", 0.75)),
    Reference("mul", lambda x: x * mp.mpf(-2.5), second=("other", -2.5)),
    Reference("div", lambda x: x / mp.mpf(-2.5), second=("other", -2.5)),
    Reference(
        "remainder", _bounded(lambda x: x - 3 * mp.floor(x / 3), _SMALL), second=("other", 3.0)
    ),
    Reference(
        "fmod",
        _bounded(lambda x: mp.sign(x) * (abs(x) - 3 * mp.floor(abs(x) / 3)), _SMALL),
        second=("other", 3.0),
    ),
    Reference("maximum", lambda x: max(x, mp.mpf(0.75)), second=("other", 0.75)),
    Reference("minimum", lambda x: min(x, mp.mpf(0.75)), second=("other", 0.75)),
    Reference("pow", _above_zero(lambda x: mp.power(x, mp.mpf(0.75))), second=("exponent", 0.75)),
)


def special_points(dtype: torch.dtype) -> list[float]:
    """Limits, overflow thresholds of exponentials, subnormal numbers, sign changes, poles."""
    info = torch.finfo(dtype)
    tiny = info.smallest_normal * info.eps
    sizes = [0.0, tiny, 3 * tiny, info.smallest_normal, info.eps, 0.25, 0.5, 1.0, 1 + info.eps]
    sizes += [1 - info.eps / 2, math.pi / 2, math.pi, math.e, 2.0, 3.0, 6.0, 10.0, 17.0, 100.0]
    sizes += [1000.0, 1e4, math.sqrt(info.max), info.max, info.max / 2]
    sizes += [math.log(info.max), math.log2(info.max), -math.log(tiny), -math.log2(tiny)]
    sizes += [math.log(info.max) + math.log(2), math.sqrt(-math.log(tiny)), -math.log(info.eps)]
    return [number for size in sizes for number in (size, -size)]


def boxes(reference: Reference, dtype: torch.dtype) -> Iterator[Tensor]:
    """Three neighbouring numbers of a dtype around every point."""
    points = torch.tensor([*special_points(dtype), *reference.points], dtype=torch.float64)
    middle = points.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype).unique()
    below = torch.nextafter(middle, torch.full_like(middle, -math.inf))
    above = torch.nextafter(middle, torch.full_like(middle, math.inf))
    for row in torch.stack([below, middle, above], 1):
        if bool(row.isfinite().all()):
            yield row


def rounded(value: Any, dtype: torch.dtype) -> list[float]:
    """Both ends of an enclosure, each rounded to the nearest number of a dtype."""
    ends = (value.a, value.b) if isinstance(value, type(iv.mpf(0))) else (value, value)
    numbers = [float(mp.mpf(end)) for end in ends]
    return torch.tensor(numbers, dtype=torch.float64).to(dtype).tolist()


def faults(reference: Reference, dtype: torch.dtype) -> Iterator[str]:
    """Where the interval of a box misses the function's value at one of its numbers."""
    rule = rule_for(reference.op)
    assert rule is not None
    rows = list(boxes(reference, dtype))
    lower, upper = torch.stack([row[0] for row in rows]), torch.stack([row[2] for row in rows])
    shape = (len(rows),)
    blocks = _first(rule, Interval(lower, upper, shape, dtype), reference)
    low, high = blocks.expanded()
    out = Value(index=0, shape=(1,), dtype=dtype)
    for place, row in enumerate(rows):
        found = [(low[place].item(), high[place].item(), blocks.may_nan)]
        box = Interval.between(row[0].item(), row[2].item(), (1,), dtype)
        alone = _first(rule, box, reference)
        found.append((alone.low, alone.high, alone.may_nan))
        if rule.twin is not None:
            arguments = {"x": box, **_others(reference, box)}
            twins = twin_intervals(rule.twin, arguments, [out], whole=False)
            found += [(item.low, item.high, item.may_nan) for item in twins or ()]
        for x in row.tolist():
            yield from _missed(reference, dtype, x, found)


def _first(rule: Rule, x: Interval, reference: Reference) -> Interval:
    """The interval of the first output."""
    outputs = rule.function(x=x, **_others(reference, x))
    first: Interval | None = outputs[0] if isinstance(outputs, tuple) else outputs
    return Interval.top(x.shape, x.dtype) if first is None else first


def _others(reference: Reference, x: Interval) -> dict[str, Any]:
    """Arguments besides the operand."""
    options = dict(reference.options)
    if reference.second is not None:
        name, number = reference.second
        options[name] = Interval.full(number, number, x.shape, x.dtype)
    return options


def _missed(
    reference: Reference, dtype: torch.dtype, x: float, found: list[tuple[float, float, bool]]
) -> Iterator[str]:
    with mpmath.workprec(240):
        value = reference.function(mp.mpf(x))
    if value is None:
        return
    for low, high, may_nan in found:
        if value is UNDEFINED:
            if not may_nan:
                yield f"{reference.op}({x!r}) in {dtype}: NaN is not allowed for"
            continue
        for number in rounded(value, dtype):
            if not low <= number <= high:
                yield f"{reference.op}({x!r}) in {dtype}: {number!r} outside [{low!r}, {high!r}]"
