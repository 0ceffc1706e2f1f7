"""Constants, ranges, windows and random tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import ints, number, sized
from ranum.analysis.capture.onnx.registry import Call, lowering
from ranum.analysis.capture.onnx.values import element_type, marked, storage_dtype


@lowering("Constant")
def constant(
    *,
    value: Any = None,
    sparse_value: Any = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
) -> Any:
    """The value in whichever attribute holds it."""
    if value is not None or sparse_value is not None:
        return value if value is not None else sparse_value
    floats = value_float if value_floats is None else list(value_floats)
    if floats is not None:
        return torch.tensor(floats, dtype=torch.float32)
    whole = value_int if value_ints is None else list(value_ints)
    if whole is not None:
        return torch.tensor(whole, dtype=torch.int64)
    return np.array(value_string if value_strings is None else list(value_strings), dtype=object)


@lowering("ConstantOfShape")
def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    """One value everywhere."""
    fill = torch.zeros(1) if value is None else value
    made = fill.reshape(()).expand(sized(ints(shape))).clone()
    return marked(made, element_type(fill))


@lowering("Range")
def arange(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:
    """Start, start + delta, ... below the limit."""
    dtype = start.dtype
    count = math.ceil((limit.item() - start.item()) / delta.item())
    steps = torch.arange(sized([max(count, 0)])[0])
    if dtype in (torch.float16, torch.bfloat16) and stash_type == TensorProto.FLOAT:
        return (start.float() + steps.float() * delta.float()).to(dtype)
    return (start + steps.to(dtype) * delta).to(dtype)


@lowering("EyeLike")
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on a diagonal, zeros elsewhere."""
    rows, columns = sized(x.shape)
    kind = x.dtype if dtype is None else storage_dtype(dtype)
    return (torch.arange(rows).unsqueeze(1) + k == torch.arange(columns)).to(kind)


# --- random --------------------------------------------------------------------------------


def _kind(dtype: int | None, like: Tensor | None = None) -> torch.dtype:
    if dtype is not None:
        return storage_dtype(dtype)
    return torch.float32 if like is None else like.dtype


def _uniform(shape: Sequence[int], low: float, high: float, kind: Any, call: Call) -> Tensor:
    return torch.empty(sized(shape), dtype=kind).uniform_(low, high, generator=call.generator)


def _normal(shape: Sequence[int], mean: float, scale: float, kind: Any, call: Call) -> Tensor:
    return torch.empty(sized(shape), dtype=kind).normal_(mean, scale, generator=call.generator)


@lowering("RandomUniform")
def random_uniform(
    *,
    shape: Sequence[int],
    low: float = 0.0,
    high: float = 1.0,
    dtype: int | None = None,
    seed: float | None = None,
    call: Call,
) -> Tensor:
    """Uniform in [low, high)."""
    return _uniform(shape, low, high, _kind(dtype), call)


@lowering("RandomUniformLike")
def random_uniform_like(
    x: Tensor,
    *,
    low: float = 0.0,
    high: float = 1.0,
    dtype: int | None = None,
    seed: float | None = None,
    call: Call,
) -> Tensor:
    """Uniform in [low, high), of the shape of x."""
    return _uniform(x.shape, low, high, _kind(dtype, x), call)


@lowering("RandomNormal")
def random_normal(
    *,
    shape: Sequence[int],
    mean: float = 0.0,
    scale: float = 1.0,
    dtype: int | None = None,
    seed: float | None = None,
    call: Call,
) -> Tensor:
    """Normally distributed."""
    return _normal(shape, mean, scale, _kind(dtype), call)


@lowering("RandomNormalLike")
def random_normal_like(
    x: Tensor,
    *,
    mean: float = 0.0,
    scale: float = 1.0,
    dtype: int | None = None,
    seed: float | None = None,
    call: Call,
) -> Tensor:
    """Normally distributed, of the shape of x."""
    return _normal(x.shape, mean, scale, _kind(dtype, x), call)


@lowering("Bernoulli")
def bernoulli(
    x: Tensor, *, dtype: int | None = None, seed: float | None = None, call: Call
) -> Tensor:
    """1 with probability x, else 0."""
    drawn = torch.bernoulli(x, generator=call.generator)
    return drawn if dtype is None else drawn.to(storage_dtype(dtype))


@lowering("Multinomial")
def multinomial(
    x: Tensor,
    *,
    dtype: int = TensorProto.INT32,
    sample_size: int = 1,
    seed: float | None = None,
    call: Call,
) -> Tensor:
    """Classes drawn by unnormalised log probabilities, [N, C]."""
    chances = torch.softmax(x.float(), -1)
    sized((x.shape[0], sample_size))
    drawn = torch.multinomial(chances, sample_size, replacement=True, generator=call.generator)
    return drawn.to(storage_dtype(dtype))


@lowering("Dropout", since=12)
def dropout(
    x: Tensor,
    ratio: Tensor | None = None,
    training_mode: Tensor | None = None,
    *,
    seed: int | None = None,
    call: Call,
) -> tuple[Tensor, Tensor]:
    """In training, elements are zeroed at random and the others grow to make up for it."""
    rate = torch.tensor(0.5) if ratio is None else ratio.reshape(())
    if training_mode is None or not bool(training_mode):
        return x, torch.ones(x.shape, dtype=torch.bool)
    mask = torch.rand(x.shape, generator=call.generator) >= rate
    return x * mask.to(x.dtype) * (1.0 / (1.0 - rate)).to(x.dtype), mask


@lowering("Dropout")
def dropout_for_inference(
    x: Tensor, *, ratio: float = 0.5, is_test: int = 1, seed: int | None = None
) -> tuple[Tensor, Tensor]:
    """Before opset 12 a model holds inference only: the identity."""
    return x, torch.ones(x.shape, dtype=torch.bool)


# --- windows -------------------------------------------------------------------------------


def _register_window(op: str, weights: Callable[[Tensor], Tensor]) -> None:
    @lowering(op)
    def window(
        size: Tensor, *, output_datatype: int = TensorProto.FLOAT, periodic: int = 1
    ) -> Tensor:
        count = number(size)
        steps = torch.arange(sized([count])[0], dtype=torch.float64)
        angle = steps * (2 * math.pi / (count if periodic else count - 1))
        return weights(angle).to(storage_dtype(output_datatype))


_register_window("HannWindow", lambda angle: 0.5 - 0.5 * angle.cos())
_register_window("HammingWindow", lambda angle: 25 / 46 - 21 / 46 * angle.cos())
_register_window(
    "BlackmanWindow", lambda angle: 0.42 - 0.5 * angle.cos() + 0.08 * (2 * angle).cos()
)
