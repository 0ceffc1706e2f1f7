"""All use of private torch interfaces by the analysis."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass_type

_C: Any = torch._C

current_autograd_node = _C._current_autograd_node
"""The node whose backward pass runs in this thread, or None in the forward pass."""

_sequence_number: Any = torch.autograd._get_sequence_nr  # type: ignore[attr-defined]


def storage_key(tensor: Tensor) -> int:
    """What tensors have in common that share memory; valid while the memory lives."""
    key: int = tensor.untyped_storage()._cdata
    return key


def kept_address(tensor: Tensor) -> object:
    """Keeps the key of the tensor's memory from being used again, but not the memory."""
    return StorageWeakRef(tensor.untyped_storage())


def version(tensor: Tensor) -> int:
    """Counts the writes to the tensor's memory; inference tensors do not count."""
    return -1 if tensor.is_inference() else tensor._version


def forward_sequence() -> int:
    """The number that autograd's node for the operator that has just run took."""
    return int(_sequence_number()) - 1


def backward_sequence(node: Any) -> int:
    """The number that an autograd node got in the forward pass."""
    return int(node._sequence_nr())


def starts_backward() -> bool:
    """True if `Tensor.backward` or `torch.autograd.grad` is making its first gradient."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(12):
        if frame is None:
            return False
        if frame.f_code.co_name == "_make_grads":
            return True
        frame = frame.f_back
    return False


def has_memory(tensor: Tensor) -> bool:
    """False for tensors that functorch wraps, whose elements lie in what they wrap."""
    return not _C._functorch.is_functorch_wrapped_tensor(tensor)


def as_plain(tensor: Tensor) -> Tensor:
    """The tensor, or one with memory for it where autograd keeps "all zeros" without any."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor._is_zerotensor() else tensor


def parts_of(tensor: Tensor) -> dict[str, Tensor]:
    """What a wrapping tensor (nested and jagged, say) holds, by attribute; {} for others."""
    inner: Any = tensor
    if not is_wrapper(type(inner)):
        return {}
    return {name: getattr(inner, name) for name in inner.__tensor_flatten__()[0]}


def is_wrapper(kind: type) -> bool:
    """True for classes of tensors that wrap others and carry out operators on those."""
    return is_traceable_wrapper_subclass_type(kind)
