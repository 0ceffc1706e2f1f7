"""Buffers as they were before a batch: copies cheap enough for every step."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ranum.guards._memory import Pairs, copy_all, copy_fused, groups, own_part

SMALL_BUFFER = 1 << 16
"""Elements up to which a buffer is copied every step whatever its version says.

Native BatchNorm kernels write their statistics without counting the version up. Larger
buffers (causal masks, rotary tables) are copied only when their version has changed.
"""

SEARCH_EVERY = 16
"""Steps between two searches for modules that were given buffers."""


class BufferCopies:
    """Copies of all buffers, renewed every step; modules are searched now and then only."""

    def __init__(self) -> None:
        self.floats: list[tuple[str, Tensor]] = []
        self._age = 0
        self._tables: list[dict[str, Any]] = []
        self._places: list[tuple[dict[str, Any], str, Tensor | None]] = []
        self._saved: list[Tensor | None] = []
        self._joined: list[tuple[Tensor, list[Tensor]]] = []
        self._small: list[tuple[list[Tensor], list[Tensor]]] = []
        self._large: list[tuple[Tensor, Tensor]] = []
        self._versions: list[int | None] = []

    def take(self, model: nn.Module) -> None:
        """Notes the buffers as they are."""
        if self._age % SEARCH_EVERY == 0:
            self._tables = list(tables(model))
        self._age += 1
        places = list(buffers(self._tables))
        now = [buffer for _, _, buffer in places]
        then = [buffer for _, _, buffer in self._places]
        if len(now) != len(then) or not all(map(operator.is_, now, then)):
            self._allocate(places)
        for whole, parts in self._joined:
            torch.cat(parts, out=whole)
        for saved, live in self._small:
            copy_fused(saved, live)
        for index, (saved_one, live_one) in enumerate(self._large):
            version = None if live_one.is_inference() else live_one._version
            if version is None or version != self._versions[index]:
                copy_fused([saved_one], [live_one])
                self._versions[index] = version

    def _allocate(self, places: list[tuple[dict[str, Any], str, Tensor | None]]) -> None:
        self._places = places
        pairs: Pairs = []
        self._saved, self._large, self.floats = [], [], []
        lives = [None if buffer is None else own_part(buffer) for _, _, buffer in places]
        self._joined, joined = _joined([live for live in lives if live is not None])
        for number, ((_, name, _), live) in enumerate(zip(places, lives, strict=True)):
            saved = None if live is None else joined.get(id(live))
            if live is not None and saved is None:
                saved = torch.empty_like(live)
            self._saved.append(saved)
            if live is None or saved is None:
                continue
            if live.numel() > SMALL_BUFFER:
                self._large.append((saved, live))
            else:
                if id(live) not in joined:
                    pairs.append((saved, live))
                if saved.is_floating_point() and saved.numel() and type(saved) is Tensor:
                    self.floats.append((f"buffer {number} ({name})", saved))
        self._small = groups(pairs)
        self._versions = [None] * len(self._large)

    def restore(self) -> None:
        """Puts them back."""
        pairs: Pairs = []
        for (table, name, buffer), saved in zip(self._places, self._saved, strict=True):
            table[name] = buffer
            if buffer is not None and saved is not None:
                pairs.append((own_part(buffer), saved))
        copy_all(pairs)


def _joined(lives: list[Tensor]) -> tuple[list[tuple[Tensor, list[Tensor]]], dict[int, Tensor]]:
    """Room for small dense tensors of one kind on the CPU, side by side.

    There one `cat` takes a tenth of the time of as many copies.

    Returns:
        The room, and flat views of the tensors that go there; by the tensor's `id`, its place.
    """
    found: dict[torch.dtype, list[Tensor]] = {}
    for live in lives:
        is_small = 0 < live.numel() <= SMALL_BUFFER and live.is_cpu and type(live) is Tensor
        if is_small and live.layout is torch.strided and live.is_contiguous():
            found.setdefault(live.dtype, []).append(live)
    rooms, places = [], {}
    for dtype, own in found.items():
        room = torch.empty(sum(live.numel() for live in own), dtype=dtype)
        rooms.append((room, [live.view(-1) for live in own]))
        for live, place in zip(own, room.split([live.numel() for live in own]), strict=True):
            places[id(live)] = place.view(live.shape)
    return rooms, places


def tables(model: nn.Module) -> Iterator[dict[str, Any]]:
    """The tables of buffers of all submodules; a flat walk, quicker than `modules()`."""
    seen: set[int] = set()
    stack: list[nn.Module] = [model]
    while stack:
        module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if module._buffers:
            yield module._buffers
        stack.extend(child for child in module._modules.values() if child is not None)


def buffers(
    tables: Iterable[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], str, Tensor | None]]:
    """Every buffer with its name and the table that holds it; lazy ones have no values yet."""
    for table in tables:
        for name, buffer in table.items():
            if buffer is None or not nn.parameter.is_lazy(buffer):
                yield table, name, buffer
