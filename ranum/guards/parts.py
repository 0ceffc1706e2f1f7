"""A step of several micro-batches, taken without the bad ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ranum._untouched import random_state, set_random_state
from ranum.guards._buffers import BufferCopies
from ranum.guards._shards import local


def without_bad_parts(
    model: nn.Module,
    parameters: Sequence[Tensor],
    parts: Sequence[Callable[[], Any]],
    agree: Callable[[bool], bool] = bool,
) -> str | None:
    """Accumulates the gradients of a step again, without the micro-batches that spoil them.

    The gradients of the others are multiplied by the number of all over the number of those left,
    which is the mean over fewer where each loss had been divided by the number of all. Of a
    micro-batch that is left out no trace stays: no gradient, statistic or random number.

    Processes that hold shards of one model run each micro-batch together, and leave out together
    what spoils the gradients of one of them.

    Args:
        model: Whose buffers the micro-batches change.
        parameters: What is trained; without gradients when this is called.
        parts: Each runs forward, loss and backward of one micro-batch, and returns the loss.
        agree: With several processes, True for all if it is called with True in all.

    Returns:
        What was left out, in words; None, without gradients, if that is none or all of them.
    """
    devices = {parameter.device for parameter in parameters}
    bad: list[int] = []
    copies = BufferCopies()
    for number, part in enumerate(parts):
        before = [None if p.grad is None else p.grad.clone() for p in parameters]
        copies.take(model)
        numbers = random_state(devices, all_generators=False)
        loss = part()
        if agree(is_finite(loss, parameters)):
            continue
        bad.append(number)
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        copies.restore()
        set_random_state(numbers)
    left = len(parts) - len(bad)
    if not bad or not left:
        clear(parameters)
        return None
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(len(parts) / left)
    return left_out([bad], len(parts))


def left_out(absent: Sequence[Sequence[int]], count: int) -> str:
    """In words: which of the `count` micro-batches of a step each process did not train on."""
    if count > 1 and all(each == absent[0] for each in absent):
        return f"micro-batch {_listed(absent[0])} of the step"
    named = [(number, each) for number, each in enumerate(absent) if each]
    if count == 1:
        return f"the batch of process {_listed(number for number, _ in named)}"
    words = [f"micro-batch {_listed(each)} of process {number}" for number, each in named]
    return ", ".join(words)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def clear(parameters: Sequence[Tensor]) -> None:
    """Drops all gradients."""
    for parameter in parameters:
        parameter.grad = None


def is_finite(loss: Any, parameters: Sequence[Tensor]) -> bool:
    """True if losses, in any container, and gradients are; of shards, those of this process."""
    values = [*tree_leaves(loss), *(p.grad for p in parameters)]
    return all(bool(local(one).isfinite().all()) for one in values if isinstance(one, Tensor))
