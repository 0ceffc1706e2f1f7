"""Arithmetic, element by element, with broadcasting."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.onnx.registry import UnsupportedError, lowering
from ranum.analysis.capture.onnx.values import INTEGERS, element_type


@lowering("Add")
def add(a: Tensor, b: Tensor) -> Tensor:
    """The sum a + b."""
    return a + b


@lowering("Sub")
def sub(a: Tensor, b: Tensor) -> Tensor:
    """The difference a - b."""
    return a - b


@lowering("Mul")
def mul(a: Tensor, b: Tensor) -> Tensor:
    """A b."""
    return a * b


@lowering("Div")
def div(a: Tensor, b: Tensor) -> Tensor:
    """A / b; integers are rounded towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@lowering("Pow")
def power(x: Tensor, y: Tensor) -> Tensor:
    """x^y in the type of x."""
    if x.is_floating_point() or not y.is_floating_point():
        return torch.pow(x, y.to(x.dtype))
    return torch.pow(x.to(torch.float64), y.to(torch.float64)).to(x.dtype)


@lowering("Mod")
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The remainder with the sign of b, or of a if `fmod`."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@lowering("Neg")
def neg(x: Tensor) -> Tensor:
    """-x."""
    return -x


@lowering("Abs")
def absolute(x: Tensor) -> Tensor:
    """|x|."""
    integer = INTEGERS.get(element_type(x))
    return x.abs() if integer is None or integer[1] else x


@lowering("Sign")
def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1."""
    return x.sign()


@lowering("Reciprocal")
def reciprocal(x: Tensor) -> Tensor:
    """1 / x."""
    return x.reciprocal()


@lowering("Sum")
def total(*data: Tensor) -> Tensor:
    """The sum of all operands."""
    return reduce(torch.add, data)


@lowering("Mean")
def mean(*data: Tensor) -> Tensor:
    """The mean of all operands."""
    return reduce(torch.add, data) / len(data)


@lowering("Max")
def maximum(*data: Tensor) -> Tensor:
    """The largest of all operands."""
    return reduce(torch.maximum, data)


@lowering("Min")
def minimum(*data: Tensor) -> Tensor:
    """The smallest of all operands."""
    return reduce(torch.minimum, data)


@lowering("Clip")
def clip_by_attributes(x: Tensor, *, min: float | None = None, max: float | None = None) -> Tensor:
    """Clamped to [min, max]."""
    return x if min is None and max is None else x.clamp(min, max)


@lowering("Clip", since=11)
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clamped to [low, high]; where low exceeds high, it is high."""
    if low is None and high is None:
        return x
    if x.is_floating_point():
        return x.clamp(_number(low), _number(high))
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _number(bound: Tensor | None) -> Any:
    """A bound without dimensions, as a number where that hides nothing."""
    return bound if bound is None or bound.requires_grad else bound.reshape(())


@lowering("BitShift")
def bit_shift(x: Tensor, y: Tensor, *, direction: str) -> Tensor:
    """X shifted by y bits; bits shifted past an end are lost."""
    bits, signed = INTEGERS[element_type(x)]
    if direction not in ("LEFT", "RIGHT"):
        raise UnsupportedError(f"direction {direction}")
    y = y.to(torch.int64)
    too_far = (y < 0) | (y >= bits)
    by = y.clamp(0, bits - 1)
    wide = x.to(torch.int64)
    if direction == "LEFT":
        shifted = (wide << by).masked_fill(too_far, 0)
    else:
        shifted = wide >> by
        if bits == 64 and not signed:  # no sign may come in from the left
            mask = (torch.ones_like(by) << (64 - by).clamp(max=62)) - 1
            shifted = torch.where(by == 0, wide, torch.where(by == 1, _half(wide), shifted & mask))
        beyond = torch.where(wide < 0, -1, 0) if signed else torch.zeros_like(wide)
        shifted = torch.where(too_far, beyond, shifted)
    return shifted.to(x.dtype)


def _half(wide: Tensor) -> Tensor:
    """An unsigned 64-bit number in a signed one, halved."""
    return (wide >> 1) & ((1 << 63) - 1)


@lowering("BitwiseAnd")
def bitwise_and(a: Tensor, b: Tensor) -> Tensor:
    """Bit by bit."""
    return a & b


@lowering("BitwiseOr")
def bitwise_or(a: Tensor, b: Tensor) -> Tensor:
    """Bit by bit."""
    return a | b


@lowering("BitwiseXor")
def bitwise_xor(a: Tensor, b: Tensor) -> Tensor:
    """Bit by bit."""
    return a ^ b


@lowering("BitwiseNot")
def bitwise_not(x: Tensor) -> Tensor:
    """Every bit turned."""
    return ~x
