"""Several processes that train one model: what they must share so that all decide alike.

Every function here that takes a value is collective: all processes must call it, in the same
order. The guard does so after a fault only, and where a snapshot is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ranum.guards.types import Culprit

_T = TypeVar("_T")


def is_shared() -> bool:
    """True if several processes train together, which must decide alike."""
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    return distributed.get_world_size() > 1


def rank() -> int:
    """The number of this process; 0 where there is only one."""
    return distributed.get_rank() if is_shared() else 0


def agree(answer: bool) -> bool:
    """True if all processes answer True; each must be asked."""
    return _reduced(float(answer), distributed.ReduceOp.MIN) > 0 if is_shared() else answer


def largest(value: float) -> float:
    """The largest of all processes' values."""
    return _reduced(value, distributed.ReduceOp.MAX) if is_shared() else value


def worst(norm: float | None) -> float | None:
    """The largest of all processes' norms; infinity where one is not finite."""
    value = 0.0 if norm is None else norm
    found = largest(value if math.isfinite(value) else math.inf)
    return None if norm is None and not found else found


def gathered(value: _T) -> list[_T]:
    """The values of all processes, by rank; anything that pickles."""
    if not is_shared():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def gathered_numbers(values: Sequence[float]) -> list[list[float]]:
    """The values of all processes, by rank; as many in each."""
    if not is_shared():
        return [list(values)]
    table = torch.zeros(distributed.get_world_size(), len(values), dtype=torch.float64)
    table[rank()] = torch.tensor(values, dtype=torch.float64)
    table = table.to(_device())
    distributed.all_reduce(table)
    rows: list[list[float]] = table.tolist()
    return rows


def first_culprit(found: Culprit | None) -> tuple[Culprit | None, int]:
    """The culprit for all, that of the first process that has one; and the process's number.

    A process that was sent bad numbers by another one sees an argument of the exchange; whoever
    can name a batch, a weight or an operator goes before it. Data and weights that not all
    processes name are said to be that one's.
    """
    everyone = gathered(found)
    named = [(one.name.startswith("argument "), n) for n, one in enumerate(everyone) if one]
    if not named:
        return None, 0
    number = min(named)[1]
    culprit = everyone[number]
    if culprit is None or not culprit.name:
        return culprit, number
    if all(one is not None and one.name == culprit.name for one in everyone):
        return culprit, number
    return replace(culprit, name=f"{culprit.name} of process {number}"), number


def _reduced(value: float, how: Any) -> float:
    tensor = torch.tensor(value, dtype=torch.float64, device=_device())
    distributed.all_reduce(tensor, how)
    return float(tensor)


def _device() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"


@contextmanager
def exchanges() -> Iterator[list[bool]]:
    """Whether a step exchanges gradients: a list with an entry for each replica's forward pass.

    A framework may run the wrapped module itself again (Lightning); the gradients are this
    process's own then.
    """
    usual: Callable[..., Any] = DistributedDataParallel.forward
    seen: list[bool] = []

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(True)
        return usual(self, *args, **kwargs)

    DistributedDataParallel.forward = forward  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        DistributedDataParallel.forward = usual  # type: ignore[method-assign]


@contextmanager
def alone() -> Iterator[list[bool]]:
    """Replicas run without talking to each other, for a step that is run again.

    Gives a list with an entry for each replica's forward pass.

    Neither buffers nor gradients are exchanged by any `DistributedDataParallel`, so that a replay
    cannot hang where another process does not take part in it, and shows this process's own
    gradients. The wrapper may be out of reach (only what it wraps is given to a guard): its class
    is changed for the time. Collectives of the model's own (SyncBatchNorm) go on.
    """
    usual: Callable[..., Any] = DistributedDataParallel.forward

    seen: list[bool] = []

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(True)
        before = (self.require_backward_grad_sync, self.require_forward_param_sync)
        self.require_backward_grad_sync = self.require_forward_param_sync = False
        try:
            return usual(self, *args, **kwargs)
        finally:
            self.require_backward_grad_sync, self.require_forward_param_sync = before

    DistributedDataParallel.forward = forward  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        DistributedDataParallel.forward = usual  # type: ignore[method-assign]
