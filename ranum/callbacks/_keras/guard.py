"""The guard of a Keras run: judges the rows that its steps have written."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map

from ranum.analysis.capture.program import Program
from ranum.analysis.capture.tensorflow.models import keras_program
from ranum.callbacks._keras.snapshot import VariableSnapshots
from ranum.callbacks._keras.step import GuardedStep
from ranum.errors import CaptureError
from ranum.guards.base import ALL, GuardBase
from ranum.guards.culprit import find_culprit
from ranum.guards.decision import Decision, left_out
from ranum.guards.health import is_finite
from ranum.guards.incident_file import save_incident
from ranum.guards.readings.keras import CODE, NUMBER, SCALING, WITHHELD
from ranum.guards.recovery import ClipGradients, Fault, Outcome, Remedy, Skip
from ranum.guards.rewind import NEARLY_FULL, free_memory
from ranum.guards.symptoms import ExplodingGradient, Symptom
from ranum.guards.torch_guard import INCIDENT_FILES
from ranum.guards.types import Culprit, Finding, Reading
from ranum.source import UNKNOWN, Source, user_source

RENEW = 1.1
"""The bound on the device follows the one of the rules when they differ by this factor."""


class BatchKeeper:
    """The batches of an epoch since the last snapshots; see `ranum.guards.rewind.Position`.

    Batches are kept by reference, at most a twentieth of the memory that is free.
    """

    def __init__(self) -> None:
        self.number = 0
        self._first = 0
        self._kept: deque[tuple[Any, int]] = deque()
        self._nbytes = 0
        self._memory = free_memory()

    @property
    def is_nearly_full(self) -> bool:
        """True if a snapshot should be taken soon."""
        return self._nbytes > NEARLY_FULL * self._memory

    @property
    def is_at_end(self) -> bool:
        """True if no batch is left that comes again."""
        return self.number == self._first + len(self._kept)

    def keep(self, batch: Any) -> None:
        """Takes up a batch that has been fetched."""
        nbytes = sum(_nbytes(leaf) for leaf in keras.tree.flatten(batch))
        self._kept.append((batch, nbytes))
        self._nbytes += nbytes
        while len(self._kept) > 1 and self._nbytes > self._memory:
            self._drop()

    def hand_out(self) -> Any:
        """The batch that comes next."""
        self.number += 1
        return self._kept[self.number - 1 - self._first][0]

    def clear(self) -> None:
        """Lets go of all batches: an epoch begins."""
        self._kept.clear()
        self._nbytes, self._first = 0, self.number

    def _drop(self) -> None:
        self._nbytes -= self._kept.popleft()[1]
        self._first += 1

    def mark(self) -> int:
        """The batch that is at hand."""
        return self.number - 1

    def keep_from(self, mark: int) -> None:
        """Nothing before this mark will be gone back to."""
        while len(self._kept) > 1 and self._first < mark:
            self._drop()

    def can_go_back(self, mark: int) -> bool:
        """Whether all batches since the mark can come again: of this epoch only."""
        return bool(self._kept) and self._first <= mark < self.number

    def go_back(self, mark: int) -> None:
        """The batch of the mark comes next."""
        self.number = mark


class SkipWithheld(Skip):
    """Leaves a batch out, if the device has: a step that was taken cannot be left out any more."""

    def apply(self, fault: Fault, guard: GuardBase) -> Outcome | None:
        """As `Skip`."""
        assert isinstance(guard, KerasGuard)
        return None if guard.was_taken else super().apply(fault, guard)


class ClipWithheld(ClipGradients):
    """Clips gradients from now on, if the one that explodes has not been applied."""

    def apply(self, fault: Fault, guard: GuardBase) -> Outcome | None:
        """As `ClipGradients`."""
        assert isinstance(guard, KerasGuard)
        return None if guard.was_taken else super().apply(fault, guard)


class KerasGuard(GuardBase):
    """Decides on the steps of a `GuardedStep`; what is not finite has been withheld by then.

    Args:
        guarded: The training step.
        remedies: As in `Guard`.
        symptoms: As in `Guard`.
        sample_every: Steps between two readings of every layer.
        snapshot_every: As in `Guard`.
        strict: As in `Guard`.
        incident_dir: As in `Guard`.
    """

    can_limit_gradients = True

    def __init__(
        self,
        guarded: GuardedStep,
        *,
        remedies: Iterable[Remedy | str],
        symptoms: Iterable[Symptom] | None = None,
        sample_every: int = 10,
        snapshot_every: int = 50,
        strict: bool = False,
        incident_dir: Path | None = None,
    ) -> None:
        self.guarded = guarded
        self.batches = BatchKeeper()
        super().__init__(
            VariableSnapshots(guarded),
            self.batches,
            symptoms=symptoms,
            remedies=remedies,
            snapshot_every=snapshot_every,
            strict=strict,
        )
        self.was_taken = False
        self._sample_every = sample_every
        self._incident_dir = incident_dir
        self._factor = 1.0
        self._rate: float | None = None
        self._bound = self._clip_to = math.inf
        self._batch: Any = None
        self._reading: Reading | None = None
        self._program: Program | None = None
        self._place = (1, 1)
        self._replica = 0
        self._number = 0.0
        self._is_scaling = False
        guarded.engine.set_bound(self._bound)
        guarded.engine.set_limit(self._clip_to)
        guarded.engine.begin()
        guarded.engine.set_factor(self._factor)

    def __repr__(self) -> str:
        return f"KerasGuard({self.guarded.model.name}, step={self._step})"

    @property
    def is_on(self) -> bool:
        """False once the guard has failed."""
        return ALL not in self._off

    @property
    def program_at_hand(self) -> Program | None:
        """The faulty step that a remedy is asked about; None if it could not be run again."""
        return self._program

    def begin(self, batch: Any = None) -> None:
        """Call before a training step; `batch` is None if the graph fetches it."""
        self._batch = batch
        self._went_back = False
        self._contained("snapshots", self._prepare)
        self._contained(ALL, self._renew_limits)

    def decide(self, *, epoch: int = 0) -> list[Decision]:
        """Judges the steps that have been run since the last call; waits for the device."""
        rows = self._contained(ALL, self.guarded.engine.new_rows) or []
        decisions = []
        for number, row in enumerate(rows):
            self._place = (number + 1, len(rows))
            decision = self._contained(ALL, partial(self._decide, row, epoch))
            self._step += 1
            if decision is not None:
                self._tell(decision)
                decisions.append(decision)
            if self._went_back:  # and with it from the steps that this call has run since
                self._step += len(rows) - number - 1
                break
        self._batch = self._program = None
        self._contained(ALL, self.guarded.engine.forget_kept)
        return decisions

    def _apply(self, fault: Fault) -> Outcome | None:
        outcome = super()._apply(fault)
        if outcome is None:
            return None
        detail, (number, count) = outcome.detail, self._place
        if count > 1:
            detail += f"; it was training step {number} of {count} in one execution"
        if self._replica and self.guarded.engine.is_distributed:
            detail += f"; replica {self._replica} failed"
        return replace(outcome, detail=detail)

    def _decide(self, row: list[float], epoch: int) -> Decision:
        sampled = self._step % self._sample_every == 0
        if sampled:  # on the host: to read a schedule in the graph changes how it is rounded
            self._rate = self.guarded.learning_rate()
        reading = self.guarded.layout.reading(
            row,
            step=self._step,
            learning_rate=None if self._rate is None else self._rate * self._factor,
            epoch=epoch,
            sampled=sampled,
        )
        self._reading, self._number, self._replica = reading, row[NUMBER], 0
        self.was_taken = row[CODE] != WITHHELD
        self._is_scaling = row[CODE] == SCALING
        return self._judge(reading, withheld=None if self.was_taken else left_out(reading))

    def _renew_limits(self) -> None:
        """What the device withholds, and what it clips to, in the steps that come now."""
        limit = self._limit
        level = limit[0] if limit is not None and self._step < limit[1] else math.inf
        if level != self._clip_to:
            self._clip_to = level
            self.guarded.engine.set_limit(level)
        bound = math.inf
        for rule in self._monitor.symptoms:
            if isinstance(rule, ExplodingGradient) and level == math.inf:
                bound = min(bound, rule.bound(self._monitor.window))
        if not self._bound / RENEW < bound < self._bound * RENEW and bound != self._bound:
            self._bound = bound
            self.guarded.engine.set_bound(bound)

    def go_back(self, depth: int = 0, *, rewind: bool = True) -> int | None:
        """As in `GuardBase`; where the data goes on, metrics start anew."""
        back_to = super().go_back(depth, rewind=rewind)
        if back_to is not None and not self.is_rewound:
            for metric in self.guarded.model.metrics:
                metric.reset_state()
        return back_to

    def close(self) -> None:
        """Lets go of snapshots and batches; the history stays."""
        self._snapshots.clear()
        self.batches.clear()
        self._batch = self._program = None

    # --- what a framework's guard does ------------------------------------------------------

    def _is_limited(self, reading: Reading) -> bool:
        # Several steps may have run since the device was told.
        return self._clip_to < math.inf and is_finite(reading) and not reading.bad_state

    def _cut_again(self, back_to: int) -> None:
        """Nothing to do: the factor of the learning rates is no part of a snapshot."""

    def _multiply_rates(self, factor: float) -> None:
        self._factor *= factor
        self.guarded.engine.set_factor(self._factor)

    def _is_scaler_at_work(self, reading: Reading) -> bool:
        return self._is_scaling

    def _find_culprit(self) -> tuple[Culprit | None, bool]:
        reading = self._reading
        if reading is not None and reading.bad_state:
            weights = Culprit(
                op="",
                phase="forward",
                source=UNKNOWN,
                outcome="NaN or Inf",
                cause="weights",
                name=reading.bad_state,
            )
            return weights, False
        batches: list[Any] = [self._batch]
        values: Sequence[Any] = ()
        if self._batch is None:
            batches, values = self.guarded.engine.kept(self._number) or ([], ())
        culprit, is_transient = None, bool(batches)
        with self.guarded.at(values):
            for number, batch in enumerate(batches):
                culprit, is_finite_again = self._replayed(batch)
                is_transient = is_transient and is_finite_again
                if culprit is not None:
                    self._replica = number + 1
                    break
        outside = user_source()
        if culprit is not None and _place(culprit.source) == _place(outside):
            # An operator of Keras' own: all there is of the user's is the call of `fit`.
            model = f"<Keras model {self.guarded.model.name}>"
            place = replace(UNKNOWN, file=model, module=culprit.source.module, node=culprit.op)
            culprit = replace(culprit, source=place)
        return culprit, is_transient

    def _replayed(self, batch: Any) -> tuple[Culprit | None, bool]:
        if keras.config.backend() == "tensorflow":
            return self._watched(batch)
        program = self._program = self.program(batch)
        assert program.model is not None

        def run() -> Any:
            loss = program.step(*program.arguments)
            if loss is not None:
                loss.backward()
            return loss

        with self.guarded.withheld():
            culprit = find_culprit(
                run, model=program.model, batch=self._named(program), strict=True
            )
        return culprit, culprit is None

    def _watched(self, batch: Any) -> tuple[Culprit | None, bool]:
        """The culprit of a step of TensorFlow, which runs eagerly for it."""
        from ranum.callbacks._keras.culprit import find_culprit as find

        if not self.guarded.engine.is_distributed:
            with suppress(CaptureError):  # then there is no file to replay
                self._program = self.program(batch)
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        named = {
            f"batch[{name!r}]{path}": leaf
            for name, value in (("x", x), ("y", y), ("sample_weight", weights))
            for path, leaf in _leaves(value)
        }
        variables = [(one.path, one) for one in self.guarded.variables()]
        results: list[Any] = []

        def run() -> list[Any]:
            results.extend(self.guarded.replay(batch))
            return results

        culprit = find(run, batch=named, variables=variables)
        return culprit, culprit is None and _are_finite(results)

    def program(self, batch: Any) -> Program:
        """The training step on a batch, as torch runs it."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(_host_batch(batch))
        arguments = [x]
        if weights is not None or y is not None:
            arguments.append(y)
        if weights is not None:
            arguments.append(weights)
        return keras_program(self.guarded.model, tuple(arguments))

    @staticmethod
    def _named(program: Program) -> dict[str, Any]:
        return dict(zip(program.argument_names, program.arguments, strict=True))

    def _save(self, finding: Finding, reading: Reading, culprit: Culprit | None) -> Path | None:
        written = sum(bool(incident.file) for incident in self._incidents)
        program = self._program
        if self._incident_dir is None or program is None or written >= INCIDENT_FILES:
            return None
        return save_incident(
            self._incident_dir / f"step-{reading.step}.pt",
            model=program.model if program.model is not None else torch.nn.Module(),
            batches=[self._named(program)],
            finding=finding,
            culprit=culprit,
            step=reading.step,
            epoch=reading.epoch,
        )


def _are_finite(results: Sequence[Any]) -> bool:
    values = [getattr(one, "values", one) for one in results]
    return all(
        bool(np.isfinite(keras.ops.convert_to_numpy(keras.ops.cast(one, "float32"))).all())
        for one in values
    )


def _leaves(value: Any) -> list[tuple[str, Any]]:
    """Tensors of one argument with their places in it."""
    return [
        ("".join(f"[{key!r}]" for key in path), leaf)
        for path, leaf in keras.tree.flatten_with_path(value)
        if leaf is not None
    ]


def _nbytes(leaf: Any) -> int:
    if isinstance(leaf, torch.Tensor | np.ndarray):
        return int(leaf.nbytes)
    size = getattr(getattr(leaf, "dtype", None), "size", 0)
    return int(size or 0) * int(np.prod(getattr(leaf, "shape", ()) or (1,)))


def _host_batch(batch: Any) -> Any:
    """The batch of a call as plain arrays, on TensorFlow; as it is on torch."""
    if isinstance(batch, list) and len(batch) == 1 and keras.config.backend() == "torch":
        batch = batch[0]
    if any(
        hasattr(leaf, "numpy") and not isinstance(leaf, torch.Tensor) for leaf in tree_leaves(batch)
    ):
        return tree_map(lambda leaf: leaf.numpy() if hasattr(leaf, "numpy") else leaf, batch)
    return batch


def _place(source: Source) -> tuple[str, int, int]:
    return source.file, source.line, source.column
