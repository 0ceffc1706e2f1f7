"""The guard of torch's training loops: what a loop or an adapter calls, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ranum.errors import ArgumentError
from ranum.guards import _processes as processes
from ranum.guards import _replicas as replicas
from ranum.guards._content import Content, frozen
from ranum.guards.base import ALL, T
from ranum.guards.decision import Decision, TrainingStopped, damage
from ranum.guards.readings._norms import dense_gradients, stepped
from ranum.guards.rewind import LoaderPosition
from ranum.guards.step import Step
from ranum.guards.symptoms import NonFinite
from ranum.guards.torch_guard import TorchGuard, inmost
from ranum.guards.types import Finding, Incident

__all__ = ["Decision", "Guard", "Step", "TrainingStopped"]


class Guard(TorchGuard):
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
        sample_every: Steps between two measurements of every layer. "auto" is every 10 steps in
            the first 1000, and then as often as takes at most 1 % of the training time, every 10
            to 1000 steps.
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
            the one to blame writes; shards of the others (FSDP2) are brought together for it.
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
    def is_late(self) -> bool:
        """Whether the device decides on steps, and the host learns of it later."""
        return self._late is not None

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
        replay = step.replay
        self._content = Content([(batch, replay)], step.parts, step.count, step.absent)
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

        again = frozen(again)
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
                self.scaler.unscale_(inmost(optimizer))

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
        self._content.add(batch, replay)
        if self._is_open:
            return
        self._is_open, self._went_back = True, False
        if self._outstanding is not None and not self._outstanding.is_noted:
            self._outstanding.is_noted = True
            self.snapshots.put_aside()
        self._contained("snapshots", self._prepare)
        if self._late is not None:
            self._contained("snapshots", self.snapshots.take_settings)
        self._contained("sampling", lambda: self._sampling.step(self._step))
        self._reader.sample_every = self._sampling.steps
        if self._reader.is_sampled(self._step):
            self._contained(ALL, self._watch)

    def withdraw_replays(self) -> None:
        """The batches of this step cannot be run again after all; they are looked at only."""
        self._content.withdraw_replays()

    def take_no_part(self) -> None:
        """The micro-batch begun last has nothing to train on in this process.

        For adapters, which see to it that the other processes do not wait: see `Step.skip`.
        """
        self._content.absent.add(self._content.count - 1)

    def send_nothing(self) -> None:
        """Forward and backward of a replica that has nothing to train on.

        It sends zeros; without `uneven`, NaN, so that all leave the step out.

        Raises:
            ArgumentError: If there are several processes and no replica, or several.
        """
        if not processes.is_shared():
            return
        wrapper = self._wrapper
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
            self._content = Content()

    def abandon(self) -> None:
        """Forgets a step that has begun and will not be decided, as after an exception."""
        if self._late is not None:
            self._late.release()
        self._unwatch()
        self._is_decided = self._is_open = self._went_back = False
        self._content = Content()
        self._drop_candidate()

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
