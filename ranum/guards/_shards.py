"""Tensors of which each process holds a part: `DTensor`, as FSDP2 and tensor parallelism make.

What each process looks at is its own part; numbers that decide are brought together first, so that
all processes get the same ones. `bool(dtensor.isfinite().all())` does not do that: it answers for
the part at hand, and differs between processes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

_TENSOR = "torch.distributed.tensor"
_FSDP = "torch.distributed.fsdp"


def is_sharded(tensor: Any) -> bool:
    """True for a `DTensor`; imports nothing for the answer."""
    module = sys.modules.get(_TENSOR)
    return module is not None and isinstance(tensor, module.DTensor)


def any_sharded(tensors: Iterable[Any]) -> bool:
    """True if one of them is a `DTensor`."""
    module = sys.modules.get(_TENSOR)
    return module is not None and any(
        issubclass(kind, module.DTensor) for kind in set(map(type, tensors))
    )


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds, in the same memory; a plain tensor is its own."""
    if not is_sharded(tensor):
        return tensor
    part: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor is spread over processes.

    Attributes:
        mesh: The `DeviceMesh`.
        placements: One for each of its dimensions.
        shape: Of the whole tensor.
        stride: Of the whole tensor.
    """

    mesh: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    def of(self, part: Tensor) -> Tensor:
        """The whole of which this process holds `part`."""
        whole: Tensor = sys.modules[_TENSOR].DTensor.from_local(
            part,
            self.mesh,
            self.placements,
            run_check=False,
            shape=self.shape,
            stride=self.stride,
        )
        return whole


def layout_of(tensor: Any) -> Layout | None:
    """How it is spread; None for a plain tensor."""
    if not is_sharded(tensor):
        return None
    return Layout(tensor.device_mesh, tuple(tensor.placements), tensor.shape, tensor.stride())


@torch.no_grad()
def whole_norms(tensors: Sequence[Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """The L2 norms of sharded tensors, the same on all processes; of others, those given.

    Collective: one reduction for each way of sharding, whatever the number of tensors.

    Args:
        tensors: Of which some are sharded; the same ones in the same order on all processes.
        parts: The norms of the parts at hand, each `[]`.

    Returns:
        Norms, each `[]`. NaN or Inf if an element is so on any process.
    """
    norms = list(parts)
    groups: dict[Any, list[int]] = {}
    for number, tensor in enumerate(tensors):
        if is_sharded(tensor):
            placements = tensor.placements  # type: ignore[attr-defined]
            if any(place.is_partial() for place in placements):
                whole = tensor.full_tensor()  # type: ignore[attr-defined]
                norms[number] = torch.linalg.vector_norm(whole.float())
                continue
            dims = tuple(dim for dim, place in enumerate(placements) if not place.is_replicate())
            mesh = tensor.device_mesh  # type: ignore[attr-defined]
            groups.setdefault((mesh, dims), []).append(number)
    for (mesh, dims), numbers in groups.items():
        # In float64, where the square of a float32 norm does not overflow.
        squares = torch.stack([norms[number].double() for number in numbers]).square()
        for dim in dims:
            distributed.all_reduce(squares, group=mesh.get_group(dim))
        for number, norm in zip(numbers, squares.sqrt().unbind(), strict=True):
            norms[number] = norm
    return norms


Weights = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Parameters and buffers, by name."""


@torch.no_grad()
def whole_weights(model: nn.Module, most: int, *, keep: bool) -> Weights:
    """Parameters and buffers of which no process holds all, brought together in host memory.

    Collective, one tensor at a time. A process that does not keep them never holds more than one.

    Args:
        model: The same on all processes.
        most: Bytes; a model that is larger is not brought together.
        keep: False gives this process nothing.
    """
    tables: tuple[dict[str, Tensor], ...] = (
        dict(model.named_parameters()),
        dict(model.named_buffers()),
    )
    total = sum(one.numel() * one.element_size() for table in tables for one in table.values())
    if total > most:
        return {}, {}
    found: Weights = ({}, {})
    for table, kept in zip(tables, found, strict=True):
        for name, tensor in table.items():
            whole = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
            if keep:
                kept[name] = whole.detach().to("cpu", copy=True)
    return found


def own_class(model: nn.Module) -> type:
    """The class of a model as it was written: `fully_shard` derives one from it."""
    module = sys.modules.get(_FSDP)
    kinds = type(model).__mro__
    if module is None or not isinstance(model, module.FSDPModule):
        return kinds[0]
    return next(kind for kind in kinds if not issubclass(kind, module.FSDPModule))


def is_flattened(model: nn.Module) -> bool:
    """True under FSDP1, whose parameters look like plain tensors, and are the parts at hand."""
    module = sys.modules.get(_FSDP)
    if module is None:
        return False
    return any(isinstance(one, module.FullyShardedDataParallel) for one in model.modules())


def shard_again(model: nn.Module) -> None:
    """Sees to it that FSDP's modules hold their parts again, not the whole weights.

    After a forward pass without a backward pass (an evaluation) the outermost ones still do; an
    optimizer and a snapshot mean the parts.
    """
    module = sys.modules.get(_FSDP)
    if module is None:
        return
    for one in model.modules():
        if isinstance(one, module.FSDPModule):
            one.reshard()
