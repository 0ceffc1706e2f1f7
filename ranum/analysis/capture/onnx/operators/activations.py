"""Activation functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis.capture.onnx.registry import lowering


@lowering("Relu")
def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return F.relu(x)


@lowering("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """X above 0, alpha x below."""
    return F.leaky_relu(x, alpha)


@lowering("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """X above 0, slope x below; the slope broadcasts."""
    if not x.is_floating_point():
        return torch.where(x < 0, x * slope, x)
    return torch.where(x < 0, x * slope, x)


@lowering("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X above alpha, else 0."""
    return F.threshold(x, alpha, 0.0)


@lowering("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X above 0, alpha (e^x - 1) below."""
    return F.elu(x, alpha)


@lowering("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X above 0, alpha (e^(x / alpha) - 1) below."""
    y: Tensor = torch.ops.aten.elu(x, alpha, 1.0, 1.0 / alpha)
    return y


@lowering("Selu")
def selu(
    x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Tensor:
    """Gamma times elu."""
    return F.elu(x, alpha) * gamma


@lowering("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """X times the normal distribution function."""
    return F.gelu(x, approximate=approximate)


@lowering("Softplus")
def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x)."""
    return F.softplus(x, threshold=30.0)


@lowering("Softsign")
def softsign(x: Tensor) -> Tensor:
    """X / (1 + |x|)."""
    return F.softsign(x)


@lowering("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Alpha x + beta, clamped to [0, 1]."""
    return (x * alpha + beta).clamp(0, 1)


@lowering("HardSwish")
def hard_swish(x: Tensor) -> Tensor:
    """X min(max(x + 3, 0), 6) / 6."""
    return F.hardswish(x)


@lowering("Mish")
def mish(x: Tensor) -> Tensor:
    """X tanh(softplus(x))."""
    return F.mish(x)


@lowering("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X sigmoid(alpha x)."""
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)


@lowering("Shrink")
def shrink(x: Tensor, *, lambd: float = 0.5, bias: float = 0.0) -> Tensor:
    """X moved towards 0 by `bias`; 0 within `lambd` of 0."""
    if not x.is_floating_point():
        zero = torch.zeros_like(x)
        moved = torch.where(x > lambd, x - int(bias), zero)
        return torch.where(x < -lambd, x + int(bias), moved)
    moved = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, moved)


@lowering("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """e^x over its sum along the axis."""
    return torch.softmax(x, axis)


@lowering("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Logarithm of the softmax."""
    return torch.log_softmax(x, axis)


@lowering("Softmax")
def flat_softmax(x: Tensor, *, axis: int = 1) -> Tensor:
    """Before opset 13: over all dimensions from the axis on."""
    return torch.softmax(x.flatten(axis % x.dim() if x.dim() else 0), -1).reshape(x.shape)


@lowering("LogSoftmax")
def flat_log_softmax(x: Tensor, *, axis: int = 1) -> Tensor:
    """Before opset 13: over all dimensions from the axis on."""
    return torch.log_softmax(x.flatten(axis % x.dim() if x.dim() else 0), -1).reshape(x.shape)


@lowering("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """1 at the first largest element along the axis, else 0."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


@lowering("Hardmax")
def flat_hardmax(x: Tensor, *, axis: int = 1) -> Tensor:
    """Before opset 13: over all dimensions from the axis on."""
    flat = x.flatten(axis % x.dim() if x.dim() else 0)
    return hardmax(flat, axis=-1).reshape(x.shape)
