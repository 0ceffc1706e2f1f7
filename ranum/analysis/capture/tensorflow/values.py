"""Tensors on their way from TensorFlow to torch, and the element types of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    8: torch.complex64,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    17: torch.uint16,
    18: torch.complex128,
    19: torch.float16,
    22: torch.uint32,
    23: torch.uint64,
}
"""torch's element type by the number TensorFlow's `DataType` gives it."""
STRING, RESOURCE, VARIANT = 7, 20, 21
_BFLOAT16 = "bfloat16"


def from_array(array: Any) -> Any:
    """A numpy array as a tensor that owns its memory; strings stay an array."""
    array = np.asarray(array)
    if array.dtype.kind in "OSU":
        return array
    if array.dtype.name == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def as_torch(leaf: Any, floatx: str | None = None) -> Any:
    """A leaf of the batch as a torch tensor; plain Python values stay as they are.

    Args:
        leaf: A tensor of any framework, an array, or anything else.
        floatx: Keras' float type, to which its models bring every float input.
    """
    if leaf is None or isinstance(leaf, (bool, int, float, str, bytes)):
        return leaf
    tensor = leaf
    if not isinstance(leaf, Tensor):
        array = leaf.numpy() if hasattr(leaf, "numpy") else leaf
        if not hasattr(array, "dtype"):
            return leaf
        tensor = from_array(array)
    if floatx is not None and isinstance(tensor, Tensor) and tensor.is_floating_point():
        tensor = tensor.to(getattr(torch, floatx))
    return tensor


def to_array(value: Any, bfloat16: Any = None) -> Any:
    """A tensor as a numpy array.

    Args:
        value: A tensor, or what `from_array` leaves alone.
        bfloat16: numpy's extension type for it, which TensorFlow brings.
    """
    if not isinstance(value, Tensor):
        return value
    tensor = value.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        array: Any = tensor.contiguous().view(torch.int16).numpy()
        return array.view(bfloat16)
    return tensor.resolve_conj().numpy()


def integers(tensor: Tensor) -> list[int]:
    """The elements of a tensor of integers, `[n]` or `[]`, as Python numbers."""
    return [int(number) for number in tensor.reshape(-1).tolist()]
