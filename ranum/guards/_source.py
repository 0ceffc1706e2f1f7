"""A loader's batches, also where one of its workers is killed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch.utils.data._utils import signal_handling

from ranum._untouched import RandomState, random_state, set_random_state
from ranum.errors import RanumWarning

RESTARTS = 3
"""Of a loader, in one pass: what kills workers again and again has to be looked at."""


class Source:
    """One pass over a loader. Where a worker dies, the pass is begun anew, up to the same batch.

    That gives the same batches, if the data set does: random numbers, those of the loader's and
    its sampler's generators too, are as they were when the pass began.

    Args:
        loader: Anything iterable; only one that has worker processes can lose them.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader
        self._generators = _generators(loader)
        self._states = [generator.get_state() for generator in self._generators]
        self._random: RandomState | None = random_state() if _workers(loader) else None
        self._count = 0
        self._restarts = 0
        self._batches: Iterator[Any] | None = None
        self._silence = ExitStack()
        if self._random is not None:
            self._silence.enter_context(_silence())

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> Any:
        while True:
            try:
                if self._batches is None:
                    self._batches = self._begun()
                batch = next(self._batches)
            except (RuntimeError, EOFError, OSError) as error:
                # A dead worker takes with it what it has sent, so the error may be one of reading.
                if self._random is None or not _has_lost_worker(error, self._batches):
                    raise
                self._end_workers()
                if self._restarts >= RESTARTS:
                    raise
                self._restarts += 1
                warnings.warn(
                    RanumWarning(
                        "a worker of the loader has been killed; the loader is started again, and "
                        f"goes on with batch {self._count}."
                    ),
                    stacklevel=4,
                )
            else:
                self._count += 1
                return batch

    def _begun(self) -> Iterator[Any]:
        """A pass, at the batch that comes next."""
        if not self._restarts or self._random is None:
            return iter(self._loader)
        now = random_state()
        then = [generator.get_state() for generator in self._generators]
        try:
            set_random_state(self._random)
            for generator, state in zip(self._generators, self._states, strict=True):
                generator.set_state(state)
            if hasattr(self._loader, "_num_iter_calls"):  # Fabric's, by which samplers shuffle
                self._loader._num_iter_calls -= 1
            batches = iter(self._loader)
            for _ in range(self._count):
                next(batches)
        finally:
            if self._count:  # before the first batch, the pass has drawn nothing yet
                for generator, state in zip(self._generators, then, strict=True):
                    generator.set_state(state)
                set_random_state(now)
        return batches

    def close(self) -> None:
        """Torch tells of dead workers as it did before."""
        self._silence.close()

    def _end_workers(self) -> None:
        """Lets go of all workers, so that torch does not tell of the dead one again."""
        batches, self._batches = self._batches, None
        with suppress(Exception):
            batches._shutdown_workers()  # type: ignore[union-attr]
        if getattr(self._loader, "persistent_workers", False):
            self._loader._iterator = None  # type: ignore[attr-defined]


def _has_lost_worker(error: BaseException, batches: Any) -> bool:
    """True if a worker of the pass has ended in another way than by itself."""
    message = str(error)
    if message.startswith("Caught "):  # what the data set has raised in a worker
        return False
    if isinstance(error, (EOFError, ConnectionError)) or "DataLoader worker" in message:
        return True
    return any(worker.exitcode for worker in getattr(batches, "_workers", ()))


@contextmanager
def _silence() -> Iterator[None]:
    """Dead workers are told of by `next`, in seconds, and not in the middle of other code.

    Torch's handler of SIGCHLD raises wherever the program is.
    """
    handling: Any = signal_handling
    usual = handling._error_if_any_worker_fails
    handling._error_if_any_worker_fails = lambda: None
    try:
        yield
    finally:
        handling._error_if_any_worker_fails = usual


def _workers(loader: Any) -> int:
    return int(getattr(loader, "num_workers", 0) or 0)


def _generators(loader: Any) -> list[torch.Generator]:
    owners = [loader, getattr(loader, "sampler", None)]
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())
