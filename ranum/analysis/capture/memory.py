"""Which value each piece of memory holds: views of one storage, and what was written when.

A view is known by its geometry: offset, sizes, strides and dtype. What is written through
one view changes all others that share an element with it, so a look-up also tells which
writes the view has not seen yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ranum.analysis.capture.internals import kept_address

Geometry = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]

_OVERLAP_LIMIT = 1 << 22
"""Storages with more elements than this are taken to overlap wherever their spans do."""


@dataclass(slots=True)
class _Entry:
    value: int
    stamp: int


@dataclass(slots=True)
class _Storage:
    """What is known about one piece of memory: values by view, and the writes in order."""

    address: object
    views: dict[Geometry, _Entry] = field(default_factory=dict)
    writes: list[tuple[Geometry, _Entry]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a view holds whose elements were written at different times.

    Attributes:
        value: The view's own value, None if it has none yet.
        newer: Values that were written over parts of it later, in order; of a view seen for
            the first time, those of all views that share an element with it.
    """

    value: int | None
    newer: tuple[int, ...]


class Memory:
    """Values by storage (see `storage_key`) and geometry."""

    def __init__(self) -> None:
        self._storages: dict[int, _Storage] = {}
        self._stamp = 0

    def find(self, key: int, tensor: Tensor) -> int | Mixture | None:
        """What a strided tensor holds now; None if nothing is known of its elements."""
        storage = self._storages.get(key)
        if storage is None:
            return None
        view = geometry(tensor)
        entry = storage.views.get(view)
        since = -1 if entry is None else entry.stamp
        newer: list[int] = []
        for where, write in reversed(storage.writes):
            if write.stamp <= since:
                break
            if where != view and overlap(where, view):
                newer.append(write.value)
        if newer:
            newer.reverse()
            return Mixture(None if entry is None else entry.value, tuple(newer))
        if entry is not None:
            return entry.value
        shared = [each.value for where, each in storage.views.items() if overlap(where, view)]
        return Mixture(None, tuple(shared)) if shared else None

    def bind(self, key: int, tensor: Tensor, value: int, *, is_write: bool) -> None:
        """Says what a strided tensor holds from now on.

        Args:
            key: Its storage.
            tensor: The view.
            value: Number of the value.
            is_write: True if the elements changed; False for a new name for what they were.
        """
        storage = self._storages.get(key)
        if storage is None:
            storage = self._storages[key] = _Storage(kept_address(tensor))
        self._stamp += 1
        entry = _Entry(value, self._stamp)
        view = geometry(tensor)
        storage.views[view] = entry
        if is_write:
            storage.writes.append((view, entry))


def geometry(tensor: Tensor) -> Geometry:
    """Where in its storage a strided tensor lies."""
    return (int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def overlap(first: Geometry, second: Geometry) -> bool:
    """True if two views of one storage share an element, or may."""
    if first[3] != second[3]:
        return True
    (low_a, high_a), (low_b, high_b) = _span(first), _span(second)
    if high_a < low_b or high_b < low_a:
        return False
    if _is_dense(first) and _is_dense(second):
        return True
    size = max(high_a, high_b) + 1
    if size > _OVERLAP_LIMIT:
        return True
    touched = torch.zeros(size, dtype=torch.bool)
    touched.as_strided(first[1], first[2], first[0]).fill_(True)
    return bool(touched.as_strided(second[1], second[2], second[0]).any())


def _span(view: Geometry) -> tuple[int, int]:
    """First and last element, counted in the storage; (0, -1) without elements."""
    offset, sizes, strides, _ = view
    if 0 in sizes:
        return (0, -1)
    reach = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return (offset, offset + reach)


def _is_dense(view: Geometry) -> bool:
    low, high = _span(view)
    count = 1
    for size in view[1]:
        count *= size
    return high - low + 1 == count
