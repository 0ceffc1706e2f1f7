"""Running somebody's training step without leaving a trace of it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def preserved(model: nn.Module | None) -> Iterator[None]:
    """Puts everything a training step changes back when the block ends.

    That is: buffers (BatchNorm statistics), gradients, plain attributes of every submodule
    (counters, the states of torchmetrics), training flags, and the random number generators
    of torch (CPU and every CUDA device in use), numpy and Python. Parameters are not copied:
    a step without its optimizer does not change them.
    """
    rng = _random_states()
    modules = [] if model is None else list(model.modules())
    attributes = [_attributes(module) for module in modules]
    buffers = (
        [] if model is None else [(buffer, buffer.detach().clone()) for buffer in _buffers(model)]
    )
    gradients = [] if model is None else [(p, p.grad) for p in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)
        for module, saved_attributes in zip(modules, attributes, strict=True):
            _restore_attributes(module, saved_attributes)
        _restore_random_states(rng)


def _buffers(model: nn.Module) -> list[Tensor]:
    return [buffer for buffer in model.buffers() if buffer is not None]


_OWN_TABLES = frozenset({"_parameters", "_modules"})


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: _copied(value) for name, value in vars(module).items() if name not in _OWN_TABLES}


def _copied(value: Any) -> Any:
    """Containers one level deep and tensors are copied; other objects are kept as they are."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone() if value.is_leaf and not value.requires_grad else value
    if type(value) is list:
        return list(value)
    if type(value) is dict:
        return dict(value)
    if type(value) is set:
        return set(value)
    return value


def _restore_attributes(module: nn.Module, saved: dict[str, Any]) -> None:
    current = vars(module)
    for name in [name for name in current if name not in saved and name not in _OWN_TABLES]:
        del current[name]
    for name, value in saved.items():
        now = current.get(name)
        if isinstance(now, list) and type(value) is list:
            now[:] = value
        elif (isinstance(now, dict) and type(value) is dict) or (
            isinstance(now, set) and type(value) is set
        ):
            now.clear()
            now.update(value)
        else:
            current[name] = value


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        states["numpy"] = sys.modules["numpy"].random.get_state()
    return states


def _restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "numpy" in states:
        sys.modules["numpy"].random.set_state(states["numpy"])
