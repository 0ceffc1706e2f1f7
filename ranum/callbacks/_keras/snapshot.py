"""States of a Keras model in training, kept in memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import torch

from ranum.callbacks._keras.parts import assign, copied, parts
from ranum.callbacks._keras.step import GuardedStep
from ranum.errors import RanumError


@dataclass(slots=True)
class _Snapshot:
    step: int
    variables: list[Any]
    values: list[list[Any]]
    random: Any


class VariableSnapshots:
    """A ring of states, each of all variables: weights, statistics, moments, metrics, seeds.

    On TensorFlow a state shares the variables' memory until they are written to, and costs one
    copy then; on torch it is copied into memory that is used again.

    Args:
        step: Has the variables.
        keep: Snapshots kept besides the first.
    """

    def __init__(
        self,
        step: GuardedStep,
        keep: int = 2,
    ) -> None:
        self._step = step
        self._first: _Snapshot | None = None
        self._ring: deque[_Snapshot] = deque()
        self._keep = keep
        self._usual: frozenset[str] = frozenset()

    @property
    def _all(self) -> list[_Snapshot]:
        return [*self._ring, *([] if self._first is None else [self._first])]

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of the snapshots, newest first."""
        return tuple(snapshot.step for snapshot in self._all)

    @property
    def latest_step(self) -> int | None:
        """Of the newest snapshot."""
        return next(iter(self.steps), None)

    @property
    def is_ready(self) -> bool:
        """True once everything has its variables."""
        return self._step.is_built()

    def take(self, step: int) -> None:
        """Takes a snapshot before a step."""
        room = self._ring.pop() if len(self._ring) >= self._keep else None
        variables = list(self._step.variables())
        found = [parts(variable) for variable in variables]
        if room is not None and _is_same(room.variables, variables):
            values = [
                [copied(part, old) for part, old in zip(some, olds, strict=True)]
                for some, olds in zip(found, room.values, strict=True)
            ]
        else:
            values = [[copied(part) for part in some] for some in found]
        snapshot = _Snapshot(step, variables, values, self._step.engine.random())
        if self._first is None:
            self._first = snapshot
            self._usual = frozenset(self.bad_in_latest())
        else:
            self._ring.appendleft(snapshot)

    def bad_in_latest(self) -> list[str]:
        """Paths of variables that are not finite in the newest snapshot, and were at first."""
        latest = next(iter(self._all), None)
        if latest is None:
            return []
        floats = [
            (variable.path, value)
            for variable, values in zip(latest.variables, latest.values, strict=True)
            if keras.backend.is_float_dtype(variable.dtype)
            for value in values
        ]
        if not floats:
            return []
        # A sum is the quickest look, and not finite if an element is not.
        flags = map(math.isfinite, self._step.engine.sums([value for _, value in floats]))
        return [
            path
            for (path, value), is_good in zip(floats, flags, strict=True)
            if not is_good
            and path not in self._usual
            and not bool(keras.ops.convert_to_numpy(keras.ops.isfinite(value)).all())
        ]

    def restore(self, depth: int = 0) -> int:
        """Puts a snapshot back, and drops the ones newer than it.

        Raises:
            RanumError: If there is none, or the model has other variables now.
        """
        snapshots = self._all
        if not snapshots:
            raise RanumError("there is no snapshot to go back to.")
        depth = min(depth, len(snapshots) - 1)
        snapshot = snapshots[depth]
        if not _is_same(snapshot.variables, self._step.variables()):
            raise RanumError("the model or its optimizer has other variables than then.")
        for _ in range(min(depth, len(self._ring))):
            self._ring.popleft()
        with torch.no_grad():
            for variable, values in zip(snapshot.variables, snapshot.values, strict=True):
                for part, value in zip(parts(variable), values, strict=True):
                    assign(part, value)
        self._step.engine.set_random(snapshot.random)
        return snapshot.step

    def drop_latest(self) -> None:
        """Forgets the newest one; not the first."""
        if self._ring:
            self._ring.popleft()

    def clear(self) -> None:
        """Frees them all."""
        self._ring.clear()
        self._first = None

    # The step itself keeps and puts back what it changes.

    def take_buffers(self) -> None:
        """Nothing to do."""

    def restore_buffers(self) -> None:
        """Nothing to do."""

    def take_settings(self) -> None:
        """Nothing to do."""

    def restore_settings(self) -> None:
        """Nothing to do."""


def _is_same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(
        one is other for one, other in zip(some, others, strict=True)
    )
