"""Where a Lightning run stands, and the way back there: counters, metrics and data.

All use of the fit loop's private parts by the guard's way back is in this file and in `_fetcher`:
here its progress trackers and its logged results (Lightning 2.4 and later).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ranum.callbacks._fetcher import FetchLog, attach, detach, log_of

_RESULT = ("value", "cumulated_batch_size", "_forward_cache", "_computed", "has_reset")


def saves_weights_only(trainer: Any, *, step: bool) -> bool:
    """True if a checkpoint may be written now of which callbacks are not told.

    Args:
        trainer: Lightning's.
        step: After a step, not after an epoch or a validation.
    """
    for one in trainer.checkpoint_callbacks:
        if getattr(one, "save_weights_only", False):
            every = getattr(one, "_every_n_train_steps", 0)
            is_timed = getattr(one, "_train_time_interval", None) is not None
            if not step or is_timed or (every and trainer.global_step % every == 0):
                return True
    return False


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a run.

    Attributes:
        fetcher: The data fetcher's identity, and the pass over the data it was in.
        number: Batches that had been handed out, without the one at hand.
        counters: Contents of the progress trackers.
        stepped: Batches that stepped, as loggers count them.
        results: What was logged by then.
        metrics: States of the module's own metrics.
    """

    fetcher: tuple[int, int]
    number: int
    counters: list[dict[str, int]]
    stepped: int
    results: dict[str, dict[str, Any]]
    metrics: list[tuple[Any, dict[str, Any]]]


class LightningPosition:
    """The position of a `fit` that is running; see `ranum.guards.rewind.Position`.

    Args:
        trainer: Lightning's.
        module: What is trained.
    """

    def __init__(self, trainer: Any, module: nn.Module) -> None:
        self._trainer = trainer
        self._module = module
        self._metrics = [one for one in module.modules() if _is_metric(one)]
        self._wanted: Mark | None = None
        self._here: Mark | None = None
        self._val_check_batch: Any = None

    # --- what the guard asks ----------------------------------------------------------------

    @property
    def is_nearly_full(self) -> bool:
        """True if a snapshot should be taken soon."""
        log = self._log
        return log is not None and log.is_nearly_full

    def mark(self) -> Mark:
        """The place before the batch at hand."""
        log = self._log
        loop = self._trainer.fit_loop.epoch_loop
        self._here = Mark(
            fetcher=(-1, 0) if log is None else (id(self._fetcher), log.turn),
            number=-1 if log is None else log.number - 1,
            counters=[dict(vars(tracker)) for tracker in self._trackers()],
            stepped=loop._batches_that_stepped,
            results={key: _held(result) for key, result in loop._results.items()},
            metrics=[(one, _states(one)) for one in self._metrics],
        )
        return self._here

    def keep_from(self, mark: Mark) -> None:
        """Nothing before this mark will be gone back to."""
        log = self._log
        if log is not None and mark.fetcher == (id(self._fetcher), log.turn):
            log.keep_from(mark.number)

    def can_go_back(self, mark: Mark) -> bool:
        """Whether all batches since the mark can come again: of this epoch only."""
        log = self._log
        if log is None or mark.fetcher != (id(self._fetcher), log.turn):
            return False
        return log.can_go_back(mark.number)

    def go_back(self, mark: Mark) -> None:
        """Asks for the way back; it is gone at the end of the batch."""
        log = self._log
        assert log is not None
        log.go_back(mark.number)
        self._wanted = mark

    # --- what the adapter asks --------------------------------------------------------------

    def attach(self) -> None:
        """Lets the data fetcher of now keep its batches; one that cannot is left alone."""
        attach(self._fetcher)

    def detach(self) -> None:
        """Leaves the data fetcher as it was."""
        detach(self._fetcher)
        self._show_validation()

    def batch_starts(self) -> None:
        """Call when a batch starts, before the guard begins."""
        self._show_validation()

    def batch_ends(self) -> bool:
        """Goes back, if that was asked for during the batch; True then."""
        mark, self._wanted = self._wanted, None
        if mark is None:
            return False
        trainer, loop = self._trainer, self._trainer.fit_loop.epoch_loop
        for tracker, values in zip(self._trackers(), mark.counters, strict=True):
            vars(tracker).update(values)
        # The loop has still to count the batch that ends now.
        for tracker in (loop.batch_progress.total, loop.batch_progress.current):
            tracker.ready -= 1
            tracker.completed -= 1
        loop.batch_progress.is_last_batch = False
        loop._batches_that_stepped = mark.stepped - 1
        self._put_back(mark)
        self._fetcher.done = False
        # Validation that is due at this count has been run when the count was first reached.
        self._val_check_batch = trainer.val_check_batch
        trainer.val_check_batch = float("inf")
        return True

    def leave_out(self) -> None:
        """Steps, scheduler steps and metrics are as if the batch at hand had never come."""
        mark = self._here
        if mark is None:
            return
        loop = self._trainer.fit_loop.epoch_loop
        batches = (loop.batch_progress.total, loop.batch_progress.current)
        for tracker, values in zip(self._trackers(), mark.counters, strict=True):
            if not any(tracker is one for one in batches):
                vars(tracker).update(values)
        loop._batches_that_stepped = mark.stepped - 1
        self._put_back(mark)

    # --- inside -----------------------------------------------------------------------------

    @property
    def _fetcher(self) -> Any:
        return self._trainer.fit_loop._data_fetcher

    @property
    def _log(self) -> FetchLog | None:
        return log_of(self._fetcher)

    def _trackers(self) -> Iterator[Any]:
        loop = self._trainer.fit_loop.epoch_loop
        progress = loop.automatic_optimization.optim_progress.optimizer
        for each in (
            loop.batch_progress,
            loop.scheduler_progress,
            progress.step,
            progress.zero_grad,
            loop.manual_optimization.optim_step_progress,
        ):
            yield each.total
            yield each.current

    def _put_back(self, mark: Mark) -> None:
        results = self._trainer.fit_loop.epoch_loop._results
        for key in [key for key in results if key not in mark.results]:
            del results[key]
        for key, values in mark.results.items():
            for name, value in values.items():
                setattr(results[key], name, value)
        for metric, states in mark.metrics:
            for name, value in states.items():
                object.__setattr__(metric, name, copy.deepcopy(value))

    def _show_validation(self) -> None:
        if self._val_check_batch is not None:
            self._trainer.val_check_batch = self._val_check_batch
            self._val_check_batch = None


def _is_metric(module: nn.Module) -> bool:
    """True for torchmetrics' metrics, whose states are no buffers."""
    return any(
        kind.__name__ == "Metric" and kind.__module__.startswith("torchmetrics")
        for kind in type(module).__mro__
    )


def _states(metric: Any) -> dict[str, Any]:
    names = (*metric._defaults, "_update_count", "_computed", "_forward_cache")
    return {name: _copied(getattr(metric, name, None)) for name in names}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return list(value) if isinstance(value, list) else value


def _held(result: Any) -> dict[str, Any]:
    """What a logged value holds; Lightning makes new tensors of it instead of writing to them."""
    return {name: getattr(result, name) for name in _RESULT if hasattr(result, name)}
