"""Rounding to 8-bit and 4-bit floats, as one operator that the analysis knows.

Torch can store most of these types but not compute in them, so their values are kept in
float32, where all of them are exact.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor

from ranum.analysis.interval import Interval
from ranum.analysis.transfer.registry import transfer

_WITHOUT_INFINITY = (
    TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ,
    TensorProto.FLOAT8E5M2FNUZ,
)
_LARGEST: dict[int, float] = {
    TensorProto.FLOAT8E4M3FN: 448.0,
    TensorProto.FLOAT8E4M3FNUZ: 240.0,
    TensorProto.FLOAT8E5M2: 57344.0,
    TensorProto.FLOAT8E5M2FNUZ: 57344.0,
    TensorProto.FLOAT4E2M1: 6.0,
}


def round_to(x: Tensor, element: int, saturate: bool = True, mode: str = "up") -> Tensor:
    """Float32 numbers rounded to a small float type, still in float32.

    Args:
        x: Numbers in float32.
        element: ONNX element type.
        saturate: Out of range becomes the largest number; otherwise NaN, or infinity where
            the type has one.
        mode: For FLOAT8E8M0 (powers of two): "up", "down" or "nearest".
    """
    rounded: Tensor = torch.ops.ranum.round_to(x, element, saturate, mode)
    return rounded


@torch.library.custom_op("ranum::round_to", mutates_args=())
def _round_to(x: Tensor, element: int, saturate: bool, mode: str) -> Tensor:
    return _rounded(x, element, saturate, mode)


@_round_to.register_fake
def _(x: Tensor, element: int, saturate: bool, mode: str) -> Tensor:
    return torch.empty_like(x)


def _rounded(x: Tensor, element: int, saturate: bool, mode: str) -> Tensor:
    if element == TensorProto.FLOAT8E8M0:
        return _power_of_two(x, saturate, mode)
    kind = helper.tensor_dtype_to_np_dtype(element)
    limit = _LARGEST[element]
    data = x.detach().numpy().astype(np.float32)
    with np.errstate(all="ignore"):
        rounded = data.astype(kind).astype(np.float32)
    nan, infinite = np.isnan(data), np.isinf(data)
    over = ~nan & (np.isnan(rounded) | np.isinf(rounded) | (np.abs(rounded) > limit) | infinite)
    if saturate or element == TensorProto.FLOAT4E2M1:
        rounded = np.where(over, np.copysign(np.float32(limit), data), rounded)
    elif element in _WITHOUT_INFINITY:
        rounded = np.where(over, np.float32(np.nan), rounded)
    else:
        rounded = np.where(over, np.copysign(np.float32(np.inf), data), rounded)
    return torch.from_numpy(np.asarray(rounded, dtype=np.float32)).clone()


def _power_of_two(x: Tensor, saturate: bool, mode: str) -> Tensor:
    mantissa, exponent = torch.frexp(x.double().abs())  # mantissa in [0.5, 1)
    exponent = exponent - 1
    fraction = mantissa * 2
    if mode == "up":
        exponent = exponent + (fraction > 1)
    elif mode == "nearest":
        exponent = exponent + (fraction >= 1.5)
    result = torch.ldexp(torch.ones_like(mantissa), exponent.clamp(-127, 127))
    over = (exponent > 127) | x.isinf()
    result = torch.where(over, 2.0**127 if saturate else math.nan, result)
    result = torch.where(x == 0, 2.0**-127, result)
    return torch.where(x.isnan(), math.nan, result).float()


@transfer("ranum::round_to")
def round_to_bounds(x: Interval, element: int, saturate: bool, mode: str) -> Interval:
    """Rounding is increasing (of |x| for FLOAT8E8M0); out of range is cut off, inf or NaN."""
    if element == TensorProto.FLOAT8E8M0:
        size = x.magnitude.amax() if not x.is_empty_tensor else torch.zeros(())
        top = _rounded(size.nan_to_num(math.inf).reshape(1), element, True, mode)
        may_nan = x.may_nan or (not saturate and float(top) >= 2.0**126)
        return Interval.full(2.0**-127, float(top), x.shape, x.dtype).with_nan(may_nan)
    lower = _rounded(x.lower, element, True, mode)
    upper = _rounded(x.upper, element, True, mode)
    may_nan = x.may_nan
    limit = _LARGEST[element]
    if element == TensorProto.FLOAT4E2M1:  # which has no NaN: it becomes 0
        low = lower.clamp(max=0.0) if may_nan else lower
        return Interval.between(low, upper.clamp(min=0.0) if may_nan else upper, x.shape, x.dtype)
    if not saturate and element in _WITHOUT_INFINITY:
        may_nan = may_nan or bool((x.magnitude > limit).any())
    elif not saturate:
        lower = torch.where(x.lower < -limit, -math.inf, lower)
        upper = torch.where(x.upper > limit, math.inf, upper)
        # The lower end may overflow upwards, too, and the upper one downwards.
        lower = torch.where(x.lower > limit, limit, lower)
        upper = torch.where(x.upper < -limit, -limit, upper)
    return Interval.between(lower, upper, x.shape, x.dtype, may_nan)
