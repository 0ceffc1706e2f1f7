"""Operators that move elements: every element of the result is one of the operands'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.transfer.registry import uniform
from ranum.analysis.transfer.uniform._scalar import Pair, Unsure, with_zero

Outputs = tuple[Value, ...]


@uniform(
    "reshape", "permute", "expand", "identity", "slice", "select", "diagonal", "unfold",
    "as_strided", "repeat", "flip", "roll", moves=True, spreads=True, wide=True)  # fmt: skip
def moved(out: Outputs, x: Interval, **_: Any) -> Pair:
    """Some elements of x."""
    return x.low, x.high


@uniform("amax", "amin", wide=True)
def extremes(out: Outputs, x: Interval, **_: Any) -> Pair:
    """Some elements of x."""
    return x.low, x.high


@uniform("embedding", aside=("indices",), moves=True, wide=True)
def embedding(out: Outputs, weight: Interval, indices: Interval, **_: Any) -> Pair:
    """Rows of the weight."""
    return weight.low, weight.high


@uniform("index_select", "gather", aside=("index",), moves=True, wide=True)
def picked(out: Outputs, x: Interval, index: Interval, **_: Any) -> Pair:
    """Some elements of x."""
    return x.low, x.high


@uniform("copy")
def copy(out: Outputs, x: Interval, src: Interval, **_: Any) -> Pair:
    """The source, whatever was there before."""
    if src.dtype is not out[0].dtype:
        raise Unsure
    return src.low, src.high


@uniform("cat", "stack", hulls=True, wide=True)
def joined(out: Outputs, tensors: Sequence[Interval], **_: Any) -> Pair:
    """Elements of all operands."""
    if any(item.dtype is not out[0].dtype for item in tensors) or 0 in out[0].shape:
        raise Unsure
    return min(item.low for item in tensors), max(item.high for item in tensors)


@uniform("constant_pad_nd", wide=True)
def padded(out: Outputs, x: Interval, pad: Sequence[int], value: float = 0) -> Pair:
    """Elements of x, and `value` if something is padded."""
    if value != 0:
        raise Unsure
    return with_zero((x.low, x.high)) if any(width > 0 for width in pad) else (x.low, x.high)


@uniform("max", "min", wide=True)
def extreme(out: Outputs, x: Interval, dim: int | None = None, keepdim: bool = False) -> Any:
    """An element; with `dim` also its position."""
    if dim is None:
        return x.low, x.high
    places = math.prod(x.shape) // max(math.prod(out[0].shape), 1)
    return [(x.low, x.high), (0, max(places - 1, 0))]


@uniform("slice_backward", "select_backward", wide=True)
def placed(out: Outputs, grad_output: Interval, **_: Any) -> Pair:
    """The gradient in its places, 0 elsewhere."""
    return with_zero((grad_output.low, grad_output.high))
