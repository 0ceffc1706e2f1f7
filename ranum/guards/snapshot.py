"""Exact training state, and the way back to it.

A snapshot lives on the devices of the tensors it copies, in host memory or on disk, in memory
that is allocated once and written again by fused copies. Going back writes into the tensors in
use, so views, optimizers and compiled graphs that hold them stay valid; the same batches then
give the same bits as an uninterrupted run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ranum._untouched import RandomState, distinct, random_state, set_random_state
from ranum.errors import ArgumentError, RanumError
from ranum.guards._buffers import BufferCopies, buffers, tables
from ranum.guards._memory import Copy, Memory, bad_names, fits
from ranum.guards._optimizer_copy import OptimizerCopy, same_objects
from ranum.guards._places import Maker, checked_place, expected_bytes, makers
from ranum.guards._settings import Settings, Stateful, own_copy
from ranum.guards._shards import local, shard_again

_Noted = tuple[BufferCopies, Settings, RandomState | None]

__all__ = ["Snapshots", "Stateful", "as_optimizers"]


@dataclass(slots=True)
class _Snapshot:
    """One saved state; `buffers` by the table and the name that hold them."""

    memory: Memory
    step: int = -1
    parameters: dict[str, tuple[Tensor, Copy]] = field(default_factory=dict)
    buffers: list[tuple[dict[str, Any], str, Tensor | None, Copy | None]] = field(
        default_factory=list
    )
    optimizers: list[OptimizerCopy] = field(default_factory=list)
    others: list[Any] = field(default_factory=list)
    random: RandomState | None = None


class Snapshots:
    """A ring of the latest `keep` snapshots, and the first one for last resort.

    A snapshot holds parameters (the model's, and others that the optimizers train), all
    buffers, the optimizers' state and hyper-parameters, the state of schedulers and scaler,
    and the global random number generators of torch, Python and numpy. Not held: generators
    of the user's own, plain attributes of modules, what an optimizer keeps outside `state`
    and `param_groups`, and the position in the data; pass what has `state_dict` and
    `load_state_dict` as `also` to include more: an average of the weights (`AveragedModel`),
    a metric.

    Memory: `keep` copies of parameters, buffers and optimizer state, plus one of the
    parameters and buffers at the start (and of the optimizer state, if it had any then). Where
    they are put is chosen at the first snapshot: "auto" takes the device if all of them fit
    into a quarter of what is free there, else the host (pinned), if they fit into half of
    what is free there, else the disk; where one turns out to be full, the next.

    Args:
        model: The model.
        optimizers: One optimizer or several.
        schedulers: Anything with `state_dict` and `load_state_dict`; may be changed later
            through the attribute of that name.
        scaler: A gradient scaler, or None.
        keep: Snapshots kept besides the first; at least 1.
        to: "auto", "device", "host", "disk" (that of `tempfile`), or a folder. The files have no
            names, and go away with the process.
        also: Modules, whose parameters and buffers go back in place, and other things with
            `state_dict` and `load_state_dict`.

    Raises:
        ArgumentError: If an argument breaks its rule.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Any,
        *,
        schedulers: Iterable[Stateful] = (),
        scaler: Stateful | None = None,
        keep: int = 2,
        to: str | Path = "auto",
        also: Iterable[Any] = (),
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ArgumentError(f"keep must be a positive integer; got {keep!r}.")
        self.model = model
        self.optimizers = as_optimizers(optimizers)
        self.schedulers = list(schedulers)
        self.scaler = scaler
        self.also = list(also)
        self.to = checked_place(to)
        for other in (*self._others(), *self.also):
            if not hasattr(other, "state_dict") or not hasattr(other, "load_state_dict"):
                raise ArgumentError(
                    "schedulers, scaler and also must have state_dict and load_state_dict; "
                    f"got {type(other).__name__}."
                )
        self.keep = keep
        self._ring: deque[_Snapshot] = deque()  # newest first
        self._first: _Snapshot | None = None
        self._spare: list[_Snapshot] = []
        self._buffers = BufferCopies()
        self._usual: frozenset[str] = frozenset()
        self._before: RandomState | None = None
        self._settings = Settings()
        self._aside: _Noted = (BufferCopies(), Settings(), None)
        self._devices: frozenset[torch.device] | None = None
        self._makers: list[tuple[str, Maker]] = []

    def __repr__(self) -> str:
        return f"Snapshots({type(self.model).__name__}, keep={self.keep}, steps={self.steps})"

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that can be gone back to, newest first; the last is the first ever taken."""
        return tuple(snapshot.step for snapshot in self._all())

    @property
    def latest_step(self) -> int | None:
        """Step of the newest snapshot; None if there is none."""
        return next(iter(self.steps), None)

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held by the snapshots."""
        return sum(entry.memory.nbytes for entry in (*self._all(), *self._spare))

    @property
    def place(self) -> str:
        """Where they are: "device", "host" or "disk"; "" before the first."""
        return self._makers[0][0] if self._makers else ""

    @property
    def is_ready(self) -> bool:
        """False while lazy parameters or buffers have no shape yet: there is nothing to copy."""
        tensors = (*self._parameters().values(), *self.model.buffers())
        return not any(map(nn.parameter.is_lazy, tensors))

    # --- taking ----------------------------------------------------------------------------

    def take(self, step: int) -> None:
        """Copies the state of now, which is the state before step `step`.

        The first snapshot is kept apart; later ones overwrite the oldest of the ring.

        Raises:
            RanumError: If a lazy parameter has no shape yet; see `is_ready`.
            OSError, MemoryError, torch.OutOfMemoryError: If there is no room. The oldest snapshot
                may be gone then; the others are as they were.
        """
        if not self.is_ready:
            raise RanumError("the model has uninitialised lazy parameters: run a batch first.")
        shard_again(self.model)
        while True:
            snapshot = None
            try:
                snapshot = self._slot()
                self._fill(snapshot, step)
                break
            except (torch.OutOfMemoryError, MemoryError, OSError):
                self._spare += [] if snapshot is None else [snapshot]
                if len(self._makers) < 2:
                    raise
                # What is full once will be full again; snapshots that exist stay where they are.
                del self._makers[0]
                self._spare.clear()
            except BaseException:
                self._spare += [] if snapshot is None else [snapshot]
                raise
        if self._first is None:
            self._first = snapshot
            self._usual = frozenset(self.bad_in_latest())
        else:
            self._ring.appendleft(snapshot)

    def _fill(self, snapshot: _Snapshot, step: int) -> None:
        memory = snapshot.memory
        memory.recycle()
        parameters = self._parameters()
        self._devices = frozenset(tensor.device for tensor in parameters.values())
        known = {id(tensor): tensor for tensor in parameters.values()}
        snapshot.step = step
        snapshot.parameters = {name: (p, memory.store(p)) for name, p in parameters.items()}
        snapshot.buffers = [
            (table, name, buffer, None if buffer is None else memory.store(buffer))
            for table, name, buffer in buffers(self._tables())
        ]
        snapshot.optimizers = [
            OptimizerCopy(one, memory, lambda value: self._copied(value, known))
            for one in self.optimizers
        ]
        snapshot.others = [self._copied(other.state_dict(), known) for other in self._others()]
        snapshot.random = random_state(self._devices)
        memory.flush()

    def bad_in_latest(self) -> list[str]:
        """Names of tensors in the newest snapshot that are not finite, and were so at first.

        Infinities that were there from the start are the model's own (masks). Reads from the
        device.
        """
        latest = next(iter(self._all()), None)
        bad = [] if latest is None else latest.memory.bad(list(self._contents(latest)))
        return [name for name in bad if name not in self._usual]

    def bad_now(self) -> list[str]:
        """Names of weights, buffers and moments of now that are not finite, and were so at first.

        Named as in `bad_in_latest`. Reads from the device.
        """
        return [name for name in bad_names(list(self._live())) if name not in self._usual]

    def _live(self) -> Iterator[tuple[str, Tensor]]:
        parameters = self._parameters()
        names = {id(parameter): name for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            yield name, local(parameter.detach())
        for number, (_, name, buffer) in enumerate(buffers(self._tables())):
            if buffer is not None:
                yield f"buffer {number} ({name})", local(buffer.detach())
        for optimizer in self.optimizers:
            for key, entries in optimizer.state.items():
                for name, value in entries.items() if isinstance(entries, dict) else ():
                    if isinstance(value, Tensor):
                        where = names.get(id(key), "a parameter")
                        yield f"{name} of {where}", local(value.detach())

    def _contents(self, snapshot: _Snapshot) -> Iterator[tuple[str, Copy]]:
        names = {id(p): name for name, (p, _) in snapshot.parameters.items()}
        for name, (_, saved) in snapshot.parameters.items():
            yield name, saved
        for number, (_, name, _, copied) in enumerate(snapshot.buffers):
            if copied is not None:
                yield f"buffer {number} ({name})", copied
        for state in snapshot.optimizers:
            for name, key, copied in state.copies():
                yield f"{name} of {names.get(id(key), 'a parameter')}", copied

    def _slot(self) -> _Snapshot:
        if self._spare:
            return self._spare.pop()
        if len(self._ring) >= self.keep:
            return self._ring.pop()
        if not self._makers:
            live = [*self._parameters().values(), *(b for t in self._tables() for b in t.values())]
            need = expected_bytes(live, self.optimizers, self.keep + 1)
            self._makers = makers(self.to, need)
        return _Snapshot(self._makers[0][1]())

    def _copied(self, value: Any, known: Mapping[int, Any]) -> Any:
        """A deep copy that does not copy parameters, the model or its optimizers."""
        return own_copy(value, [self.model, *self.optimizers, *self._others()], known)

    # --- going back ------------------------------------------------------------------------

    def restore(self, depth: int = 0) -> int:
        """Puts a snapshot back, in place, and drops the ones newer than it.

        Args:
            depth: 0 for the newest, 1 for the one before, ...; depths beyond the oldest
                mean the first ever taken.

        Returns:
            The step gone back to.

        Raises:
            ArgumentError: If `depth` is negative.
            RanumError: If there is no snapshot, parameters or optimizers were replaced since it
                was taken, or its bits are not those that were copied. Nothing has been changed
                then.
        """
        if depth < 0:
            raise ArgumentError(f"depth must not be negative; got {depth}.")
        snapshots = self._all()
        if not snapshots:
            raise RanumError("there is no snapshot to go back to.")
        depth = min(depth, len(snapshots) - 1)
        snapshot = snapshots[depth]
        shard_again(self.model)
        self._check(snapshot)
        if not snapshot.memory.is_intact():
            raise RanumError(f"the snapshot of step {snapshot.step} has been damaged.")
        for _ in range(min(depth, len(self._ring))):
            self._spare.append(self._ring.popleft())
        pairs: list[tuple[Tensor, Copy]] = list(snapshot.parameters.values())
        for table, name, buffer, saved in snapshot.buffers:
            # A forward pass may have put another tensor under the name; that one is not ours
            # to write to.
            table[name] = buffer
            if buffer is not None and saved is not None:
                pairs.append((buffer, saved))
        known = {id(p): p for p, _ in snapshot.parameters.values()}
        for optimizer, state in zip(self.optimizers, snapshot.optimizers, strict=True):
            pairs += state.load(optimizer, lambda value: self._copied(value, known))
        # `data`, not `detach`: with several optimizers a graph may still be waiting for its
        # backward pass, which would raise if it saw its parameters change.
        snapshot.memory.write_to((distinct(local(target.data)), copied) for target, copied in pairs)
        for other, saved in zip(self._others(), snapshot.others, strict=True):
            other.load_state_dict(self._copied(saved, known))
        if snapshot.random is not None:
            set_random_state(snapshot.random)
        return snapshot.step

    def is_sound(self, step: int) -> bool:
        """True if the snapshot of this step has the bits that were copied. Reads all of it."""
        return any(one.step == step and one.memory.is_intact() for one in self._all())

    def _check(self, snapshot: _Snapshot) -> None:
        then, now = snapshot.parameters, self._parameters()
        changed = [
            name for name, (p, saved) in then.items() if not _is_same(now.get(name), p, saved)
        ]
        changed += [name for name in now if name not in then]
        where = f"since the snapshot of step {snapshot.step}, which cannot be gone back to."
        if changed:
            raise RanumError(f"parameters were replaced or added ({changed[0]!r}) {where}")
        trained = [[group["params"] for group in one.param_groups] for one in self.optimizers]
        if not same_objects(trained, [state.trained for state in snapshot.optimizers]):
            raise RanumError(f"the parameter groups of an optimizer changed {where}")
        if len(snapshot.others) != len(self._others()):
            raise RanumError(f"the list of schedulers changed {where}")

    def drop_latest(self) -> None:
        """Forgets the newest snapshot of the ring (its state turned out bad); not the first."""
        if self._ring:
            self._spare.append(self._ring.popleft())

    def clear(self) -> None:
        """Forgets every snapshot and frees their memory."""
        for snapshot in (*self._all(), *self._spare):
            snapshot.memory.close()
        self._ring.clear()
        self._spare.clear()
        self._first = None

    # --- one batch -------------------------------------------------------------------------

    def take_buffers(self) -> None:
        """Notes buffers and torch's random numbers before a batch; cheap enough for every step.

        Python's and numpy's generators are left out for their cost (0.1 ms).
        """
        self._buffers.take(self.model)
        if self._devices is None:
            self._devices = frozenset(p.device for p in self._parameters().values())
        self._before = random_state(self._devices, all_generators=False)

    @property
    def random_before(self) -> RandomState | None:
        """Torch's random numbers as `take_buffers` noted them; None if it was not called."""
        return self._before

    def restore_buffers(self) -> None:
        """Puts back what `take_buffers` noted; does nothing if it was not called."""
        self._buffers.restore()
        if self._before is not None:
            set_random_state(self._before)

    def take_settings(self) -> None:
        """Notes the optimizers' hyper-parameters, and the states of schedulers and scaler."""
        self._settings.take(self.optimizers, [*self._others(), *self._modules()])

    def restore_settings(self) -> None:
        """Puts back what `take_settings` noted; does nothing if it was not called."""
        self._settings.restore(self.optimizers, [*self._others(), *self._modules()])

    def put_aside(self) -> None:
        """Keeps what has been noted; what is noted from now on is kept besides."""
        noted: _Noted = (self._buffers, self._settings, self._before)
        self._aside, (self._buffers, self._settings, self._before) = noted, self._aside

    def take_up(self) -> None:
        """Takes what was put aside for what has been noted, and the other way round."""
        self.put_aside()

    @property
    def buffers_before(self) -> list[tuple[str, Tensor]]:
        """The copies that `take_buffers` made: floating ones of up to `SMALL_BUFFER` elements."""
        return self._buffers.floats

    # --- parts -----------------------------------------------------------------------------

    def _all(self) -> list[_Snapshot]:
        return [*self._ring, *([] if self._first is None else [self._first])]

    def _others(self) -> list[Stateful]:
        rest = [one for one in self.also if not isinstance(one, nn.Module)]
        return [*self.schedulers, *([] if self.scaler is None else [self.scaler]), *rest]

    def _modules(self) -> list[nn.Module]:
        return [one for one in self.also if isinstance(one, nn.Module)]

    def _tables(self) -> list[dict[str, Any]]:
        """Of all buffers, the model's first; each once."""
        found = [table for one in (self.model, *self._modules()) for table in tables(one)]
        return list({id(table): table for table in found}.values())

    def _parameters(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = dict(self.model.named_parameters())
        known = {id(parameter) for parameter in found.values()}
        for number, module in enumerate(self._modules()):
            for name, parameter in module.named_parameters():
                if id(parameter) not in known:
                    known.add(id(parameter))
                    found[f"also {number}, {name}"] = parameter
        for number, optimizer in enumerate(self.optimizers):
            for group_number, group in enumerate(optimizer.param_groups):
                for index, parameter in enumerate(group["params"]):
                    if id(parameter) not in known:
                        known.add(id(parameter))
                        found[f"optimizer {number}, group {group_number}, {index}"] = parameter
        return found


def as_optimizers(optimizers: Any) -> list[Any]:
    """One optimizer or several, as a list.

    Raises:
        ArgumentError: If one has no `param_groups` or no `state`.
    """
    found = list(optimizers) if isinstance(optimizers, list | tuple) else [optimizers]
    for optimizer in found:
        if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "state"):
            raise ArgumentError(
                "optimizer must be a torch.optim.Optimizer or a list of them; "
                f"got {type(optimizer).__name__}."
            )
    return found


def _is_same(now: Tensor | None, then: Tensor, saved: Copy) -> bool:
    return now is then and fits(now, saved.tensor)
