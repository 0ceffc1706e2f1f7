"""How steps of torch are measured, decided on, blamed and mended."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ranum._untouched import eager, untouched
from ranum.errors import ArgumentError, RanumError
from ranum.guards import _processes as processes
from ranum.guards import _replicas as replicas
from ranum.guards._content import Content
from ranum.guards._late import Outstanding, Withholding
from ranum.guards._sampling import Sampling
from ranum.guards._shards import (
    Weights,
    any_sharded,
    is_flattened,
    shard_again,
    whole_weights,
)
from ranum.guards.base import ALL, GuardBase
from ranum.guards.culprit import find_culprit
from ranum.guards.decision import Decision, left_out
from ranum.guards.health import is_finite
from ranum.guards.incident_file import MOST_BYTES, save_incident
from ranum.guards.parts import without_bad_parts
from ranum.guards.rates import multiply_learning_rates
from ranum.guards.readings import TorchReader
from ranum.guards.readings._norms import gradient_norm
from ranum.guards.readings.torch import Measurement
from ranum.guards.recovery import Outcome, Remedy
from ranum.guards.rewind import LoaderPosition, Position
from ranum.guards.snapshot import Snapshots, Stateful, as_optimizers
from ranum.guards.symptoms import ExplodingGradient, Symptom
from ranum.guards.types import Culprit, Finding, History, Incident, Reading
from ranum.source import UNKNOWN

SEARCH = "the culprit search"
SAME_NORM = 1e-3
"""Relative difference of gradient norms that kernels make which sum in another order each time."""
INCIDENT_FILES = 8
"""Faulty steps of a run that are saved; more of them would tell little more."""


NO_BATCH = Culprit(
    op="",
    phase="forward",
    source=UNKNOWN,
    outcome="nothing to train on",
    cause="data",
    name="the batch",
)
"""Of a process that takes part in a step without a batch."""


class TorchGuard(GuardBase):
    """What a `Guard` does behind the calls of its loop; see there for the arguments.

    A step is read before its update, or, with `late`, left to the device and read in the next one.
    """

    can_limit_gradients = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        symptoms: Iterable[Symptom] | None = None,
        remedies: Iterable[Remedy | str] | None = None,
        act_on: Iterable[str] = (),
        sample_every: int | str = "auto",
        snapshot_every: int | str = 50,
        snapshot_to: str | Path = "auto",
        schedulers: Iterable[Stateful] = (),
        also: Iterable[Any] = (),
        scaler: Any = None,
        keep: int = 2,
        strict: bool = False,
        on_finding: Callable[[Finding], Any] | None = None,
        on_incident: Callable[[Incident], Any] | None = None,
        history: History | None = None,
        position: Position | None = None,
        incident_dir: str | Path | None = None,
        agree: Callable[[bool], bool] | None = None,
        vote: bool = False,
        uneven: bool = False,
        backward: Callable[[Tensor], Any] | None = None,
        late: bool = False,
    ) -> None:
        if backward is not None and not callable(backward):
            raise ArgumentError(f"backward must be callable or None; got {backward!r}.")
        if isinstance(model, nn.Module) and is_flattened(model):
            raise ArgumentError(
                "model must not be wrapped in FullyShardedDataParallel (FSDP1): its processes see "
                "other gradients each and would not decide alike. Use fully_shard (FSDP2) or DDP."
            )
        self.model = model
        self.optimizers = as_optimizers(optimizer)
        self.scaler = scaler
        self.snapshots = Snapshots(
            model,
            self.optimizers,
            schedulers=schedulers,
            scaler=scaler,
            keep=keep,
            to=snapshot_to,
            also=also,
        )
        super().__init__(
            self.snapshots,
            LoaderPosition() if position is None else position,
            symptoms=symptoms,
            remedies=remedies,
            act_on=act_on,
            snapshot_every=snapshot_every,
            strict=strict,
            on_finding=on_finding,
            on_incident=on_incident,
            history=history,
        )
        self._sampling = Sampling(sample_every, self._largest)
        self._reader = TorchReader(model, sample_every=self._sampling.steps)
        self._is_open = False
        self._is_decided = False
        self._content = Content()
        self._watching: Any = None
        self._measured: Reading | None = None
        self._incident_dir = None if incident_dir is None else Path(incident_dir)
        self.backward = backward
        self._vote = vote
        self._uneven = uneven
        self._to_blame = 0
        self._replica: DistributedDataParallel | None = None
        self._damaged: set[int] = set()
        self._reduce = processes.agree if agree is None else agree
        self._late = self._withholding() if late else None
        self._outstanding: Outstanding | None = None
        self._settled: Outstanding | None = None
        self._goes_on = True
        self._is_graphed = False

    def leave_out_parts(self) -> str | None:
        """Mends the gradients of this step: without the micro-batches that spoil them.

        For remedies, whose outcome then is to proceed. Of several processes all must ask; with
        `uneven`, each micro-batch of each process counts by itself.

        Returns:
            What was left out, in words; None, without gradients, if that is none or all of them,
            if they cannot be run again one by one, or if a scaler has seen the bad gradients.
        """
        parts = self._content.runs()
        if self.scaler is not None or not self._agree(parts is not None):
            return None
        parts = parts or []
        trained = [p for one in self.optimizers for g in one.param_groups for p in g["params"]]
        others = [p for p in self.model.parameters() if all(p is not one for one in trained)]
        tensors = [*trained, *others]
        if processes.is_shared() and not self._is_sharded:
            return replicas.without_bad_parts(
                self.model,
                tensors,
                parts,
                self._wrapper,
                is_uneven=self._uneven,
            )
        runs = [part for part in parts if part is not None]
        if not self._agree(len(runs) > 1) or len(set(processes.gathered(len(runs)))) > 1:
            return None
        return without_bad_parts(self.model, tensors, runs, self._agree)

    # --- one step --------------------------------------------------------------------------

    def _watch(self) -> None:
        self._watching = self._reader.watch(self._step)
        self._watching.__enter__()

    def _unwatch(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            self._contained(ALL, lambda: watching.__exit__(None, None, None))

    def _decide(self, loss: Tensor | float | None, epoch: int) -> Decision:
        if self._late is not None:
            self._late.release()
        before = self._settle()
        if before is not None and before.incident is not None and not self._goes_on:
            self._measured = None
            return before
        decision = self._decide_now(loss, epoch)
        if before is None or decision is None:
            return decision or before or Decision(proceed=True)
        findings = (*before.findings, *decision.findings)
        return replace(decision, findings=findings, incident=decision.incident or before.incident)

    def _decide_now(self, loss: Tensor | float | None, epoch: int) -> Decision | None:
        """On the step at hand; None if the device does."""
        if self._uneven and processes.is_shared() and not self._weigh():
            self._withhold()
            return Decision(proceed=False, leaves_out=True)
        reading, self._measured = self._measured, None
        if reading is not None:
            return self._judge(reading)
        measurement = self._measurement(loss, epoch)
        if self._late is None:
            return self._judge(self._read(measurement))
        can_wait = self._can_wait(self._late, measurement)
        if not can_wait and not self._is_graphed:
            decision = self._judge(self._read(measurement))
            if decision.incident is None:
                self._late.saw(measurement.trained)
            return decision
        if self._is_graphed:
            self._late.send(measurement)
        else:
            self._late.hold(measurement)
        self._outstanding = Outstanding(self._step, measurement, self._content, self._here)
        return None if can_wait else self._settle()

    def _measurement(self, loss: Tensor | float | None, epoch: int) -> Measurement:
        if processes.is_shared():
            loss = None  # each process has its own; the gradients, which are shared, decide
        return self._reader.measure(
            step=self._step,
            loss=loss,
            optimizer=self.optimizers,
            epoch=epoch,
            # Of several processes each has statistics of its own; they must decide alike.
            buffers=() if processes.is_shared() else self.snapshots.buffers_before,
        )

    def _read(self, measurement: Measurement) -> Reading:
        reading = measurement.reading()
        if self._vote and processes.is_shared():
            own, norm = reading.grad_norm, processes.worst(reading.grad_norm)
            if own is None or math.isfinite(own):
                reading = replace(reading, grad_norm=norm)
        self._clip(reading)
        return reading

    @torch.no_grad()
    def _weigh(self) -> bool:
        """Has the processes that trained on something speak for all; False if there is none."""
        absences = len(self._content.absent)
        factor = replicas.weight_of_others(self._content.count - absences, absences)
        if factor > 1 and math.isfinite(factor):
            for gradient in self._gradients():
                gradient.mul_(factor)
        return math.isfinite(factor)

    def _gradients(self) -> list[Tensor]:
        groups = [group for one in self.optimizers for group in one.param_groups]
        trained = [parameter for group in groups for parameter in group["params"]]
        parameters = {id(p): p for p in (*self.model.parameters(), *trained)}.values()
        return [p.grad for p in parameters if p.grad is not None]

    # --- late ------------------------------------------------------------------------------

    def _withholding(self) -> Withholding:
        reasons = {
            "a gradient scaler": self.scaler is not None,
            "vote": self._vote,
            "uneven": self._uneven,
            "a backward of one's own": self.backward is not None,
            "sharded parameters": self._is_sharded,
        }
        for reason, is_given in reasons.items():
            if is_given:
                raise ArgumentError(f"late must be False with {reason}; got True.")
        return Withholding([inmost(one) for one in self.optimizers])

    def _can_wait(self, late: Withholding, measurement: Measurement) -> bool:
        """True if this step can be decided by the device, and read in the next one."""
        is_snapshot_near = (
            not self._has_first
            or self._candidate is not None
            or self._due == self._step
            or self._step + 1 >= self._next_snapshot
            or self._position.is_nearly_full
        )
        is_clipped = self._limit is not None and self._step < self._limit[1]
        return (
            self._reader.has_read
            and not is_snapshot_near
            and not is_clipped
            and measurement.can_be_sent
            and late.knows(measurement.trained)
        )

    @property
    def _is_outstanding(self) -> bool:
        return self._outstanding is not None

    def _settle(self) -> Decision | None:
        """Judges the step before; None if nothing about it is outstanding."""
        before, self._outstanding = self._outstanding, None
        self._goes_on = True
        if before is None or self._late is None:
            return None
        reading, is_withheld = before.measurement.arrived()
        at_hand = self._step, self._here, self._content
        self._step, self._here, self._content = before.step, before.here, before.content
        self._settled, self.was_taken = before, not is_withheld
        try:
            decision = self._judge(reading, withheld=left_out(reading) if is_withheld else None)
        finally:
            step, self._here, self._content = at_hand
            self._settled, self.was_taken = None, False
        self._late.set_bound(self._bound())
        self._goes_on = decision.proceed and not is_withheld
        if is_withheld:
            self._late.clear()
        if decision.incident is None or self._goes_on:
            self._step = step
            self._late.saw(before.measurement.trained)
        elif before.is_noted and not (self._went_back or decision.stop or decision.restart):
            self._take_again(decision)
        return decision

    def _take_again(self, decision: Decision) -> None:
        """The batch at hand was trained on after a bad step: it comes once more."""
        can_come = self._here is not None and self._position.can_go_back(self._here)
        if not self._agree(can_come):
            return
        self._position.go_back(self._here)
        if not decision.proceed:
            self.snapshots.take_settings()
            self._again, self._is_retry = self._step, True
            self._went_back = True

    def _bound(self) -> float:
        window = self._monitor.window
        rules = [rule for rule in self._monitor.symptoms if isinstance(rule, ExplodingGradient)]
        return min((rule.bound(window) for rule in rules), default=math.inf)

    def _recover(self, finding: Finding, reading: Reading) -> tuple[Outcome, Culprit | None, str]:
        if self._settled is not None and not self.was_taken:
            if self._settled.is_noted:
                self.snapshots.take_up()
            self.snapshots.restore_settings()
        return super()._recover(finding, reading)

    def go_back(self, depth: int = 0, *, rewind: bool = True) -> int | None:
        """As in `GuardBase`."""
        if self._late is not None:
            self._late.forget()
        return super().go_back(depth, rewind=rewind)

    # --- after a fault ---------------------------------------------------------------------

    def _save(self, finding: Finding, reading: Reading, culprit: Culprit | None) -> Path | None:
        """Writes the step to a file; None if none is wanted."""
        written = sum(bool(incident.file) for incident in self._incidents)
        folder = self._incident_dir
        is_wanted = folder is not None and written < INCIDENT_FILES and bool(self._content.batches)
        is_ours = not processes.is_shared() or processes.rank() == self._to_blame
        weights: Weights | None = None
        if self._is_sharded and processes.gathered(is_wanted)[self._to_blame]:
            shard_again(self.model)
            weights = whole_weights(self.model, MOST_BYTES, keep=is_ours)
        if folder is None or not is_wanted or not is_ours:
            return None
        return save_incident(
            folder / f"step-{reading.step}.pt",
            model=self.model,
            weights=weights,
            batches=self._content.values,
            finding=finding,
            culprit=culprit,
            step=reading.step,
            epoch=reading.epoch,
            random=self.snapshots.random_before,
        )

    def _culprit(self) -> tuple[Culprit | None, bool]:
        if not processes.is_shared():
            return super()._culprit()
        # A replay of sharded layers is collective: all processes take part in it, or none does.
        # That of a replica is not, so one whose search has failed does not keep the others.
        can_run = self._content.can_run and self._is_on(SEARCH)
        if self._is_sharded and not self._agree(can_run):
            self._content.withdraw_replays()
        found = self._contained(SEARCH, self._find_culprit)
        culprit, is_transient = found or (None, False)
        culprit, self._to_blame = processes.first_culprit(culprit)
        return culprit, self._agree(is_transient)

    def _find_culprit(self) -> tuple[Culprit | None, bool]:
        """The culprit; and True if the whole step was run again, and was finite."""
        if self._content.absent and not self._uneven:
            return NO_BATCH, False
        batches, replays = self._content.values, self._content.replays

        def run() -> list[Any]:
            return [replay() for replay in replays]

        with processes.alone():
            culprit = find_culprit(
                run if replays else None,
                model=self.model,
                batch=batches[0] if len(batches) == 1 else batches,
                strict=True,
            )
        return culprit, culprit is None and self._content.can_run

    def _is_gone(self) -> bool:
        if self.was_taken:
            return False  # the weights are no longer those that gave this gradient
        norm = self._readings[-1].grad_norm
        can_run = norm is not None and self.scaler is None and bool(self._content.batches)
        # Collective where processes share gradients: all run the step again, or none does.
        if not self._agree(can_run and self._content.can_run):
            return False
        if len(set(processes.gathered(self._content.count))) > 1:
            return False  # some would wait for exchanges that others do not have
        with (
            untouched(self.model),
            eager(),
            torch.enable_grad(),
            processes.exchanges() as exchanged,
        ):
            for replay in self._content.replays:
                replay()
            again = gradient_norm(self.optimizers)
        if processes.is_shared() and not exchanged and not self._is_sharded:
            return False  # this process's own gradients say nothing about those of all
        return norm is not None and not math.isclose(norm, again, rel_tol=SAME_NORM)

    @property
    def _wrapper(self) -> DistributedDataParallel | None:
        if self._replica is None:
            self._replica = replicas.wrapper_of(self.model)  # a search among all objects
        return self._replica

    @property
    def _is_sharded(self) -> bool:
        """True if other processes hold parts of the weights."""
        return any_sharded(self.model.parameters())

    def _multiply_rates(self, factor: float) -> None:
        multiply_learning_rates(self.optimizers, self.snapshots.schedulers, factor)

    @torch.no_grad()
    def _clip(self, reading: Reading) -> None:
        """Scales the gradients of this step down to the norm of `limit_gradients`."""
        norm = reading.grad_norm
        if self._limit is None or norm is None or not self._is_limited(reading):
            return
        if norm > self._limit[0]:
            for gradient in self._gradients():
                gradient.mul_(self._limit[0] / norm)

    def _is_shared(self) -> bool:
        return processes.is_shared()

    def _agree(self, answer: bool) -> bool:
        return self._reduce(answer)

    def _largest(self, value: float) -> float:
        return processes.largest(value)

    def _sound_steps(self) -> list[int]:
        steps = self.snapshots.steps
        sound = [step for step in steps if self.snapshots.is_sound(step)]
        damaged = sorted(set(steps) - set(sound) - self._damaged)
        if damaged:
            self._damaged.update(damaged)
            error = RanumError(f"that of step {', '.join(map(str, damaged))} has been damaged")
            self._report("a snapshot", error, "An older one is used.")
        return sound

    def _common(self, steps: list[int]) -> list[int]:
        everyone = processes.gathered(steps)
        return [step for step in steps if all(step in others for others in everyone)]

    def _is_scaler_at_work(self, reading: Reading) -> bool:
        """True if the gradients are not finite because the scaler's scale is still too large."""
        return (
            self.scaler is not None
            and not is_finite(reading)
            and (reading.loss is None or math.isfinite(reading.loss))
            and self.scaler.is_enabled()
            and self.scaler.get_scale() > 1
        )

    def _withhold(self) -> None:
        self._reader.forget_update()
        if self._is_graphed:
            return  # its replays write to these gradients, and leave out what is bad by themselves
        for parameter in self.model.parameters():
            parameter.grad = None
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None


def inmost(optimizer: Any) -> Any:
    """Torch's own optimizer inside a framework's wrappers: the one that a scaler knows."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
