"""What every guard decides, whatever the framework: from a reading to a remedy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ranum.errors import ArgumentError, RanumError, RanumWarning
from ranum.guards._interval import Interval
from ranum.guards._store import SnapshotStore
from ranum.guards.decision import Decision, damage
from ranum.guards.health import Health, is_finite
from ranum.guards.recovery import Fault, Ladder, Outcome, Remedy, default_remedies
from ranum.guards.rewind import Position
from ranum.guards.symptoms import CODES, Monitor, Symptom, codes_of, default_symptoms
from ranum.guards.types import Culprit, Finding, History, Incident, Reading

READINGS_KEPT = 20_000
"""Beyond this, the older half of a history is thinned by two."""
MARKS_KEPT = 2
"""Newest snapshots whose batches can come again."""

ALL = "the guard"
"""The part that everything else is in."""

T = TypeVar("T")


class GuardBase:
    """Judges readings and lets remedies act; each framework's guard measures and withholds.

    A subclass calls `_prepare` before a step and `_judge` with its reading, and overrides what
    depends on the framework: `_withhold`, `_find_culprit`, `_multiply_rates`, `_save`.

    Args:
        snapshots: Where states of the run are kept.
        position: Where the run stands in its data.
        symptoms: As in `Guard`.
        remedies: As in `Guard`.
        act_on: As in `Guard`.
        snapshot_every: As in `Guard`.
        strict: As in `Guard`.
        on_finding: As in `Guard`.
        on_incident: As in `Guard`.
        history: As in `Guard`.

    Raises:
        ArgumentError: If an argument breaks its rule.
    """

    def __init__(
        self,
        snapshots: SnapshotStore,
        position: Position,
        *,
        symptoms: Iterable[Symptom] | None = None,
        remedies: Iterable[Remedy | str] | None = None,
        act_on: Iterable[str] = (),
        snapshot_every: int | str = 50,
        strict: bool = False,
        on_finding: Callable[[Finding], Any] | None = None,
        on_incident: Callable[[Incident], Any] | None = None,
        history: History | None = None,
    ) -> None:
        for name, value in (("on_finding", on_finding), ("on_incident", on_incident)):
            if value is not None and not callable(value):
                raise ArgumentError(f"{name} must be callable or None; got {value!r}.")
        self._interval = Interval(snapshot_every, self._largest)
        self.strict = strict
        self._snapshots = snapshots
        self._position = position
        rules = default_symptoms() if symptoms is None else symptoms
        self._monitor = Monitor(rules, strict=strict)
        self._ladder = Ladder(default_remedies() if remedies is None else remedies, strict=strict)
        self._act_on = codes_of(act_on)
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
        self._returns: list[tuple[int, float]] = []
        self._limit: tuple[float, int] | None = None
        self._candidate: int | None = None
        self._due: int | None = None
        self._validation: float | None = None
        self._has_first = False
        self._is_full = False
        self._went_back = False
        self._next_snapshot = self._step
        self._marks: dict[int, Any] = {}
        self._here: Any = None
        self._again: int | None = None
        self._is_retry = False

    can_limit_gradients: ClassVar[bool] = False
    """Whether `limit_gradients` has an effect."""
    was_taken: bool = False
    """Whether the step that is judged has changed the weights already."""

    @property
    def _is_outstanding(self) -> bool:
        """True if it is not known yet whether the step before was good."""
        return False

    @property
    def history(self) -> History:
        """Everything seen so far; a live view that grows with the run."""
        return self._history

    @property
    def snapshot_every(self) -> int:
        """Steps between two snapshots; with "auto", as chosen so far."""
        return self._interval.steps

    @property
    def current_step(self) -> int:
        """Steps attempted so far; never goes back, so that every reading has its own number."""
        return self._step

    # --- going back ------------------------------------------------------------------------

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
        steps = self._common(self._sound_steps())
        if not steps:
            return None
        step = steps[min(depth, len(steps) - 1)]
        mark = self._marks.get(step)
        can_rewind = rewind and mark is not None
        can_rewind = can_rewind and self._agree(self._position.can_go_back(mark))
        try:
            if can_rewind:
                self._position.go_back(mark)
            back_to = self._snapshots.restore(self._snapshots.steps.index(step))
        except RanumError as error:
            if self.strict:
                raise
            self._snapshots.clear()
            self._has_first = False
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
        can_retry = self._here is not None and not self.was_taken
        if not self._agree(bool(can_retry and self._position.can_go_back(self._here))):
            return False
        self._position.go_back(self._here)
        self._snapshots.take_settings()
        self._again, self._is_retry = self._step, True
        self._went_back = True
        return True

    @property
    def is_rewound(self) -> bool:
        """True if batches will come again: after `go_back` or `retry`, until the next one."""
        return self._again is not None

    def validated(self, loss: float) -> None:
        """Tells the loss of a validation; the symptoms see it with the next step.

        Args:
            loss: Mean loss on data that is not trained on, as a number.

        Raises:
            ArgumentError: If it is not a number.
        """
        try:
            self._validation = float(loss)
        except (TypeError, ValueError):
            raise ArgumentError(
                f"loss must be a number, the mean over the validation data; got {loss!r}."
            ) from None

    def request_snapshot(self) -> None:
        """A snapshot is taken before the next step, if training goes well."""
        self._next_snapshot = self._step

    def _cut_again(self, back_to: int) -> None:
        for step, factor in self._cuts:
            if step >= back_to:
                self._multiply_rates(factor)

    def scale_learning_rates(self, factor: float, *, steps: int | None = None) -> None:
        """Multiplies all learning rates, in a way that lasts under schedulers and rollbacks.

        Args:
            factor: Positive.
            steps: After so many steps they are divided by it again; None leaves it so.

        Raises:
            ArgumentError: If an argument breaks its rule.
        """
        if not 0 < factor < math.inf:
            raise ArgumentError(f"factor must be positive; got {factor!r}.")
        if steps is not None and steps < 1:
            raise ArgumentError(f"steps must be a positive integer or None; got {steps!r}.")
        self._multiply_rates(factor)
        self._cuts.append((self._step, factor))
        if steps is not None:
            self._returns.append((self._step + steps, 1 / factor))

    def limit_gradients(self, norm: float, *, steps: int) -> None:
        """From now on gradients are clipped, before the step and whatever else clips them.

        An `ExplodingGradient` whose norm is finite is no fault in that time.

        Args:
            norm: Global L2 norm that they are scaled down to.
            steps: Number of steps.

        Raises:
            ArgumentError: If an argument is not positive.
        """
        if not 0 < norm < math.inf:
            raise ArgumentError(f"norm must be positive and finite; got {norm!r}.")
        if steps < 1:
            raise ArgumentError(f"steps must be a positive integer; got {steps!r}.")
        self._limit = (norm, self._step + steps)

    # --- one step --------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Notes the state before the batch; takes a snapshot if one is due."""
        # What the loop has done since it was sent back (stepped schedulers) did not happen.
        again, self._again = self._again, None
        if self._is_retry:
            self._is_retry = False
            self._snapshots.restore_settings()
        elif again is not None:
            self._snapshots.restore()
            self._cut_again(again)
        for when, factor in [one for one in self._returns if one[0] <= self._step]:
            self._returns.remove((when, factor))
            self.scale_learning_rates(factor)
        self._interval.step()
        # Of several processes each has a memory of its own; they must take snapshots alike.
        is_full = self._position.is_nearly_full and not self._is_shared()
        is_due = (self._step >= self._next_snapshot or is_full) and self._health.is_good
        is_due = (is_due or not self._has_first) and not self._is_outstanding
        if is_due and self._snapshots.is_ready:
            self._has_first, self._due = True, self._step
            # One that cannot be taken leaves the older ones, and the buffers, as they are.
            self._interval.time(lambda: self._contained("taking snapshots", self._take))
            self._next_snapshot = self._step + self.snapshot_every
        self._snapshots.take_buffers()
        self._here = self._position.mark()

    def _take(self) -> None:
        try:
            self._snapshots.take(self._step)
        except (OSError, MemoryError) as error:
            if self.strict:
                raise
            if not self._is_full:
                self._is_full = True
                self._report("taking a snapshot", error, "The older ones are kept.")
            return
        self._candidate = self._step
        self._mark()

    def _mark(self) -> None:
        """Notes where in the data the newest snapshot was taken."""
        steps = self._snapshots.steps
        self._marks = {step: mark for step, mark in self._marks.items() if step in steps}
        self._marks[self._step] = self._position.mark()
        self._position.keep_from(self._marks[sorted(self._marks)[-MARKS_KEPT:][0]])

    def _judge(self, reading: Reading, *, withheld: Finding | None = None) -> Decision:
        """What a reading means, and what is done about it.

        Args:
            reading: Of the step at hand.
            withheld: The fault for which the device has left the step out already; used where no
                symptom finds one.
        """
        if self._validation is not None:
            reading, self._validation = replace(reading, validation_loss=self._validation), None
        if self._due == self._step and not reading.bad_state:
            bad = next(iter(self._contained("snapshots", self._snapshots.bad_in_latest) or ()), "")
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
        is_limited = self._is_limited(reading)
        finding = next((one for one in findings if self._is_fault(one, is_limited)), None)
        if finding is None and withheld is not None:
            finding, findings = withheld, (withheld, *findings)
        if finding is None:
            self._candidate = None
            self._health.see(reading)
            return self._act_on_warnings(findings, reading)
        # Before anything else, so that the step is withheld even if the rest should fail.
        self._withhold()
        self._health.restart()
        outcome, culprit, file = self._recover(finding, reading)
        return self._carry_out(outcome, finding, reading, findings, culprit=culprit, file=file)

    def _is_fault(self, finding: Finding, is_limited: bool) -> bool:
        if is_limited and finding.symptom == "ExplodingGradient":
            return False
        return finding.severity == "fault"

    def _is_limited(self, reading: Reading) -> bool:
        """True if gradients are clipped in this step, as `limit_gradients` asks for."""
        is_on = self._limit is not None and self._step < self._limit[1]
        return is_on and is_finite(reading) and not reading.bad_state

    def _act_on_warnings(self, findings: tuple[Finding, ...], reading: Reading) -> Decision:
        """Lets the remedies act on warnings of `act_on`; the step is taken if none fits."""
        for finding in findings:
            # Of several processes each has layers' readings of its own, and would act alone.
            if finding.code not in self._act_on or self._is_shared():
                continue
            outcome = self._apply(
                Fault(finding=finding, reading=reading, step=reading.step, epoch=reading.epoch)
            )
            if outcome is not None:
                if not outcome.proceed:
                    self._withhold()
                    self._contained("snapshots", self._snapshots.restore_buffers)
                    self._health.restart()
                return self._carry_out(outcome, finding, reading, findings)
        return Decision(proceed=True, reading=reading, findings=findings)

    def _apply(self, fault: Fault) -> Outcome | None:
        known = len(self._ladder.internal_faults)
        outcome = self._ladder.apply(fault, self)
        self._faults += self._ladder.internal_faults[known:]
        return outcome

    def _carry_out(
        self,
        outcome: Outcome,
        finding: Finding,
        reading: Reading,
        findings: tuple[Finding, ...],
        *,
        culprit: Culprit | None = None,
        file: str = "",
    ) -> Decision:
        incident = Incident(
            step=reading.step,
            epoch=reading.epoch,
            finding=finding,
            culprit=culprit,
            action=outcome.action,
            detail=outcome.detail,
            back_to=outcome.back_to,
            patch=outcome.patch,
            file=file,
        )
        self._incidents.append(incident)
        is_on = not (outcome.proceed or outcome.stop or outcome.restart)
        return Decision(
            proceed=outcome.proceed,
            leaves_out=is_on and not self._went_back,
            incident=incident,
            stop=outcome.stop,
            restart=outcome.restart,
            reading=reading,
            findings=findings,
        )

    def _recover(self, finding: Finding, reading: Reading) -> tuple[Outcome, Culprit | None, str]:
        self._contained("snapshots", self._snapshots.restore_buffers)
        culprit, is_transient, file = None, False, ""
        if reading.bad_state and is_finite(reading):
            culprit = damage(reading.bad_state, reading.growth)
        elif not is_finite(reading):
            culprit, is_transient = self._culprit()
            self._withhold()
            saved = self._contained("incident files", lambda: self._save(finding, reading, culprit))
            file = str(saved or "")
        elif not CODES[finding.code].is_of_run:
            is_transient = self._agree(self._contained("the second look", self._is_gone) or False)
            self._withhold()
        if not is_transient:
            self._drop_candidate()
        fault = Fault(
            finding=finding,
            reading=reading,
            step=reading.step,
            epoch=reading.epoch,
            culprit=culprit,
            is_transient=is_transient,
            was_taken=self.was_taken,
        )
        outcome = self._apply(fault)
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

    def _drop_candidate(self) -> None:
        """A snapshot counts only when the step from it has been seen to be good."""
        if self._candidate is not None:
            self._snapshots.drop_latest()
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

    # --- what a framework's guard does ------------------------------------------------------

    def _withhold(self) -> None:
        """Makes sure that the step at hand leaves no trace in the weights."""

    def _culprit(self) -> tuple[Culprit | None, bool]:
        """What `_find_culprit` finds, as all processes see it; (None, False) if it fails."""
        found = self._contained("the culprit search", self._find_culprit)
        culprit, is_transient = found or (None, False)
        return culprit, self._agree(is_transient)

    def _is_gone(self) -> bool:
        """True if the step, run again, has other gradients: a flipped bit made these."""
        return False

    def _find_culprit(self) -> tuple[Culprit | None, bool]:
        """The culprit; and True if the whole step was run again, and was finite."""
        return None, False

    def _save(self, finding: Finding, reading: Reading, culprit: Culprit | None) -> Path | None:
        """Writes the step to a file; None if none is wanted."""
        return None

    def _multiply_rates(self, factor: float) -> None:
        """Multiplies all learning rates, in a way that lasts."""

    def _is_scaler_at_work(self, reading: Reading) -> bool:
        """True if the gradients are not finite because a scaler is looking for its scale."""
        return False

    def _is_shared(self) -> bool:
        """True if several processes train together, which must decide alike."""
        return False

    def _agree(self, answer: bool) -> bool:
        """True if all processes answer True."""
        return answer

    def _sound_steps(self) -> list[int]:
        """Steps of the snapshots that can be gone back to, newest first."""
        return list(self._snapshots.steps)

    def _largest(self, value: float) -> float:
        """The largest of all processes' values."""
        return value

    def _common(self, steps: list[int]) -> list[int]:
        """Those that all processes have."""
        return steps

    def leave_out_parts(self) -> str | None:
        """Mends the gradients of this step: without the micro-batches that spoil them.

        For remedies, whose outcome then is to proceed.

        Returns:
            What was left out, in words; None, with nothing changed, if it cannot be done.
        """
        return None

    # --- faults of our own -----------------------------------------------------------------

    def _is_on(self, part: str) -> bool:
        """False once a part has failed."""
        return part not in self._off and ALL not in self._off

    def _contained(self, part: str, work: Callable[[], T]) -> T | None:
        """Runs a part; if it fails, reports it and switches it off. None if it is off."""
        if not self._is_on(part):
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
            "returns": [list(one) for one in self._returns],
            "limit": None if self._limit is None else list(self._limit),
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
        self._returns = [(int(step), float(factor)) for step, factor in state.get("returns", ())]
        limit = state.get("limit")
        self._limit = None if limit is None else (float(limit[0]), int(limit[1]))
        self._findings[:] = [Finding(**finding) for finding in state["findings"]]
        self._incidents[:] = [Incident.from_dict(incident) for incident in state["incidents"]]
        self._faults[:] = state["internal_faults"]
        saved = [(name, value) for name, value in state["remedies"]]
        for remedy in self._ladder.remedies:
            match = next((entry for entry in saved if entry[0] == remedy.name), None)
            if match is not None and hasattr(remedy, "load_state_dict"):
                saved.remove(match)
                remedy.load_state_dict(match[1])
