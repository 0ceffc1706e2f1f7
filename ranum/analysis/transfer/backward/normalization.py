"""Gradients of normalisation layers and softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import (
    Box,
    broadcast_shapes,
    largest,
    sum_error,
    summed,
    unknown,
)
from ranum.analysis.transfer.backward._common import Mask
from ranum.analysis.transfer.registry import transfer

# --- softmax -------------------------------------------------------------------------------


@transfer("_softmax_backward_data", phase="backward")
def _softmax_backward_data(
    grad_output: Interval, output: Interval, dim: int, input_dtype: torch.dtype
) -> Interval:
    """Y (grad - sum grad y) for y = softmax: the sum is a mean of grads, weighted by y."""
    if output.low < 0 or output.high > 1.001 + 4 * unit_roundoff(output.dtype):
        # No softmax: somebody called the operator by its name.
        return Interval.top(output.shape, input_dtype)
    grad, y = Box.of(grad_output), Box.of(output)
    count = grad_output.shape[dim] if grad_output.shape else 1
    along = () if not grad_output.shape else (dim % len(grad_output.shape),)
    if grad_output.is_empty_tensor:
        return Box.of(grad_output.merged()).interval(output.shape, input_dtype)
    row = grad
    for d in along:
        row = Box(
            row.lower.amin(d, keepdim=True),
            row.upper.amax(d, keepdim=True),
            row.dtype,
            row.may_nan,
        )
    error = 2 * sum_error(count, grad.dtype) + 8 * unit_roundoff(output.dtype) * min(count, 2)
    error += count * unit_roundoff(output.dtype)
    weighted = row.with_zero() * grad.constant(1.0 - error if error < 1 else 0.0, 1.0 + error)
    weighted = weighted.hull(row).with_zero()
    if not weighted.is_finite or not y.is_finite:
        return (
            unknown(output.shape, grad_output.merged())
            if input_dtype == grad_output.dtype
            else (
                Box.of(grad_output)
                .constant(-math.inf, math.inf)
                .with_nan()
                .interval(output.shape, input_dtype)
            )
        )
    # Vectorised kernels form grad y and y sum separately; both are at most y |grad|.
    result = y * (grad - weighted)
    slack = 16 * unit_roundoff(grad.dtype) * (y * grad).magnitude
    slack = slack + 16 * unit_roundoff(grad.dtype) * (y * weighted).magnitude
    result = result.replaced(result.lower - slack, result.upper + slack)
    return result.rounded(16).interval(output.shape, input_dtype)


@transfer("_log_softmax_backward_data", phase="backward")
def _log_softmax_backward_data(
    grad_output: Interval, output: Interval, dim: int, input_dtype: torch.dtype
) -> Interval:
    """Grad - exp(output) sum grad, for an output that exceeds 0 by rounding alone."""
    slack = 16 * unit_roundoff(output.dtype) * max(1.0, abs(output.low))
    grad, y = Box.of(grad_output), Box.of(output.intersect(upper=slack))
    along = () if not grad_output.shape else (dim % len(grad_output.shape),)
    total = summed(grad_output, along)
    share = y.increasing(torch.exp, ulps=64)
    result = (grad - share * total).rounded()
    shape = broadcast_shapes(grad_output.shape, output.shape)
    return result.interval(shape, input_dtype)


# --- normalisation -------------------------------------------------------------------------


def norm_gradients(
    grad: float,
    x: float,
    rstd: float,
    weight: float,
    dtype: torch.dtype,
    count: int,
    samples: int,
    *,
    expanded: bool,
) -> tuple[float, float] | None:
    """Sizes of the gradients for input and weight of a layer that centres and scales.

    With |z| <= sqrt(n) and mean |z| <= 1 for the normalised z, the input's gradient
    rstd (g - mean g - z mean(g z)) is at most rstd |g| (2 + sqrt(n)).

    Args:
        grad: Largest incoming gradient; all sizes are magnitudes.
        x: Largest input.
        rstd: Largest 1 / sqrt(var + eps) of it.
        weight: Largest scale; 1 if there is none.
        dtype: Type that kernels accumulate in.
        count: Number of elements n that share a mean.
        samples: Number of elements that share a weight.
        expanded: True for kernels that expand the products, sum g x - mean sum g, and so
            lose (|x| rstd)^2 units where the exact result is of order 1.

    Returns:
        None if something on the way may overflow.
    """
    size, error = grad * weight, sum_error(count + 32, dtype)
    z = min(math.sqrt(count), 2 * x * rstd) * (1 + error) + 16 * error * x * rstd
    loss = 8 * error * (1 + x * rstd) * (1 + x * rstd) if expanded else 0.0
    to_x = rstd * size * (2 + z + z * min(z, 2.0) + loss) * (1 + 4 * error)
    total = sum_error(samples + 32, dtype)
    to_weight = samples * grad * (z + 8 * total * x * rstd) * (1 + 4 * total)
    limit = largest(dtype)
    intermediate = count * size * max(x, 1.0) * max(rstd, rstd * rstd * rstd)
    fits = max(to_x, to_weight, intermediate) < limit / 4
    return (to_x, to_weight) if fits and x < math.sqrt(limit / max(count, 1)) / 4 else None


def _norm_backward(
    grad: Interval,
    x: Interval,
    rstd: Interval,
    weight: Interval | None,
    count: int,
    samples: int,
    *,
    expanded: bool,
) -> tuple[Box, Box, Box]:
    """Gradients for input, weight and bias, one block each; see `norm_gradients`."""
    g = Box.of(grad.merged()).merged()
    scale = 1.0 if weight is None else Box.of(weight).peak
    peaks = (g.peak, Box.of(x).peak, Box.of(rstd).peak, scale)
    sizes = norm_gradients(*peaks, g.dtype, count, samples, expanded=expanded)
    finite = x.is_finite and rstd.is_finite and grad.is_finite
    if sizes is None or not finite or not (weight is None or weight.is_finite):
        top = g.constant(-math.inf, math.inf).with_nan()
        return top, top, top
    to_x, to_weight = (g.constant(-size, size).rounded() for size in sizes)
    return to_x, to_weight, g.times(samples)


def _masked(
    boxes: Sequence[Box],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[torch.dtype],
    mask: Mask,
) -> tuple[Interval | None, ...]:
    return tuple(
        box.interval(shape, dtype) if wanted else None
        for box, shape, dtype, wanted in zip(boxes, shapes, dtypes, mask, strict=True)
    )


@transfer("native_layer_norm_backward", phase="backward")
def native_layer_norm_backward(
    grad_out: Interval,
    input: Interval,
    normalized_shape: Sequence[int],
    mean: Interval,
    rstd: Interval,
    weight: Interval | None,
    bias: Interval | None,
    output_mask: Mask,
) -> tuple[Interval | None, ...]:
    """At most rstd |grad weight| (2 + sqrt(n)), plus rounding; sums over rows for the rest."""
    count = math.prod(normalized_shape)
    samples = math.prod(input.shape) // max(count, 1)
    shape = tuple(normalized_shape)
    boxes = _norm_backward(grad_out, input, rstd, weight, count, samples, expanded=True)
    dtype = input.dtype if weight is None else weight.dtype
    return _masked(boxes, (input.shape, shape, shape), (input.dtype, dtype, dtype), output_mask)


@transfer("native_group_norm_backward", phase="backward")
def native_group_norm_backward(
    grad_out: Interval,
    input: Interval,
    mean: Interval,
    rstd: Interval,
    weight: Interval | None,
    N: int,  # noqa: N803 - the schema's own names
    C: int,  # noqa: N803
    HxW: int,  # noqa: N803
    group: int,
    output_mask: Mask,
) -> tuple[Interval | None, ...]:
    """As layer_norm, per group; sums over batch and positions for weight and bias."""
    boxes = _norm_backward(grad_out, input, rstd, weight, C // group * HxW, N * HxW, expanded=True)
    dtype = input.dtype if weight is None else weight.dtype
    return _masked(boxes, (input.shape, (C,), (C,)), (input.dtype, dtype, dtype), output_mask)


@transfer("_fused_rms_norm_backward", phase="backward")
def _fused_rms_norm_backward(
    grad_out: Interval,
    input: Interval,
    normalized_shape: Sequence[int],
    rstd: Interval,
    weight: Interval | None,
    output_mask: Mask,
) -> tuple[Interval | None, ...]:
    """Rstd (g - z mean(g z)), within the bounds of layer_norm's gradient."""
    count = math.prod(normalized_shape)
    samples = math.prod(input.shape) // max(count, 1)
    shape = tuple(normalized_shape)
    boxes = _norm_backward(grad_out, input, rstd, weight, count, samples, expanded=True)
    dtype = input.dtype if weight is None else weight.dtype
    return _masked(boxes[:2], (input.shape, shape), (input.dtype, dtype), output_mask)


def _batch_norm_backward(
    grad_out: Interval,
    input: Interval,
    weight: Interval | None,
    running_mean: Interval | None,
    running_var: Interval | None,
    save_invstd: Interval | None,
    train: bool,
    eps: float,
    output_mask: Mask,
) -> tuple[Interval | None, ...]:
    channels = input.shape[1]
    count = math.prod(input.shape) // max(channels, 1)
    dtype = input.dtype if weight is None else weight.dtype
    shapes = (input.shape, (channels,), (channels,))
    if train and save_invstd is not None:
        boxes = _norm_backward(grad_out, input, save_invstd, weight, count, count, expanded=False)
        return _masked(boxes, shapes, (input.dtype, dtype, dtype), output_mask)
    grad = Box.of(grad_out.merged()).merged()
    if running_mean is None or running_var is None:
        top = grad.constant(-math.inf, math.inf).with_nan()
        return _masked((top, top, top), shapes, (input.dtype, dtype, dtype), output_mask)
    rstd = (Box.of(running_var.merged()).merged() + eps).sqrt().reciprocal()
    rstd = rstd.replaced(rstd.lower.clamp(min=0), rstd.upper)
    to_x = grad * rstd
    if weight is not None:
        to_x = to_x * Box.of(weight.merged()).merged()
    centred = Box.of(input.merged()).merged() - Box.of(running_mean.merged()).merged()
    to_weight = (grad * centred).times(count) * rstd
    infinite = math.isinf(to_weight.peak)
    boxes = (to_x.rounded(32), to_weight.rounded(32).with_nan(infinite), grad.times(count))
    return _masked(boxes, shapes, (input.dtype, dtype, dtype), output_mask)


@transfer("native_batch_norm_backward", phase="backward")
def native_batch_norm_backward(
    grad_out: Interval,
    input: Interval,
    weight: Interval | None,
    running_mean: Interval | None,
    running_var: Interval | None,
    save_mean: Interval | None,
    save_invstd: Interval | None,
    train: bool,
    eps: float,
    output_mask: Mask,
) -> tuple[Interval | None, ...]:
    """Training: rstd |grad weight| (2 + sqrt(n)). Eval: grad weight / sqrt(running_var + eps)."""
    return _batch_norm_backward(
        grad_out, input, weight, running_mean, running_var, save_invstd, train, eps, output_mask
    )


@transfer("cudnn_batch_norm_backward", phase="backward")
def cudnn_batch_norm_backward(
    input: Interval,
    grad_output: Interval,
    weight: Interval,
    running_mean: Interval | None,
    running_var: Interval | None,
    save_mean: Interval | None,
    save_var: Interval | None,
    epsilon: float,
    reserveSpace: Interval,  # noqa: N803 - the schema's own name
) -> tuple[Interval | None, ...]:
    """As native_batch_norm_backward in training; `save_var` holds 1 / sqrt(var + eps)."""
    return _batch_norm_backward(
        grad_output, input, weight, running_mean, running_var, save_var, True, epsilon, (True,) * 3
    )


@transfer("batch_norm_backward", phase="backward")
def batch_norm_backward(
    grad_out: Interval,
    input: Interval,
    weight: Interval,
    running_mean: Interval | None,
    running_var: Interval | None,
    save_mean: Interval | None,
    save_var: Interval | None,
    update: bool,
    eps: float,
    output_mask: Mask,
    reserve: Interval,
) -> tuple[Interval | None, ...]:
    """As native_batch_norm_backward."""
    return _batch_norm_backward(
        grad_out, input, weight, running_mean, running_var, save_var, update, eps, output_mask
    )
