"""Lightning's data fetcher, kept so that its batches can come again, and be taken up in an epoch.

All use of the fit loop's fetcher is in this file (Lightning 2.4 and later).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ranum._untouched import RandomState, random_state
from ranum.guards.rewind import BatchLog


class FetchLog(BatchLog):
    """Batches of a data fetcher.

    Attributes:
        turn: Passes over the data so far.
        begun: Random numbers before this pass began, from which worker processes are seeded.
        first: Those before the first batch was asked for, from which an order may be drawn.
        latest: Those before the latest batch was asked for, where a batch is fetched ahead.
        before_pass: Called before a pass begins.
        before_batch: Called with the fetcher and its class before a batch is asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0
        self.begun: RandomState | None = None
        self.first: RandomState | None = None
        self.latest: RandomState | None = None
        self.before_pass: Callable[[], None] | None = None
        self.before_batch: Callable[[Any, Any], None] | None = None


def log_of(fetcher: Any) -> FetchLog | None:
    """Of a fetcher that keeps its batches."""
    return getattr(fetcher, "ranum_log", None)


def attach(fetcher: Any) -> FetchLog | None:
    """Lets a fetcher keep its batches; None for one that cannot, which is left alone."""
    if log_of(fetcher) is None and type(fetcher).__name__ == "_PrefetchDataFetcher":
        # The object is Lightning's and is in use; only what it does at `iter` and `next` changes.
        fetcher.__class__ = _rewindable(type(fetcher))
        fetcher.ranum_log = FetchLog()
    return log_of(fetcher)


def detach(fetcher: Any) -> None:
    """Leaves a fetcher as it was."""
    if log_of(fetcher) is not None:
        del fetcher.ranum_log
        fetcher.__class__ = type(fetcher).__base__


class Births:
    """Has each fetcher that a fit loop makes attached before it begins its first pass.

    Args:
        fit_loop: Lightning's.
        on_birth: Called with the log of each.
    """

    def __init__(self, fit_loop: Any, on_birth: Callable[[FetchLog], None]) -> None:
        self._loop, self._on_birth = fit_loop, on_birth
        self._own: Any = fit_loop.setup_data
        fit_loop.setup_data = self._setup_data

    def close(self) -> None:
        """Leaves the loop as it was."""
        if vars(self._loop).get("setup_data") == self._setup_data:
            del self._loop.setup_data

    def _setup_data(self) -> None:
        with self._seen():
            self._own()

    @contextmanager
    def _seen(self) -> Iterator[None]:
        name = "_select_data_fetcher"
        modules = [sys.modules[kind.__module__] for kind in type(self._loop).__mro__]
        module: Any = next((one for one in modules if hasattr(one, name)), None)
        if module is None:
            yield
            return
        usual = getattr(module, name)

        def select(*args: Any, **kwargs: Any) -> Any:
            fetcher = usual(*args, **kwargs)
            log = attach(fetcher)
            if log is not None:
                self._on_birth(log)
            return fetcher

        setattr(module, name, select)
        try:
            yield
        finally:
            setattr(module, name, usual)


def _rewindable(kind: Any) -> Any:
    """A class of data fetchers that can hand out their latest batches once more.

    It is derived from one base alone and adds no slots, so that an object which is in use can
    be given it.
    """

    def start(self: Any) -> Any:
        log: FetchLog = self.ranum_log
        log.clear()
        log.turn += 1
        if log.before_pass is not None:
            log.before_pass()
        log.begun, log.first, log.latest = random_state(), None, None
        return kind.__iter__(self)

    def following(self: Any) -> Any:
        log: FetchLog = self.ranum_log

        def fetch() -> tuple[Any, int, bool]:
            if log.before_batch is not None:
                log.before_batch(self, kind)
            if log.first is None:
                log.first = random_state()
            if self.length is None:
                log.latest = random_state()
            batch = kind.__next__(self)
            return batch, self.fetched, self.done

        batch, self.fetched, self.done = log.hand_out(fetch)
        return batch

    return type(kind.__name__, (kind,), {"__iter__": start, "__next__": following})
