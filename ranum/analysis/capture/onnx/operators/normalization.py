"""Normalisation layers; axes N batch, C channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import positive, vector_norm
from ranum.analysis.capture.onnx.registry import Call, UnsupportedError, lowering
from ranum.analysis.capture.onnx.values import storage_dtype


def _per_channel(parameter: Tensor, rank: int) -> Tensor:
    return parameter.reshape(1, -1, *[1] * (rank - 2))


@lowering("BatchNormalization", since=14)
def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> tuple[Tensor, ...]:
    """(x - mean) / sqrt(var + epsilon) scale + bias, by the batch's own statistics in training."""
    if not training_mode:
        return (_normalized(x, scale, bias, mean, var, epsilon),)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    own_mean, own_var = x.mean(axes), x.var(axes, correction=0)
    y = F.batch_norm(x, None, None, scale.to(x.dtype), bias.to(x.dtype), training=True, eps=epsilon)
    running_mean = mean * momentum + own_mean.to(mean.dtype) * (1 - momentum)
    running_var = var * momentum + own_var.to(var.dtype) * (1 - momentum)
    return y, running_mean, running_var


@lowering("BatchNormalization", since=7)
def batch_norm_for_inference(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    call: Call,
) -> tuple[Tensor, ...]:
    """Before opset 14; one statistic per channel."""
    if not spatial or call.wants(1):
        raise UnsupportedError("statistics per element, or of a batch, before opset 14")
    return (_normalized(x, scale, bias, mean, var, epsilon),)


def _normalized(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float
) -> Tensor:
    if x.dim() >= 2 and scale.dtype == mean.dtype == x.dtype:
        return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)
    rank = max(x.dim(), 2)
    wide = mean.dtype
    root = (_per_channel(var, rank) + epsilon).sqrt()
    y = (x.to(wide) - _per_channel(mean, rank)) / root
    y = y * _per_channel(scale, rank).to(wide) + _per_channel(bias, rank).to(wide)
    return y.to(x.dtype)


@lowering("InstanceNormalization")
def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Each channel of each sample by its own mean and variance."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@lowering("GroupNormalization", since=21)
def group_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = TensorProto.FLOAT,
) -> Tensor:
    """Each group of channels of each sample by its own mean and variance."""
    wide = _wide(x, stash_type)
    y = F.group_norm(wide, num_groups, scale.to(wide.dtype), bias.to(wide.dtype), epsilon)
    return y.to(x.dtype)


@lowering("GroupNormalization", since=18)
def group_norm_by_group(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """Before opset 21 scale and bias hold one number per group."""
    each = x.shape[1] // num_groups
    return F.group_norm(
        x, num_groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon
    )


def _wide(x: Tensor, stash_type: int) -> Tensor:
    """The input in the type that statistics are computed in, if that is a wider one."""
    stash = storage_dtype(stash_type)
    wider = torch.finfo(stash).bits > torch.finfo(x.dtype).bits
    return x.to(stash) if wider else x


@lowering("LayerNormalization")
def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = TensorProto.FLOAT,
    call: Call,
) -> tuple[Tensor, ...]:
    """All dimensions from the axis on by their own mean and variance."""
    axis %= x.dim()
    shape = list(x.shape[axis:])
    wide = _wide(x, stash_type)
    same = list(scale.shape) == shape and (bias is None or list(bias.shape) == shape)
    if same and wide.dtype == x.dtype:
        y, mean, spread = torch.native_layer_norm(wide, shape, scale, bias, epsilon)
    else:
        y, mean, spread = torch.native_layer_norm(wide, shape, None, None, epsilon)
        y = y.to(x.dtype) * scale
        y = y if bias is None else y + bias
    return y, mean.to(wide.dtype), spread.to(wide.dtype)


@lowering("RMSNormalization")
def rms_norm(
    x: Tensor,
    scale: Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = TensorProto.FLOAT,
) -> Tensor:
    """All dimensions from the axis on by their root mean square."""
    axis %= x.dim()
    shape = list(x.shape[axis:])
    wide = _wide(x, stash_type)
    if list(scale.shape) == shape and wide.dtype == x.dtype:
        return F.rms_norm(wide, shape, scale, epsilon)
    return F.rms_norm(wide, shape, None, epsilon).to(x.dtype) * scale


@lowering("LRN")
def lrn(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """Each element over a power of the sum of squares in its neighbouring channels."""
    before = (size - 1) // 2
    framed = F.pad((x * x).reshape(x.shape[0], x.shape[1], -1), [0, 0, before, size - 1 - before])
    total = framed.unfold(1, size, 1).sum(-1).reshape(x.shape)
    return x / (total * (alpha / size) + bias).pow(beta)


@lowering("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Each slice over its p-norm; a slice of zeros stays zero."""
    norm = vector_norm(x, p, axis, True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, 1.0, norm))


@lowering("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """(x - mean) / (sqrt(mean of squares - squared mean) + 1e-9), as ONNX defines it."""
    along = positive(axes, x.dim())
    mean = x.mean(along, keepdim=True)
    spread = ((x * x).mean(along, keepdim=True) - mean * mean).sqrt()
    return (x - mean) / (spread + 1e-9)
