"""The guard: watches each step, decides before the optimizer, finds the culprit, recovers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ranum._untouched import eager, untouched
from ranum.errors import ArgumentError, RanumError
from ranum.guards import _processes as processes
from ranum.guards import _replicas as replicas
from ranum.guards._late import Content, Outstanding, Withholding
from ranum.guards._shards import any_sharded, is_flattened
from ranum.guards.base import ALL, Decision, GuardBase, T, TrainingStopped, damage, left_out
from ranum.guards.culprit import find_culprit
from ranum.guards.health import is_finite
from ranum.guards.incident_file import save_incident
from ranum.guards.parts import without_bad_parts
from ranum.guards.rates import multiply_learning_rates
from ranum.guards.readings import TorchReader
from ranum.guards.readings._norms import dense_gradients, gradient_norm, stepped
from ranum.guards.readings.torch import Measurement
from ranum.guards.recovery import Outcome, Remedy
from ranum.guards.rewind import LoaderPosition, Position
from ranum.guards.snapshot import Snapshots, Stateful, as_optimizers
from ranum.guards.symptoms import ExplodingGradient, NonFinite, Symptom
from ranum.guards.types import Culprit, Finding, History, Incident, Reading
from ranum.source import UNKNOWN

__all__ = ["Decision", "Guard", "Step", "TrainingStopped"]

BATCHES_KEPT = 64
"""Micro-batches of one step that are kept for the replay; earlier ones are let go."""
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


class Guard(GuardBase):
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
            "clip_gradients", "rollback", "stop"), which is the default. When none fits, training
            stops.
        act_on: Codes or names of symptoms whose warnings the remedies act on as well; the built-in
            ones leave them alone, see `ranum.RanumCallback` for one that does not. In one process
            only.
        sample_every: Steps between two measurements of every layer.
        snapshot_every: Steps between two snapshots, taken only while training goes well. "auto"
            times the first ones, and lets them take at most 1 % of the training time, every 10 to
            1000 steps.
        snapshot_to: Where snapshots are kept: "auto", "device", "host", "disk" or a folder; see
            `Snapshots`.
        schedulers: Schedulers, or anything with `state_dict` and `load_state_dict` that has
            to go back with the weights.
        also: More that has to go back: modules, such as an average of the weights
            (`AveragedModel`), and whatever has `state_dict` and `load_state_dict`.
        scaler: The gradient scaler of float16 training. Its own skipped steps, while it
            looks for a scale, are not faults.
        keep: Snapshots kept besides the first.
        strict: Raise faults inside Ranum instead of reporting them; for tests.
        on_finding: Called with every new finding.
        on_incident: Called with every incident, after the remedy has acted.
        history: A history to go on from, of a guard before a restart.
        position: Where the run stands in its data; that of `batches` by default.
        incident_dir: Folder for the files of faulty steps that were not finite, at most eight of
            them (see `load_incident` and `ranum replay`); None writes none. Of several processes
            the one to blame writes; sharded models are not written.
        agree: With several processes, True for all of them if it is called with True in all;
            a reduction over `torch.distributed` by default. Only asked after a fault, and where a
            snapshot is looked at.
        vote: With replicas (DDP), ask all processes in each step, rather than after a fault only:
            then a number that goes bad in one of them after the exchange of gradients (a flipped
            bit) is seen by all. Costs a small reduction a step; sharded models have it anyway.
        uneven: With replicas (DDP), processes may have nothing to train on: see `Step.skip`. The
            gradients of the others then weigh more, so that the step is one on their batches alone,
            and of a batch that is bad in one process only that process's share is left out. Costs
            a small reduction a step. Without it, all leave such a step out.
        backward: How a loss is differentiated: `fabric.backward`, `accelerator.backward`. What is
            given here scales the loss itself, and its optimizers step through their scaler
            themselves. `loss.backward()` by default.
        late: Never wait for the device before a step: it leaves out by itself what is not finite
            or explodes, and the host learns of it one step later. The batch at hand then comes
            again too where it comes from `batches`, and else is lost with the bad one. What a
            `Step.decision` says is of the step before it. Worth it on a GPU. Steps before a
            snapshot, and those of a changed set of parameters, are still waited for. Needs
            torch's SGD, Adam, AdamW or Adagrad with `fused=True`; without scaler, `vote`,
            `backward` and shards.

    Raises:
        ArgumentError: If an argument breaks its rule.
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
        sample_every: int = 10,
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
        self._reader = TorchReader(model, sample_every=sample_every)
        self._is_open = False
        self._is_decided = False
        self._batches: list[tuple[Any, Callable[[], Any] | None]] = []
        self._parts: list[Callable[[], Any] | None] = []
        self._begun = 0
        self._absent: set[int] = set()
        self._watching: Any = None
        self._measured: Reading | None = None
        self._incident_dir = None if incident_dir is None else Path(incident_dir)
        self.backward = backward
        self._vote = vote
        self._uneven = uneven
        self._to_blame = 0
        self._damaged: set[int] = set()
        self._reduce = processes.agree if agree is None else agree
        self._late = self._withholding() if late else None
        self._outstanding: Outstanding | None = None
        self._settled: Outstanding | None = None
        self._goes_on = True
        self._is_graphed = False

    def __repr__(self) -> str:
        return (
            f"Guard({type(self.model).__name__}, step={self._step}, "
            f"incidents={len(self._incidents)}, snapshots={self.snapshots.steps})"
        )

    # --- plain loops -----------------------------------------------------------------------

    def batches(self, loader: Iterable[T]) -> Iterator[T]:
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
        return self._position.iterate(loader, self._is_passed)

    def _is_passed(self) -> bool:
        """True if the batches of a pass are really all done with: none has to come again."""
        self.settle()
        return not self.is_rewound

    @property
    def batches_done(self) -> int:
        """Batches of this pass over `batches` that are done with: where a resumed run goes on."""
        return self._position.number if isinstance(self._position, LoaderPosition) else 0

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
        if not step.count and processes.is_shared() and not self._gradients():
            step.skip()  # the others wait for it
        self._batches[-1:] = [(batch, step.replay)]
        self._parts = step.parts
        self._begun, self._absent = step.count, step.absent
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

    def hold(self, loss: Tensor) -> None:
        """Call in the capture of a CUDA graph, between the backward pass and the optimizer's step.

        From then on each replay leaves its step out, on the device, if loss or gradients are not
        finite or explode; see `replayed`.

            with torch.cuda.graph(graph):
                loss = loss_fn(model(static_x), static_y)
                loss.backward()
                guard.hold(loss)
                optimizer.step()

        Args:
            loss: The captured one.

        Raises:
            ArgumentError: Without `late`, or if there are no gradients.
        """
        if self._late is None:
            raise ArgumentError("hold is for a guard with late=True; this one has late=False.")
        _, gradients = dense_gradients(stepped(self.optimizers))
        if not gradients:
            raise ArgumentError("hold needs gradients: call it after the backward pass.")
        if not self._late.is_captured:
            # Older ones may be from before the optimizers had the state that the graph writes to.
            self.snapshots.clear()
            self._has_first, self._candidate = False, None
        self._late.hold_in_graph(loss, gradients)

    @contextmanager
    def replayed(
        self,
        batch: Any = None,
        *,
        loss: Tensor,
        again: Callable[[], Tensor] | None = None,
        epoch: int = 0,
    ) -> Iterator[None]:
        """One step that is the replay of a CUDA graph with `hold` in it.

            for x, y in guard.batches(loader):
                with guard.replayed((x, y), loss=loss, again=lambda: loss_fn(model(x), y)):
                    static_x.copy_(x), static_y.copy_(y)
                    graph.replay()

        A bad step, and the one that has been launched before the host knew, leave no trace in the
        weights; remedies act as in `step`, one step later. Learning rates that a remedy is to
        lower must be tensors, for a graph has no others. Layers are not seen.

        Args:
            batch: As in `step`.
            loss: That of the graph, which each replay writes to.
            again: Computes the loss of this batch outside of the graph, for the culprit.
            epoch: As in `step`.

        Raises:
            TrainingStopped: On exit, if no remedy is left.
            ArgumentError: If no graph with `hold` has been captured.
        """
        if self._late is None or not self._late.is_captured:
            raise ArgumentError("replayed needs a graph that was captured with hold in it.")
        self._late.release()

        def run() -> Tensor:
            assert again is not None
            found = again()
            found.backward()
            return found

        self.begin(batch, None if again is None else run)
        self._is_graphed = True
        try:
            yield
            decision = self.decide(loss, epoch=epoch)
        except BaseException:
            self.abandon()
            raise
        finally:
            self._is_graphed = False
        self.end()
        if decision.stop and decision.incident is not None:
            raise TrainingStopped(decision.incident)

    def _unscale(self) -> None:
        if self.scaler is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(_inmost(optimizer))

    def _update(self) -> None:
        for optimizer in self.optimizers:
            if self.scaler is None or self.backward is not None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
        if self.scaler is not None and self.backward is None:
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
        self._begun += 1
        if self._is_open:
            return
        self._is_open, self._went_back = True, False
        if self._outstanding is not None and not self._outstanding.is_noted:
            self._outstanding.is_noted = True
            self.snapshots.put_aside()
        self._contained("snapshots", self._prepare)
        if self._late is not None:
            self._contained("snapshots", self.snapshots.take_settings)
        if self._reader.is_sampled(self._step):
            self._contained(ALL, self._watch)

    def withdraw_replays(self) -> None:
        """The batches of this step cannot be run again after all; they are looked at only."""
        self._batches = [(batch, None) for batch, _ in self._batches]

    def take_no_part(self) -> None:
        """The micro-batch begun last has nothing to train on in this process.

        For adapters, which see to it that the other processes do not wait: see `Step.skip`.
        """
        self._absent.add(self._begun - 1)

    def send_nothing(self) -> None:
        """Forward and backward of a replica that has nothing to train on.

        It sends zeros; without `uneven`, NaN, so that all leave the step out.

        Raises:
            ArgumentError: If there are several processes and no replica, or several.
        """
        if not processes.is_shared():
            return
        wrapper = replicas.wrapper_of(self.model)
        if wrapper is None:
            raise ArgumentError(
                "a step without a batch needs one DistributedDataParallel around the guard's "
                f"model; found none, or several, around {type(self.model).__name__}. Sharded "
                "models run all their layers together: give every process a batch."
            )
        replicas.take_part(wrapper, is_bad=not self._uneven)

    def look(self, loss: Any) -> None:
        """Looks at the step's loss functions and labels; call before the backward pass.

        Without it, symptoms of labels and of the last activation (RN302, RN303) see nothing.
        `Step.backward` calls it.

        Args:
            loss: That `backward` will be called on; of several in a step the first counts.
        """
        if self._is_open:
            self._contained("the look at the loss", lambda: self._reader.look(self._step, loss))

    def measure(self, loss: Tensor | float | None = None, *, epoch: int = 0) -> None:
        """Reads the step now, for the `decide` that follows: before gradients are clipped.

        Args:
            loss: As in `decide`.
            epoch: As in `decide`.
        """
        self._measured = self._contained(ALL, lambda: self._read(self._measurement(loss, epoch)))

    def decide(self, loss: Tensor | float | None = None, *, epoch: int = 0) -> Decision:
        """Call after the backward pass, with unscaled, unclipped gradients, before the step.

        Args:
            loss: As a tensor, so that it is read together with the gradients.
            epoch: Counting from 0.
        """
        if self._went_back:
            # A second optimizer, on a graph that the state gone back to has nothing to do with.
            self._withhold()
            return Decision(proceed=False)
        self._unwatch()
        decision = self._contained(ALL, lambda: self._decide(loss, epoch))
        self._step += 1
        self._is_decided = True
        if decision is None:
            return Decision(proceed=True)
        self._tell(decision)
        return decision

    def settle(self) -> Decision | None:
        """Learns of the step before, with `late`; call after the last step, between steps.

        `batches` and `check_at_rest` do so by themselves. If that step was bad, a remedy acts, as
        it would have acted in the next step.

        Returns:
            What was done, told as `decide` tells it; None if all is well.

        Raises:
            TrainingStopped: If no remedy is left.
        """
        if self._outstanding is None or self._is_open:
            return None
        decision = self._contained(ALL, self._settle)
        if decision is None:
            return None
        self._tell(decision)
        if decision.incident is None:
            return None
        self._step += 1
        if decision.proceed:
            self._update()
        if decision.stop:
            raise TrainingStopped(decision.incident)
        return decision

    def end(self) -> None:
        """Call after the step. Between micro-batches, before `decide`, it changes nothing."""
        if self._late is not None:
            self._late.release()
        if self._is_decided:
            self._is_decided = self._is_open = self._went_back = False
            self._forget_batches()

    def abandon(self) -> None:
        """Forgets a step that has begun and will not be decided, as after an exception."""
        if self._late is not None:
            self._late.release()
        self._unwatch()
        self._is_decided = self._is_open = self._went_back = False
        self._forget_batches()
        self._drop_candidate()

    def _forget_batches(self) -> None:
        self._batches.clear()
        self._parts, self._begun, self._absent = [], 0, set()

    def check_at_rest(self, *, epoch: int = 0) -> Decision | None:
        """Call between steps, before the state of the run is saved: no damaged state is kept.

        Looks at all weights, buffers and moments. If one is not finite (a flipped bit, a write by
        somebody else), the newest snapshot is gone back to, and the data goes on.

        Args:
            epoch: Counting from 0.

        Returns:
            What was done, told as `decide` tells it; None if all is well, or a step is being taken.
        """
        if self._is_open:
            return None
        settled = self.settle()
        bad = next(iter(self._contained("snapshots", self.snapshots.bad_now) or ()), "")
        if self._agree(not bad):
            return settled
        name = bad or "the state of another process"
        finding = Finding(
            code=NonFinite.code,
            symptom=NonFinite.__name__,
            step=self._step,
            severity="fault",
            message=f"{name} is not finite; found before the state was saved.",
            where=bad,
        )
        back_to = self.go_back(rewind=False)
        done = "there is no snapshot to go back to"
        if back_to is not None:
            done = f"went back to step {back_to} before anything was saved"
        incident = Incident(
            step=self._step,
            epoch=epoch,
            finding=finding,
            culprit=damage(name),
            action="rollback" if back_to is not None else "go on",
            detail=done,
            back_to=back_to,
        )
        self._incidents.append(incident)
        decision = Decision(proceed=False, incident=incident, findings=(finding,))
        self._tell(decision)
        return decision

    def close(self) -> None:
        """Removes all hooks and frees the snapshots; the history stays."""
        self.abandon()
        self._outstanding = None
        self._reader.close()
        self.snapshots.clear()

    def leave_out_parts(self) -> str | None:
        """Mends the gradients of this step: without the micro-batches that spoil them.

        For remedies, whose outcome then is to proceed. Of several processes all must ask; with
        `uneven`, each micro-batch of each process counts by itself.

        Returns:
            What was left out, in words; None, without gradients, if that is none or all of them,
            if they cannot be run again one by one, or if a scaler has seen the bad gradients.
        """
        parts = self._parts or [
            None if number in self._absent else replay
            for number, (_, replay) in enumerate(self._batches)
        ]
        missing = sum(part is None for part in parts)
        can_run = len(parts) == self._begun and missing == len(self._absent)
        if self.scaler is not None or not self._agree(can_run):
            return None
        trained = [p for one in self.optimizers for g in one.param_groups for p in g["params"]]
        others = [p for p in self.model.parameters() if all(p is not one for one in trained)]
        tensors = [*trained, *others]
        if processes.is_shared() and not self._is_sharded:
            return replicas.without_bad_parts(
                self.model,
                tensors,
                parts,
                replicas.wrapper_of(self.model),
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
        self._outstanding = Outstanding(self._step, measurement, self._at_hand, self._here)
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
        absences = len(self._absent)
        factor = replicas.weight_of_others(self._begun - absences, absences)
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
        return Withholding([_inmost(one) for one in self.optimizers])

    def _can_wait(self, late: Withholding, measurement: Measurement) -> bool:
        """True if this step can be decided by the device, and read in the next one."""
        is_snapshot_near = (
            self._candidate is not None
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
    def _at_hand(self) -> Content:
        return list(self._batches), list(self._parts), self._begun, set(self._absent)

    @_at_hand.setter
    def _at_hand(self, content: Content) -> None:
        self._batches, self._parts, self._begun, self._absent = content

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
        step, here, at_hand = self._step, self._here, self._at_hand
        self._step, self._here, self._at_hand = before.step, before.here, before.content
        self._settled, self.was_taken = before, not is_withheld
        try:
            decision = self._judge(reading, withheld=left_out(reading) if is_withheld else None)
        finally:
            self._here, self._at_hand = here, at_hand
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
        if self._incident_dir is None or written >= INCIDENT_FILES or not self._batches:
            return None
        if processes.is_shared() and processes.rank() != self._to_blame:
            return None
        if self._is_sharded:
            return None  # what this process holds could not be put into a model again
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

    def _culprit(self) -> tuple[Culprit | None, bool]:
        if not processes.is_shared():
            return super()._culprit()
        # A replay of sharded layers is collective: all processes take part in it, or none does.
        # That of a replica is not, so one whose search has failed does not keep the others.
        replays = [replay for _, replay in self._batches]
        can_run = all(replay is not None for replay in replays) and self._is_on(SEARCH)
        if self._is_sharded and not self._agree(can_run):
            self.withdraw_replays()
        found = self._contained(SEARCH, self._find_culprit)
        culprit, is_transient = found or (None, False)
        culprit, self._to_blame = processes.first_culprit(culprit)
        return culprit, self._agree(is_transient)

    def _find_culprit(self) -> tuple[Culprit | None, bool]:
        """The culprit; and True if the whole step was run again, and was finite."""
        if self._absent and not self._uneven:
            return NO_BATCH, False
        batches = [batch for batch, _ in self._batches]
        replays = [replay for _, replay in self._batches if replay is not None]

        def run() -> list[Any]:
            return [replay() for replay in replays]

        with processes.alone():
            culprit = find_culprit(
                run if replays else None,
                model=self.model,
                batch=batches[0] if len(batches) == 1 else batches,
                strict=True,
            )
        return culprit, culprit is None and len(replays) == len(batches)

    def _is_gone(self) -> bool:
        if self.was_taken:
            return False  # the weights are no longer those that gave this gradient
        norm = self._readings[-1].grad_norm
        replays = [replay for _, replay in self._batches]
        can_run = norm is not None and self.scaler is None and bool(replays)
        # Collective where processes share gradients: all run the step again, or none does.
        if not self._agree(can_run and all(replay is not None for replay in replays)):
            return False
        if len(set(processes.gathered(self._begun))) > 1:
            return False  # some would wait for exchanges that others do not have
        with (
            untouched(self.model),
            eager(),
            torch.enable_grad(),
            processes.exchanges() as exchanged,
        ):
            for replay in replays:
                if replay is not None:
                    replay()
            again = gradient_norm(self.optimizers)
        if processes.is_shared() and not exchanged and not self._is_sharded:
            return False  # this process's own gradients say nothing about those of all
        return norm is not None and not math.isclose(norm, again, rel_tol=SAME_NORM)

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


class Step:
    """One step of a plain loop; made by `Guard.step`.

    Attributes:
        loss: The last loss given to `backward`, detached; None before.
        decision: What the guard decided; None before the `with` block ends.
        absent: Numbers of the calls that were `skip`.
    """

    def __init__(self, guard: Guard) -> None:
        self.loss: Tensor | None = None
        self.decision: Decision | None = None
        self._look = guard.look
        self._scaler = None if guard.backward is not None else guard.scaler
        self._differentiate = Tensor.backward if guard.backward is None else guard.backward
        self._calls: list[tuple[Any, tuple[Any, ...]]] = []
        self._send_nothing = guard.send_nothing
        self.absent: set[int] = set()

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
            return self._train(loss, args)
        if args:
            raise ArgumentError("args must be empty when loss is a tensor; pass a function.")
        self._calls.append((None, ()))
        return self._train(lambda: loss, ())

    def skip(self) -> None:
        """Stands for `backward` where this process has nothing to train on, and others have.

        They wait for its gradients; it sends zeros. With `Guard(uneven=True)` the gradients of
        the others then weigh more: the step is that of a run on their batches alone. Without it,
        all leave the step out. For the last micro-batch of a step it has to stand outside of
        `no_sync`, like `backward`. A step that calls neither skips once.

        The model has to be wrapped in one `DistributedDataParallel`, which the others call once
        for each micro-batch. In one process nothing happens.

        Raises:
            ArgumentError: If there are several processes and no such wrapper.
        """
        self.absent.add(len(self._calls))
        self._calls.append((self._send_nothing, ()))
        self._send_nothing()

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return function() if function == self._send_nothing else self._train(function, args)

    def _train(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Tensor:
        loss = function(*args)
        if not isinstance(loss, Tensor):
            raise ArgumentError(f"loss must be a tensor; got {type(loss).__name__}.")
        self.loss = loss.detach()
        self._look(loss)
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        self._differentiate(scaled)
        return loss

    @property
    def count(self) -> int:
        """Micro-batches, with those that were skipped."""
        return len(self._calls)

    @property
    def parts(self) -> list[Callable[[], Any] | None]:
        """Each runs one of the calls once more, None for `skip`; none if one cannot be run."""
        if self.replay is None:
            return []
        return [
            None if number in self.absent else partial(self._run, function, args)
            for number, (function, args) in enumerate(self._calls)
        ]

    @property
    def replay(self) -> Callable[[], Any] | None:
        """Runs the calls of this step once more; None if one of them cannot be run."""
        return None if any(function is None for function, _ in self._calls) else self._replay

    def _replay(self) -> list[Any]:
        kept = self.loss
        try:
            return [self._run(function, args) for function, args in self._calls]
        finally:
            self.loss = kept


def _inmost(optimizer: Any) -> Any:
    """Torch's own optimizer inside a framework's wrappers: the one that a scaler knows."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
