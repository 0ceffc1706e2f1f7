"""The Lightning adapter, for either namespace.

`lightning.pytorch` and `pytorch_lightning` are unrelated classes; `make_callback` builds the
same callback on the base classes of whichever is wanted. The private parts of Lightning that
a restart needs are in `Restart`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ranum.analysis.capture.lightning import lightning_program
from ranum.callbacks._averages import averages
from ranum.callbacks._options import (
    analyze_option,
    interval_option,
    path_option,
    remedies_option,
    seconds_option,
    states_option,
    symptoms_option,
)
from ranum.callbacks._position import LightningPosition, saves_weights_only
from ranum.callbacks._remedies import InsertClip, RepairConfiguration
from ranum.callbacks._restart import Restart
from ranum.callbacks._resume import Resumption
from ranum.callbacks._session import Session, checked
from ranum.callbacks._trainer import (
    gradient_clip,
    precision,
    replay,
    summary_writer,
    to_device,
    training_data,
    training_loader,
    unscaled,
)
from ranum.callbacks._trials import Trials, has_choice_of_batch_size, saved_state
from ranum.callbacks._uneven import Absences
from ranum.errors import ArgumentError, MissingExtraError, RanumWarning
from ranum.guards._places import checked_place
from ranum.guards.guard import Guard
from ranum.guards.recovery import ClipGradients, Fault, Remedy, Retry, Rollback, Skip
from ranum.guards.symptoms import Symptom, codes_of, default_symptoms
from ranum.guards.types import History
from ranum.repair.search import SearchSpace, repair_configuration
from ranum.repair.search.surgery import read_configuration

RemedyName = Literal["retry", "skip", "clip_gradients", "clip", "rollback", "repair"]
REMEDIES: tuple[RemedyName, ...] = (
    "retry",
    "skip",
    "clip_gradients",
    "clip",
    "rollback",
    "repair",
)
_CHECKPOINT_KEY = "ranum"
_RESUMPTION_KEY = "ranum_resumption"
LEARNING_RATE_FACTOR = 10**-0.5
"""Every way back lowers the learning rate by half a decade: two make AutoTrainer's x 0.1."""
VALIDATION_LOSS = ("val_loss", "validation_loss", "valid_loss", "val/loss", "validation/loss")
"""Names under which a validation loss is logged; the first that is there counts."""


class GuardCallback:
    """Guards a training run: analysis before it, monitoring and recovery during it, a report.

    Before the first optimizer step the whole training step is analysed for operators that can
    produce NaN or Inf, for inputs in the range that up to 16 batches of the data show; reading
    them takes about a second at most and leaves random numbers, samplers and workers as they
    were. During training the loss and the gradients are checked before every optimizer step; a
    faulty step is withheld, its first bad operator is named, and the remedies in `on_fault` are
    tried in order until one fits. At the end live patches are taken out again; the report holds
    the diff for your source.

    A fault inside Ranum is reported once and switches off the part that failed; training goes
    on as it would without Ranum. In a withheld step all gradients are None, so a hook of yours
    that reads them should expect that. A `training_step` that draws batches from an iterator of
    its own loses one to the analysis; use analyze="off" there.

    Args:
        analyze: "step" analyses the first training step; "off" does not.
        on_fault: Remedies, mildest first; one that does not fit a fault is passed over.
            "retry" trains on the batch once more if the fault did not come again when the step
            was replayed, "skip" leaves out a batch that is itself not finite, "clip_gradients"
            clips gradients for a while at twice their usual norm if one explodes, "clip" goes back
            to the last good snapshot and inserts the clamp the analysis proposes, "rollback"
            goes back and lowers the learning rate for a while, "repair" searches a configuration
            that trains and restarts from it. When none is left, training stops. Going back means
            the data too, within an epoch: the batches since the snapshot come again.
        act_on: Symptoms by code or name whose warnings "repair" acts on as well: a run that
            learns nothing is not broken in any single step, and by default only told of.
            `("VanishingGradient", "DyingReLU", "SlowConvergence", "OscillatingLoss")` makes the
            callback do what AutoTrainer does.
        search: What the repair may change; the default space if None.
        search_budget: Trainings of the search: a number, or "20x", the time of 20 of them.
        symptoms: The rules that watch the run; `ranum.guards.default_symptoms()` if None.
        sample_every: Steps between readings of per-layer statistics; "auto" as in `Guard`.
        snapshot_every: Steps between snapshots for going back to; "auto" lets them take at most
            1 % of the training time.
        snapshot_to: Where they are kept: "auto", by what is free, "device", "host", "disk" or a
            folder.
        also: More that has to go back with the weights: modules, such as an average of them, and
            whatever has `state_dict` and `load_state_dict`. The averages that Lightning's own
            callbacks keep go back without being named.
        vote: With DDP, ask all processes in each step; see `Guard`.
        uneven: With DDP and automatic optimization, `training_step` may return None in some of
            the processes: those have nothing to train on, and the gradients of the others weigh
            more. Of a batch that is bad in one process only that share is left out. See `Guard`.
        confirm_seconds: Time for proving defects by failing inputs, wall clock; 0 proves none.
        training_seconds: Time for training runs into the defects that fail for some weights
            only, with the run's own optimizer, if it has one; 0 looks for none.
        log_dir: Where the report goes; "ranum_report" in the logger's directory if None.
        verbose: Tell the story in the terminal.
        strict: Raise Ranum's own faults instead of containing them.

    Raises:
        ArgumentError: If an argument breaks its rule.
    """

    def __init__(
        self,
        analyze: Literal["step", "off"] = "step",
        on_fault: Sequence[RemedyName] = REMEDIES,
        *,
        act_on: Sequence[str] = (),
        search: SearchSpace | None = None,
        search_budget: int | str = 20,
        symptoms: Sequence[Symptom] | None = None,
        sample_every: int | str = "auto",
        snapshot_every: int | Literal["auto"] = 50,
        snapshot_to: str = "auto",
        also: Sequence[Any] = (),
        vote: bool = False,
        uneven: bool = False,
        confirm_seconds: float = 10.0,
        training_seconds: float = 0.0,
        log_dir: str | None = None,
        verbose: bool = True,
        strict: bool = False,
    ) -> None:
        super().__init__()
        self.analyze = analyze_option(analyze)
        self.on_fault: tuple[RemedyName, ...] = remedies_option(on_fault, REMEDIES)
        self.act_on = tuple(sorted(codes_of(act_on)))
        self.search = checked(
            "search",
            search,
            "a SearchSpace or None",
            lambda value: value is None or isinstance(value, SearchSpace),
        )
        self.search_budget = search_budget
        self.symptoms = symptoms_option(symptoms)
        self.sample_every = interval_option("sample_every", sample_every)
        self.snapshot_every = interval_option("snapshot_every", snapshot_every)
        self.snapshot_to = checked_place(snapshot_to)
        self.also = states_option("also", also)
        self.vote = bool(vote)
        self.uneven = bool(uneven)
        self.confirm_seconds = seconds_option("confirm_seconds", confirm_seconds)
        self.training_seconds = seconds_option("training_seconds", training_seconds)
        self.log_dir = path_option("log_dir", log_dir)
        self.verbose = bool(verbose)
        self.strict = bool(strict)
        self._loaded_guard: dict[str, Any] = {}
        self._reset()

    def _reset(self) -> None:
        self._session: Session | None = None
        self._guard: Guard | None = None
        self._position: LightningPosition | None = None
        self._loss: Tensor | None = None
        self._initial: dict[str, Tensor] = {}
        self._allowed: tuple[RemedyName, ...] = self.on_fault
        self._restart: Restart | None = None
        self._leaves_out = False
        self._is_analysed = False
        self._incident_dir: Path | None = None
        self._absences: Absences | None = None
        self._resumption: Resumption | None = None

    def __repr__(self) -> str:
        return (
            f"RanumCallback(analyze={self.analyze!r}, on_fault={self.on_fault!r}, "
            f"sample_every={self.sample_every}, snapshot_every={self.snapshot_every}, "
            f"strict={self.strict})"
        )

    # --- what a user may ask ----------------------------------------------------------------

    @property
    def analysis(self) -> Any:
        """The `Analysis` of the first step, or None."""
        return None if self._session is None else self._session.analysis

    @property
    def history(self) -> History:
        """Readings, findings and incidents so far."""
        return History() if self._guard is None else self._guard.history

    @property
    def repair(self) -> Any:
        """The `RepairResult` of the search, or None if none was run."""
        return None if self._session is None else self._session.repair

    # --- state ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Plain data: the guard's counters and incidents, whether the step was analysed."""
        guard = {} if self._guard is None else self._guard.state_dict()
        return {"version": 1, "is_analysed": self._is_analysed, "guard": guard}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes the state of an earlier run up again, also after JSON.

        Raises:
            ArgumentError: If it is not such a state.
        """
        if state.get("version") != 1:
            raise ArgumentError(
                f"state must be a RanumCallback's of version 1; got {state.get('version')!r}."
            )
        self._is_analysed = bool(state["is_analysed"])
        self._loaded_guard = dict(state["guard"])

    # Not `state_dict`: Lightning refuses two callbacks of one class that have one.

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keeps the state of the guard that is at work in the checkpoint, and damage out of it."""
        if self._session is not None:
            # What the checkpoint refers to are the weights themselves: going back mends both.
            self._check_at_rest(trainer)
            checkpoint[_CHECKPOINT_KEY] = self.state()
            if self._resumption is not None:
                with self._session.contained("resuming"):
                    checkpoint[_RESUMPTION_KEY] = self._resumption.state()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Takes the state up; a state that cannot be read is left out."""
        if _CHECKPOINT_KEY in checkpoint and self._session is not None:
            with self._session.contained("loading the guard's state"):
                self.load_state(checkpoint[_CHECKPOINT_KEY])
        if _RESUMPTION_KEY in checkpoint and self._session is not None:
            with self._session.contained("resuming"):
                if self._resumption is not None:
                    self._resumption.load(checkpoint[_RESUMPTION_KEY])

    # --- hooks ------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Finds out where to write and whether another guard is at work."""
        if stage != "fit":
            return
        is_taken_up = bool(self._loaded_guard) and self._is_analysed
        self._reset()
        self._is_analysed = is_taken_up
        others = [cb for cb in trainer.callbacks if isinstance(cb, GuardCallback)]
        if others and others[0] is not self:
            warnings.warn(
                RanumWarning("Ranum: another RanumCallback guards this run; this one stands by."),
                stacklevel=2,
            )
            return
        try:
            directory = self._directory(trainer)
            # Of several processes the one to blame writes, not the one that reports.
            self._incident_dir = None if trainer.fast_dev_run else directory / "incidents"
            self._session = Session(
                directory=None if trainer.fast_dev_run else directory,
                writer=None if trainer.fast_dev_run else summary_writer(trainer),
                show=trainer.is_global_zero,
                strict=self.strict,
                quiet=not self.verbose,
            )
        except Exception as error:
            if self.strict:
                raise
            line = (
                f"Ranum could not start ({type(error).__name__}: {error}); training is not guarded."
            )
            warnings.warn(RanumWarning(line), stacklevel=2)
            return
        with self._session.contained("resuming"):
            self._resumption = Resumption(trainer, pl_module, self._session)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Makes the guard, once optimizers exist."""
        if self._session is None:
            return
        with self._session.contained("the guard"):
            self._fit_to_strategy(trainer)
            if "repair" in self._allowed:
                self._initial = saved_state(pl_module)
            self._position = LightningPosition(trainer, pl_module)
            self._make_guard(trainer, pl_module)
            if self.uneven and self._is_replicated(trainer) and self._guard is not None:
                self._absences = Absences(trainer, pl_module, self._guard)
            if self._loaded_guard and self._guard is not None:
                self._guard.load_state_dict(self._loaded_guard)
                self._loaded_guard = {}

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Has the epoch's batches kept, so that they can come again."""
        session, guard = self._session, self._guard
        if session is None or guard is None or not session.is_on("the guard"):
            return
        with session.contained("the guard"):
            if self._position is not None:
                self._position.attach()
            guard.request_snapshot()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Analyses the first batch; remembers each batch so that it can be replayed."""
        session = self._session
        if session is None:
            return
        if self.analyze == "step" and not self._is_analysed:
            self._is_analysed = True
            session.analyze(
                partial(
                    lightning_program,
                    pl_module,
                    batch,
                    batch_idx=batch_idx,
                    precision=precision(trainer),
                ),
                confirm_seconds=self.confirm_seconds,
                training_seconds=self.training_seconds if len(trainer.optimizers) == 1 else 0.0,
                optimizer=next(iter(trainer.optimizers), None),
                data=training_data(trainer, pl_module),
            )
        if self._guard is not None and session.is_on("the guard"):
            with session.contained("the guard"):
                if self._position is not None:
                    self._position.batch_starts()
                self._guard.begin(batch, partial(replay, trainer, pl_module, batch, batch_idx))
                if self._absences is not None:
                    self._absences.batch_starts()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Keeps the loss; it is read together with the gradients."""
        session = self._session
        if session is None or not isinstance(loss, Tensor) or trainer.world_size > 1:
            return  # of several processes each has a loss of its own; they must decide alike
        with session.contained("the loss reading"):
            self._loss = unscaled(loss.detach(), trainer) * trainer.accumulate_grad_batches
            if self._guard is not None:
                self._guard.look(loss)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Decides, before the weights are touched."""
        session, guard = self._session, self._guard
        if session is None or guard is None or not session.is_on("the guard"):
            return
        with session.contained("the guard"):
            if "repair" in self._allowed and not self._initial:
                self._initial = saved_state(pl_module)  # lazy layers have got their shapes
            decision = guard.decide(self._loss, epoch=trainer.current_epoch)
            session.decision(decision)
            self._leaves_out = decision.leaves_out
            if decision.leaves_out:
                guard.snapshots.take_settings()
            if decision.stop:
                trainer.should_stop = True
        self._loss = None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends the step; carries out a restart."""
        session, guard = self._session, self._guard
        if session is None or guard is None or not session.is_on("the guard"):
            return
        with session.contained("the guard"):
            guard.end()
            position, leaves_out = self._position, self._leaves_out
            self._leaves_out = False
            if position is not None and not position.batch_ends() and leaves_out:
                position.leave_out()
                guard.snapshots.restore_settings()
            if self._restart is not None and not self._restart.is_begun:
                self._restart.begin(trainer, pl_module)
                self._make_guard(trainer, pl_module)
        if saves_weights_only(trainer, step=True):
            self._check_at_rest(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """A run that goes on from a checkpoint has its random numbers back by now."""
        if self._resumption is not None and self._session is not None:
            with self._session.contained("resuming"):
                self._resumption.put_random_back()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Looks at the weights before they are saved alone; tells the guard the validation loss."""
        if not trainer.sanity_checking and saves_weights_only(trainer, step=False):
            self._check_at_rest(trainer)
        if self._session is None or self._guard is None or trainer.sanity_checking:
            return
        with self._session.contained("the validation loss"):
            name = next((key for key in VALIDATION_LOSS if key in trainer.callback_metrics), None)
            if name is not None:
                self._guard.validated(trainer.callback_metrics[name])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Looks at the weights before they are saved alone; rewinds the epoch after a restart."""
        if saves_weights_only(trainer, step=False):
            self._check_at_rest(trainer)
        if self._session is not None and self._restart is not None:
            with self._session.contained("the restart"):
                self._restart.rewind(trainer)
            self._restart = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Writes the report."""
        self._check_at_rest(trainer)
        self._finish("training finished")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Writes the report of a run that was broken off."""
        self._finish(f"training was broken off by {type(exception).__name__}: {exception}")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leaves nothing behind."""
        if stage == "fit" and self._session is not None:
            self._finish("training ended")

    # --- inside -----------------------------------------------------------------------------

    def _check_at_rest(self, trainer: Any) -> None:
        """Keeps a damaged state out of checkpoints."""
        session, guard = self._session, self._guard
        if session is None or guard is None or not session.is_on("the guard"):
            return
        with session.contained("the guard"):
            decision = guard.check_at_rest(epoch=trainer.current_epoch)
            if decision is not None:
                session.decision(decision)

    def _finish(self, outcome: str) -> None:
        session = self._session
        if session is None or session.outcome:
            return
        session.outcome = outcome
        session.finish(self.history, outcome)
        if self._guard is not None:
            with session.contained("the guard"):
                self._guard.close()
        if self._position is not None:
            with session.contained("the guard"):
                self._position.detach()
        if self._absences is not None:
            self._absences.close()
        if self._resumption is not None:
            self._resumption.close()

    def _is_replicated(self, trainer: Any) -> bool:
        """True for several processes with a replica of the model each."""
        return trainer.world_size > 1 and type(trainer.strategy).__name__ == "DDPStrategy"

    def _fit_to_strategy(self, trainer: Any) -> None:
        """With several processes: what is safe there, and a word on what is left out."""
        self._allowed = self.on_fault
        if trainer.world_size == 1:
            return
        is_known = type(trainer.strategy).__name__ in ("DDPStrategy", "ModelParallelStrategy")
        self._allowed = tuple(
            name
            for name in self.on_fault
            if is_known and name in ("retry", "skip", "clip_gradients", "rollback")
        )
        what = (
            "only gradients, which all processes share, are judged, and the remedies are "
            "'retry', 'skip', 'clip_gradients' and 'rollback'"
            if is_known
            else f"{type(trainer.strategy).__name__} is not known; a fault stops training"
        )
        warnings.warn(RanumWarning(f"Ranum: with several processes {what}."), stacklevel=2)

    def _directory(self, trainer: Any) -> Path:
        base = trainer.log_dir  # asks all ranks, so all must ask
        if self.log_dir is not None:
            return Path(self.log_dir)
        return Path(base or trainer.default_root_dir) / "ranum_report"

    def _make_guard(self, trainer: Any, pl_module: Any) -> None:
        session = self._session
        assert session is not None
        former = self._guard
        if former is not None:
            former.close()
        optimizers = list(trainer.optimizers)
        if not optimizers:
            return
        self._guard = Guard(
            pl_module,
            optimizers,
            symptoms=_symptoms(len(optimizers)) if self.symptoms is None else self.symptoms,
            remedies=self._remedies(trainer, pl_module),
            act_on=self.act_on,
            sample_every=self.sample_every,
            snapshot_every=self.snapshot_every,
            snapshot_to=self.snapshot_to,
            schedulers=[config.scheduler for config in trainer.lr_scheduler_configs],
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            strict=self.strict,
            history=None if former is None else former.history,
            position=self._position,
            incident_dir=self._incident_dir,
            also=[*averages(trainer), *self.also],
            vote=self.vote and self._is_replicated(trainer),
            uneven=self.uneven and self._is_replicated(trainer),
        )

    def _remedies(self, trainer: Any, pl_module: Any) -> list[Remedy]:
        session = self._session
        assert session is not None
        factor = LEARNING_RATE_FACTOR
        make: dict[str, Callable[[], Remedy]] = {
            "retry": Retry,
            "skip": Skip,
            "clip_gradients": ClipGradients,
            "clip": partial(InsertClip, session, learning_rate_factor=factor),
            "rollback": partial(Rollback, learning_rate_factor=factor),
            "repair": lambda: RepairConfiguration(partial(self._repair, trainer, pl_module)),
        }
        names = [name for name in self._allowed if not (name == "repair" and session.repair)]
        return [make[name]() for name in names]

    def _repair(self, trainer: Any, pl_module: Any, fault: Fault) -> str | None:
        """Searches a configuration; a line on what it found, None if nothing."""
        session = self._session
        assert session is not None
        if not pl_module.automatic_optimization:
            return None  # such a step cannot be tried on its own
        optimizer = trainer.optimizers[0]
        loader = training_loader(trainer)
        size = loader.batch_size if has_choice_of_batch_size(loader) else None
        trials = Trials(
            module=pl_module,
            initial=self._initial,
            optimizer=optimizer,
            loader=loader,
            to_device=partial(to_device, trainer),
            precision=precision(trainer),
        )
        faulty = read_configuration(
            pl_module, optimizer, size, gradient_clip=gradient_clip(trainer, pl_module)
        )
        faulty["learning_rate"] = self._guard_start_rate(optimizer, faulty["learning_rate"])
        session.searching(fault)
        try:
            result = repair_configuration(
                trials.train,
                faulty,
                self.search,
                budget=self.search_budget,
                findings=[fault.finding],
                on_trial=lambda record: session.trial(record, faulty),
            )
        except MissingExtraError as error:
            warnings.warn(RanumWarning(f"Ranum: {error} Training stops instead."), stacklevel=2)
            return None
        session.repaired(result)
        if not result.is_repaired:
            return None
        self._restart = Restart(
            configuration=dict(result.configuration), initial=self._initial, loader=loader
        )
        changes = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in result.patch.items())
        return f"found a configuration that trains ({changes}); training restarts from it"

    def _guard_start_rate(self, optimizer: Any, present: float) -> float:
        """The learning rate the run began with, before rollbacks lowered it."""
        rates = [reading.learning_rate for reading in self.history.readings]
        first = next((rate for rate in rates if rate is not None), None)
        return present if first is None else first


# --- Lightning ------------------------------------------------------------------------------

_NAMESPACES = ("lightning.pytorch", "pytorch_lightning")
_made: dict[tuple[type, ...], type] = {}


def make_callback(*namespaces: str) -> type:
    """The callback class on the `Callback` bases of the given namespaces.

    Raises:
        MissingExtraError: If a namespace is not installed.
    """
    try:
        bases = tuple(importlib.import_module(name).Callback for name in namespaces)
    except ImportError as error:
        raise MissingExtraError(namespaces[0], "lightning", "RanumCallback") from error
    if bases not in _made:
        _made[bases] = type(
            "RanumCallback",
            (GuardCallback, *bases),
            {"__doc__": GuardCallback.__doc__, "__module__": "ranum"},
        )
    return _made[bases]


def default_callback() -> type:
    """The callback for the namespace in use; for both, where both are or neither is."""
    loaded = [name for name in _NAMESPACES if name in sys.modules]
    installed = loaded or [name for name in _NAMESPACES if _is_installed(name)]
    return make_callback(*(installed or _NAMESPACES[1:]))


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None


def _symptoms(optimizers: int) -> tuple[Symptom, ...]:
    """The default rules; without those about the whole run where several losses alternate."""
    return tuple(rule for rule in default_symptoms() if optimizers == 1 or not rule.is_of_run)
