"""What the data shows beyond one batch: the extremes of its tensors over a few batches.

Reading a loader must not be noticed: the random numbers of the run, the sampler and the
workers stay as they were, so that training with and without a scan is the same to the bit.
"""

from __future__ import annotations

import copy
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ranum._untouched import untouched
from ranum.errors import ArgumentError, CaptureError

BATCHES = 64
"""Batches read at most."""
SECONDS = 10.0
"""Seconds spent reading at most, wall clock; the batch that is being read is finished."""
_REACH = 1000
"""Objects of a dataset that are looked at for random number generators of their own."""
_WAIT = 30.0
"""Seconds to wait for a worker's batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one tensor of the batch held.

    Attributes:
        lower: Smallest finite element.
        upper: Largest finite element.
        is_whole: True if all elements are whole numbers: labels, counts, one-hot rows.
        is_shared: True if all rows (last dimension) are shares: not negative, with sum 1.
    """

    lower: float
    upper: float
    is_whole: bool
    is_shared: bool = False

    @staticmethod
    def of(data: Tensor) -> Seen:
        """What a tensor `[...]` of real numbers holds."""
        data = data.detach()
        lower, upper = finite_extremes(data)
        is_whole = not data.is_floating_point() or _is_whole(data)
        return Seen(lower=lower, upper=upper, is_whole=is_whole, is_shared=_is_shared(data, lower))

    def __or__(self, other: Seen) -> Seen:
        return Seen(
            lower=min(self.lower, other.lower),
            upper=max(self.upper, other.upper),
            is_whole=self.is_whole and other.is_whole,
            is_shared=self.is_shared and other.is_shared,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a scan saw: by input name, in how many batches."""

    seen: Mapping[str, Seen]
    batches: int


@dataclass(frozen=True, slots=True)
class Batches:
    """Data that can be read without a trace, again and again.

    Attributes:
        data: A `DataLoader`, or batches that can be iterated anew.
        convert: Applied to every batch: brings it to the device, say.
        batches: Read at most.
        seconds: Spent at most, wall clock.
        is_careful: Leave data unread that cannot be read without a trace, or only slowly, or
            that raises.
        model: A module whose hooks `convert` runs; put back as it was.
    """

    data: Any
    convert: Callable[[Any], Any] | None = None
    batches: int = BATCHES
    seconds: float = SECONDS
    is_careful: bool = False
    model: nn.Module | None = None

    @staticmethod
    def of(data: Any) -> Batches:
        """Checked data.

        Raises:
            ArgumentError: If it is no collection of batches, or could be read only once.
        """
        if isinstance(data, Batches):
            return data
        if isinstance(data, (Tensor, str, bytes, Mapping)) or not isinstance(data, Iterable):
            raise ArgumentError(
                f"data must be a DataLoader or a list of batches; got {type(data).__name__}."
            )
        if isinstance(data, Iterator):
            raise ArgumentError(
                f"data must be something that can be read again, a DataLoader or a list of "
                f"batches; got a {type(data).__name__}, which a scan would use up."
            )
        return Batches(data)

    def __iter__(self) -> Iterator[Any]:
        started = time.monotonic()
        with _unnoticed(self.data, self.model), torch.no_grad():
            for batch in islice(self._raw(), self.batches):
                yield batch if self.convert is None else self.convert(batch)
                if time.monotonic() - started > self.seconds:
                    return

    def first(self) -> Any:
        """One batch.

        Raises:
            ArgumentError: If there is none.
            CaptureError: If reading it fails; the error is the cause.
        """
        with _reading():
            for batch in Batches(self.data, self.convert, 1):
                return batch
        raise ArgumentError("data must hold at least one batch; it is empty.")

    def _raw(self) -> Iterator[Any]:
        loader = self.data
        if not isinstance(loader, DataLoader):
            return iter(() if self.is_careful else loader)
        if isinstance(loader.dataset, IterableDataset):
            # Iterating it may use up what it reads from.
            return iter(()) if self.is_careful else iter(loader)
        if loader.num_workers == 0:
            return _fetched(loader, _indices(loader))
        context = loader.multiprocessing_context or multiprocessing
        if self.is_careful and context.get_start_method() != "fork":
            return iter(())  # starting a worker takes seconds
        return iter(_twin(loader, list(islice(_indices(loader), self.batches))))


def scan(
    data: Batches, arguments: Callable[[Any], Mapping[str, Tensor]], expected: Iterable[str]
) -> Scan:
    """The extremes of every tensor of the batches.

    Args:
        data: Batches to read.
        arguments: The tensors of a batch by input name.
        expected: Names of the step's inputs; others are ignored.

    Raises:
        ArgumentError: If the data is empty, or its batches are not like the example's.
        CaptureError: If reading it fails; the error is the cause.
    """
    wanted = set(expected)
    seen: dict[str, Seen] = {}
    count = 0
    try:
        with _reading():
            for batch in data:
                count += 1
                for name, tensor in arguments(batch).items():
                    if name in wanted and tensor.numel() and not tensor.is_complex():
                        found = Seen.of(tensor)
                        seen[name] = seen[name] | found if name in seen else found
    except CaptureError:
        if not data.is_careful:
            raise
        return Scan(seen={}, batches=0)
    if data.is_careful and not seen:
        return Scan(seen={}, batches=0)
    if not count:
        raise ArgumentError("data must hold at least one batch; it is empty.")
    if wanted and not seen:
        raise ArgumentError(
            f"data's batches must be like the example's, with {', '.join(sorted(wanted))}; "
            "they hold none of these tensors."
        )
    return Scan(seen=seen, batches=count)


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (ArgumentError, CaptureError):
        raise
    except Exception as error:
        raise CaptureError(
            f"data could not be read: it raised {type(error).__name__}: {error}"
        ) from error


# --- loaders -------------------------------------------------------------------------------


def _indices(loader: DataLoader[Any]) -> Iterator[Any]:
    """What a copy of the loader's sampler says; the dataset in it is shared, not copied."""
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    return iter(copy.deepcopy(sampler, {id(loader.dataset): loader.dataset}))


def _fetched(loader: DataLoader[Any], indices: Iterator[Any]) -> Iterator[Any]:
    dataset: Any = loader.dataset
    for index in indices:
        if loader.batch_sampler is None:
            yield loader.collate_fn(dataset[index])
        elif callable(getattr(dataset, "__getitems__", None)):
            yield loader.collate_fn(dataset.__getitems__(index))
        else:
            yield loader.collate_fn([dataset[each] for each in index])


def _twin(loader: DataLoader[Any], indices: list[Any]) -> DataLoader[Any]:
    """A loader with a worker of its own: what a dataset keeps in the workers stays apart."""
    chosen = {"sampler" if loader.batch_sampler is None else "batch_sampler": indices}
    if loader.batch_sampler is None:
        chosen["batch_size"] = None  # type: ignore[assignment]
    return DataLoader(
        loader.dataset,
        collate_fn=loader.collate_fn,
        num_workers=1,
        timeout=max(loader.timeout, _WAIT),
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),
        **chosen,  # type: ignore[arg-type]
    )


@contextmanager
def _unnoticed(data: Any, model: nn.Module | None) -> Iterator[None]:
    """Puts random numbers back, global ones and those that a dataset or a sampler holds."""
    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        for generator in _generators(data):
            stack.callback(*_restoring(generator))
        yield


def _generators(data: Any) -> Iterator[Any]:
    """Random number generators among what an object holds, a bounded number of objects."""
    numpy = sys.modules.get("numpy")
    kinds: tuple[type, ...] = (torch.Generator, random.Random)
    if numpy is not None:
        kinds += (numpy.random.Generator, numpy.random.RandomState)
    waiting, met = [data], {id(data)}
    while waiting and len(met) < _REACH:
        thing = waiting.pop()
        if isinstance(thing, kinds):
            yield thing
            continue
        parts = list(getattr(thing, "__dict__", {}).values())
        if isinstance(thing, (list, tuple)) and len(thing) <= 32:
            parts += thing
        elif isinstance(thing, dict) and len(thing) <= 32:
            parts += thing.values()
        fresh = [part for part in parts if id(part) not in met and not isinstance(part, Tensor)]
        met.update(map(id, fresh))
        waiting += fresh


def _restoring(generator: Any) -> tuple[Any, ...]:
    """A call, and its arguments, that puts a generator's state back."""
    if isinstance(generator, torch.Generator):
        return generator.set_state, generator.get_state()
    if isinstance(generator, random.Random):
        return generator.setstate, generator.getstate()
    if hasattr(generator, "bit_generator"):
        bits = generator.bit_generator
        return setattr, bits, "state", bits.state
    return generator.set_state, generator.get_state()


# --- tensors -------------------------------------------------------------------------------


def finite_extremes(data: Tensor) -> tuple[float, float]:
    """Smallest and largest finite element; (0, 0) if there is none."""
    if data.numel() == 0:
        return 0.0, 0.0
    lower, upper = (float(end) for end in torch.aminmax(data))
    if not data.is_floating_point() or abs(lower) + abs(upper) < float("inf"):
        return lower, upper
    return finite_extremes(data[data.isfinite()])


def _is_whole(data: Tensor) -> bool:
    return bool((data == data.round()).all()) if data.numel() else True


def _is_shared(data: Tensor, lower: float) -> bool:
    if data.dim() < 2 or data.shape[-1] < 2 or not data.is_floating_point() or lower < 0:
        return False
    sums = data.sum(-1, dtype=torch.float64)
    if sums.numel() < 2 and not _is_whole(data):  # two numbers with sum 1 say nothing
        return False
    return bool(((sums - 1).abs() <= 2.0**-7).all())
