"""Norms of many tensors: one fused reduction on the device, one read by the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ranum.guards._shards import any_sharded, local, whole_norms


@torch.no_grad()
def gradient_norm(optimizer: Any) -> float:
    """The norm of what is in `.grad` now; of sharded gradients that of the whole, collective."""
    _, gradients = dense_gradients(stepped(optimizer))
    norm = total(on_host(norms_of(gradients)))
    return norm if math.isfinite(norm) else scaled_norm(gradients, norm)


def stepped(optimizer: Any) -> list[Tensor]:
    """What the optimizers are about to step: a list at hand, where the model is a tree."""
    several = optimizer if isinstance(optimizer, list | tuple) else (optimizer,)
    return [
        parameter
        for one in several
        for group in getattr(one, "param_groups", ())
        for parameter in group["params"]
    ]


def dense_gradients(parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that have a gradient, and the dense values of those."""
    owners, gradients = [], []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout is not torch.strided:
            gradient = gradient.coalesce().values()
        owners.append(parameter)
        gradients.append(gradient)
    return owners, gradients


def norms_of(tensors: Sequence[Tensor], wide: torch.dtype | None = None) -> list[Tensor]:
    """L2 norm of each tensor, fused by device and dtype, in at least float32.

    Of tensors that are spread over processes, that of the whole: collective then.
    """
    parts = [local(tensor) for tensor in tensors] if any_sharded(tensors) else tensors
    norms = _plain_norms(parts, wide)
    return norms if parts is tensors else whole_norms(tensors, norms)


def _plain_norms(tensors: Sequence[Tensor], wide: torch.dtype | None) -> list[Tensor]:
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) == 1 and all(tensor.is_cpu for tensor in tensors):  # as a rule, and quicker
        return list(torch._foreach_norm(list(tensors), 2, dtype=wide or _least(*dtypes)))
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    norms = list(tensors)
    for (_, dtype), indices in groups.items():
        own = [tensors[index] for index in indices]
        found = torch._foreach_norm(own, 2, dtype=wide or _least(dtype))
        for index, norm in zip(indices, found, strict=True):
            norms[index] = norm
    return norms


def _least(dtype: torch.dtype) -> torch.dtype | None:
    """What to add up in: None for that of the tensors."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else None


def total(norms: Sequence[float]) -> float:
    """The norm of norms; NaN if one is NaN."""
    total = math.hypot(*norms)
    return math.nan if math.isinf(total) and any(map(math.isnan, norms)) else total


def together(tensors: Sequence[Tensor]) -> Tensor:
    """The values of 0-d tensors as one, `[n]`, on the device of the first."""
    if not tensors:
        return torch.zeros(0)
    device = tensors[0].device
    return torch.stack([one if one.device == device else one.to(device) for one in tensors])


def on_host(tensors: Sequence[Tensor]) -> list[float]:
    """The values of 0-d tensors, in one read."""
    if not tensors:
        return []
    values: list[float] = together(tensors).tolist()
    return values


def scaled_norm(gradients: Sequence[Tensor], norm: float) -> float:
    """The norm without overflow; `norm` if a gradient really is not finite."""
    if any_sharded(gradients):
        return total(on_host(norms_of(gradients, torch.float64)))
    largest = max(
        (float(gradient.abs().max()) for gradient in gradients if gradient.numel()), default=0.0
    )
    if not math.isfinite(largest) or not largest:
        return norm
    parts = [float(torch.linalg.vector_norm(gradient / largest)) for gradient in gradients]
    return largest * math.hypot(*parts)
