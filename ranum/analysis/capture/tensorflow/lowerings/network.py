"""Activations, normalization, pooling and losses that TensorFlow has as one operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ranum.analysis.capture.tensorflow.gradients import Selu, SoftmaxCrossEntropy, applied
from ranum.analysis.capture.tensorflow.lowerings.contraction import (
    from_torch,
    paddings,
    spatial,
    to_torch,
)
from ranum.analysis.capture.tensorflow.lowerings.shape import pad_by
from ranum.analysis.capture.tensorflow.machine import Call
from ranum.errors import ArgumentError

# --- activations ---------------------------------------------------------------------------


def relu(call: Call, x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.relu(x)


def relu6(call: Call, x: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return F.relu6(x)


def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """X where x > 0, else alpha x."""
    return F.leaky_relu(x, call.get("alpha", 0.2))


def elu(call: Call, x: Tensor) -> Tensor:
    """X where x > 0, else exp(x) - 1."""
    return F.elu(x)


def selu(call: Call, x: Tensor) -> Tensor:
    """Scaled elu."""
    return applied(Selu, x)


def softplus(call: Call, x: Tensor) -> Tensor:
    """log(1 + exp(x)), without overflow."""
    return F.softplus(x)


def softsign(call: Call, x: Tensor) -> Tensor:
    """X / (1 + |x|)."""
    return x / (1 + x.abs())


def softmax(call: Call, x: Tensor) -> Tensor:
    """Over the last dimension."""
    return torch.softmax(x, -1)


def log_softmax(call: Call, x: Tensor) -> Tensor:
    """Over the last dimension."""
    return torch.log_softmax(x, -1)


# --- losses --------------------------------------------------------------------------------


def cross_entropy(call: Call, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss `[N]` and softmax - labels `[N, C]`."""
    logits, labels = torch.broadcast_tensors(logits, labels)
    loss = applied(SoftmaxCrossEntropy, logits, labels)
    if 1 not in call.read:
        return loss, loss
    with torch.no_grad():
        gradient = torch.softmax(logits.detach(), -1) - labels.detach()
    return loss, gradient


def sparse_cross_entropy(call: Call, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss `[N]` and softmax - one-hot labels `[N, C]`."""
    index = labels.long()
    try:
        loss = F.nll_loss(torch.log_softmax(logits, -1), index, reduction="none")
    except IndexError as error:
        raise ArgumentError(
            f"example_inputs hold a class label outside the model's {logits.shape[-1]} classes: "
            f"{error}"
        ) from error
    if 1 not in call.read:
        return loss, loss
    with torch.no_grad():
        rows = torch.softmax(logits.detach(), -1)
        gradient = rows - F.one_hot(index, logits.shape[-1]).to(rows.dtype)
    return loss, gradient


# --- normalization -------------------------------------------------------------------------


def fused_batch_norm(
    call: Call, x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor
) -> tuple[Tensor, ...]:
    """`FusedBatchNorm`: y, mean and unbiased variance of the batch, and what backward needs."""
    epsilon = call.get("epsilon", 1e-4)
    training = call.get("is_training", True)
    channels = to_torch(call, x)
    if not training:
        y = F.batch_norm(channels, mean, variance, scale, offset, False, 0.0, epsilon)
        return from_torch(call, y), mean, variance, mean, variance, mean
    y = F.batch_norm(channels, None, None, scale, offset, True, 0.0, epsilon)
    if call.read.isdisjoint({1, 2, 3, 4, 5}):
        return (from_torch(call, y),)
    with torch.no_grad():
        dims = [dim for dim in range(channels.dim()) if dim != 1]
        rows = channels.detach().to(scale.dtype)
        spread, average = torch.var_mean(rows, dims, correction=0)
        count = rows.numel() // max(rows.shape[1], 1)
        unbiased = spread * (count / max(count - 1, 1))
        factor = call.get("exponential_avg_factor", 1.0)
        if factor != 1.0:
            unbiased = mean_of(variance.detach(), unbiased, factor)
            average = mean_of(mean.detach(), average, factor)
    return from_torch(call, y), average, unbiased, average, spread, average


def mean_of(old: Tensor, new: Tensor, factor: float) -> Tensor:
    """The moving average after one more value."""
    return old * (1 - factor) + new * factor


def local_response_norm(call: Call, x: Tensor) -> Tensor:
    """`LRN`: x / (bias + alpha Σ x²)^beta, summed over neighbouring channels."""
    total = call.get("bias", 1.0) + call.get("alpha", 1.0) * neighbours(call, x * x)
    result: Tensor = x * total ** -call.get("beta", 0.5)
    return result


def neighbours(call: Call, x: Tensor) -> Tensor:
    """Each channel's sum with its neighbours on both sides; channels come last."""
    radius = call.get("depth_radius", 5)
    padded = pad_by(x, [(0, 0)] * (x.dim() - 1) + [(radius, radius)])
    return padded.unfold(-1, 2 * radius + 1, 1).sum(-1)


# --- pooling -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of a pooling as torch wants them; its padding is never counted.

    torch pads alike on both sides. One element more behind is had by rounding the number of
    windows up or, where windows move by one, by padding more in front and dropping the first.

    Attributes:
        kernel: Extent of a window.
        strides: Steps between windows.
        margin: Padding on both sides.
        drop: Windows to leave out in front.
        ceil: Round the number of windows up.
    """

    kernel: list[int]
    strides: list[int]
    margin: list[int]
    drop: list[int]
    ceil: bool

    def cut(self, pooled: Tensor) -> Tensor:
        """The pooled image `[N, C, ...]` without the windows to leave out."""
        for dim, extra in enumerate(self.drop, start=2):
            if extra:
                pooled = pooled.narrow(dim, extra, pooled.shape[dim] - extra)
        return pooled


def windows(call: Call, sizes: Sequence[int]) -> Windows:
    """The windows over an image of the given sizes."""
    kernel, strides = spatial(call, call["ksize"]), spatial(call, call["strides"])
    margin, drop = [], []
    for (before, behind), stride in zip(
        paddings(call, sizes, kernel, strides), strides, strict=True
    ):
        more = stride == 1 and behind > before
        margin.append(behind if more else before)
        drop.append(behind - before if more else 0)
    return Windows(kernel, strides, margin, drop, call["padding"] == "SAME")


def largest(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest element of each window over x `[N, C, ...]`, and its place in a flat image."""
    frame = windows(call, x.shape[2:])
    function: Callable[..., tuple[Tensor, Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}[x.dim() - 2]
    found = function(
        x, frame.kernel, frame.strides, frame.margin, ceil_mode=frame.ceil, return_indices=True
    )
    return frame.cut(found[0]), frame.cut(found[1])


def max_pool(call: Call, x: Tensor) -> Tensor:
    """The largest element of each window; padding never wins."""
    return from_torch(call, largest(call, to_torch(call, x))[0])


def average_pool(call: Call, x: Tensor) -> Tensor:
    """The mean of each window, without the padding."""
    x = to_torch(call, x)
    frame = windows(call, x.shape[2:])
    function: Callable[..., Tensor] = {2: F.avg_pool2d, 3: F.avg_pool3d}[x.dim() - 2]
    pooled = function(
        x, frame.kernel, frame.strides, frame.margin, frame.ceil, count_include_pad=False
    )
    return from_torch(call, frame.cut(pooled))


LOWERINGS: dict[str, Callable[..., Any]] = {
    "AvgPool": average_pool,
    "AvgPool3D": average_pool,
    "Elu": elu,
    "FusedBatchNorm": fused_batch_norm,
    "FusedBatchNormV2": fused_batch_norm,
    "FusedBatchNormV3": fused_batch_norm,
    "LRN": local_response_norm,
    "LeakyRelu": leaky_relu,
    "LogSoftmax": log_softmax,
    "MaxPool": max_pool,
    "MaxPool3D": max_pool,
    "Relu": relu,
    "Relu6": relu6,
    "Selu": selu,
    "Softmax": softmax,
    "SoftmaxCrossEntropyWithLogits": cross_entropy,
    "Softplus": softplus,
    "Softsign": softsign,
    "SparseSoftmaxCrossEntropyWithLogits": sparse_cross_entropy,
}
