"""Memory for copies of tensors, allocated once and written again by fused copies.

Each copy has a sum of its bits, so that a snapshot that was damaged at rest is known to be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        tensor: The values; of a sharded tensor, those that this process holds. Of a tensor that
            is in a file, its shape and dtype alone.
        device: Of the tensor that was copied.
        layout: How the tensor is spread over processes; None if it is not.
    """

    tensor: Tensor
    device: torch.device
    layout: Layout | None = None

    def empty(self) -> Tensor:
        """A new tensor like the one that was copied, to be written."""
        part = torch.empty_like(self.tensor, device=self.device)
        return part if self.layout is None else self.layout.of(part)


class Memory:
    """The tensors of one snapshot, written again at every take.

    Args:
        on_host: Keep them in host memory, pinned, wherever the tensors are.
    """

    def __init__(self, *, on_host: bool = False) -> None:
        self._on_host = on_host
        self._free: defaultdict[Any, list[Tensor]] = defaultdict(list)
        self._used: list[Tensor] = []
        self._pending: Pairs = []
        self._sums: list[Tensor] = []
        self._looks: dict[int, Tensor] = {}
        self._event: Any = None

    def recycle(self) -> None:
        """All memory may be written again."""
        for tensor in self._used:
            self._free[_kind(tensor, tensor.device)].append(tensor)
        self._used, self._pending, self._sums, self._looks = [], [], [], {}

    def store(self, live: Tensor) -> Copy:
        """Memory that holds the values of `live` after `flush`."""
        layout, device = layout_of(live), live.device
        live = own_part(live)
        place = torch.device("cpu") if self._on_host else device
        free = self._free.get(_kind(live, place))
        saved = free.pop() if free else self._allocated(live, place)
        self._used.append(saved)
        self._pending.append((saved, live))
        return Copy(saved, device, layout)

    def _allocated(self, live: Tensor, place: torch.device) -> Tensor:
        is_pinned = place != live.device and live.is_cuda and live.layout is torch.strided
        return torch.empty_like(live, device=place, pin_memory=is_pinned)

    def flush(self) -> None:
        """Copies what was stored, and frees memory that this take has no use for."""
        pending, self._pending = self._pending, []
        self._free.clear()
        if all(live.is_cpu for _, live in pending):
            self._copy_and_look(pending)
            return
        copy_all(pending, non_blocking=self._on_host)
        if self._on_host and any(live.is_cuda for _, live in pending):
            self._event = torch.cuda.Event()
            self._event.record()
        else:  # what is still on its way to the host has no sum yet
            self._sums = bit_sums(self._used)

    @torch.no_grad()
    def _copy_and_look(self, pairs: Pairs) -> None:
        """Copies one after the other, and sums up each while it is in the processor's cache."""
        for saved, live in pairs:
            saved.copy_(live)
            self._sums += bit_sums([saved])
            if is_looked_at(saved):
                self._looks[id(saved)] = _sum(saved)

    def arrive(self) -> None:
        """Waits for copies that are on their way to the host."""
        event, self._event = self._event, None
        if event is not None:
            event.synchronize()
            self._sums = bit_sums(self._used)

    def is_intact(self) -> bool:
        """False if a bit has changed since the tensors were copied. Reads from the device."""
        self.arrive()
        return are_equal(self._sums, bit_sums(self._used))

    def write_to(self, pairs: Iterable[tuple[Tensor, Copy]]) -> None:
        """Puts copies back into tensors in use."""
        self.arrive()
        copy_all([(target, copied.tensor) for target, copied in pairs])

    def bad(self, named: Sequence[tuple[str, Copy]]) -> list[str]:
        """Names of copies that are not finite. Reads from the device."""
        self.arrive()
        return bad_names([(name, copied.tensor) for name, copied in named], self._looks)

    def close(self) -> None:
        """Lets go of everything."""
        self.recycle()
        self._free.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return sum(tensor.nbytes for tensor in self._used)


def _kind(tensor: Tensor, place: torch.device) -> Any:
    return (tensor.shape, tensor.dtype, place, type(tensor))


# --- copies --------------------------------------------------------------------------------


def copy_all(pairs: Pairs, *, non_blocking: bool = False) -> None:
    """Fused copies, one group for each pair of devices and dtypes."""
    for targets, sources in groups(pairs):
        copy_fused(targets, sources, non_blocking=non_blocking)


def groups(pairs: Pairs) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Targets and sources that one fused copy can take together."""
    found: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for number, (target, source) in enumerate(pairs):
        key: Any = (target.device, target.dtype, source.device, source.dtype)
        if target.layout is not torch.strided or type(source) not in (Tensor, nn.Parameter):
            key = number  # sparse and subclassed tensors go one by one
        targets, sources = found.setdefault(key, ([], []))
        targets.append(target)
        sources.append(source)
    return list(found.values())


@torch.no_grad()
def copy_fused(targets: list[Tensor], sources: list[Tensor], *, non_blocking: bool = False) -> None:
    """Copies a group, in place."""
    if len(targets) == 1:
        targets[0].copy_(sources[0], non_blocking=non_blocking)
    else:
        torch._foreach_copy_(targets, sources, non_blocking)


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


# --- looks ---------------------------------------------------------------------------------


def bit_sums(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The sum of each dense tensor's bits, read as integers, `[]`; it may wrap.

    One flipped bit always changes it. Integers are as wide as they can be: the quickest way
    through memory, half the time of a copy.
    """
    return [
        _bit_sum(tensor)
        for tensor in tensors
        if tensor.layout is torch.strided and type(tensor) is Tensor
    ]


def _bit_sum(tensor: Tensor) -> Tensor:
    begin = int(tensor.storage_offset())
    flat = tensor.as_strided((tensor.numel(),), (1,), begin)
    ends = flat.nbytes | begin * tensor.element_size()
    kind = next(kind for size, kind in _INTEGERS if ends % size == 0)
    return flat.view(kind).sum(dtype=kind)


_INTEGERS = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.int8))


def are_equal(sums: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """True if all sums are the same; one read for each device and width."""
    if len(sums) != len(others):
        return False
    flags: defaultdict[Any, list[Tensor]] = defaultdict(list)
    for one, other in zip(sums, others, strict=True):
        flags[one.device].append(one == other)
    return all(bool(torch.stack(own).all()) for own in flags.values())


def bad_names(
    named: Sequence[tuple[str, Tensor]], sums: Mapping[int, Tensor] | None = None
) -> list[str]:
    """Names of floating tensors with an element that is not finite. Reads from the device.

    Args:
        named: Name and tensor.
        sums: By the tensor's `id`, the sum of its elements, where that is known already; `[]`.
    """
    known = {} if sums is None else sums
    by_kind: dict[Any, list[tuple[str, Tensor, Tensor]]] = {}
    for name, tensor in named:
        if is_looked_at(tensor):
            total = known.get(id(tensor))
            total = _sum(tensor) if total is None else total
            by_kind.setdefault((total.device, total.dtype), []).append((name, tensor, total))
    return [name for group in by_kind.values() for name in _bad_of_a_kind(group)]


def is_looked_at(tensor: Tensor) -> bool:
    """True for plain tensors with numbers that may be NaN."""
    return tensor.is_floating_point() and bool(tensor.numel()) and type(tensor) is Tensor


def _bad_of_a_kind(group: Sequence[tuple[str, Tensor, Tensor]]) -> Iterator[str]:
    flags = torch.stack([total for _, _, total in group]).isfinite().tolist()
    for (name, tensor, _), is_good in zip(group, flags, strict=True):
        if not is_good and not bool(_wide(tensor).isfinite().all()):
            yield name


def _sum(tensor: Tensor) -> Tensor:
    """Not finite if an element is not, `[]`; where it overflows, a closer look has to follow.

    The quickest look: squares of small moments would be subnormal, and slow.
    """
    is_half = tensor.dtype in (torch.float16, torch.bfloat16)
    return _wide(tensor).sum(dtype=torch.float32 if is_half else None)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no sum
