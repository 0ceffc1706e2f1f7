"""The guard: watches each step, decides before the optimizer, finds the culprit, recovers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from ranum.errors import ArgumentError, RanumError, RanumWarning
from ranum.guards.culprit import find_culprit
from ranum.guards.health import Health, is_finite
from ranum.guards.incident_file import save_incident
from ranum.guards.parts import without_bad_parts
from ranum.guards.rates import multiply_learning_rates
from ranum.guards.readings import TorchReader
from ranum.guards.recovery import Fault, Ladder, Outcome, Remedy, default_remedies
from ranum.guards.rewind import LoaderPosition, Position
from ranum.guards.snapshot import Snapshots, Stateful, as_optimizers
from ranum.guards.symptoms import CODES, Monitor, Symptom, default_symptoms
from ranum.guards.types import Culprit, Extremes, Finding, History, Incident, Reading
from ranum.source import UNKNOWN, Source

READINGS_KEPT = 20_000
"""Beyond this, the older half of a history is thinned by two."""
BATCHES_KEPT = 64
"""Micro-batches of one step that are kept for the replay; earlier ones are let go."""
INCIDENT_FILES = 8
"""Faulty steps of a run that are saved; more of them would tell little more."""
MARKS_KEPT = 2
"""Newest snapshots whose batches can come again."""

_T = TypeVar("_T")
_ALL = "the guard"


class TrainingStopped(RanumError):  # noqa: N818 - not an error of the program's
    """The recovery ladder is used up; raised by `Guard.step` in plain loops.

    Attributes:
        incident: The last one.
    """

    def __init__(self, incident: Incident) -> None:
        super().__init__(f"step {incident.step}: {incident.detail}")
        self.incident = incident


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the guard says about a step, before the optimizer.

    Attributes:
        proceed: Take the optimizer step. If False, the gradients have been dropped; with an
            incident, they have been mended.
        incident: What was done; None if nothing had to be.
        stop: Training should end.
        restart: Training should start over: a remedy has prepared a new configuration.
        reading: What was measured; None if measuring has been switched off.
        findings: What is new about it.
    """

    proceed: bool
    incident: Incident | None = None
    stop: bool = False
    restart: bool = False
    reading: Reading | None = None
    findings: tuple[Finding, ...] = ()


class Guard:
    """Keeps a training loop free of NaN, Inf and exploding steps.

    In a plain loop, `step` does what the loop did: it clears the gradients, and on exit
    decides and steps the optimizer (through the scaler, if there is one).

        guard = Guard(model, optimizer)
        for x, y in loader:
            with guard.step((x, y)) as step:
                loss = step.backward(lambda: loss_fn(model(x), y))

    Adapters call `begin`, `decide` and `end` instead. After a fault the step is withheld,
    the batch is replayed to find the culprit, and the first remedy of the ladder that fits
    acts. A rollback restores weights, buffers, optimizer, schedulers, scaler and random
    numbers; rewinding the data is the loop's own business (in a plain loop the data goes on).

    A fault inside Ranum never ends training: it is reported once, in a `RanumWarning` and in
    `history.internal_faults`, and the part that failed is switched off. What `on_finding` and
    `on_incident` raise is the caller's own and goes through.

    Memory: see `Snapshots`, and a reference to the current batch.

    Args:
        model: The module that holds all parameters being trained.
        optimizer: One optimizer or a list of them.
        symptoms: Rules over readings; `default_symptoms()` by default.
        remedies: The ladder, mildest first: objects or built-in names ("retry", "skip",
            "rollback", "stop"), which is the default. When none fits, training stops.
        sample_every: Steps between two measurements of every layer.
        snapshot_every: Steps between two snapshots, taken only while training goes well.
        schedulers: Schedulers, or anything with `state_dict` and `load_state_dict` that has
            to go back with the weights.
        scaler: The gradient scaler of float16 training. Its own skipped steps, while it
            looks for a scale, are not faults.
        keep: Snapshots kept besides the first.
        strict: Raise faults inside Ranum instead of reporting them; for tests.
        on_finding: Called with every new finding.
        on_incident: Called with every incident, after the remedy has acted.
        history: A history to go on from, of a guard before a restart.
        position: Where the run stands in its data; that of `batches` by default.
        incident_dir: Folder for the files of faulty steps that were not finite, at most eight of
            them (see `load_incident` and `ranum replay`); None writes none.
        agree: With several processes, True for all of them if it is called with True in all;
            a reduction over `torch.distributed` by default. Only asked after a fault.

    Raises:
        ArgumentError: If an argument breaks its rule.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        symptoms: Iterable[Symptom] | None = None,
        remedies: Iterable[Remedy | str] | None = None,
        sample_every: int = 10,
        snapshot_every: int = 50,
        schedulers: Iterable[Stateful] = (),
        scaler: Any = None,
        keep: int = 2,
        strict: bool = False,
        on_finding: Callable[[Finding], Any] | None = None,
        on_incident: Callable[[Incident], Any] | None = None,
        history: History | None = None,
        position: Position | None = None,
        incident_dir: str | Path | None = None,
        agree: Callable[[bool], bool] | None = None,
    ) -> None:
        if (
            isinstance(snapshot_every, bool)
            or not isinstance(snapshot_every, int)
            or snapshot_every < 1
        ):
            raise ArgumentError(
                f"snapshot_every must be a positive integer; got {snapshot_every!r}."
            )
        for name, value in (("on_finding", on_finding), ("on_incident", on_incident)):
            if value is not None and not callable(value):
                raise ArgumentError(f"{name} must be callable or None; got {value!r}.")
        self.model = model
        self.optimizers = as_optimizers(optimizer)
        self.scaler = scaler
        self.snapshot_every = snapshot_every
        self.strict = strict
        self.snapshots = Snapshots(
            model, self.optimizers, schedulers=schedulers, scaler=scaler, keep=keep
        )
        self._reader = TorchReader(model, sample_every=sample_every)
        rules = default_symptoms() if symptoms is None else symptoms
        self._monitor = Monitor(rules, strict=strict)
        self._ladder = Ladder(default_remedies() if remedies is None else remedies, strict=strict)
        self._on_finding = on_finding
        self._on_incident = on_incident
        self._readings = list(history.readings) if history else []
        self._findings = list(history.findings) if history else []
        self._incidents = list(history.incidents) if history else []
        self._faults = list(history.internal_faults) if history else []
        self._history = History(
            readings=self._readings,
            findings=self._findings,
            incidents=self._incidents,
            internal_faults=self._faults,
        )
        self._step = self._readings[-1].step + 1 if self._readings else 0
        self._off: set[str] = set()
        self._health = Health()
        self._cuts: list[tuple[int, float]] = []
        self._is_open = False
        self._is_decided = False
        self._batches: list[tuple[Any, Callable[[], Any] | None]] = []
        self._parts: list[Callable[[], Any]] = []
        self._watching: Any = None
        self._measured: Reading | None = None
        self._candidate: int | None = None
        self._went_back = False
        self._next_snapshot = self._step
        self._position = LoaderPosition() if position is None else position
        self._incident_dir = None if incident_dir is None else Path(incident_dir)
        self._agree = _agree if agree is None else agree
        self._marks: dict[int, Any] = {}
        self._here: Any = None
        self._again: int | None = None
        self._is_retry = False

    def __repr__(self) -> str:
        return (
            f"Guard({type(self.model).__name__}, step={self._step}, "
            f"incidents={len(self._incidents)}, snapshots={self.snapshots.steps})"
        )

    @property
    def history(self) -> History:
        """Everything seen so far; a live view that grows with the run."""
        return self._history

    @property
    def current_step(self) -> int:
        """Steps attempted so far; never goes back, so that every reading has its own number."""
        return self._step

    # --- plain loops -----------------------------------------------------------------------

    def batches(self, loader: Iterable[_T]) -> Iterator[_T]:
        """The batches of a loader; those since the last snapshot again, after a rollback.

            for x, y in guard.batches(loader):
                with guard.step((x, y)) as step:
                    ...

        They are kept in memory (host memory, as far as they come from there), at most a
        twentieth of what is free; snapshots are taken more often where that is little. A
        batch that the loop writes to cannot come again; then the data goes on.

        Args:
            loader: Anything iterable, for one pass.
        """
        if not isinstance(self._position, LoaderPosition):
            raise ArgumentError("batches is for plain loops; this guard's adapter has the data.")
        self.request_snapshot()
        return self._position.iterate(loader)

    @contextmanager
    def step(self, batch: Any = None, *, epoch: int = 0) -> Iterator[Step]:
        """One optimizer step: clears gradients, and on exit decides and steps the optimizer.

        If the body raises, nothing is decided and the exception goes on.

        Args:
            batch: What the step trains on; looked at when something fails.
            epoch: Counting from 0, for readings.

        Raises:
            TrainingStopped: On exit, if no remedy is left.
            ArgumentError: If an optimizer needs a closure (LBFGS).
        """
        for optimizer in self.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                raise ArgumentError(
                    "optimizer must not need a closure; got LBFGS. Use begin, decide and end."
                )
            optimizer.zero_grad()
        step = Step(self)
        self.begin(batch)
        try:
            yield step
        except BaseException:
            self.abandon()
            raise
        self._batches[-1:] = [(batch, step.replay)]
        self._parts = step.parts
        self._unscale()
        decision = self.decide(step.loss, epoch=epoch)
        step.decision = decision
        if decision.proceed:
            self._update()
        elif self.scaler is not None and self.scaler.is_enabled():
            # The scale of now, so that the withheld step leaves the scaler as it was.
            self.scaler.update(new_scale=self.scaler.get_scale())
        self.end()
        if decision.stop and decision.incident is not None:
            raise TrainingStopped(decision.incident)

    def _unscale(self) -> None:
        if self.scaler is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)

    def _update(self) -> None:
        for optimizer in self.optimizers:
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()

    # --- adapters --------------------------------------------------------------------------

    def begin(self, batch: Any = None, replay: Callable[[], Any] | None = None) -> None:
        """Call before the forward pass. Further calls before `decide` add micro-batches.

        Args:
            batch: Tensors, nested in containers.
            replay: Runs forward, loss and backward of this batch once more and returns the
                loss; None if that is not possible.
        """
        if self._is_decided:
            self.end()
        self._batches.append((batch, replay))
        del self._batches[:-BATCHES_KEPT]
        if self._is_open:
            return
        self._is_open, self._went_back = True, False
        self._contained("snapshots", self._prepare)
        if self._reader.is_sampled(self._step):
            self._contained(_ALL, self._watch)

    def withdraw_replays(self) -> None:
        """The batches of this step cannot be run again after all; they are looked at only."""
        self._batches = [(batch, None) for batch, _ in self._batches]

    def measure(self, loss: Tensor | float | None = None, *, epoch: int = 0) -> None:
        """Reads the step now, for the `decide` that follows: before gradients are clipped.

        Args:
            loss: As in `decide`.
            epoch: As in `decide`.
        """
        self._measured = self._contained(_ALL, lambda: self._read(loss, epoch))

    def decide(self, loss: Tensor | float | None = None, *, epoch: int = 0) -> Decision:
        """Call after the backward pass, with unscaled, unclipped gradients, before the step.

        Args:
            loss: As a tensor, so that it is read together with the gradients.
            epoch: Counting from 0.
        """
        if self._went_back:
            # A second optimizer, on a graph that the state gone back to has nothing to do with.
            self._drop_gradients()
            return Decision(proceed=False)
        self._unwatch()
        decision = self._contained(_ALL, lambda: self._decide(loss, epoch))
        self._step += 1
        self._is_decided = True
        if decision is None:
            return Decision(proceed=True)
        self._tell(decision)
        return decision

    def end(self) -> None:
        """Call after the step. Between micro-batches, before `decide`, it changes nothing."""
        if self._is_decided:
            self._is_decided = self._is_open = self._went_back = False
            self._batches.clear()
            self._parts = []

    def abandon(self) -> None:
        """Forgets a step that has begun and will not be decided, as after an exception."""
        self._unwatch()
        self._is_decided = self._is_open = self._went_back = False
        self._batches.clear()
        self._parts = []
        self._drop_candidate()

    def close(self) -> None:
        """Removes all hooks and frees the snapshots; the history stays."""
        self.abandon()
        self._reader.close()
        self.snapshots.clear()

    def leave_out_parts(self) -> list[int] | None:
        """Mends the gradients of this step: without the micro-batches that spoil them.

        For remedies, whose outcome then is to proceed. See `without_bad_parts`.

        Returns:
            The positions of those left out; None, with nothing changed, if that is none or all
            of them, if they cannot be run again one by one, or if a scaler or another process has
            seen the bad gradients already.
        """
        parts = self._parts or [replay for _, replay in self._batches if replay is not None]
        count = len(self._parts) or len(self._batches)
        if len(parts) < 2 or len(parts) < count or self.scaler is not None or _is_shared():
            return None
        trained = [p for one in self.optimizers for g in one.param_groups for p in g["params"]]
        others = [p for p in self.model.parameters() if all(p is not one for one in trained)]
        return without_bad_parts(self.model, [*trained, *others], parts)

    def go_back(self, depth: int = 0, *, rewind: bool = True) -> int | None:
        """Goes back to a snapshot; for remedies.

        Cuts of the learning rate that were made after the snapshot stay in force.

        Args:
            depth: 0 for the newest, 1 for the one before, ...
            rewind: Train on the batches since then once more, if they can come again; else
                the data goes on. See `is_rewound`.

        Returns:
            The step gone back to; None, with nothing changed, if there is no snapshot or it
            does not fit the model any more.
        """
        if self.snapshots.latest_step is None:
            return None
        steps = self.snapshots.steps
        mark = self._marks.get(steps[min(depth, len(steps) - 1)])
        can_rewind = rewind and mark is not None
        can_rewind = can_rewind and self._agree(self._position.can_go_back(mark))
        try:
            if can_rewind:
                self._position.go_back(mark)
            back_to = self.snapshots.restore(depth)
        except RanumError as error:
            if self.strict:
                raise
            self.snapshots.clear()
            self._report("going back", error, "New snapshots will be taken.")
            return None
        self._cut_again(back_to)
        self._again = back_to if can_rewind else None
        self._went_back = True
        self._monitor.reset(back_to)
        self._health.restart()
        self._next_snapshot = self._step + self.snapshot_every
        return back_to

    def retry(self) -> bool:
        """The batch of this step comes once more, on the same state; for remedies.

        Returns:
            False, with nothing changed, if it cannot come again.
        """
        if self._here is None or not self._agree(self._position.can_go_back(self._here)):
            return False
        self._position.go_back(self._here)
        self.snapshots.take_settings()
        self._again, self._is_retry = self._step, True
        self._went_back = True
        return True

    @property
    def is_rewound(self) -> bool:
        """True if batches will come again: after `go_back` or `retry`, until the next one."""
        return self._again is not None

    def request_snapshot(self) -> None:
        """A snapshot is taken before the next step, if training goes well."""
        self._next_snapshot = self._step

    def _cut_again(self, back_to: int) -> None:
        for step, factor in self._cuts:
            if step >= back_to:
                multiply_learning_rates(self.optimizers, self.snapshots.schedulers, factor)

    def scale_learning_rates(self, factor: float) -> None:
        """Multiplies all learning rates, in a way that lasts under schedulers and rollbacks.

        Raises:
            ArgumentError: If `factor` is not positive.
        """
        if not 0 < factor < math.inf:
            raise ArgumentError(f"factor must be positive; got {factor!r}.")
        multiply_learning_rates(self.optimizers, self.snapshots.schedulers, factor)
        self._cuts.append((self._step, factor))

    # --- one step --------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Notes the state before the batch; takes a snapshot if one is due."""
        # What the loop has done since it was sent back (stepped schedulers) did not happen.
        again, self._again = self._again, None
        if self._is_retry:
            self._is_retry = False
            self.snapshots.restore_settings()
        elif again is not None:
            self.snapshots.restore()
            self._cut_again(again)
        # Of several processes each has a memory of its own; they must take snapshots alike.
        is_full = self._position.is_nearly_full and not _is_shared()
        is_due = (self._step >= self._next_snapshot or is_full) and self._health.is_good
        if (self.snapshots.latest_step is None or is_due) and self.snapshots.is_ready:
            self.snapshots.take(self._step)
            self._candidate = self._step
            self._next_snapshot = self._step + self.snapshot_every
            self._mark()
        self.snapshots.take_buffers()
        self._here = self._position.mark()

    def _mark(self) -> None:
        """Notes where in the data the newest snapshot was taken."""
        steps = self.snapshots.steps
        self._marks = {step: mark for step, mark in self._marks.items() if step in steps}
        self._marks[self._step] = self._position.mark()
        self._position.keep_from(self._marks[sorted(self._marks)[-MARKS_KEPT:][0]])

    def _watch(self) -> None:
        self._watching = self._reader.watch(self._step)
        self._watching.__enter__()

    def _unwatch(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            self._contained(_ALL, lambda: watching.__exit__(None, None, None))

    def _decide(self, loss: Tensor | float | None, epoch: int) -> Decision:
        reading, self._measured = self._measured or self._read(loss, epoch), None
        if self._candidate == self._step and not reading.bad_state:
            bad = next(iter(self._contained("snapshots", self.snapshots.bad_in_latest) or ()), "")
            if not self._agree(not bad):
                reading = replace(reading, bad_state=bad or "the state of another process")
        self._readings.append(reading)
        if len(self._readings) > READINGS_KEPT:
            self._readings[: READINGS_KEPT // 2] = self._readings[: READINGS_KEPT // 2 : 2]
        if self._is_scaler_at_work(reading):
            self._drop_candidate()
            return Decision(proceed=True, reading=reading)
        known = len(self._monitor.internal_faults)
        findings = self._monitor.observe(reading)
        self._faults += self._monitor.internal_faults[known:]
        finding = next((found for found in findings if found.severity == "fault"), None)
        if finding is None:
            self._candidate = None
            self._health.see(reading)
            return Decision(proceed=True, reading=reading, findings=findings)
        # Before anything else, so that the step is withheld even if the rest should fail.
        self._drop_gradients()
        self._health.restart()
        outcome, culprit, file = self._recover(finding, reading)
        incident = Incident(
            step=reading.step,
            epoch=epoch,
            finding=finding,
            culprit=culprit,
            action=outcome.action,
            detail=outcome.detail,
            back_to=outcome.back_to,
            patch=outcome.patch,
            file=file,
        )
        self._incidents.append(incident)
        return Decision(
            proceed=outcome.proceed,
            incident=incident,
            stop=outcome.stop,
            restart=outcome.restart,
            reading=reading,
            findings=findings,
        )

    def _read(self, loss: Tensor | float | None, epoch: int) -> Reading:
        if _is_shared():
            loss = None  # each process has its own; the gradients, which are shared, decide
        return self._reader.read(
            step=self._step,
            loss=loss,
            optimizer=self.optimizers,
            epoch=epoch,
            # Of several processes each has statistics of its own; they must decide alike.
            buffers=() if _is_shared() else self.snapshots.buffers_before,
        )

    def _recover(self, finding: Finding, reading: Reading) -> tuple[Outcome, Culprit | None, str]:
        self._contained("snapshots", self.snapshots.restore_buffers)
        culprit, is_transient, file = None, False, ""
        if reading.bad_state and is_finite(reading):
            culprit = Culprit(
                op="",
                phase="forward",
                source=UNKNOWN,
                outcome="NaN or Inf",
                cause="weights",
                name=reading.bad_state,
            )
        elif not is_finite(reading):
            found = self._contained("the culprit search", self._find_culprit)
            culprit, is_transient = found or (None, False)
            is_transient = self._agree(is_transient)
            self._drop_gradients()
            saved = self._contained("incident files", lambda: self._save(finding, reading, culprit))
            file = str(saved or "")
        if not is_transient:
            self._drop_candidate()
        fault = Fault(
            finding=finding,
            reading=reading,
            step=reading.step,
            epoch=reading.epoch,
            culprit=culprit,
            is_transient=is_transient,
        )
        known = len(self._ladder.internal_faults)
        outcome = self._ladder.apply(fault, self)
        self._faults += self._ladder.internal_faults[known:]
        if outcome is None and CODES[finding.code].is_of_run:
            # Nothing in this step is broken; to end the run is for the user to decide.
            self._monitor.silence(finding.code)
            outcome = Outcome(
                action="go on",
                detail="no remedy is left; training goes on, and this rule is switched off",
            )
        if outcome is None:
            outcome = Outcome(
                action="stop",
                detail=f"training ends, no remedy is left: {finding.message}",
                stop=True,
            )
        return outcome, culprit, file

    def _save(self, finding: Finding, reading: Reading, culprit: Culprit | None) -> Path | None:
        """Writes the step to a file; None if none is wanted."""
        written = sum(bool(incident.file) for incident in self._incidents)
        if self._incident_dir is None or written >= INCIDENT_FILES or not self._batches:
            return None
        return save_incident(
            self._incident_dir / f"step-{reading.step}.pt",
            model=self.model,
            batches=[batch for batch, _ in self._batches],
            finding=finding,
            culprit=culprit,
            step=reading.step,
            epoch=reading.epoch,
            random=self.snapshots.random_before,
        )

    def _find_culprit(self) -> tuple[Culprit | None, bool]:
        """The culprit; and True if the whole step was run again, and was finite."""
        batches = [batch for batch, _ in self._batches]
        replays = [replay for _, replay in self._batches if replay is not None]

        def run() -> list[Any]:
            return [replay() for replay in replays]

        culprit = find_culprit(
            run if replays else None,
            model=self.model,
            batch=batches[0] if len(batches) == 1 else batches,
            strict=True,
        )
        return culprit, culprit is None and len(replays) == len(batches)

    def _is_scaler_at_work(self, reading: Reading) -> bool:
        """True if the gradients are not finite because the scaler's scale is still too large."""
        return (
            self.scaler is not None
            and not is_finite(reading)
            and (reading.loss is None or math.isfinite(reading.loss))
            and self.scaler.is_enabled()
            and self.scaler.get_scale() > 1
        )

    def _drop_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _drop_candidate(self) -> None:
        """A snapshot counts only when the step from it has been seen to be good."""
        if self._candidate is not None:
            self.snapshots.drop_latest()
            self._candidate = None
            self._next_snapshot = self._step + 1

    def _tell(self, decision: Decision) -> None:
        self._findings += decision.findings
        del self._findings[:-READINGS_KEPT]
        if self._on_finding is not None:
            for finding in decision.findings:
                self._on_finding(finding)
        if self._on_incident is not None and decision.incident is not None:
            self._on_incident(decision.incident)

    # --- faults of our own -----------------------------------------------------------------

    def _contained(self, part: str, work: Callable[[], _T]) -> _T | None:
        """Runs a part; if it fails, reports it and switches it off. None if it is off."""
        if part in self._off or _ALL in self._off:
            return None
        try:
            return work()
        except Exception as error:
            if self.strict:
                raise
            self._off.add(part)
            self._report(part, error, "It is switched off; training goes on.")
            return None

    def _report(self, part: str, error: Exception, cure: str) -> None:
        line = f"{part} failed: {type(error).__name__}: {error}"
        self._faults.append(line)
        warnings.warn(f"{line}. {cure}", RanumWarning, stacklevel=4)

    # --- plain data ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Counters, remedies' states, findings and incidents, as plain data; no tensors.

        Readings and snapshots are not included: after a resume the first snapshot is the
        state that was resumed.
        """
        return {
            "version": 1,
            "step": self._step,
            "remedies": [
                [remedy.name, remedy.state_dict()]
                for remedy in self._ladder.remedies
                if hasattr(remedy, "state_dict")
            ],
            "findings": [finding.to_dict() for finding in self._findings],
            "incidents": [incident.to_dict() for incident in self._incidents],
            "internal_faults": list(self._faults),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes a `state_dict` back, also after JSON.

        Remedies' states are matched by name, in order; those of remedies that this guard
        does not have are left out.

        Raises:
            ArgumentError: If it is not a guard's state.
        """
        if state.get("version") != 1:
            raise ArgumentError(
                f"state must be a guard's state_dict of version 1; got {state.get('version')!r}."
            )
        self._step = self._next_snapshot = int(state["step"])
        self._findings[:] = [Finding(**finding) for finding in state["findings"]]
        self._incidents[:] = [_incident(incident) for incident in state["incidents"]]
        self._faults[:] = state["internal_faults"]
        saved = [(name, value) for name, value in state["remedies"]]
        for remedy in self._ladder.remedies:
            match = next((entry for entry in saved if entry[0] == remedy.name), None)
            if match is not None and hasattr(remedy, "load_state_dict"):
                saved.remove(match)
                remedy.load_state_dict(match[1])


class Step:
    """One step of a plain loop; made by `Guard.step`.

    Attributes:
        loss: The last loss given to `backward`, detached; None before.
        decision: What the guard decided; None before the `with` block ends.
    """

    def __init__(self, guard: Guard) -> None:
        self.loss: Tensor | None = None
        self.decision: Decision | None = None
        self._scaler = guard.scaler
        self._calls: list[tuple[Any, tuple[Any, ...]]] = []

    def backward(self, loss: Tensor | Callable[..., Tensor], *args: Any) -> Tensor:
        """Computes the loss and its gradients; several calls accumulate.

        Args:
            loss: A function that computes the loss, forward pass included: then a failed step
                can be replayed and its culprit named. Or the loss itself, `[]`: then only
                data and weights can be blamed.
            *args: Passed to the function. With several calls per step, pass the micro-batch
                here: a lambda would see the last one in the replay.

        Returns:
            The loss.
        """
        if callable(loss) and not isinstance(loss, Tensor):
            self._calls.append((loss, args))
            return self._run(loss, args)
        if args:
            raise ArgumentError("args must be empty when loss is a tensor; pass a function.")
        self._calls.append((None, ()))
        return self._run(lambda: loss, ())

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Tensor:
        loss = function(*args)
        if not isinstance(loss, Tensor):
            raise ArgumentError(f"loss must be a tensor; got {type(loss).__name__}.")
        self.loss = loss.detach()
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        scaled.backward()
        return loss

    @property
    def parts(self) -> list[Callable[[], Any]]:
        """Each runs one of the calls once more; none if one of them cannot be run."""
        if self.replay is None:
            return []
        return [partial(self._run, function, args) for function, args in self._calls]

    @property
    def replay(self) -> Callable[[], Any] | None:
        """Runs the calls of this step once more; None if one of them cannot be run."""
        return None if any(function is None for function, _ in self._calls) else self._replay

    def _replay(self) -> list[Tensor]:
        kept = self.loss
        try:
            return [self._run(function, args) for function, args in self._calls]
        finally:
            self.loss = kept


def _is_shared() -> bool:
    """True if several processes train together, which must decide alike."""
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    return distributed.get_world_size() > 1


def _agree(answer: bool) -> bool:
    """True if all processes answer True; each must be asked."""
    if not _is_shared():
        return answer
    is_nccl = distributed.get_backend() == "nccl"
    flag = torch.tensor(float(answer), device="cuda" if is_nccl else "cpu")
    distributed.all_reduce(flag, distributed.ReduceOp.MIN)
    return bool(flag)


def _incident(data: Mapping[str, Any]) -> Incident:
    values = dict(data)
    values["finding"] = Finding(**values["finding"])
    if values["culprit"] is not None:
        values["culprit"] = _culprit(values["culprit"])
    return Incident(**values)


def _culprit(data: Mapping[str, Any]) -> Culprit:
    source = {name: value for name, value in data["source"].items() if name != "expression"}
    culprit = Culprit(**{**data, "source": Source(**source), "operands": (), "output": None})
    return replace(
        culprit,
        operands=tuple(Extremes(**operand) for operand in data["operands"]),
        output=None if data["output"] is None else Extremes(**data["output"]),
    )
