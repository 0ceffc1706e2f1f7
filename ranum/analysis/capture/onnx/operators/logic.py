"""Comparisons, logic and choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ranum.analysis.capture.onnx.registry import lowering


@lowering("Equal")
def equal(a: Any, b: Any) -> Any:
    """True where a = b; strings too."""
    if isinstance(a, np.ndarray):
        return torch.as_tensor(np.asarray(a == b, dtype=bool))
    return a == b


@lowering("Less")
def less(a: Tensor, b: Tensor) -> Tensor:
    """True where a < b."""
    return a < b


@lowering("LessOrEqual")
def less_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """True where a <= b."""
    return a <= b


@lowering("Greater")
def greater(a: Tensor, b: Tensor) -> Tensor:
    """True where a > b."""
    return a > b


@lowering("GreaterOrEqual")
def greater_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """True where a >= b."""
    return a >= b


@lowering("And")
def logical_and(a: Tensor, b: Tensor) -> Tensor:
    """Both."""
    return torch.logical_and(a, b)


@lowering("Or")
def logical_or(a: Tensor, b: Tensor) -> Tensor:
    """Either or both."""
    return torch.logical_or(a, b)


@lowering("Xor")
def logical_xor(a: Tensor, b: Tensor) -> Tensor:
    """Either, not both."""
    return torch.logical_xor(a, b)


@lowering("Not")
def logical_not(x: Tensor) -> Tensor:
    """False for True."""
    return torch.logical_not(x)


@lowering("Where")
def where(condition: Tensor, x: Any, y: Any) -> Any:
    """X where the condition holds, else y."""
    if isinstance(x, np.ndarray):
        return np.where(condition.numpy(), x, y)
    return torch.where(condition, x, y)
