"""A step of several micro-batches, taken without the bad ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ranum._untouched import random_state, set_random_state
from ranum.guards._buffers import BufferCopies


def without_bad_parts(
    model: nn.Module, parameters: Sequence[Tensor], parts: Sequence[Callable[[], Any]]
) -> list[int] | None:
    """Accumulates the gradients of a step again, without the micro-batches that spoil them.

    The gradients of the others are multiplied by the number of all over the number of those left,
    which is the mean over fewer where each loss had been divided by the number of all. Of a
    micro-batch that is left out no trace stays: no gradient, statistic or random number.

    Args:
        model: Whose buffers the micro-batches change.
        parameters: What is trained; without gradients when this is called.
        parts: Each runs forward, loss and backward of one micro-batch, and returns the loss.

    Returns:
        The positions of those left out; None, without gradients, if that is none or all of them.
    """
    devices = {parameter.device for parameter in parameters}
    left_out: list[int] = []
    copies = BufferCopies()
    for number, part in enumerate(parts):
        before = [None if p.grad is None else p.grad.clone() for p in parameters]
        copies.take(model)
        numbers = random_state(devices, all_generators=False)
        loss = part()
        if _is_finite([*tree_leaves(loss), *(p.grad for p in parameters)]):
            continue
        left_out.append(number)
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        copies.restore()
        set_random_state(numbers)
    left = len(parts) - len(left_out)
    if not left_out or not left:
        for parameter in parameters:
            parameter.grad = None
        return None
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(len(parts) / left)
    return left_out


def _is_finite(values: Sequence[Any]) -> bool:
    return all(bool(value.isfinite().all()) for value in values if isinstance(value, Tensor))
