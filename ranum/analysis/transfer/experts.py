"""What mixtures of experts are computed with: grouped products, counts of routed tokens."""

from __future__ import annotations

import torch

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box, like, unknown
from ranum.analysis.transfer.contraction import mm
from ranum.analysis.transfer.registry import transfer


@transfer("_grouped_mm")
def _grouped_mm(
    x: Interval,
    mat2: Interval,
    offs: Interval | None = None,
    bias: Interval | None = None,
    out_dtype: torch.dtype | None = None,
) -> Interval:
    """Rows, columns or inner indices in groups, one group for each expert.

    The bounds do not know which row is whose, so they hold for every expert. Where the inner
    dimension is grouped, an element is the sum over a part of it.
    """
    rank, other = len(x.shape), len(mat2.shape)
    if rank == other == 3:
        out = mm(x, mat2)
    elif rank == other == 2:
        groups = 0 if offs is None else offs.shape[0]
        out = _every(mm(_joined_zero(x), mat2), (groups, x.shape[0], mat2.shape[1]))
    else:
        every = mm(x if rank == 3 else _batched(x), mat2 if other == 3 else _batched(mat2))
        out = _every(every.merged(keep=(2,)), (x.shape[-2], mat2.shape[-1]))
        out = _joined_zero(out)  # rows behind the last group
    if bias is not None:
        total = Box.of(out).merged() + Box.of(bias).merged()
        out = total.interval(out.shape, out.dtype)
    if out_dtype is not None and out_dtype != out.dtype:
        return Box.of(out).interval(out.shape, out_dtype)
    return out if x.shape[-1] else unknown(out.shape, out)


def _batched(x: Interval) -> Interval:
    lower = x.lower.unsqueeze(0)
    upper = lower if x.lower is x.upper else x.upper.unsqueeze(0)
    return Interval(lower, upper, (1, *x.shape), x.dtype, x.may_nan)


def _every(x: Interval, shape: tuple[int, ...]) -> Interval:
    """The same bounds for a result of another rank; leading dimensions merged."""
    merged = x.merged(keep=(len(x.shape) - 1,))
    ones = (*(1,) * (len(shape) - 1), merged.lower.shape[-1])
    lower, upper = merged.lower.reshape(ones), merged.upper.reshape(ones)
    return Interval(lower, upper, shape, x.dtype, x.may_nan)


def _joined_zero(x: Interval) -> Interval:
    return Interval(x.lower.clamp(max=0), x.upper.clamp(min=0), x.shape, x.dtype, x.may_nan)


@transfer("histc")
def histc(x: Interval, bins: int = 100, min: float = 0, max: float = 0) -> Interval:
    """How many elements fall into each of `bins` parts of the range: 0 to all."""
    count = 1
    for size in x.shape:
        count *= size
    return like(0.0, float(count), (bins,), x)
