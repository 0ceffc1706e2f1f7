"""Optimizer steps of ONNX's training preview, for any number of tensors at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ranum.analysis.capture.onnx.registry import UnsupportedError, lowering

_DOMAIN = "ai.onnx.preview.training"


def _columns(tensors: tuple[Tensor, ...], count: int) -> list[tuple[Tensor, ...]]:
    size = len(tensors) // count
    return list(zip(*(tensors[i * size : (i + 1) * size] for i in range(count)), strict=True))


@lowering("Adagrad", domain=_DOMAIN)
def adagrad(
    rate: Tensor,
    count: Tensor,
    *tensors: Tensor,
    decay_factor: float = 0.0,
    epsilon: float = 0.0,
    norm_coefficient: float = 0.0,
) -> tuple[Tensor, ...]:
    """X, then the accumulated squares."""
    step = rate / (1 + count * decay_factor)
    values, squares = [], []
    for x, gradient, square in _columns(tensors, 3):
        slope = norm_coefficient * x + gradient
        grown = square + slope * slope
        values.append(x - step * slope / (grown.sqrt() + epsilon))
        squares.append(grown)
    return (*values, *squares)


@lowering("Momentum", domain=_DOMAIN)
def momentum(
    rate: Tensor,
    count: Tensor,
    *tensors: Tensor,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> tuple[Tensor, ...]:
    """X, then the velocities."""
    if mode not in ("standard", "nesterov"):
        raise UnsupportedError(f"mode {mode}")
    damping = torch.where(count > 0, beta, 1.0)
    values, velocities = [], []
    for x, gradient, velocity in _columns(tensors, 3):
        slope = norm_coefficient * x + gradient
        moved = alpha * velocity + damping.to(x.dtype) * slope
        change = moved if mode == "standard" else slope + alpha * moved
        values.append(x - rate * change)
        velocities.append(moved)
    return (*values, *velocities)


@lowering("Adam", domain=_DOMAIN)
def adam(
    rate: Tensor,
    count: Tensor,
    *tensors: Tensor,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 0.0,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[Tensor, ...]:
    """X, then the means of gradients, then the means of their squares."""
    corrected = rate * torch.sqrt(1 - beta**count) / (1 - alpha**count)
    step = torch.where(count > 0, corrected, rate)
    values, means, squares = [], [], []
    for x, gradient, mean, square in _columns(tensors, 4):
        slope = norm_coefficient * x + gradient
        first = alpha * mean + (1 - alpha) * slope
        second = beta * square + (1 - beta) * (slope * slope)
        moved = x - step * first / (second.sqrt() + epsilon)
        values.append((1 - norm_coefficient_post) * moved)
        means.append(first)
        squares.append(second)
    return (*values, *means, *squares)
