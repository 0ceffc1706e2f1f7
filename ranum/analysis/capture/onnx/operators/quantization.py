"""Quantised numbers: x = (q - zero point) scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from onnx import TensorProto
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import sized
from ranum.analysis.capture.onnx.operators.casting import cast_to
from ranum.analysis.capture.onnx.operators.convolution import convolved
from ranum.analysis.capture.onnx.registry import UnsupportedError, lowering
from ranum.analysis.capture.onnx.values import (
    INTEGERS,
    SMALL_FLOATS,
    element_type,
    marked,
    storage_dtype,
)
from ranum.analysis.transfer._common import broadcast_shapes


def _spread(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point of a tensor, an axis or a block, for each element of x."""
    if parameter.numel() == 1 and parameter.dim() <= 1:
        return parameter.reshape(())
    if block:
        repeated = parameter.repeat_interleave(block, axis)
        return repeated.narrow(axis, 0, x.shape[axis])
    if parameter.dim() != 1:
        raise UnsupportedError("a scale that is neither per tensor, per axis nor per block")
    view = [1] * x.dim()
    view[axis] = -1
    return parameter.reshape(view)


def quantized(x: Tensor, zero: Tensor | None, element: int, saturate: bool = True) -> Tensor:
    """round(x) + zero point, cut off at the ends of the type."""
    if element in SMALL_FLOATS:
        level = x if zero is None else x + zero.to(x.dtype)
        rounded: Tensor = cast_to(level, element, saturate=saturate)
        return rounded
    if element not in INTEGERS:
        raise UnsupportedError(f"quantisation to element type {element}")
    bits, signed = INTEGERS[element]
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    wide = x.to(torch.float32) if torch.finfo(x.dtype).bits < 32 else x
    level = wide.round() if zero is None else wide.round() + zero.to(wide.dtype)
    return marked(level.clamp(low, high).to(torch.int32).to(storage_dtype(element)), element)


@lowering("QuantizeLinear")
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """round(x / scale) + zero point, cut off."""
    element = output_dtype or (TensorProto.UINT8 if zero is None else element_type(zero))
    kind = storage_dtype(precision) if precision else scale.dtype
    divisor = _spread(scale.to(kind), x, axis, block_size)
    level = x.to(kind) / divisor
    offset = None if zero is None else _spread(zero, x, axis, block_size)
    return quantized(level, offset, element, bool(saturate))


@lowering("DequantizeLinear")
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """(x - zero point) scale."""
    kind = storage_dtype(output_dtype) if output_dtype else scale.dtype
    factor = _spread(scale, x, axis, block_size).to(kind)
    if element_type(x) in SMALL_FLOATS:
        level = x.to(kind)
        return (level if zero is None else level - _spread(zero, x, axis, block_size)) * factor
    level = x.to(torch.int32)
    if zero is not None:
        level = level - _spread(zero, x, axis, block_size).to(torch.int32)
    return level.to(kind) * factor


@lowering("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """To 8 bits, by the range of x itself stretched to 0."""
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = (high - low) / 255.0
    zero = (-low / scale).round().clamp(0, 255).to(torch.int32).to(torch.uint8)
    return quantized(x / scale, zero, TensorProto.UINT8), scale, zero


# --- products ------------------------------------------------------------------------------


def _centred(x: Tensor, zero: Tensor | None, by_row: bool = False) -> Tensor:
    """Without the zero point; in float64, where sums of such products are exact."""
    wide = x.to(torch.float64)
    if zero is None:
        return wide
    offset = zero.to(torch.float64)
    return wide - (
        offset.unsqueeze(-1) if by_row and offset.dim() == 1 and len(offset) > 1 else offset
    )


def _product(a: Tensor, b: Tensor) -> Tensor:
    sized((*broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))
    return torch.matmul(a, b)


@lowering("MatMulInteger")
def matmul_integer(
    a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """(a - zero point) (b - zero point), exactly."""
    return _product(_centred(a, a_zero, by_row=True), _centred(b, b_zero)).to(torch.int32)


@lowering("QLinearMatMul")
def qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    """The product of two quantised matrices, quantised."""
    total = _product(_centred(a, a_zero, by_row=True), _centred(b, b_zero))
    left = a_scale.double()
    left = left.unsqueeze(-1) if left.dim() == 1 and len(left) > 1 else left
    factor = left * b_scale.double() / y_scale.double()
    return quantized(total * factor, y_zero, element_type(y_zero))


@lowering("ConvInteger")
def conv_integer(
    x: Tensor,
    weight: Tensor,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """A convolution of integers, exactly."""
    if weight_zero is not None and weight_zero.dim() == 1:
        weight_zero = weight_zero.reshape(-1, *[1] * (weight.dim() - 1))
    result = convolved(
        _centred(x, x_zero), _centred(weight, weight_zero), None, auto_pad=auto_pad,
        dilations=dilations, group=group, pads=pads, strides=strides,
    )  # fmt: skip
    return result.to(torch.int32)


@lowering("QLinearConv")
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """A convolution of quantised tensors, quantised; the bias is in units of both scales."""
    channel = [-1, *[1] * (weight.dim() - 1)]
    zero = weight_zero.reshape(channel) if weight_zero.dim() == 1 else weight_zero
    total = convolved(
        _centred(x, x_zero), _centred(weight, zero), None if bias is None else bias.double(),
        auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides,
    )  # fmt: skip
    factor = x_scale.double() * weight_scale.double() / y_scale.double()
    if factor.dim() == 1 and len(factor) > 1:
        factor = factor.reshape([1, -1, *[1] * (weight.dim() - 2)])
    return quantized(total * factor, y_zero, element_type(y_zero))
