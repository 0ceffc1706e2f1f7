"""Embedding bags: sums, means and maxima of rows of a table."""

from __future__ import annotations

import math

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import Box, largest, like
from ranum.analysis.transfer.registry import transfer

SUM, MEAN, MAX = 0, 1, 2


@transfer("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(
    weight: Interval,
    indices: Interval,
    offsets: Interval,
    scale_grad_by_freq: bool = False,
    mode: int = SUM,
    sparse: bool = False,
    per_sample_weights: Interval | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Interval | None, ...]:
    """Up to all rows of `[C, D]` in one bag, or none, which gives 0; the rest are places."""
    bags = offsets.shape[0] - bool(include_last_offset)
    shape = (bags, weight.shape[1])
    count = math.prod(indices.shape)
    if weight.is_empty_tensor or count == 0 or 0 in shape:
        return like(0.0, 0.0, shape, weight), None, None, None
    row = Box.native(weight.merged(keep=(1,)))
    if per_sample_weights is not None:
        row = row * Box.native(per_sample_weights.merged()).merged()
    if mode == MAX:
        result = row.with_zero()
    else:
        total = row.with_zero().times(count)
        spread = 4 * math.expm1((count + 8) * unit_roundoff(weight.dtype)) * row.magnitude
        if mode == MEAN and total.is_finite and row.peak * count < largest(weight.dtype) / 2:
            total = row.with_zero()
        else:
            spread = spread * count
        result = total.replaced(total.lower - spread, total.upper + spread).rounded()
    return result.interval(shape, weight.dtype), None, None, None


@transfer("_embedding_bag_backward", "_embedding_bag_dense_backward", phase="backward")
def embedding_bag_backward(
    grad: Interval,
    indices: Interval,
    offset2bag: Interval,
    bag_size: Interval,
    maximum_indices: Interval,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool = False,
    per_sample_weights: Interval | None = None,
    padding_idx: int = -1,
    offsets: Interval | None = None,
) -> Interval | None:
    """A row collects the gradient of every bag that it is in, as often as it is in it."""
    if sparse:
        return None
    shape = (num_weights, grad.shape[1])
    count = math.prod(indices.shape)
    if grad.is_empty_tensor or count == 0:
        return like(0.0, 0.0, shape, grad)
    if grad.may_nan or (per_sample_weights is not None and per_sample_weights.may_nan):
        return None
    size = Box.native(grad.merged()).peak
    if per_sample_weights is not None:
        size *= Box.native(per_sample_weights.merged()).peak
    bound = size * max(count, grad.shape[0])
    bound *= math.exp(8 * (count + 8) * unit_roundoff(grad.dtype))
    if not bound < largest(grad.dtype) / 2:
        return None
    return like(-bound, bound, shape, grad)


@transfer("_embedding_bag_per_sample_weights_backward", phase="backward")
def embedding_bag_per_sample_weights_backward(
    grad: Interval,
    weight: Interval,
    indices: Interval,
    offsets: Interval,
    offset2bag: Interval,
    mode: int,
    padding_idx: int = -1,
) -> Interval | None:
    """The product of a row of the table and its bag's gradient, summed over D; 0 for padding."""
    if grad.is_empty_tensor or weight.is_empty_tensor:
        return None
    product = Box.native(grad.merged()).merged() * Box.native(weight.merged()).merged()
    total = product.with_zero().times(weight.shape[1])
    terms = weight.shape[1] + 8
    spread = 4 * math.expm1(terms * unit_roundoff(weight.dtype)) * product.magnitude * terms
    total = total.replaced(total.lower - spread, total.upper + spread).rounded()
    return total.interval(indices.shape, grad.dtype)
