"""Matrix products, convolutions and linear algebra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ranum.analysis.capture.tensorflow.lowerings.shape import pad_by
from ranum.analysis.capture.tensorflow.machine import Call
from ranum.analysis.capture.tensorflow.values import integers


def matrix_product(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """`MatMul` of two matrices, each transposed on request."""
    return torch.matmul(
        x.t() if call.get("transpose_a", False) else x,
        y.t() if call.get("transpose_b", False) else y,
    )


def batch_product(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """`BatchMatMul` with broadcasting, each operand's adjoint on request."""
    return torch.matmul(
        x.mH if call.get("adj_x", False) else x, y.mH if call.get("adj_y", False) else y
    )


def einsum(call: Call, *operands: Tensor) -> Tensor:
    """Einstein summation; both frameworks spell it alike."""
    return torch.einsum(call["equation"].replace(" ", ""), *operands)


def bias_add(call: Call, x: Tensor, bias: Tensor) -> Tensor:
    """X with a bias `[C]` added to its channels."""
    if channels_first(call) and x.dim() > 2:
        bias = bias.reshape(-1, *[1] * (x.dim() - 2))
    return x + bias


def bias_add_gradient(call: Call, gradient: Tensor) -> Tensor:
    """`BiasAddGrad`: the sum over everything but the channels."""
    channel = 1 if channels_first(call) else gradient.dim() - 1
    return gradient.sum([dim for dim in range(gradient.dim()) if dim != channel])


# --- convolutions --------------------------------------------------------------------------


def channels_first(call: Call) -> bool:
    """True where the channels are dimension 1: NCHW, NCDHW."""
    return str(call.get("data_format", "NHWC")).startswith("NC")


def to_torch(call: Call, x: Tensor) -> Tensor:
    """Images with their channels at dimension 1."""
    return x if channels_first(call) else x.movedim(-1, 1)


def from_torch(call: Call, x: Tensor) -> Tensor:
    """Images with their channels where TensorFlow expects them."""
    return x if channels_first(call) else x.movedim(1, -1)


def spatial(call: Call, numbers: Sequence[int] | None) -> list[int]:
    """The entries of a per-dimension attribute that belong to the spatial dimensions."""
    if not numbers:
        return []
    return list(numbers[2:]) if channels_first(call) else list(numbers[1:-1])


def paddings(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding before and behind each spatial dimension, for windows of the given extent."""
    if call["padding"] == "VALID":
        return [(0, 0)] * len(sizes)
    if call["padding"] == "EXPLICIT":
        pairs = call["explicit_paddings"]
        pairs = list(zip(pairs[::2], pairs[1::2], strict=True))
        return spatial(call, pairs)  # type: ignore[return-value]
    found = []
    for size, extent, stride in zip(sizes, kernel, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        found.append((total // 2, total - total // 2))
    return found


def _extents(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    return [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]


def _convolve(call: Call, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """X `[N, C, ...]` with weight `[O, C / groups, ...]`, padded as the call says."""
    kernel = weight.shape[2:]
    strides = spatial(call, call["strides"])
    dilations = spatial(call, call.get("dilations")) or [1] * len(kernel)
    sides = paddings(call, x.shape[2:], _extents(kernel, dilations), strides)
    if all(before == behind for before, behind in sides):
        margin = [before for before, _ in sides]
    else:
        margin = [0] * len(sides)
        x = pad_by(x, [(0, 0), (0, 0), *sides])
    function: Callable[..., Tensor] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    return function(x, weight, None, strides, margin, dilations, groups)


def convolution(call: Call, x: Tensor, kernel: Tensor) -> Tensor:
    """`Conv2D`, `Conv3D` with a kernel `[..., C / groups, O]`."""
    x = to_torch(call, x)
    weight = kernel.movedim((-1, -2), (0, 1))
    return from_torch(call, _convolve(call, x, weight, x.shape[1] // weight.shape[1]))


def depthwise_convolution(call: Call, x: Tensor, kernel: Tensor) -> Tensor:
    """`DepthwiseConv2dNative` with a kernel `[H, W, C, M]`."""
    x = to_torch(call, x)
    height, width, channels, multiplier = kernel.shape
    weight = kernel.permute(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    return from_torch(call, _convolve(call, x, weight, channels))


def convolution_input(call: Call, sizes: Tensor, kernel: Tensor, gradient: Tensor) -> Tensor:
    """`Conv2DBackpropInput`: the gradient of the input, and what a transposed convolution is."""
    wanted = integers(sizes)
    if len(wanted) == kernel.dim() - 2:
        target = wanted
    else:
        target = wanted[2:] if channels_first(call) else wanted[1:-1]
    y = to_torch(call, gradient)
    weight = kernel.movedim((-1, -2), (0, 1))
    channels = weight.shape[1] if len(wanted) == len(target) else wanted[_channel(call)]
    return from_torch(call, _transposed(call, y, weight, target, channels // weight.shape[1]))


def depthwise_input(call: Call, sizes: Tensor, kernel: Tensor, gradient: Tensor) -> Tensor:
    """`DepthwiseConv2dNativeBackpropInput`."""
    wanted = integers(sizes)
    target = wanted[2:] if channels_first(call) else wanted[1:-1]
    height, width, channels, multiplier = kernel.shape
    weight = kernel.permute(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    return from_torch(call, _transposed(call, to_torch(call, gradient), weight, target, channels))


def _channel(call: Call) -> int:
    return 1 if channels_first(call) else -1


def _transposed(
    call: Call, y: Tensor, weight: Tensor, target: Sequence[int], groups: int
) -> Tensor:
    """Y `[N, O, ...]` spread by a weight `[O, C / groups, ...]` over the target sizes."""
    kernel = weight.shape[2:]
    strides = spatial(call, call["strides"])
    dilations = spatial(call, call.get("dilations")) or [1] * len(kernel)
    extents = _extents(kernel, dilations)
    sides = paddings(call, target, extents, strides)
    margin: list[int] = []
    extra: list[int] = []
    for size, own, extent, stride, (before, _), dilation in zip(
        target, y.shape[2:], extents, strides, sides, dilations, strict=True
    ):
        missing = size - ((own - 1) * stride + extent - 2 * before)
        if not 0 <= missing < max(stride, dilation):
            margin, extra = [], []
            break
        margin.append(before)
        extra.append(missing)
    function: Callable[..., Tensor] = {
        1: F.conv_transpose1d,
        2: F.conv_transpose2d,
        3: F.conv_transpose3d,
    }[len(kernel)]
    if margin:
        return function(y, weight, None, strides, margin, extra, groups, dilations)
    full = function(y, weight, None, strides, 0, 0, groups, dilations)
    for dim, (size, (before, _)) in enumerate(zip(target, sides, strict=True), start=2):
        short = before + size - full.shape[dim]
        if short > 0:
            full = pad_by(full, [(0, short if place == dim else 0) for place in range(full.dim())])
        full = full.narrow(dim, before, size)
    return full


def kernel_gradient(call: Call, x: Tensor, sizes: Tensor, gradient: Tensor) -> Tensor:
    """`Conv2DBackpropFilter`: the gradient of the kernel `[..., C / groups, O]`."""
    *kernel, per_group, outputs = integers(sizes)
    x = to_torch(call, x)
    weight = torch.zeros((outputs, per_group, *kernel), dtype=x.dtype)
    found = _for_weight(call, x, weight, to_torch(call, gradient), x.shape[1] // per_group)
    return found.movedim((0, 1), (-1, -2))


def depthwise_kernel_gradient(call: Call, x: Tensor, sizes: Tensor, gradient: Tensor) -> Tensor:
    """`DepthwiseConv2dNativeBackpropFilter`: the gradient of the kernel `[H, W, C, multiplier]`."""
    height, width, channels, multiplier = integers(sizes)
    x = to_torch(call, x)
    weight = torch.zeros((channels * multiplier, 1, height, width), dtype=x.dtype)
    found = _for_weight(call, x, weight, to_torch(call, gradient), channels)
    return found.reshape(channels, multiplier, height, width).permute(2, 3, 0, 1)


def _for_weight(call: Call, x: Tensor, weight: Tensor, gradient: Tensor, groups: int) -> Tensor:
    """The gradient of a weight `[O, C / groups, ...]` that gives x `[N, C, ...]` its shape."""
    kernel = weight.shape[2:]
    strides = spatial(call, call["strides"])
    dilations = spatial(call, call.get("dilations")) or [1] * len(kernel)
    sides = paddings(call, x.shape[2:], _extents(kernel, dilations), strides)
    x = pad_by(x, [(0, 0), (0, 0), *sides])
    none = [0] * len(kernel)
    _, found, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, strides, none, dilations, False, none, groups,
        [False, True, False],
    )  # fmt: skip
    result: Tensor = found
    return result


# --- linear algebra ------------------------------------------------------------------------


def solve(call: Call, matrix: Tensor, right: Tensor) -> Tensor:
    """The solution of linear equations."""
    result: Tensor = torch.linalg.solve(matrix.mH if call.get("adjoint", False) else matrix, right)
    return result


def triangular_solve(call: Call, matrix: Tensor, right: Tensor) -> Tensor:
    """The solution of equations with a triangular matrix."""
    lower = call.get("lower", True)
    if call.get("adjoint", False):
        matrix, lower = matrix.mH, not lower
    result: Tensor = torch.linalg.solve_triangular(matrix, right, upper=not lower)
    return result


def inverse(call: Call, matrix: Tensor) -> Tensor:
    """The inverse of square matrices."""
    result: Tensor = torch.linalg.inv(matrix.mH if call.get("adjoint", False) else matrix)
    return result


LOWERINGS: dict[str, Callable[..., Any]] = {
    "BatchMatMul": batch_product,
    "BatchMatMulV2": batch_product,
    "BatchMatMulV3": batch_product,
    "BiasAdd": bias_add,
    "BiasAddGrad": bias_add_gradient,
    "BiasAddV1": bias_add,
    "Cholesky": lambda call, x: torch.linalg.cholesky(x),
    "Conv2D": convolution,
    "Conv2DBackpropFilter": kernel_gradient,
    "Conv2DBackpropInput": convolution_input,
    "Conv3D": convolution,
    "Conv3DBackpropFilterV2": kernel_gradient,
    "Conv3DBackpropInputV2": convolution_input,
    "Cross": lambda call, x, y: torch.linalg.cross(x, y),
    "DepthwiseConv2dNative": depthwise_convolution,
    "DepthwiseConv2dNativeBackpropFilter": depthwise_kernel_gradient,
    "DepthwiseConv2dNativeBackpropInput": depthwise_input,
    "Einsum": einsum,
    "MatMul": matrix_product,
    "MatrixDeterminant": lambda call, x: torch.linalg.det(x),
    "MatrixInverse": inverse,
    "MatrixSolve": solve,
    "MatrixTriangularSolve": triangular_solve,
}
