"""Gradients of slices, windows and embeddings: put back where the elements came from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box
from ranum.analysis.transfer.registry import transfer


@transfer("embedding_dense_backward", phase="backward")
def embedding_dense_backward(
    grad_output: Interval,
    indices: Interval,
    num_weights: int,
    padding_idx: int,
    scale_grad_by_freq: bool,
) -> Interval:
    """A row sums the gradients of the places where it was looked up: none to all of them."""
    width, places = grad_output.shape[-1], math.prod(indices.shape)
    shape = (num_weights, width)
    if places == 0 or grad_output.is_empty_tensor:
        return Interval.full(0, 0, shape, grad_output.dtype, grad_output.device)
    flat = grad_output.merged(keep=(len(grad_output.shape) - 1,))
    box = Box.native(flat).with_zero().times(places)
    lower, upper = box.lower.reshape(1, -1), box.upper.reshape(1, -1)
    return Box(lower, upper, box.dtype, box.may_nan).interval(shape, grad_output.dtype)


def _placed(grad: Interval, shape: Sequence[int], dim: int, *, lost: bool) -> Interval:
    """The gradient somewhere along `dim`, zeros elsewhere."""
    rank = len(shape)
    kept = grad.merged([d for d in range(rank) if d != dim])
    lower, upper = kept.lower, kept.upper
    if lower.numel() == 0:
        lower = upper = lower.new_zeros((1,) * rank)
    layout = [n if shape[d] == n else 1 for d, n in enumerate(lower.shape)]
    if list(lower.shape) != layout:
        lower = upper = lower.new_zeros((1,) * rank)
    if lost:
        lower, upper = lower.clamp(max=0), upper.clamp(min=0)
    return Interval(lower, upper, tuple(shape), grad.dtype, grad.may_nan)


@transfer("slice_backward", phase="backward")
def slice_backward(
    grad_output: Interval, input_sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Interval:
    """The gradient in its places, 0 elsewhere."""
    dim = dim % len(input_sizes)
    partial = grad_output.shape[dim] != input_sizes[dim]
    return _placed(grad_output, input_sizes, dim, lost=partial)


@transfer("select_backward", phase="backward")
def select_backward(
    grad_output: Interval, input_sizes: Sequence[int], dim: int, index: int
) -> Interval:
    """The gradient in its place, 0 elsewhere."""
    dim = dim % len(input_sizes)
    shape = (*grad_output.shape[:dim], 1, *grad_output.shape[dim:])
    lower, upper = grad_output.lower.unsqueeze(dim), grad_output.upper.unsqueeze(dim)
    seen = Interval(lower, upper, shape, grad_output.dtype, grad_output.may_nan)
    return _placed(seen, input_sizes, dim, lost=input_sizes[dim] != 1)


@transfer("unfold_backward", phase="backward")
def unfold_backward(
    grad_in: Interval, input_sizes: Sequence[int], dim: int, size: int, step: int
) -> Interval:
    """The sum of the gradients of the windows over an element."""
    if grad_in.is_empty_tensor:
        return Interval.full(0, 0, input_sizes, grad_in.dtype, grad_in.device)
    box = Box.native(grad_in.merged()).merged().with_zero().times((size + step - 1) // step)
    return box.interval(tuple(input_sizes), grad_in.dtype)
