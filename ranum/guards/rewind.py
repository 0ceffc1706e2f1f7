"""Batches that come again after a rollback.

A loader cannot be asked to go back: its workers have read on, its sampler has drawn. So the
batches handed out since the last snapshots are kept, and handed out again, each with torch's
random numbers as they were after it had been fetched. What follows is then bit for bit what a
run without the fault would have seen.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ranum._untouched import RandomState, random_state, set_random_state
from ranum.guards._places import available_memory
from ranum.guards._source import Source
from ranum.guards.culprit import named_tensors

SHARE_OF_MEMORY = 0.05
"""Of the memory that is free when training begins, for the batches that are kept."""
LEAST_MEMORY = 1 << 28
"""Bytes for kept batches where free memory cannot be asked for, or is scarce."""
NEARLY_FULL = 0.8
"""Share of the memory at which a snapshot is worth taking, so that batches can be let go."""

T = TypeVar("T")
_PLAIN = (int, float, complex, bool, str, bytes, type(None))


class Position(Protocol):
    """Where a run stands in its data and its counters, for a guard that goes back."""

    @property
    def is_nearly_full(self) -> bool:
        """True if a snapshot should be taken soon: not much more can be kept."""

    def mark(self) -> Any:
        """Where the run stands now, before the first batch of a step is trained on."""

    def keep_from(self, mark: Any) -> None:
        """Nothing before this mark will be gone back to."""

    def can_go_back(self, mark: Any) -> bool:
        """Whether all batches since the mark can come again, as they were."""

    def go_back(self, mark: Any) -> None:
        """The next batch is the one the mark was set at."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A batch that has been handed out.

    Attributes:
        value: The batch.
        versions: Its tensors with their versions, which a change in place counts up.
        random: State of torch's CPU generator after it was fetched; None if that drew nothing.
        nbytes: Of its tensors.
    """

    value: Any
    versions: tuple[tuple[Tensor, int], ...]
    random: Tensor | None
    nbytes: int

    @property
    def is_unchanged(self) -> bool:
        """False if a training step has written to it."""
        return all(tensor._version == version for tensor, version in self.versions)


class BatchLog:
    """The latest batches of a loader, by the number in which they were handed out.

    Args:
        memory: Bytes of tensors to keep; a share of the free memory if None. Beyond it, the
            oldest batches are let go.
    """

    def __init__(self, memory: int | None = None) -> None:
        self.memory = free_memory() if memory is None else memory
        self.number = 0
        self._first = 0
        self._kept: deque[_Kept] = deque()
        self._nbytes = 0
        self._behind: RandomState | None = None

    def __repr__(self) -> str:
        return f"BatchLog(number={self.number}, kept={len(self._kept)}, nbytes={self._nbytes})"

    @property
    def is_nearly_full(self) -> bool:
        """True if the next batches may push out those since the last snapshot."""
        return self._nbytes > NEARLY_FULL * self.memory

    @property
    def end(self) -> int:
        """The number of the first batch that has not been handed out yet."""
        return self._first + len(self._kept)

    def hand_out(self, following: Callable[[], T]) -> T:
        """The next batch: one that comes again, else what `following` fetches."""
        index = self.number - self._first
        if index < len(self._kept):
            self.number += 1
            kept = self._kept[index]
            if kept.random is not None:
                torch.set_rng_state(kept.random)
            value: T = _apart(kept.value)
            return value
        self.catch_up()
        before = torch.get_rng_state()
        value = following()
        after = torch.get_rng_state()
        # Where fetching draws nothing, the steps alone decide what comes next: those that were
        # left out at first may be trained on the second time.
        self._take_up(value, None if torch.equal(before, after) else after)
        return value

    def keep(self, value: Any, random: Tensor | None = None) -> None:
        """Takes up a batch that somebody else has fetched.

        Args:
            value: The batch.
            random: State of torch's CPU generator after it was fetched; that of now if None.
        """
        self._take_up(value, torch.get_rng_state() if random is None else random)

    def _take_up(self, value: Any, random: Tensor | None) -> None:
        own = _apart(value)
        tensors = [tensor for _, tensor in named_tensors(own, "")]
        nbytes = sum(tensor.nbytes for tensor in tensors if tensor.layout is torch.strided)
        versions = tuple((one, one._version) for one in tensors if not one.is_inference())
        self._kept.append(_Kept(own, versions, random, nbytes))
        self._nbytes += nbytes
        self.number += 1
        while self._kept and self._nbytes > self.memory:
            self._drop()

    def catch_up(self) -> None:
        """All batches have come again: fetching goes on where it was when the fault came.

        That is for Python's and numpy's random numbers; torch's are those of the steps that
        were trained again.
        """
        behind, self._behind = self._behind, None
        if behind is not None:
            set_random_state(RandomState(torch.get_rng_state(), {}, behind.python, behind.numpy))

    def _drop(self) -> None:
        self._nbytes -= self._kept.popleft().nbytes
        self._first += 1

    def keep_from(self, number: int) -> None:
        """Lets go of the batches before this one."""
        while self._kept and self._first < number:
            self._drop()

    def can_go_back(self, number: int) -> bool:
        """True if the batches from this one on are kept, and no step has written to them."""
        if not self._first <= number <= self.number or number < 0:
            return False
        if self._first + len(self._kept) < self.number:
            return False
        return all(self._kept[n - self._first].is_unchanged for n in range(number, self.number))

    def go_back(self, number: int) -> None:
        """The batch of this number comes next. Call before random numbers are put back."""
        if self._behind is None:
            self._behind = random_state()
        self.number = number

    def clear(self) -> None:
        """Lets go of all batches: the loader starts anew."""
        self._kept.clear()
        self._nbytes, self._first, self._behind = 0, self.number, None


@dataclass(frozen=True, slots=True)
class _Mark:
    epoch: int
    number: int


class LoaderPosition:
    """The position of a plain loop that iterates over `iterate(loader)`."""

    def __init__(self) -> None:
        self._log = BatchLog()
        self._begin = 0
        self._epoch = 0

    @property
    def is_nearly_full(self) -> bool:
        """True if a snapshot should be taken soon."""
        return self._log.is_nearly_full

    @property
    def number(self) -> int:
        """Batches of this pass that have been handed out, without those that come again."""
        return self._log.number - self._begin

    def iterate(self, loader: Any, is_over: Callable[[], bool] = lambda: True) -> Iterator[Any]:
        """The batches of one pass over a loader; after a rollback, some of them again.

        A loader whose worker process is killed is started again, up to three times.

        Args:
            loader: Anything iterable.
            is_over: Asked at the end of the pass; False if some batches have to come again.
        """
        self._log.clear()
        self._begin = self._log.number
        self._epoch += 1
        batches = Source(loader)
        try:
            while True:
                try:
                    batch = self._log.hand_out(lambda: next(batches))
                except StopIteration:
                    if is_over():
                        return
                    continue
                yield batch
        finally:
            batches.close()

    def mark(self) -> Any:
        """The batch that is at hand."""
        return _Mark(self._epoch, self._log.number - 1)

    def keep_from(self, mark: Any) -> None:
        """Nothing before this mark will be gone back to."""
        if mark.epoch == self._epoch:
            self._log.keep_from(mark.number)

    def can_go_back(self, mark: Any) -> bool:
        """Whether all batches since the mark can come again: of this pass only."""
        return mark.epoch == self._epoch and self._log.can_go_back(mark.number)

    def go_back(self, mark: Any) -> None:
        """The batch of the mark comes next."""
        self._log.go_back(mark.number)


def _apart(value: Any) -> Any:
    """The same tensors in containers of their own: a step may take its batch to pieces.

    A tensor that a worker has sent is copied: each holds one of the process's file handles.
    """

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf if isinstance(leaf, _PLAIN) else copy.copy(leaf)
        is_plain = leaf.layout is torch.strided and leaf.device.type == "cpu"
        return leaf.clone() if is_plain and leaf.is_shared() else leaf

    return tree_map(take, value)


def free_memory() -> int:
    """Bytes for kept batches: a share of what is free on this machine or in this container."""
    return max(int(SHARE_OF_MEMORY * (available_memory() or 0)), LEAST_MEMORY)
