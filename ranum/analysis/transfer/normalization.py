"""Normalisation layers and softmax.

Subtracting the mean of n numbers and dividing by their standard deviation gives at most
sqrt(n - 1), whatever the numbers are: that is what stops bounds from growing through a
network. In floating point two things are added. The mean, and in kernels that compute
a x + b with b = -a mean also the product, is off by a few units of |x|, which is divided by
the standard deviation, at least sqrt(eps): an error of c u |x| / sqrt(eps). And with eps = 0,
or with numbers so large that their squares overflow, NaN is possible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import (
    Box,
    accumulator,
    largest,
    smallest,
    sum_error,
    unknown,
)
from ranum.analysis.transfer.moments import variance_bound
from ranum.analysis.transfer.registry import transfer

_MEAN_ULPS = 6
"""Units of |x| / sqrt(eps) added to normalised numbers: 2.8 is the most that ATen's CPU kernels
lost in a search over rows of nearly equal numbers (n up to 131072)."""


# --- centred and scaled --------------------------------------------------------------------


def normalized(
    low: float,
    high: float,
    dtype: torch.dtype,
    count: int,
    eps: float,
    scale: float,
    unit: float,
) -> tuple[float, float, float, bool]:
    """Largest |x - mean| / sqrt(var + eps) over `count` elements, and 1 / sqrt(var + eps).

    Args:
        low: Smallest element.
        high: Largest element.
        dtype: Type that kernels accumulate in.
        count: Number of elements that share a mean.
        eps: Added to the variance.
        scale: Largest factor that the result is multiplied with, maybe before the mean is
            taken off.
        unit: Unit of roundoff of the mean.

    Returns:
        The size, the least and the largest reciprocal root, and whether NaN is possible.
    """
    peak = max(abs(low), abs(high))
    logarithm = math.log2(max(count, 1))
    root = _rsqrt(eps, dtype)
    off = _MEAN_ULPS * unit * peak
    drift = sum_error(count, dtype) * peak
    half_width = (high - low) / 2 + off + drift
    least = _rsqrt(half_width * half_width + eps, dtype)
    exact = min(math.sqrt(max(count - 1, 0)), (high - low) * root)
    # A mean that drifts by d adds d^2 to the variance, so at most 1 to the quotient.
    exact = exact + min(drift * root, 1.0)
    size = exact * (1 + 8 * sum_error(logarithm, dtype) + 8 * unit) + off * root
    overflow = not peak < math.sqrt(largest(dtype) / max(count, 1)) / 4
    overflow = overflow or not max(peak, 1.0) * min(root, 1e300) * scale < largest(dtype) / 4
    least = 0.0 if overflow else least * max(1 - 64 * sum_error(count, dtype) - 4 * unit, 0.0)
    size = math.inf if overflow or math.isnan(size) or size > largest(dtype) else size
    return size, least, root, overflow or root == math.inf


def _spread(
    x: Box, count: int, eps: float, weight: Interval | None, unit: float
) -> tuple[Box, Box]:
    """The quotient and the reciprocal root of `normalized`, for elements in one block."""
    scale = 1.0 if weight is None else Box.of(weight).peak
    size, least, root, lost = normalized(x.low, x.high, x.dtype, count, eps, scale, unit)
    z, rstd = (
        x.constant(-size, size),
        x.constant(least, root).rounded(ulps=16 * unit / unit_roundoff(x.dtype)),
    )
    return z.with_nan(x.may_nan or lost), rstd.with_nan(x.may_nan or lost)


def _rsqrt(value: float, dtype: torch.dtype) -> float:
    """1 / sqrt; infinite where the number is lost in the dtype."""
    if math.isnan(value):
        return 0.0
    return math.inf if value < smallest(dtype) else 1 / math.sqrt(value)


def _affine(z: Box, weight: Interval | None, bias: Interval | None, layout: Sequence[int]) -> Box:
    """Z weight + bias, with the parameters seen in `layout`."""
    if weight is not None:
        z = z * _parameter(weight, layout)
    return z if bias is None else z + _parameter(bias, layout)


def _parameter(x: Interval, layout: Sequence[int]) -> Box:
    box = Box.of(x)
    if box.lower.numel() <= 1:
        return box.merged()
    lower, upper = (bound.expand(x.shape).reshape(layout) for bound in (box.lower, box.upper))
    return Box(lower, upper, box.dtype, box.may_nan)


def _statistics_dtype(x: Interval, *parameters: Interval | None) -> torch.dtype:
    """Saved statistics have the type of the parameters, where there are any."""
    return next((p.dtype for p in parameters if p is not None), x.dtype)


def _merged_mean(x: Interval, shape: Sequence[int], count: int, dtype: torch.dtype) -> Interval:
    """A mean of `count` elements, one bound for all means."""
    box = Box.of(x.merged())
    if x.is_empty_tensor or count == 0:
        return unknown(shape, Interval.full(0, 0, (), dtype, x.device))
    total = box.merged().times(count)
    average = Box(total.lower / count, total.upper / count, box.dtype, total.may_nan)
    if box.peak >= math.sqrt(largest(box.dtype) / count) / 4:
        # Where the variance overflows, running means are lost with it.
        average = average.replaced(average.lower * math.nan, average.upper * math.nan)
    return average.rounded(ulps=16).interval(shape, dtype)


@transfer("native_layer_norm")
def native_layer_norm(
    input: Interval,
    normalized_shape: Sequence[int],
    weight: Interval | None,
    bias: Interval | None,
    eps: float,
) -> tuple[Interval, Interval, Interval]:
    """(x - mean) rstd weight + bias: |(x - mean) rstd| <= sqrt(n - 1) for finite input.

    One bound per normalised element; mean and rstd merged.
    """
    rank, inner = len(input.shape), len(normalized_shape)
    count, box = math.prod(normalized_shape), Box.of(input).merged()
    z, rstd = _spread(box, count, eps, weight, unit_roundoff(box.dtype))
    out = _affine(z, weight, bias, (*(1,) * (rank - inner), *normalized_shape))
    stats = (*input.shape[: rank - inner], *(1,) * inner)
    dtype = _statistics_dtype(input, weight, bias)
    return (
        out.interval(input.shape, input.dtype),
        _merged_mean(input, stats, count, dtype),
        rstd.interval(stats, dtype),
    )


@transfer("native_group_norm")
def native_group_norm(
    input: Interval,
    weight: Interval | None,
    bias: Interval | None,
    N: int,  # noqa: N803 - the schema's own names
    C: int,  # noqa: N803
    HxW: int,  # noqa: N803
    group: int,
    eps: float,
) -> tuple[Interval, Interval, Interval]:
    """Like layer_norm over the C / group channels and HxW positions of each group."""
    count, box = C // group * HxW, Box.of(input).merged()
    z, rstd = _spread(box, count, eps, weight, unit_roundoff(box.dtype))
    out = _affine(z, weight, bias, (1, C, *(1,) * (len(input.shape) - 2)))
    dtype = _statistics_dtype(input, weight, bias)
    return (
        out.interval(input.shape, input.dtype),
        _merged_mean(input, (N, group), count, dtype),
        rstd.interval((N, group), dtype),
    )


@transfer("_fused_rms_norm")
def _fused_rms_norm(
    input: Interval, normalized_shape: Sequence[int], weight: Interval | None, eps: float | None
) -> tuple[Interval, Interval]:
    """X rsqrt(mean(x^2) + eps) weight: |x| rsqrt(...) <= sqrt(n) for finite input."""
    rank, inner = len(input.shape), len(normalized_shape)
    count = math.prod(normalized_shape)
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    box = Box.of(input).merged()
    root = _rsqrt(eps, box.dtype)
    size = min(math.sqrt(count) * (1 + 4 * sum_error(count, box.dtype)), box.peak * root)
    overflow = not box.peak < math.sqrt(largest(box.dtype) / max(count, 1)) / 4
    may_nan = box.may_nan or overflow or root == math.inf
    size = math.inf if root == math.inf or math.isnan(size) else size
    z = box.constant(-size if box.low < 0 else 0.0, size if box.high > 0 else 0.0)
    low = 0.0 if overflow else _rsqrt(box.peak**2 + eps, box.dtype)
    low *= 1 - min(64 * sum_error(count, box.dtype), 1.0)
    rstd = box.constant(low, root).rounded(ulps=16)
    out = _affine(
        z.rounded().with_nan(may_nan), weight, None, (*(1,) * (rank - inner), *normalized_shape)
    )
    stats = (*input.shape[: rank - inner], *(1,) * inner)
    return (
        out.interval(input.shape, input.dtype),
        rstd.with_nan(may_nan).interval(stats, accumulator(input.dtype)),
    )


# --- batch norm ----------------------------------------------------------------------------


def _batch_norm(
    input: Interval,
    weight: Interval | None,
    bias: Interval | None,
    running_mean: Interval | None,
    running_var: Interval | None,
    training: bool,
    eps: float,
) -> tuple[Interval, Interval, Interval]:
    """One bound per channel; eval uses the running statistics as they are."""
    channels = input.shape[1]
    layout = (1, channels, *(1,) * (len(input.shape) - 2))
    dtype = _statistics_dtype(input, weight, running_mean)
    if training:
        count = math.prod(input.shape) // max(channels, 1)
        # Some kernels read the statistics back after rounding them to their own dtype.
        z, rstd = _spread(Box.of(input).merged(), count, eps, weight, unit_roundoff(dtype))
        if count == 0:
            z, rstd = z.with_nan(), rstd.constant(-math.inf, math.inf).with_nan()
        out = _affine(z, weight, bias, layout)
        average = _merged_mean(input, (channels,), count, dtype)
        return out.interval(input.shape, input.dtype), average, rstd.interval((channels,), dtype)
    empty = Interval.full(0, 0, (0,), dtype, input.device)
    if running_mean is None or running_var is None:
        return unknown(input.shape, input), empty, empty
    out = _scaled_by_statistics(input, weight, bias, running_mean, running_var, eps, layout)
    return out.interval(input.shape, input.dtype), empty, empty


def _scaled_by_statistics(
    input: Interval,
    weight: Interval | None,
    bias: Interval | None,
    running_mean: Interval,
    running_var: Interval,
    eps: float,
    layout: Sequence[int],
) -> Box:
    x, average = Box.of(input, keep=(1,)), _parameter(running_mean, layout)
    rstd = (_parameter(running_var, layout) + eps).sqrt().reciprocal().rounded()
    # A root is not negative: what the reciprocal says about -0 cannot happen here.
    rstd = rstd.replaced(rstd.lower.clamp(min=0), rstd.upper)
    scale = rstd if weight is None else rstd * _parameter(weight, layout)
    centred = (x - average) * scale
    # Kernels compute x scale + (bias - mean scale): the products round before they cancel.
    products = (x * scale).magnitude + (average * scale).magnitude
    slack = products * (16 * unit_roundoff(x.dtype))
    overflow = bool((~(products <= largest(x.dtype))).any()) or math.isinf(centred.peak)
    out = centred.replaced(centred.lower - slack, centred.upper + slack).with_nan(overflow)
    if overflow:
        out = out.replaced(out.lower - math.inf, out.upper + math.inf)
    return out if bias is None else out + _parameter(bias, layout)


@transfer("native_batch_norm")
def native_batch_norm(
    input: Interval,
    weight: Interval | None,
    bias: Interval | None,
    running_mean: Interval | None,
    running_var: Interval | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Interval, Interval, Interval]:
    """Training: |(x - mean) rstd| <= sqrt(n - 1), n values a channel. Eval: running statistics.

    Outputs: result, mean, rstd; the last two are empty in eval. The new running statistics,
    which the operator writes in place, are not among them.
    """
    return _batch_norm(input, weight, bias, running_mean, running_var, training, eps)


@transfer("_native_batch_norm_legit")
def _native_batch_norm_legit(
    input: Interval,
    weight: Interval | None,
    bias: Interval | None,
    running_mean: Interval | None = None,
    running_var: Interval | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Interval, Interval, Interval]:
    """As native_batch_norm, also without running statistics."""
    return _batch_norm(input, weight, bias, running_mean, running_var, training, eps)


@transfer("_native_batch_norm_legit_no_training")
def _native_batch_norm_legit_no_training(
    input: Interval,
    weight: Interval | None,
    bias: Interval | None,
    running_mean: Interval,
    running_var: Interval,
    momentum: float,
    eps: float,
) -> tuple[Interval, Interval, Interval]:
    """As native_batch_norm in eval."""
    return _batch_norm(input, weight, bias, running_mean, running_var, False, eps)


@transfer("running_statistics")
def running_statistics(
    input: Interval, running_mean: Interval, running_var: Interval, momentum: float
) -> tuple[Interval, Interval]:
    """(1 - m) old + m new, with the unbiased variance of the batch; merged channels."""
    channels = input.shape[1]
    count = math.prod(input.shape) // max(channels, 1)
    shape, dtype = running_mean.shape, running_mean.dtype
    if input.is_empty_tensor:
        return unknown(shape, running_mean), unknown(shape, running_var)
    dims = tuple(d for d in range(len(input.shape)) if d != 1)
    x = input.merged()
    average = Box.of(_merged_mean(x, (), count, accumulator(input.dtype)))
    variance = variance_bound(x, dims, 1.0).merged()
    if count == 1:
        variance = variance.with_nan()
    old_mean, old_var = Box.of(running_mean), Box.of(running_var)
    new_mean = old_mean * (1 - momentum) + average * momentum
    new_var = old_var * (1 - momentum) + variance * momentum
    return new_mean.interval(shape, dtype), new_var.interval(shape, running_var.dtype)


@transfer("_native_batch_norm_legit_functional")
def _native_batch_norm_legit_functional(
    input: Interval,
    weight: Interval | None,
    bias: Interval | None,
    running_mean: Interval,
    running_var: Interval,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Interval, ...]:
    """As native_batch_norm, with the new running statistics as two more outputs."""
    out = _batch_norm(input, weight, bias, running_mean, running_var, training, eps)
    if not training:
        return (*out, running_mean, running_var)
    return (*out, *running_statistics(input, running_mean, running_var, momentum))


def _reserve(x: Interval) -> Interval:
    """The scratch space of a fused kernel: bytes that nobody reads."""
    return Interval.full(0, 255, (0,), torch.uint8, x.device)


@transfer("cudnn_batch_norm")
def cudnn_batch_norm(
    input: Interval,
    weight: Interval,
    bias: Interval | None,
    running_mean: Interval | None,
    running_var: Interval | None,
    training: bool,
    exponential_average_factor: float,
    epsilon: float,
) -> tuple[Interval, ...]:
    """As native_batch_norm, with a reserve."""
    out = _batch_norm(input, weight, bias, running_mean, running_var, training, epsilon)
    return (*out, _reserve(input))


@transfer("_batch_norm_with_update")
def _batch_norm_with_update(
    input: Interval,
    weight: Interval | None,
    bias: Interval | None,
    running_mean: Interval,
    running_var: Interval,
    momentum: float,
    eps: float,
) -> tuple[Interval, ...]:
    """As native_batch_norm in training, with a reserve."""
    out = _batch_norm(input, weight, bias, running_mean, running_var, True, eps)
    return (*out, _reserve(input))


@transfer("_batch_norm_no_update")
def _batch_norm_no_update(
    input: Interval,
    weight: Interval | None,
    bias: Interval | None,
    running_mean: Interval | None,
    running_var: Interval | None,
    momentum: float,
    eps: float,
) -> tuple[Interval, ...]:
    """As native_batch_norm in eval, with a reserve."""
    out = _batch_norm(input, weight, bias, running_mean, running_var, False, eps)
    return (*out, _reserve(input))


# --- softmax -------------------------------------------------------------------------------


def _rows(x: Interval, dim: int) -> tuple[Box, Box, int]:
    """The logits in their blocks, their largest per row, and the number of classes."""
    box = Box.of(x)
    if not x.shape:
        return box, box, 1
    along = dim % len(x.shape)
    top = Box(box.lower.amax(along, keepdim=True), box.upper.amax(along, keepdim=True), box.dtype)
    return box, top, x.shape[along]


def _may_lose_row(box: Box, top: Box) -> bool:
    """True if a row can hold +inf, or nothing but -inf: then exp(x - max) is NaN."""
    return box.may_nan or box.high == math.inf or top.low == -math.inf


def _exponent(value: torch.Tensor) -> torch.Tensor:
    return value.nan_to_num(0.0, math.inf, -math.inf)


def _softmax_box(x: Interval, dim: int) -> Box:
    """Element i lies between 1 / (1 + sum e^(upper_j - lower_i)) and the same, ends swapped."""
    box, top, count = _rows(x, dim)
    least = box.lower if not x.shape else box.lower.amin(dim % len(x.shape), keepdim=True)
    gap_low = _exponent(top.upper - box.lower)
    gap_high = _exponent(least - box.upper)
    lower = 1 / (1 + (count - 1) * gap_low.exp())
    upper = 1 / (1 + (count - 1) * gap_high.exp())
    # x - max is rounded before exp: a relative error of the gap times u, plus the sum's.
    limit = -math.log(smallest(box.dtype)) + 2 * math.log(count + 1)
    gap = gap_low.abs().clamp(max=2 * limit)
    error = 2 * sum_error(count + 64, box.dtype) + 4 * unit_roundoff(box.dtype) * gap
    if box.dtype != x.dtype:  # kernels may keep the exponentials in the half type
        error = error + 4 * unit_roundoff(x.dtype)
    lower = (lower * (1 - error) - smallest(box.dtype)).clamp(min=0.0)
    upper = (upper * (1 + error) + smallest(box.dtype)).clamp(max=1.0)
    return Box(lower, upper, box.dtype)


@transfer("_softmax")
def _softmax(x: Interval, dim: int, half_to_float: bool = False) -> Interval:
    """e^(x_i - max) / sum, in [0, 1]; at least e^-gap / n, and 0 once that underflows.

    Exactly 0 is possible from a logit gap of about 87 (float32, float64: 708) on: kernels
    flush subnormal numbers. NaN if a row holds +inf or nothing but -inf.
    """
    dtype = torch.float32 if half_to_float else x.dtype
    if x.is_empty_tensor:
        return Interval.full(0, 1, x.shape, dtype, x.device)
    box, top, _ = _rows(x, dim)
    result = _softmax_box(x, dim).with_nan(_may_lose_row(box, top))
    return _at_most_one(result).interval(x.shape, dtype)


def _at_most_one(box: Box) -> Box:
    """E <= sum e, and rounding a quotient of such numbers cannot pass 1 by more than an ulp."""
    ulps = 4 * unit_roundoff(box.dtype)
    return Box(box.lower, torch.where(box.upper == 1, 1 + ulps, box.upper), box.dtype, box.may_nan)


@transfer("_safe_softmax")
def _safe_softmax(x: Interval, dim: int, dtype: torch.dtype | None = None) -> Interval:
    """As softmax, but 0 in a row of nothing but -inf."""
    dtype = x.dtype if dtype is None else dtype
    if x.is_empty_tensor:
        return Interval.full(0, 1, x.shape, dtype, x.device)
    box, top, _ = _rows(x, dim)
    result = _softmax_box(x, dim).with_nan(box.may_nan or box.high == math.inf)
    if top.low == -math.inf:
        result = result.with_zero()
    return _at_most_one(result).interval(x.shape, dtype)


@transfer("_log_softmax")
def _log_softmax(x: Interval, dim: int, half_to_float: bool = False) -> Interval:
    """X - max - log sum e^(x - max): at least -gap - log n, at most 0 up to rounding.

    However large x is, x - max rounds to at most 0, and the sum to at least its term e^0.

    -inf only for a logit of -inf, or where the gap overflows. NaN as for softmax.
    """
    dtype = torch.float32 if half_to_float else x.dtype
    if x.is_empty_tensor:
        return Interval.full(-math.inf, 0, x.shape, dtype, x.device)
    box, top, count = _rows(x, dim)
    least = box.lower if not x.shape else box.lower.amin(dim % len(x.shape), keepdim=True)
    gap_high = _exponent(least - box.upper)
    lower = _exponent(box.lower - top.upper) - math.log(count)
    upper = -torch.log1p((count - 1) * gap_high.exp())
    units = 16 * unit_roundoff(box.dtype)
    size = torch.maximum(box.magnitude, top.magnitude)
    size = torch.where(size.isfinite(), size, 0.0) + math.log(count) + 1
    slack = units * (size + torch.where(lower.isfinite(), lower.abs(), 0.0))
    slack = slack + 2 * sum_error(count + 32, box.dtype)
    least_slack = units * (math.log(count) + 1) + 2 * sum_error(count + 32, box.dtype)
    if box.dtype != x.dtype:
        slack = slack + 4 * unit_roundoff(x.dtype)
        least_slack += 4 * unit_roundoff(x.dtype)
    most = (upper + slack).clamp(max=least_slack)
    result = Box(lower - slack, most, box.dtype, _may_lose_row(box, top))
    return result.rounded().interval(x.shape, dtype)
