"""Operators that compute a gradient: what `tape.gradient` puts into a graph.

They are part of a loss that holds a gradient, a gradient penalty say, and of training steps
whose later losses read what an earlier optimizer step left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.tensorflow.gradients import Selu
from ranum.analysis.capture.tensorflow.lowerings import image
from ranum.analysis.capture.tensorflow.lowerings.contraction import from_torch, to_torch
from ranum.analysis.capture.tensorflow.lowerings.network import largest, neighbours, windows
from ranum.analysis.capture.tensorflow.lowerings.shape import mirrored, pad_by
from ranum.analysis.capture.tensorflow.machine import Call
from ranum.analysis.capture.tensorflow.values import integers

# --- activations ---------------------------------------------------------------------------


def relu(call: Call, gradient: Tensor, features: Tensor) -> Tensor:
    """`ReluGrad`: the gradient where the features are positive."""
    return torch.where(features > 0, gradient, torch.zeros_like(gradient))


def relu6(call: Call, gradient: Tensor, features: Tensor) -> Tensor:
    """`Relu6Grad`."""
    inside = (features > 0) & (features < 6)
    return torch.where(inside, gradient, torch.zeros_like(gradient))


def leaky_relu(call: Call, gradient: Tensor, features: Tensor) -> Tensor:
    """`LeakyReluGrad`."""
    return torch.where(features > 0, gradient, gradient * call.get("alpha", 0.2))


def elu(call: Call, gradient: Tensor, outputs: Tensor) -> Tensor:
    """`EluGrad`."""
    return torch.where(outputs < 0, gradient * (outputs + 1), gradient)


def selu(call: Call, gradient: Tensor, outputs: Tensor) -> Tensor:
    """`SeluGrad`."""
    left = gradient * (outputs + Selu.ALPHA * Selu.SCALE)
    return torch.where(outputs < 0, left, gradient * Selu.SCALE)


def softplus(call: Call, gradient: Tensor, features: Tensor) -> Tensor:
    """`SoftplusGrad`."""
    return gradient * torch.sigmoid(features)


def softsign(call: Call, gradient: Tensor, features: Tensor) -> Tensor:
    """`SoftsignGrad`."""
    root = 1 + features.abs()
    return gradient / (root * root)


# --- normalization -------------------------------------------------------------------------


def fused_batch_norm(
    call: Call, gradient: Tensor, x: Tensor, scale: Tensor, mean: Tensor, variance: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    """`FusedBatchNormGrad`: the gradients of x, scale and offset, and two empty tensors.

    In training, mean and variance are the batch's, computed again from x; else they are given.
    """
    epsilon, training = call.get("epsilon", 1e-4), call.get("is_training", True)
    x, gradient = to_torch(call, x), to_torch(call, gradient)
    kept: tuple[Tensor | None, ...]
    if training:
        own = torch.native_batch_norm(x, scale, None, None, None, True, 0.0, epsilon)
        kept = (None, None, own[1], own[2])
    else:
        kept = (mean, variance, None, None)
    to_x, to_scale, to_offset = torch.ops.aten.native_batch_norm_backward(
        gradient, x, scale, *kept, training, epsilon, [True, True, True]
    )
    nothing = torch.zeros(0, dtype=scale.dtype)
    return from_torch(call, to_x), to_scale, to_offset, nothing, nothing


def local_response_norm(call: Call, gradient: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`LRNGrad`: g t^-beta - 2 alpha beta x Σ g y / t, with t the sums of the forward pass."""
    total = call.get("bias", 1.0) + call.get("alpha", 1.0) * neighbours(call, x * x)
    beta = call.get("beta", 0.5)
    through_sums = neighbours(call, gradient * y / total)
    result: Tensor = gradient * total**-beta - 2 * call.get("alpha", 1.0) * beta * x * through_sums
    return result


# --- pooling -------------------------------------------------------------------------------


def max_pool(call: Call, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
    """`MaxPoolGrad`: the gradient of each window goes to its largest element."""
    x = to_torch(call, x)
    places = _winners(call, x)
    flat = to_torch(call, gradient).flatten(2)
    spread = torch.zeros_like(x).flatten(2).scatter_add(2, places.flatten(2), flat)
    return from_torch(call, spread.view(x.shape))


def max_pool_twice(call: Call, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
    """`MaxPoolGradGrad`: of a gradient like x, what stands at each window's largest element."""
    places = _winners(call, to_torch(call, x))
    flat = to_torch(call, gradient).flatten(2)
    return from_torch(call, flat.gather(2, places.flatten(2)).view(places.shape))


def _winners(call: Call, x: Tensor) -> Tensor:
    """For each window over x `[N, C, ...]`, the place of its largest element in a flat image."""
    with torch.no_grad():
        return largest(call, x.detach())[1]


def average_pool(call: Call, sizes: Tensor, gradient: Tensor) -> Tensor:
    """`AvgPoolGrad`: the gradient of each window, shared out among its elements."""
    gradient = to_torch(call, gradient)
    x = to_torch(call, gradient.new_zeros(()).expand(integers(sizes)))
    frame = windows(call, x.shape[2:])
    sides = [(extra, 0) for extra in frame.drop]
    gradient = pad_by(gradient, [(0, 0), (0, 0), *sides])
    function: Callable[..., Tensor] = {
        2: torch.ops.aten.avg_pool2d_backward,
        3: torch.ops.aten.avg_pool3d_backward,
    }[x.dim() - 2]
    spread = function(
        gradient, x, frame.kernel, frame.strides, frame.margin, frame.ceil, False, None
    )
    return from_torch(call, spread)


# --- images --------------------------------------------------------------------------------


def resize_bilinear(call: Call, gradient: Tensor, original: Tensor) -> Tensor:
    """`ResizeBilinearGrad`: `[N, H, W, C]`, each pixel's gradient shared by its neighbours.

    TensorFlow calls it not differentiable.
    """
    gradient = gradient.detach()
    for dim in (1, 2):
        length = original.shape[dim]
        first, second, share = image.between(call, gradient, dim, length, gradient.shape[dim])
        to_second = gradient * share
        gradient = _added(gradient - to_second, dim, first, length) + _added(
            to_second, dim, second, length
        )
    return gradient.to(original.dtype)


def resize_nearest(call: Call, gradient: Tensor, sizes: Tensor) -> Tensor:
    """`ResizeNearestNeighborGrad`: `[N, H, W, C]`; `sizes` are the old image's."""
    for dim, length in enumerate(integers(sizes), start=1):
        index = image.closest(call, length, gradient.shape[dim])
        gradient = _added(gradient, dim, index, length)
    return gradient


def mirror_pad(call: Call, gradient: Tensor, paddings: Tensor) -> Tensor:
    """`MirrorPadGrad`: what was mirrored adds its gradient to the original."""
    for dim, (before, behind) in enumerate(paddings.tolist()):
        length = gradient.shape[dim] - before - behind
        if before or behind:
            gradient = _added(gradient, dim, mirrored(call, length, before, behind), length)
    return gradient


def _added(gradient: Tensor, dim: int, index: Tensor, length: int) -> Tensor:
    """The gradient of `index_select` along a dimension of the given length."""
    shape = list(gradient.shape)
    shape[dim] = length
    return gradient.new_zeros(shape).index_add(dim, index, gradient)


LOWERINGS: dict[str, Callable[..., Any]] = {
    "AvgPool3DGrad": average_pool,
    "AvgPoolGrad": average_pool,
    "EluGrad": elu,
    "FusedBatchNormGrad": fused_batch_norm,
    "FusedBatchNormGradV2": fused_batch_norm,
    "FusedBatchNormGradV3": fused_batch_norm,
    "LRNGrad": local_response_norm,
    "LeakyReluGrad": leaky_relu,
    "MaxPool3DGrad": max_pool,
    "MaxPool3DGradGrad": max_pool_twice,
    "MaxPoolGrad": max_pool,
    "MaxPoolGradGrad": max_pool_twice,
    "MirrorPadGrad": mirror_pad,
    "Relu6Grad": relu6,
    "ReluGrad": relu,
    "ResizeBilinearGrad": resize_bilinear,
    "ResizeNearestNeighborGrad": resize_nearest,
    "SeluGrad": selu,
    "SoftplusGrad": softplus,
    "SoftsignGrad": softsign,
}
