"""Learning rates, multiplied so that schedulers and rollbacks leave it so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr")
_SCHEDULER_RATES = ("base_lrs", "max_lrs", "_last_lr")


@torch.no_grad()
def multiply_learning_rates(
    optimizers: Iterable[Any], schedulers: Iterable[Any], factor: float
) -> None:
    """Multiplies the rates of now, and those that schedulers start from and have noted."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name in _GROUP_RATES:
                if name in group:
                    group[name] = _scaled(group[name], factor)
    for scheduler in schedulers:
        _scale_scheduler(scheduler, factor, set())


def _scale_scheduler(scheduler: Any, factor: float, seen: set[int]) -> None:
    if id(scheduler) in seen:
        return
    seen.add(id(scheduler))
    for name in _SCHEDULER_RATES:
        rates = getattr(scheduler, name, None)
        if isinstance(rates, list):
            setattr(scheduler, name, [_scaled(rate, factor) for rate in rates])
    for inner in getattr(scheduler, "_schedulers", ()):  # SequentialLR, ChainedScheduler
        _scale_scheduler(inner, factor, seen)


def _scaled(rate: Any, factor: float) -> Any:
    return rate.mul_(factor) if isinstance(rate, Tensor) else rate * factor
