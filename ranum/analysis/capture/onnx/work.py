"""How many multiplications a node asks for, from the shapes of its operands, before it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import filled, spatial_pads
from ranum.analysis.transfer._common import broadcast_shapes

ELEMENT_WORK = 64
"""Multiplications in the time that a processor needs to bring one element from memory."""

_Estimate = Callable[[Sequence[Any], Mapping[str, Any]], int]


def work_of(op: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    """Multiplications of a node of ai.onnx, at most by a small factor wrong.

    Operands that do not fit the operator count as elements; its lowering refuses them.
    """
    elements = ELEMENT_WORK * elements_of(inputs)
    estimate = _ESTIMATES.get(op)
    if estimate is None:
        return elements
    try:
        return elements + estimate(inputs, attributes)
    except (ArithmeticError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return elements


def elements_of(values: Sequence[Any]) -> int:
    """Elements of all tensors among the values."""
    return sum(value.numel() for value in values if isinstance(value, Tensor))


def _matrix_product(first: int, second: int) -> _Estimate:
    """`[..., m, k]` times `[..., k, n]`, at these places among the operands."""

    def estimate(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
        left, right = inputs[first].shape, inputs[second].shape
        rows = left[-2] if len(left) > 1 else 1
        columns = right[-1] if len(right) > 1 else 1
        batch = broadcast_shapes(left[:-2], right[:-2])
        return int(math.prod(batch) * rows * left[-1] * columns)

    return estimate


def _gemm(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    summed = inputs[0].shape[0 if attributes.get("transA") else 1]
    return int(inputs[0].numel() * inputs[1].numel() // max(summed, 1))


def _convolution(weight: int) -> _Estimate:
    def estimate(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
        x, kernel = inputs[0], inputs[weight]
        places = _places(x.shape[2:], kernel.shape[2:], attributes)
        return int(x.shape[0] * places * kernel.numel())

    return estimate


def _transposed(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    x, kernel = inputs[:2]
    return int(x.shape[0] * math.prod(x.shape[2:]) * kernel.numel())


def _pool(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    x, kernel = inputs[0], attributes["kernel_shape"]
    places = _places(x.shape[2:], kernel, attributes)
    return int(x.shape[0] * x.shape[1] * places * math.prod(kernel))


def _places(sizes: Sequence[int], kernel: Sequence[int], attributes: Mapping[str, Any]) -> int:
    """Places that a window takes."""
    strides = filled(len(sizes), attributes.get("strides"))
    dilations = filled(len(sizes), attributes.get("dilations"))
    auto_pad = attributes.get("auto_pad", "NOTSET")
    before, after = spatial_pads(
        auto_pad, attributes.get("pads"), sizes, kernel, strides, dilations
    )
    count = 1
    for dim, size in enumerate(sizes):
        free = size + before[dim] + after[dim] - dilations[dim] * (kernel[dim] - 1) - 1
        count *= max(-(-free // strides[dim]) + 1, 0)
    return count


def _attention(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    return int(2 * inputs[0].numel() * inputs[1].shape[-2])


def _recurrent(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    x, weights, recurrence = inputs[:3]
    return int(x.shape[0] * x.shape[1] * (weights.numel() + recurrence.numel()))


def _einsum(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> int:
    """The product of the sizes of all letters, as if all operands were multiplied at once."""
    terms = attributes["equation"].replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    hidden = 1
    for term, operand in zip(terms, inputs, strict=True):
        front, dots, back = term.partition("...")
        shape = operand.shape
        for letter, size in zip(front, shape, strict=False):
            sizes[letter] = max(size, sizes.get(letter, 1))
        for letter, size in zip(reversed(back), reversed(shape), strict=False):
            sizes[letter] = max(size, sizes.get(letter, 1))
        if dots:
            hidden = max(hidden, math.prod(shape[len(front) : len(shape) - len(back)]))
    return hidden * math.prod(sizes.values())


_ESTIMATES: dict[str, _Estimate] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "ConvTranspose": _transposed,
    "DeformConv": _convolution(1),
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "LpPool": _pool,
    "MatMul": _matrix_product(0, 1),
    "MatMulInteger": _matrix_product(0, 1),
    "MaxPool": _pool,
    "QLinearConv": _convolution(3),
    "QLinearMatMul": _matrix_product(0, 3),
    "RNN": _recurrent,
}
