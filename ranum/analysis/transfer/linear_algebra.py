"""Linear algebra of sums: traces and dot products. Factors are in `factorizations`."""

from __future__ import annotations

import torch

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box, like
from ranum.analysis.transfer.contraction import dot
from ranum.analysis.transfer.registry import transfer


@transfer("trace")
def trace(x: Interval) -> Interval:
    """Sum of the diagonal of `[N, M]`."""
    if not x.dtype.is_floating_point:
        return Interval.top((), torch.int64)
    if x.is_empty_tensor:
        return like(0.0, 0.0, (), x)
    total = Box.native(x.merged()).merged().times(min(x.shape))
    return total.interval((), x.dtype)


@transfer("vdot")
def vdot(x: Interval, other: Interval) -> Interval:
    """`[K] . [K]` of real vectors."""
    return dot(x, other)
