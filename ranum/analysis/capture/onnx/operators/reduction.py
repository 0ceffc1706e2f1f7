"""Sums and other reductions, and running ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import ints, number, positive, vector_norm
from ranum.analysis.capture.onnx.registry import lowering

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return x.to(torch.float64).mean(axes, keepdim=keep).to(x.dtype)


def _extreme(x: Tensor, axes: list[int], keep: bool, *, largest: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in axes):  # ONNX: the neutral element
        shape = [1 if i in axes else n for i, n in enumerate(x.shape)]
        shape = shape if keep else [n for i, n in enumerate(x.shape) if i not in axes]
        return torch.full(shape, _end(x.dtype, not largest), dtype=x.dtype)
    if x.dtype == torch.bool:
        return _extreme(x.to(torch.uint8), axes, keep, largest=largest).to(torch.bool)
    return torch.amax(x, axes, keep) if largest else torch.amin(x, axes, keep)


def _end(dtype: torch.dtype, highest: bool) -> float | int | bool:
    if dtype == torch.bool:
        return highest
    if dtype.is_floating_point:
        return float("inf") if highest else float("-inf")
    limits = torch.iinfo(dtype)
    return limits.max if highest else limits.min


def _max(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _extreme(x, axes, keep, largest=True)


def _min(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _extreme(x, axes, keep, largest=False)


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return vector_norm(x, 1, axes, keep)
    return _sum(x.abs(), axes, keep)


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return vector_norm(x, 2, axes, keep)
    return vector_norm(x.to(torch.float64), 2, axes, keep).to(x.dtype)


def _sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _as_float(_sum(x, axes, keep)).log().to(x.dtype)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(_as_float(x), axes, keep).to(x.dtype)


def _as_float(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.float64)


_REDUCTIONS: dict[str, tuple[Reduction, int]] = {
    "ReduceSum": (_sum, 13),
    "ReduceMean": (_mean, 18),
    "ReduceMax": (_max, 18),
    "ReduceMin": (_min, 18),
    "ReduceProd": (_prod, 18),
    "ReduceL1": (_l1, 18),
    "ReduceL2": (_l2, 18),
    "ReduceSumSquare": (_sum_square, 18),
    "ReduceLogSum": (_log_sum, 18),
    "ReduceLogSumExp": (_log_sum_exp, 18),
}
"""The reduction, and the opset from which its axes are an input."""

_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceSumSquare": lambda x: x * x,
    "ReduceLogSum": torch.log,
}
"""What a reduction over no axis at all still does."""


def _register(op: str, reduce: Reduction, since: int) -> None:
    @lowering(op)
    def by_attribute(x: Tensor, *, axes: Sequence[int] | None = None, keepdims: int = 1) -> Tensor:
        chosen = positive(axes, x.dim()) if axes else list(range(x.dim()))
        return reduce(x, chosen, bool(keepdims))

    @lowering(op, since=since)
    def by_input(
        x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        chosen = positive(ints(axes), x.dim())
        if not chosen and noop_with_empty_axes:
            return _ELEMENTWISE[op](x) if op in _ELEMENTWISE else x
        return reduce(x, chosen or list(range(x.dim())), bool(keepdims))


for _op, (_reduce, _since) in _REDUCTIONS.items():
    _register(_op, _reduce, _since)


@lowering("CumSum")
def cum_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sum, with or without the element itself, from either end."""
    return _running(x, number(axis), torch.cumsum, 0, bool(exclusive), bool(reverse))


@lowering("CumProd")
def cum_prod(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running product, with or without the element itself, from either end."""
    return _running(x, number(axis), torch.cumprod, 1, bool(exclusive), bool(reverse))


def _running(
    x: Tensor,
    axis: int,
    function: Callable[..., Tensor],
    neutral: int,
    exclusive: bool,
    reverse: bool,
) -> Tensor:
    if reverse:
        x = x.flip(axis)
    if exclusive and x.shape[axis]:
        first = torch.full_like(x.narrow(axis, 0, 1), neutral)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    result = function(x, axis, dtype=x.dtype)
    return result.flip(axis) if reverse else result
