"""Arithmetic and functions of single elements.

Where TensorFlow's gradient differs from torch's, the expression here has TensorFlow's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.tensorflow.gradients import (
    Angle,
    ByResult,
    GuardedPower,
    Maximum,
    Minimum,
    MultiplyNoNan,
    XDividedByY,
    XLogY,
    applied,
    reciprocal_gradient,
    rsqrt_gradient,
    sqrt_gradient,
)
from ranum.analysis.capture.tensorflow.machine import Call
from ranum.analysis.capture.tensorflow.values import DTYPES


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Call, Tensor], Tensor]:
    return lambda call, x: function(x)


def _by_result(
    function: Callable[[Tensor], Tensor], derive: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Call, Tensor], Tensor]:
    return lambda call, x: applied(ByResult, function, derive, x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call, Tensor, Tensor], Any]:
    return lambda call, x, y: function(x, y)


def scalar(call: Call, position: int, operand: Tensor) -> float | int | None:
    """The number that an operand always is: a constant with one element, of no dimension."""
    if call.constant[position] and operand.dim() == 0:
        number: float | int = operand.item()
        return number
    return None


def add_n(call: Call, *terms: Tensor) -> Tensor:
    """The sum of tensors of one shape, from the left."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def square(call: Call, x: Tensor) -> Tensor:
    """X * x."""
    return x * x


def squared_difference(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """(x - y)²."""
    difference = x - y
    return difference * difference


def divide(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """X / y; integers round towards zero."""
    if x.dtype.is_floating_point or x.dtype.is_complex:
        return x / y
    return torch.div(x, y, rounding_mode="trunc")


def divide_no_nan(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """X / y, and 0 where y = 0, with gradients that are 0 there too."""
    if call.constant[1] and bool((y != 0).all()):
        return x / y
    empty = y == 0
    quotient = x / torch.where(empty, torch.ones_like(y), y)
    return torch.where(empty, torch.zeros_like(quotient), quotient)


def multiply_no_nan(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """X y, and 0 where y = 0 whatever x is."""
    return applied(MultiplyNoNan, x, y)


def power(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """X ** y, with TensorFlow's gradients: y x ** (y - 1), and 0 for y where x <= 0."""
    if not (x.dtype.is_floating_point or x.dtype.is_complex):
        return torch.pow(x, y)
    exponent = scalar(call, 1, y)
    if exponent is not None and exponent != 0:
        return torch.pow(x, exponent)
    return applied(GuardedPower, x, y)


def maximum(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """The larger one; the gradient of a tie goes to x."""
    floor = scalar(call, 1, y)
    if floor is not None and _is_number(floor):
        return torch.clamp_min(x, floor)
    return applied(Maximum, x, y)


def minimum(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """The smaller one; the gradient of a tie goes to x."""
    ceiling = scalar(call, 1, y)
    if ceiling is not None and _is_number(ceiling):
        return torch.clamp_max(x, ceiling)
    return applied(Minimum, x, y)


def _is_number(number: float) -> bool:
    return not math.isnan(number)


def clip(call: Call, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """`ClipByValue`."""
    return torch.clamp(x, lower, upper)


def floor_modulo(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """The remainder with the divisor's sign."""
    return torch.remainder(x, y)


def truncated_modulo(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """The remainder with the dividend's sign."""
    return torch.fmod(x, y)


def floor_divide(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """floor(x / y), without gradients."""
    return torch.div(x.detach(), y.detach(), rounding_mode="floor")


def truncated_divide(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """X / y rounded towards zero, without gradients."""
    return torch.div(x.detach(), y.detach(), rounding_mode="trunc")


def rounded(function: Callable[[Tensor], Tensor]) -> Callable[[Call, Tensor], Tensor]:
    """A step function, without gradients; integers are left as they are."""

    def lower(call: Call, x: Tensor) -> Tensor:
        return function(x.detach()) if x.dtype.is_floating_point else x

    return lower


def x_log_y(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """X log(y), and 0 where x = 0."""
    return applied(XLogY, x, y)


def x_log1p_y(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """X log(1 + y), and 0 where x = 0."""
    empty = x == 0
    logarithm = torch.log1p(torch.where(empty, torch.ones_like(y), y))
    return torch.where(empty, torch.zeros_like(logarithm), x * logarithm)


def x_divided_by_y(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """X / y, and 0 where x = 0."""
    return applied(XDividedByY, x, y)


def cast(call: Call, x: Tensor) -> Tensor:
    """Another element type."""
    return x.to(DTYPES[call["DstT"]])


def bitcast(call: Call, x: Tensor) -> Tensor:
    """The same bytes as another element type; of another size, in one dimension more or less."""
    dtype = DTYPES[call["type"]]
    if dtype.itemsize == x.dtype.itemsize:
        return x.view(dtype)
    if dtype.itemsize < x.dtype.itemsize:
        return x.unsqueeze(-1).contiguous().view(dtype)
    return x.contiguous().view(dtype).squeeze(-1)


def approximately_equal(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """|x - y| < tolerance."""
    result: Tensor = (x - y).abs() < call.get("tolerance", 1e-5)
    return result


def complex_parts(call: Call, real: Tensor, imaginary: Tensor) -> Tensor:
    """Real + i imaginary."""
    return torch.complex(real, imaginary)


def select(call: Call, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`SelectV2`: x where the condition holds, else y."""
    return torch.where(condition, x, y)


def select_rows(call: Call, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`Select`: a condition `[n]` chooses whole rows of x and y."""
    if 0 < condition.dim() < x.dim():
        condition = condition.reshape(-1, *[1] * (x.dim() - 1))
    return torch.where(condition, x, y)


def _from_output(
    function: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Call, Tensor, Tensor], Tensor]:
    """A gradient operator, which is given the forward result y and the upstream gradient."""
    return lambda call, y, gradient: function(y, gradient)


LOWERINGS: dict[str, Callable[..., Any]] = {
    "Abs": _unary(torch.abs),
    "ComplexAbs": _unary(torch.abs),
    "Acos": _unary(torch.acos),
    "Acosh": _unary(torch.acosh),
    "Add": _binary(torch.add),
    "AddN": add_n,
    "AddV2": _binary(torch.add),
    "ApproximateEqual": approximately_equal,
    "Asin": _unary(torch.asin),
    "Asinh": _unary(torch.asinh),
    "Atan": _unary(torch.atan),
    "Atan2": _binary(lambda y, x: applied(Angle, y, x)),
    "Atanh": _unary(torch.atanh),
    "BesselI0": _unary(torch.special.i0),
    "BesselI0e": _unary(torch.special.i0e),
    "BesselI1": _unary(torch.special.i1),
    "BesselI1e": _unary(torch.special.i1e),
    "Bitcast": bitcast,
    "BitwiseAnd": _binary(torch.bitwise_and),
    "BitwiseOr": _binary(torch.bitwise_or),
    "BitwiseXor": _binary(torch.bitwise_xor),
    "Cast": cast,
    "Ceil": rounded(torch.ceil),
    "ClipByValue": clip,
    "Complex": complex_parts,
    "Conj": _unary(lambda x: torch.conj_physical(x) if x.dtype.is_complex else x),
    "Cos": _unary(torch.cos),
    "Cosh": _unary(torch.cosh),
    "Digamma": _unary(torch.digamma),
    "Div": divide,
    "DivNoNan": divide_no_nan,
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Erfc": _unary(torch.erfc),
    "Erfinv": _unary(torch.erfinv),
    "Exp": _unary(torch.exp),
    "Expm1": _unary(torch.expm1),
    "Floor": rounded(torch.floor),
    "FloorDiv": floor_divide,
    "FloorMod": floor_modulo,
    "Greater": _binary(torch.gt),
    "GreaterEqual": _binary(torch.ge),
    "Igamma": _binary(torch.special.gammainc),
    "Igammac": _binary(torch.special.gammaincc),
    "Imag": _unary(torch.imag),
    "Inv": _by_result(torch.reciprocal, reciprocal_gradient),
    "InvGrad": _from_output(reciprocal_gradient),
    "Invert": _unary(torch.bitwise_not),
    "IsFinite": _unary(torch.isfinite),
    "IsInf": _unary(torch.isinf),
    "IsNan": _unary(torch.isnan),
    "LeftShift": _binary(torch.bitwise_left_shift),
    "Less": _binary(torch.lt),
    "LessEqual": _binary(torch.le),
    "Lgamma": _unary(torch.lgamma),
    "Log": _unary(torch.log),
    "Log1p": _unary(torch.log1p),
    "LogicalAnd": _binary(torch.logical_and),
    "LogicalNot": _unary(torch.logical_not),
    "LogicalOr": _binary(torch.logical_or),
    "Maximum": maximum,
    "Minimum": minimum,
    "Mod": truncated_modulo,
    "Mul": _binary(torch.mul),
    "MulNoNan": multiply_no_nan,
    "Ndtri": _unary(torch.special.ndtri),
    "Neg": _unary(torch.neg),
    "NextAfter": _binary(lambda x, y: torch.nextafter(x.detach(), y.detach())),
    "NotEqual": _binary(torch.ne),
    "Pow": power,
    "Real": _unary(lambda x: torch.real(x) if x.dtype.is_complex else x),
    "RealDiv": divide,
    "Reciprocal": _by_result(torch.reciprocal, reciprocal_gradient),
    "ReciprocalGrad": _from_output(reciprocal_gradient),
    "RightShift": _binary(torch.bitwise_right_shift),
    "Rint": rounded(torch.round),
    "Round": rounded(torch.round),
    "Rsqrt": _by_result(torch.rsqrt, rsqrt_gradient),
    "RsqrtGrad": _from_output(rsqrt_gradient),
    "Select": select_rows,
    "SelectV2": select,
    "Sigmoid": _unary(torch.sigmoid),
    "SigmoidGrad": _from_output(lambda y, gradient: gradient * y * (1 - y)),
    "Sign": _unary(lambda x: torch.sgn(x.detach())),
    "Sin": _unary(torch.sin),
    "Sinh": _unary(torch.sinh),
    "Sqrt": _by_result(torch.sqrt, sqrt_gradient),
    "SqrtGrad": _from_output(sqrt_gradient),
    "Square": square,
    "SquaredDifference": squared_difference,
    "Sub": _binary(torch.sub),
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "TanhGrad": _from_output(lambda y, gradient: gradient * (1 - y * y)),
    "TruncateDiv": truncated_divide,
    "TruncateMod": truncated_modulo,
    "Xdivy": x_divided_by_y,
    "Xlog1py": x_log1p_y,
    "Xlogy": x_log_y,
    "Zeta": _binary(torch.special.zeta),
}
