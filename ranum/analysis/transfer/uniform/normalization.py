"""Normalisation layers and softmax on one pair of bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import largest, smallest, sum_error
from ranum.analysis.transfer.backward.normalization import norm_gradients
from ranum.analysis.transfer.normalization import normalized
from ranum.analysis.transfer.registry import uniform
from ranum.analysis.transfer.uniform._scalar import (
    ANYTHING,
    Bounds,
    Pair,
    Unsure,
    average,
    averaged,
    chosen,
    count,
    outward,
    pair,
    peak,
    product,
    settled,
    size,
    times,
    with_zero,
    working,
)

Outputs = tuple[Value, ...]

_GAP = 700.0
"""exp of anything larger overflows float64."""


def _layer(
    x: Interval,
    weight: Interval | None,
    bias: Interval | None,
    terms: int,
    eps: float,
    unit: float,
) -> list[Pair | Bounds]:
    """Z weight + bias, the mean, and 1 / sqrt(var + eps)."""
    dtype = working(x)
    if terms < 1:
        raise Unsure
    reach, least, root, lost = normalized(x.low, x.high, dtype, terms, eps, peak(weight), unit)
    if lost:
        rstd = settled((least, root), dtype, 16 * unit / unit_roundoff(dtype))
        fits = peak(x) < math.sqrt(largest(dtype) / terms) / 4
        mean = averaged(pair(x), terms, dtype, 24) if fits else ANYTHING
        return [ANYTHING, mean, (*rstd, True)]
    result = (-reach, reach)
    if weight is not None:
        result = outward(product(result, pair(weight)), dtype)
    if bias is not None:
        result = outward((result[0] + bias.low, result[1] + bias.high), dtype)
    rstd = outward((least, root), dtype, 16 * unit / unit_roundoff(dtype))
    return [result, average(pair(x), terms, dtype, 24), rstd]


@uniform("native_layer_norm", fragile=True, wide=True)
def native_layer_norm(
    out: Outputs,
    input: Interval,
    normalized_shape: Sequence[int],
    weight: Interval | None,
    bias: Interval | None,
    eps: float,
) -> list[Pair | Bounds]:
    """See `transfer.normalization`."""
    terms = math.prod(normalized_shape)
    return _layer(input, weight, bias, terms, eps, unit_roundoff(working(input)))


@uniform("native_group_norm", fragile=True, wide=True)
def native_group_norm(
    out: Outputs,
    input: Interval,
    weight: Interval | None,
    bias: Interval | None,
    N: int,  # noqa: N803 - the schema's own names
    C: int,  # noqa: N803
    HxW: int,  # noqa: N803
    group: int,
    eps: float,
) -> list[Pair | Bounds]:
    """Like layer_norm over the C / group channels and HxW positions of each group."""
    terms = C // group * HxW
    return _layer(input, weight, bias, terms, eps, unit_roundoff(working(input)))


@uniform(
    "native_batch_norm",
    "_native_batch_norm_legit",
    aside=("running_mean", "running_var"),
    fragile=True,
    wide=True,
)
def native_batch_norm(
    out: Outputs,
    input: Interval,
    weight: Interval | None,
    bias: Interval | None,
    running_mean: Interval | None = None,
    running_var: Interval | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[Pair | Bounds]:
    """In training; evaluation is left to the transfer function."""
    if not training:
        raise Unsure
    terms = count(input) // max(input.shape[1], 1)
    statistics = next((p.dtype for p in (weight, running_mean) if p is not None), input.dtype)
    return _layer(input, weight, bias, terms, eps, unit_roundoff(statistics))


# --- softmax -------------------------------------------------------------------------------


def _share(gap: float, others: int) -> float:
    """1 / (1 + n e^gap)."""
    return 1 / (1 + others * math.exp(gap)) if gap < _GAP else 0.0


@uniform("_safe_softmax", masks=True, wide=True)
def safe_softmax(out: Outputs, x: Interval, dim: int, **_: Any) -> Pair | Bounds:
    """As softmax, but 0 in a row of nothing but -inf."""
    if not x.high - x.low < math.inf:
        return 0.0, 1 + 4 * unit_roundoff(working(x)), x.may_nan or x.high == math.inf
    return softmax(out, x, dim)


@uniform("_softmax", wide=True)
def softmax(out: Outputs, x: Interval, dim: int, **_: Any) -> Pair | Bounds:
    """Between the shares of a least and of a largest logit among opposite ones."""
    dtype = working(x)
    if not x.high - x.low < math.inf:
        return 0.0, 1 + 4 * unit_roundoff(dtype), True
    classes = x.shape[dim] if x.shape else 1
    gap = x.high - x.low
    low, high = _share(gap, classes - 1), _share(-gap, classes - 1)
    tiny, unit = smallest(dtype), unit_roundoff(dtype)
    limit = -math.log(tiny) + 2 * math.log(classes + 1)
    error = 2 * sum_error(classes + 64, dtype) + 4 * unit * min(gap, 2 * limit)
    if dtype is not x.dtype:
        error += 4 * unit_roundoff(x.dtype)
    low, high = low * (1 - error) - tiny, high * (1 + error) + tiny
    return max(low, 0.0), high if high < 1 else 1 + 4 * unit


@uniform("_log_softmax", spreads=True, wide=True)
def log_softmax(out: Outputs, x: Interval, dim: int, **_: Any) -> Pair | Bounds:
    """Between minus the gap minus log n, and 0 up to rounding, however large x is."""
    dtype = working(x)
    classes = x.shape[dim] if x.shape else 1
    gap = x.high - x.low
    rounding = 2 * sum_error(classes + 32, dtype)
    if dtype is not x.dtype:
        rounding += 4 * unit_roundoff(x.dtype)
    most = 16 * unit_roundoff(dtype) * (math.log(classes) + 1) + rounding
    if not gap < math.inf:
        return -math.inf, settled((0.0, most), dtype)[1], True
    low = -gap - math.log(classes)
    high = -math.log1p((classes - 1) * math.exp(max(-gap, -_GAP)))
    largest_logit = size(pair(x)) + math.log(classes) + 1
    slack = 16 * unit_roundoff(dtype) * (largest_logit + abs(low))
    slack += rounding
    return settled((low - slack, min(high + slack, most)), dtype)


@uniform("_softmax_backward_data", spreads=True)
def softmax_backward(
    out: Outputs, grad_output: Interval, output: Interval, dim: int, input_dtype: torch.dtype
) -> Pair:
    """Y (grad - sum grad y); see the transfer function."""
    dtype, y, grad = working(grad_output), pair(output), pair(grad_output)
    classes = grad_output.shape[dim] if grad_output.shape else 1
    unit = unit_roundoff(output.dtype)
    if y[0] < 0 or y[1] > 1.001 + 4 * unit:  # no softmax
        raise Unsure
    error = 2 * sum_error(classes, dtype) + 8 * unit * min(classes, 2) + classes * unit
    weighted = product(with_zero(grad), (1.0 - error if error < 1 else 0.0, 1.0 + error))
    weighted = with_zero((min(weighted[0], grad[0]), max(weighted[1], grad[1])))
    difference = outward((grad[0] - weighted[1], grad[1] - weighted[0]), dtype)
    low, high = outward(product(y, difference), dtype)
    slack = 32 * unit_roundoff(dtype) * size(y) * (size(grad) + size(weighted))
    return outward((low - slack, high + slack), dtype, 16)


@uniform("_log_softmax_backward_data", spreads=True)
def log_softmax_backward(
    out: Outputs, grad_output: Interval, output: Interval, dim: int, input_dtype: torch.dtype
) -> Pair:
    """Grad - exp(output) sum grad, for an output that exceeds 0 by rounding alone."""
    dtype = working(grad_output)
    slack = 16 * unit_roundoff(output.dtype) * max(1.0, abs(output.low))
    low, high = min(output.low, slack), min(output.high, slack)
    if not high < _GAP:
        raise Unsure
    share = outward((math.exp(max(low, -_GAP)) if low > -_GAP else 0.0, math.exp(high)), dtype, 64)
    classes = grad_output.shape[dim] if grad_output.shape else 1
    total = times(pair(grad_output), classes, dtype)
    taken = outward(product(share, total), dtype)
    return outward((grad_output.low - taken[1], grad_output.high - taken[0]), dtype, 16)


# --- gradients of layers -------------------------------------------------------------------


def _gradients(
    grad: Interval,
    x: Interval,
    rstd: Interval,
    weight: Interval | None,
    terms: int,
    samples: int,
    *,
    expanded: bool,
) -> Sequence[Pair | Bounds]:
    dtype = working(grad)
    sizes = norm_gradients(
        peak(grad), peak(x), peak(rstd), peak(weight), dtype, terms, samples, expanded=expanded
    )
    if sizes is None:
        return [ANYTHING] * 3
    to_x, to_weight = (outward((-reach, reach), dtype) for reach in sizes)
    return [to_x, to_weight, times(pair(grad), samples, dtype)]


@uniform("native_layer_norm_backward", aside=("mean", "bias"), fragile=True, wide=True)
def native_layer_norm_backward(
    out: Outputs,
    grad_out: Interval,
    input: Interval,
    normalized_shape: Sequence[int],
    mean: Interval,
    rstd: Interval,
    weight: Interval | None,
    bias: Interval | None,
    output_mask: Sequence[bool],
) -> list[Pair | Bounds | None]:
    """At most rstd |grad weight| (2 + sqrt(n)), plus rounding; sums over rows for the rest."""
    terms = math.prod(normalized_shape)
    samples = count(input) // max(terms, 1)
    pairs = _gradients(grad_out, input, rstd, weight, terms, samples, expanded=True)
    return chosen(pairs, output_mask)


@uniform(
    "native_batch_norm_backward",
    aside=("running_mean", "running_var", "save_mean"),
    fragile=True,
    wide=True,
)
def native_batch_norm_backward(
    out: Outputs,
    grad_out: Interval,
    input: Interval,
    weight: Interval | None,
    running_mean: Interval | None,
    running_var: Interval | None,
    save_mean: Interval | None,
    save_invstd: Interval | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> list[Pair | Bounds | None]:
    """In training; evaluation is left to the transfer function."""
    if not train or save_invstd is None:
        raise Unsure
    terms = count(input) // max(input.shape[1], 1)
    pairs = _gradients(grad_out, input, save_invstd, weight, terms, terms, expanded=False)
    return chosen(pairs, output_mask)
