"""ONNX element types and tensors as torch tensors.

Torch has no element types of 2 and 4 bits, and hardly computes in 8-bit floats and in unsigned
integers of 16 bits and more. Such tensors are held in the smallest type that torch computes in
and that holds all their values (64-bit unsigned ones as the signed number of the same bits),
and remember their ONNX type (`element_type`). Strings are numpy arrays of Python strings, a
sequence is a list, an empty optional is None.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ranum.errors import ArgumentError

ELEMENT_LIMIT = 1 << 28
"""No tensor with more elements is made: 1 GiB in float32."""

_NATIVE: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}
_WIDER: dict[int, torch.dtype] = {
    TensorProto.INT2: torch.int8,
    TensorProto.INT4: torch.int8,
    TensorProto.UINT2: torch.uint8,
    TensorProto.UINT4: torch.uint8,
    TensorProto.UINT16: torch.int32,
    TensorProto.UINT32: torch.int64,
    TensorProto.UINT64: torch.int64,
}
"""Integer types that are held in a type of another name."""
_BY_DTYPE = {dtype: element for element, dtype in _NATIVE.items()}
INTEGERS: dict[int, tuple[int, bool]] = {
    TensorProto.INT2: (2, True),
    TensorProto.UINT2: (2, False),
    TensorProto.INT4: (4, True),
    TensorProto.UINT4: (4, False),
    TensorProto.INT8: (8, True),
    TensorProto.UINT8: (8, False),
    TensorProto.INT16: (16, True),
    TensorProto.UINT16: (16, False),
    TensorProto.INT32: (32, True),
    TensorProto.UINT32: (32, False),
    TensorProto.INT64: (64, True),
    TensorProto.UINT64: (64, False),
}
"""Bits and whether signed, by integer type."""
SMALL_FLOATS: dict[int, torch.dtype | None] = {
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    TensorProto.FLOAT8E8M0: torch.float8_e8m0fnu,
    TensorProto.FLOAT4E2M1: None,
}
"""Floats below 16 bits, held in float32; with torch's type where it has one."""


def storage_dtype(element: int) -> torch.dtype:
    """The torch type that holds elements of an ONNX type.

    Raises:
        ArgumentError: For a type torch cannot hold (strings, complex numbers, unknown ones).
    """
    if element in _NATIVE:
        return _NATIVE[element]
    if element in SMALL_FLOATS:
        return torch.float32
    if element in _WIDER:
        return _WIDER[element]
    raise ArgumentError(f"there are no tensors of ONNX element type {type_name(element)} here.")


def type_name(element: int) -> str:
    """Such as "FLOAT" or "INT4"; the number itself for an unknown type."""
    known: dict[int, str] = {number: name for name, number in TensorProto.DataType.items()}
    return known.get(element, str(element))


def element_type(value: Tensor) -> int:
    """The ONNX element type of a tensor."""
    marked: int | None = getattr(value, "_onnx_element", None)
    return _BY_DTYPE[value.dtype] if marked is None else marked


def marked(value: Tensor, element: int) -> Tensor:
    """The tensor, remembering an ONNX type that its torch type does not show."""
    if element not in _NATIVE:
        value._onnx_element = element  # type: ignore[attr-defined]
    return value


def checked_size(shape: Any, what: str = "a tensor") -> tuple[int, ...]:
    """The shape as a tuple, if a tensor of it may be made.

    Raises:
        ArgumentError: If a size is negative or there are more than `ELEMENT_LIMIT` elements.
    """
    sizes = tuple(int(size) for size in shape)
    if any(size < 0 for size in sizes) or math.prod(sizes) > ELEMENT_LIMIT:
        raise ArgumentError(
            f"{what} of shape {list(sizes)} is not made: sizes must not be negative, and there "
            f"may be at most {ELEMENT_LIMIT} elements."
        )
    return sizes


def from_numpy(array: Any, element: int | None = None) -> Any:
    """A numpy array, `ml_dtypes` included, as a tensor; strings stay an object array."""
    array = np.asarray(array)
    if array.dtype.kind in "OUS":
        return array.astype(object)
    if element is None:
        element = int(helper.np_dtype_to_tensor_dtype(array.dtype))
    array = np.ascontiguousarray(array).reshape(array.shape)
    dtype = storage_dtype(element)
    if element == TensorProto.BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if element in _NATIVE:
        return torch.from_numpy(array.copy())
    if element in _WIDER and INTEGERS[element][0] >= 16:
        plain = array.astype(np.int64)
    else:
        plain = array.astype(np.float32 if dtype == torch.float32 else np.int8)
    return marked(torch.from_numpy(plain).to(dtype), element)


def to_numpy(value: Any) -> Any:
    """The numpy array that ONNX's own tools would hold for a value."""
    if isinstance(value, list):
        return [to_numpy(item) for item in value]
    if not isinstance(value, Tensor):
        return value
    data = value.detach().cpu()
    element = element_type(value)
    if element == TensorProto.BFLOAT16:
        kind = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
        return data.contiguous().view(torch.int16).numpy().view(kind)
    if element in _NATIVE:
        return data.numpy()
    return data.numpy().astype(helper.tensor_dtype_to_np_dtype(element))


def wrapped(x: Tensor, element: int) -> Tensor:
    """Integers in a type torch does not have: bits that do not fit are dropped."""
    bits, signed = INTEGERS[element]
    low = x.to(torch.int64)
    if bits < 64:
        low = low & ((1 << bits) - 1)
    if signed:
        low = torch.where(low >= 1 << (bits - 1), low - (1 << bits), low)
    return marked(low.to(storage_dtype(element)), element)


def is_held_wider(element: int) -> bool:
    """True for integer types that are held in a type of another name."""
    return element in _WIDER


def from_proto(proto: Any, what: str) -> Any:
    """The value of a `TensorProto` that holds its own data.

    Raises:
        ArgumentError: If the sizes and the data do not agree.
    """
    shape = checked_size(proto.dims, what)
    element = int(proto.data_type)
    if element != TensorProto.STRING:
        storage_dtype(element)
        bits = _bits(element)
        if proto.HasField("raw_data"):
            expected = (math.prod(shape) * bits + 7) // 8
            if len(proto.raw_data) != expected:
                raise ArgumentError(
                    f"{what} of shape {list(shape)} must have {expected} bytes; "
                    f"it has {len(proto.raw_data)}."
                )
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ArgumentError(f"{what} cannot be read: {error}") from error
    if tuple(array.shape) != shape:
        raise ArgumentError(f"{what} must have shape {list(shape)}; its data has {array.shape}.")
    return from_numpy(array, None if element == TensorProto.STRING else element)


def from_bytes(data: Any, element: int, shape: tuple[int, ...]) -> Tensor:
    """A tensor over little-endian bytes, as external data holds them."""
    proto = TensorProto(data_type=element, dims=shape, raw_data=bytes(data))
    tensor: Tensor = from_proto(proto, "external data")
    return tensor


def byte_count(element: int, shape: tuple[int, ...]) -> int:
    """Bytes of the packed data of a tensor."""
    return (math.prod(shape) * _bits(element) + 7) // 8


def _bits(element: int) -> int:
    if element in INTEGERS:
        return INTEGERS[element][0]
    if element in SMALL_FLOATS:
        return 4 if SMALL_FLOATS[element] is None else 8
    return 8 * torch.empty((), dtype=_NATIVE[element]).element_size()
