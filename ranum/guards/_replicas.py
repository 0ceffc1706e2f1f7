"""Replicas (DDP) of which some take part in a step with less than the others, or with nothing.

What replicas exchange belongs to their wrapper: buckets, order, hooks of its communication. So a
step that is mended goes through the wrapper once more, and a process that has nothing to train on
runs a backward pass of zeros through it. Only documented parts of `DistributedDataParallel` are
used: calling it, `module`, and `require_backward_grad_sync`, which `no_sync` sets.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ranum._untouched import random_state, set_random_state
from ranum.guards import _processes as processes
from ranum.guards._buffers import BufferCopies
from ranum.guards.parts import clear, is_finite, left_out

Part = Callable[[], Any]


def wrapper_of(model: nn.Module) -> DistributedDataParallel | None:
    """The one wrapper of a model: the model itself, or the object that holds it.

    A guard may know what is wrapped only, which does not know its wrapper; then all objects are
    looked at (some 50 ms). None if there is none, or more than one.
    """
    if not processes.is_shared():
        return None
    if isinstance(model, DistributedDataParallel):
        return model
    found = [
        one
        for one in gc.get_objects()
        if issubclass(type(one), DistributedDataParallel) and one.module is model
    ]
    return found[0] if len(found) == 1 else None


class _Nothing(nn.Module):
    """Stands for a model in a step without a batch: its gradients are zero, or NaN."""

    def __init__(self, wrapper: DistributedDataParallel, *, is_bad: bool) -> None:
        super().__init__()
        self._wrapper, self._model = [wrapper], [wrapper.module]  # not as parts of this one
        self._is_bad = is_bad

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """The model's, which replicas bring together before each forward pass."""
        yield from self._model[0].named_buffers(*args, **kwargs)

    def forward(self, _: Tensor) -> Tensor:
        return nothing(self._wrapper[0], self._model[0], is_bad=self._is_bad)


def nothing(wrapper: DistributedDataParallel, model: nn.Module, *, is_bad: bool = False) -> Tensor:
    """A loss whose gradients are zero, `[]`; NaN with `is_bad`.

    Args:
        wrapper: Of the replica.
        model: What it wraps.
        is_bad: As in `take_part`.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if wrapper.find_unused_parameters:
        trained = trained[:1]  # what no process uses shall stay unused
    # Without `is_bad` no element is read, so that weights which are not finite do not matter.
    length = 1 if is_bad else 0
    total = torch.stack([p.flatten()[:length].sum().float() for p in trained]).sum()
    return total * math.nan if is_bad else total


def take_part(wrapper: DistributedDataParallel, *, is_bad: bool = False) -> None:
    """Forward and backward of a replica that has nothing to train on; the others wait for it.

    Buffers are received as usual. Inside `no_sync` nothing is exchanged.

    Args:
        wrapper: Of the replica; others have to call theirs once.
        is_bad: Send NaN instead of zeros, so that all processes see at once that the step is not
            an ordinary one.
    """
    model = wrapper.module
    wrapper.module = _Nothing(wrapper, is_bad=is_bad)  # not through the model's own hooks
    try:
        # An argument, without which a wrapper on a GPU cannot move its arguments there.
        loss = wrapper(torch.zeros(()))
    finally:
        wrapper.module = model
    loss.backward()


def weight_of_others(calls: int, absences: int) -> float:
    """What gradients have to be multiplied by, to be the mean over what was trained on.

    Collective. Where a process has done nothing at all, it counts as absent from every
    micro-batch that the others had.

    Args:
        calls: Micro-batches of this process that were trained on.
        absences: Those that it had nothing for.

    Returns:
        The same in all processes; infinity if no process has trained on anything.
    """
    everyone = processes.gathered_numbers([float(calls), float(absences)])
    most = max(calls + absences for calls, absences in everyone)
    trained = sum(calls for calls, _ in everyone)
    missing = sum(absences if calls else most for calls, absences in everyone)
    return (trained + missing) / trained if trained else math.inf


@contextmanager
def _syncing(is_on: bool) -> Iterator[list[Any]]:
    """Every wrapper exchanges gradients, or none does; a list of those that were called."""
    usual: Callable[..., Any] = DistributedDataParallel.forward
    seen: list[Any] = []

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self)
        before = self.require_backward_grad_sync
        self.require_backward_grad_sync = is_on
        try:
            return usual(self, *args, **kwargs)
        finally:
            self.require_backward_grad_sync = before

    DistributedDataParallel.forward = forward  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        DistributedDataParallel.forward = usual  # type: ignore[method-assign]


def without_bad_parts(
    model: nn.Module,
    parameters: Sequence[Tensor],
    parts: Sequence[Part | None],
    wrapper: DistributedDataParallel | None,
    *,
    is_uneven: bool,
) -> str | None:
    """Accumulates the gradients of a step again, without the micro-batches that spoil them.

    Collective. Each process runs its own ones alone and sees which are bad; they tell each other;
    the others are run once more, and exchanged with the last of them. The sum is multiplied by the
    number of all over the number of those left. Where each micro-batch had been exchanged by
    itself, the result differs from that in rounding.

    Args:
        model: Whose buffers the micro-batches change.
        parameters: What is trained; without gradients when this is called.
        parts: Of this process: each runs forward, loss and backward of one micro-batch, through
            the wrapper. None for one that it has nothing for.
        wrapper: Where a process may be left with nothing.
        is_uneven: Leave out only what is bad. Else a micro-batch that is bad or missing in one
            process is left out by all.

    Returns:
        What was left out, in words; None, without gradients and with nothing changed, if that is
        nothing, or all there is, or if it cannot be done.
    """
    copies = BufferCopies()
    copies.take(model)
    numbers = random_state({parameter.device for parameter in parameters}, all_generators=False)
    bad, can_exchange = _bad_ones(model, parameters, parts)
    copies.restore()
    set_random_state(numbers)
    clear(parameters)
    everyone = processes.gathered((len(parts), bad))
    count = max(own for own, _ in everyone)
    absent = [sorted({*found, *range(own, count)}) for own, found in everyone]
    if not is_uneven:
        absent = [sorted(set().union(*absent))] * len(absent)
    left = sum(count - len(each) for each in absent)
    mine = [part for n, part in enumerate(parts) if n not in absent[processes.rank()]]
    can_exchange = can_exchange and (bool(mine) or wrapper is not None)
    if not processes.agree(can_exchange) or not any(absent) or not left:
        return None
    for number, part in enumerate(mine):
        with _syncing(number == len(mine) - 1):
            if part is not None:
                part()
    if not mine and wrapper is not None:
        with _syncing(True):
            take_part(wrapper)
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(count * len(absent) / left)
    return left_out(absent, count)


def _bad_ones(
    model: nn.Module, parameters: Sequence[Tensor], parts: Sequence[Part | None]
) -> tuple[list[int], bool]:
    """Which are bad or missing in this process; and whether all that ran called a wrapper."""
    copies, bad, can_exchange = BufferCopies(), [], True
    devices = {parameter.device for parameter in parameters}
    for number, part in enumerate(parts):
        if part is None:
            bad.append(number)
            continue
        clear(parameters)
        copies.take(model)
        numbers = random_state(devices, all_generators=False)
        with processes.alone() as seen:
            loss = part()
        can_exchange = can_exchange and bool(seen)
        if not is_finite(loss, parameters):
            bad.append(number)
            copies.restore()
            set_random_state(numbers)
    return bad, can_exchange
