"""Changes of the element type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from ranum.analysis.capture.onnx.registry import UnsupportedError, lowering
from ranum.analysis.capture.onnx.rounding import round_to
from ranum.analysis.capture.onnx.values import (
    INTEGERS,
    SMALL_FLOATS,
    element_type,
    is_held_wider,
    marked,
    storage_dtype,
    to_numpy,
    wrapped,
)
from ranum.analysis.capture.opaque import opaque

_SAME_BITS = {
    TensorProto.INT2: torch.int8,
    TensorProto.UINT2: torch.int8,
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.int8,
    TensorProto.UINT16: torch.int16,
    TensorProto.UINT32: torch.int32,
    TensorProto.UINT64: torch.int64,
}


def cast_to(x: Any, to: int, *, saturate: bool = True, round_mode: str = "up") -> Any:
    """The value in another ONNX element type."""
    if isinstance(x, np.ndarray):
        return _from_text(x, to)
    if to == TensorProto.STRING:
        return _to_text(x)
    if to == element_type(x):
        return x
    if to in SMALL_FLOATS:
        return marked(round_to(x.to(torch.float32), to, saturate, round_mode), to)
    if is_held_wider(to):
        return wrapped(x, to)
    if x.is_floating_point() and to in INTEGERS and not INTEGERS[to][1]:
        return x.to(torch.int64).to(storage_dtype(to))  # negative ones wrap, as integers do
    return x.to(storage_dtype(to), copy=hasattr(x, "_onnx_element"))


def _from_text(x: Any, to: int) -> Any:
    if to == TensorProto.STRING:
        return x
    try:
        numbers = np.array([float(item) for item in x.reshape(-1)], dtype=np.float64)
    except ValueError as error:
        raise UnsupportedError(str(error)) from error
    return cast_to(torch.from_numpy(numbers.reshape(x.shape)), to)


def _to_text(x: Tensor) -> Any:
    array = to_numpy(x)
    if x.is_floating_point():
        items = [_float_text(item) for item in array.reshape(-1)]
    else:
        items = [str(item) for item in array.reshape(-1).tolist()]
    return np.array(items, dtype=object).reshape(array.shape)


def _float_text(number: Any) -> str:
    value = float(number)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "INF" if value > 0 else "-INF"
    return str(number)


@lowering("Cast")
def cast(x: Any, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    """X in element type `to`."""
    return cast_to(x, to, saturate=bool(saturate), round_mode=round_mode)


@lowering("CastLike")
def cast_like(x: Any, like: Any, *, saturate: int = 1, round_mode: str = "up") -> Any:
    """X in the element type of `like`."""
    to = TensorProto.STRING if isinstance(like, np.ndarray) else element_type(like)
    return cast_to(x, to, saturate=bool(saturate), round_mode=round_mode)


@lowering("BitCast")
def bit_cast(x: Tensor, *, to: int) -> Tensor:
    """The same bits as another type of the same width."""
    if element_type(x) in SMALL_FLOATS or to in SMALL_FLOATS or to in (TensorProto.STRING,):
        raise UnsupportedError("bits of small floats")
    if is_held_wider(to):
        return wrapped(x, to)
    if is_held_wider(element_type(x)):
        x = x.to(_SAME_BITS[element_type(x)])
    if to == TensorProto.BOOL or x.dtype == torch.bool:
        return x.view(storage_dtype(to))
    kind = storage_dtype(to)
    return opaque("onnx.BitCast", lambda y: [y.contiguous().clone().view(kind)], [x])[0]
