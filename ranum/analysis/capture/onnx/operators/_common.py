"""What several families of lowerings need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.onnx.registry import UnsupportedError
from ranum.analysis.capture.onnx.values import checked_size
from ranum.analysis.transfer._common import broadcast_shapes


def ints(value: Any) -> list[int]:
    """The elements of an integer tensor or list, as Python numbers."""
    if value is None:
        return []
    if isinstance(value, Tensor):
        numbers: list[int] = [int(item) for item in value.detach().reshape(-1).tolist()]
        return numbers
    return [int(item) for item in value]


def number(value: Tensor) -> int:
    """A one-element integer tensor as a Python number."""
    return ints(value)[0]


def positive(axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from the front."""
    if any(not -rank <= axis < max(rank, 1) for axis in axes):
        raise UnsupportedError(f"axes {list(axes)} of a tensor with {rank} dimensions")
    return [axis % rank if rank else axis for axis in axes]


def sized(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape, if a tensor of it may be made."""
    return checked_size(shape)


def check_broadcast(*tensors: Tensor) -> None:
    """Refuses operands whose common shape is too large to be made."""
    sized(broadcast_shapes(*(tensor.shape for tensor in tensors)))


def spatial_pads(
    auto_pad: str,
    pads: Sequence[int] | None,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial dimension.

    Args:
        auto_pad: "NOTSET", "VALID", "SAME_UPPER" or "SAME_LOWER".
        pads: All befores, then all afters; for "NOTSET".
        sizes: Spatial sizes of the input.
        kernel: Kernel sizes.
        strides: Steps.
        dilations: Distances between kernel elements.
    """
    rank = len(sizes)
    if auto_pad in ("NOTSET", ""):
        given = [0] * (2 * rank) if not pads else list(pads)
        return given[:rank], given[rank:]
    if auto_pad == "VALID":
        return [0] * rank, [0] * rank
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"auto_pad {auto_pad}")
    before, after = [], []
    for size, reach, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        steps = -(-size // stride)
        total = max((steps - 1) * stride + (reach - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
    return before, after


def torch_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Padding in the order of `torch.nn.functional.pad`: last dimension first."""
    flat: list[int] = []
    for low, high in zip(reversed(before), reversed(after), strict=True):
        flat += [low, high]
    return flat


def filled(count: int, given: Sequence[int] | None, default: int = 1) -> list[int]:
    """The given list, or `count` times the default."""
    return list(given) if given else [default] * count


def vector_norm(x: Tensor, p: float, axes: int | Sequence[int], keep: bool = False) -> Tensor:
    """The p-norm along some axes."""
    norm: Tensor = torch.linalg.vector_norm(x, p, axes, keep)
    return norm
