"""Memory for copies of tensors, allocated once and written again by fused copies."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ranum._untouched import distinct
from ranum.guards._shards import Layout, layout_of, local

Pairs = list[tuple[Tensor, Tensor]]
"""(target, source)."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Stands for a tensor in saved data; plain tensors there belong to somebody else.

    Attributes:
        tensor: The values; of a sharded tensor, those that this process holds.
        layout: How the tensor is spread over processes; None if it is not.
    """

    tensor: Tensor
    layout: Layout | None = None

    def fresh(self) -> Tensor:
        """A new tensor with these values."""
        part = self.tensor.clone()
        return part if self.layout is None else self.layout.of(part)


class Memory:
    """The tensors of one snapshot, written again at every take."""

    def __init__(self) -> None:
        self._free: defaultdict[Any, list[Tensor]] = defaultdict(list)
        self._used: list[Tensor] = []
        self._pending: Pairs = []

    def recycle(self) -> None:
        """All memory may be written again."""
        for tensor in self._used:
            self._free[_kind(tensor)].append(tensor)
        self._used, self._pending = [], []

    def store(self, live: Tensor) -> Copy:
        """Memory that holds the values of `live` after `flush`."""
        layout = layout_of(live)
        live = own_part(live)
        free = self._free.get(_kind(live))
        saved = free.pop() if free else torch.empty_like(live)
        self._used.append(saved)
        self._pending.append((saved, live))
        return Copy(saved, layout)

    def flush(self) -> None:
        """Copies what was stored, and frees memory that this take has no use for."""
        copy_all(self._pending)
        self._pending = []
        self._free.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in self._used)


def _kind(tensor: Tensor) -> Any:
    return (tensor.shape, tensor.dtype, tensor.device, type(tensor))


def copy_all(pairs: Pairs) -> None:
    """Fused copies, one group for each pair of devices and dtypes."""
    for targets, sources in groups(pairs):
        copy_fused(targets, sources)


def groups(pairs: Pairs) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Targets and sources that one fused copy can take together."""
    found: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for number, (target, source) in enumerate(pairs):
        key: Any = (target.device, target.dtype, source.device, source.dtype)
        if target.layout is not torch.strided or type(source) not in (Tensor, nn.Parameter):
            key = number  # sparse and subclassed tensors (DTensor) go one by one
        targets, sources = found.setdefault(key, ([], []))
        targets.append(target)
        sources.append(source)
    return list(found.values())


@torch.no_grad()
def copy_fused(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies a group, in place."""
    if len(targets) == 1:
        targets[0].copy_(sources[0])
    else:
        torch._foreach_copy_(targets, sources)


def fits(live: Any, saved: Tensor) -> bool:
    """True if the saved values can be written into the tensor in use."""
    return (
        isinstance(live, Tensor)
        and live.dtype == saved.dtype
        and own_part(live).shape == saved.shape
    )


def own_part(live: Tensor) -> Tensor:
    """What of a tensor is this process's to read and write, in the same memory."""
    return distinct(local(live.detach()))
