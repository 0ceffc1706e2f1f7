"""What Lightning's own checkpoints lack for going on with the same bits: random numbers and data.

Lightning brings weights, optimizers, schedules and counters back, but neither random numbers nor,
within an epoch, the batches that had not come yet: it starts the loader anew. Here the loader
begins its pass with the random numbers of then, is moved on to where it was, and the random numbers
of the checkpoint are put back.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ranum._untouched import RandomState, random_state, set_random_state
from ranum.callbacks._fetcher import Births, FetchLog, log_of
from ranum.callbacks._session import Session
from ranum.errors import RanumWarning
from ranum.guards import _processes as processes


class Resumption:
    """Writes what is needed into a checkpoint, and goes on from it.

    Args:
        trainer: Lightning's, before its loaders are made.
        module: What is trained.
        session: Contains what goes wrong here.
    """

    def __init__(self, trainer: Any, module: Any, session: Session) -> None:
        self._trainer, self._module, self._session = trainer, module, session
        self._births = Births(trainer.fit_loop, self._born)
        self._saved: dict[str, Any] | None = None
        self._is_random_due = False

    def close(self) -> None:
        """Leaves the loop as it was."""
        self._births.close()

    # --- saving -----------------------------------------------------------------------------

    def state(self) -> list[dict[str, Any]]:
        """Random numbers of each process, as plain data and tensors.

        Collective: with several processes all must save.
        """
        log = log_of(self._trainer.fit_loop._data_fetcher)
        now = random_state({p.device for p in self._module.parameters()})
        own = {
            "now": _plain(now),
            "begun": None if log is None else _plain(log.begun),
            "first": None if log is None else _plain(log.first),
            "latest": None if log is None else _plain(log.latest),
        }
        return processes.gathered(own)

    # --- going on ---------------------------------------------------------------------------

    def load(self, states: list[dict[str, Any]]) -> None:
        """Takes a `state` up; training goes on from it."""
        if len(states) != self._trainer.world_size:
            line = (
                f"the checkpoint is of {len(states)} processes, this run has "
                f"{self._trainer.world_size}; random numbers and data start anew"
            )
            warnings.warn(RanumWarning(f"Ranum: {line}."), stacklevel=3)
            return
        self._saved = states[self._trainer.global_rank]
        self._is_random_due = True

    def put_random_back(self) -> None:
        """Puts the random numbers of the checkpoint back, once; call before anything draws."""
        if self._saved is not None:
            self._put_random_back(self._saved)

    def _put_random_back(self, saved: dict[str, Any]) -> None:
        if self._is_random_due:
            self._is_random_due = False
            set_random_state(_state(saved["now"]))

    def _born(self, log: FetchLog) -> None:
        log.before_pass, log.before_batch = self._before_pass, self._before_batch

    def _before_pass(self) -> None:
        if self._saved is not None and self._saved["begun"] is not None and self._batches:
            with self._session.contained("resuming"):
                set_random_state(_state(self._saved["begun"]))

    def _before_batch(self, fetcher: Any, kind: Any) -> None:
        saved, self._saved, log = self._saved, None, log_of(fetcher)
        if saved is not None and log is not None:
            with self._session.contained("resuming"):
                self._put_random_back(saved)
                self._move_on(saved, log, fetcher, kind)

    def _move_on(self, saved: dict[str, Any], log: FetchLog, fetcher: Any, kind: Any) -> None:
        """Before the first batch of a run that goes on: moves the loader to where it was."""
        if self._restores_itself:
            return
        batches = self._batches
        if not batches:
            log.begun = random_state()
            kind.__iter__(fetcher)  # with random numbers of then, not those of `setup_data`
            return
        if saved["first"] is None:
            return
        now = random_state()
        log.first = _state(saved["first"])
        set_random_state(log.first)
        fetcher.fetched -= batches  # which the loop has counted already
        for number in range(batches):
            if number == batches - 1 and saved["latest"] is not None:
                set_random_state(_state(saved["latest"]))  # with this one the next is fetched
            kind.__next__(fetcher)
        set_random_state(now)

    @property
    def _batches(self) -> int:
        """Batches of this epoch that had come before the checkpoint."""
        count: int = self._trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return count

    @property
    def _restores_itself(self) -> bool:
        """True if Lightning brings the loaders' own states back."""
        loader = self._trainer.fit_loop._combined_loader
        return any(hasattr(one, "load_state_dict") for one in loader.flattened)


def _plain(state: RandomState | None) -> dict[str, Any] | None:
    """The same in tensors and plain values, which `torch.load(weights_only=True)` reads."""
    if state is None:
        return None
    numpy = state.numpy
    if numpy is not None:
        name, key, *rest = numpy
        numpy = (name, torch.from_numpy(key.astype("int64")), *rest)
    return {"torch": state.torch, "cuda": dict(state.cuda), "python": state.python, "numpy": numpy}


def _state(saved: dict[str, Any]) -> RandomState:
    numpy = saved["numpy"]
    if numpy is not None:
        name, key, *rest = numpy
        numpy = (name, key.numpy().astype("uint32"), *rest)
    cuda: dict[int, Tensor] = {
        index: tensor.cpu()
        for index, tensor in saved["cuda"].items()
        if index < torch.cuda.device_count()
    }
    return RandomState(saved["torch"].cpu(), cuda, saved["python"], numpy)
