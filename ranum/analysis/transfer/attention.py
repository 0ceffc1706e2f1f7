"""Scaled dot product attention, kept whole.

A row of the output is a convex combination of rows of `value` (softmax weights are not
negative and add up to 1), so it stays between their extremes, whatever the logits are. NaN
needs logits that are not finite, or, in some kernels, a row in which every key is masked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import Box, accumulator, largest, sum_error, unknown
from ranum.analysis.transfer.registry import transfer


def _logits(query: Interval, key: Interval, mask: Interval | None, scale: float | None) -> Box:
    """Bounds on q . k scale + mask, one for all."""
    width = query.shape[-1]
    factor = abs(1 / math.sqrt(max(width, 1)) if scale is None else scale)
    q, k = Box.of(query).peak, Box.of(key).peak
    size = q * k * width * (1 + 2 * sum_error(width, accumulator(query.dtype)))
    box = Box.of(query)
    # Some kernels scale the operands first, some the product.
    worst = size * max(factor, 1.0)
    top = math.inf if math.isnan(size) or worst > largest(box.dtype) / 2 else size * factor
    may_nan = math.isinf(top) or query.may_nan or key.may_nan
    logits = box.constant(-top, top).with_nan(may_nan)
    return logits if mask is None or mask.dtype == torch.bool else logits + Box.of(mask).merged()


def logit_unit(dtype: torch.dtype) -> float:
    """Fused kernels keep logits in float32; without MKL, products of half types are rounded."""
    return unit_roundoff(accumulator(dtype) if torch.backends.mkl.is_available() else dtype)


def _may_mask_row(mask: Interval | None) -> bool:
    """True if nothing is left of some row of the mask."""
    if mask is None or mask.is_empty_tensor:
        return False
    kept = mask.lower.amax(-1)
    lost = ~kept if mask.dtype == torch.bool else kept == -math.inf
    return bool(lost.any())


def _attend(
    query: Interval,
    key: Interval,
    value: Interval,
    mask: Interval | None,
    dropout: float,
    scale: float | None,
) -> tuple[Interval, Box]:
    """The output, one bound per feature, and the logits."""
    shape = (*query.shape[:-1], value.shape[-1])
    keys = key.shape[-2]
    logits = _logits(query, key, mask, scale)
    if value.is_empty_tensor or query.is_empty_tensor:
        zero = logits.constant(0.0)
        return zero.interval(shape, query.dtype), logits
    box = Box.of(value, keep=(len(value.shape) - 1,))
    masked = _may_mask_row(mask)
    may_nan = logits.may_nan or masked or logits.high == math.inf or math.isinf(box.peak)
    if masked or dropout > 0 or may_nan:  # kernels give 0 for a row that lost its logits
        box = box.with_zero()
    # Softmax weights are rounded to the operands' dtype before they meet the values.
    slack = (2 * sum_error(keys + 64, box.dtype) + 8 * unit_roundoff(query.dtype)) * box.magnitude
    # Fused kernels divide by the sum of the weights at the end: the sum may overflow.
    if not box.peak * max(keys, 1) < largest(box.dtype) / 2:
        return unknown(shape, query), logits
    box = box.replaced(box.lower - slack, box.upper + slack).with_nan(may_nan)
    if dropout > 0:
        box = box / (1 - dropout) if dropout < 1 else box.with_nan()
    return box.rounded().interval(shape, query.dtype), logits


def _logsumexp(logits: Box, keys: int, shape: Sequence[int], padded: bool = False) -> Interval:
    """Log sum exp over up to `keys` logits; 0 where every key is masked, inf in padding."""
    low, high = min(logits.low, 0.0), max(logits.high + math.log(max(keys, 1)), 0.0)
    box = logits.constant(low, math.inf if padded else high).with_nan(
        logits.may_nan or logits.high == math.inf
    )
    dtype = accumulator(logits.dtype)
    return box.rounded(ulps=64, absolute=sum_error(keys + 64, dtype)).interval(shape, dtype)


def _bytes(x: Interval, shape: Sequence[int] = ()) -> Interval:
    """Seeds and offsets of the dropout generator."""
    limits = torch.iinfo(torch.int64)
    return Interval.full(limits.min, limits.max, shape, torch.int64, x.device)


@transfer("_scaled_dot_product_flash_attention_for_cpu")
def _scaled_dot_product_flash_attention_for_cpu(
    query: Interval,
    key: Interval,
    value: Interval,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    attn_mask: Interval | None = None,
    scale: float | None = None,
) -> tuple[Interval, Interval]:
    """Between the smallest and largest value of each feature; and log sum exp of the logits."""
    out, logits = _attend(query, key, value, attn_mask, dropout_p, scale)
    return out, _logsumexp(logits, key.shape[-2], query.shape[:-1])


@transfer("_scaled_dot_product_flash_attention")
def _scaled_dot_product_flash_attention(
    query: Interval,
    key: Interval,
    value: Interval,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    scale: float | None = None,
) -> tuple[Interval | None, ...]:
    """As on a CPU; the other outputs are sizes and the state of the dropout generator."""
    out, logits = _attend(query, key, value, None, dropout_p, scale)
    lse = _logsumexp(logits, key.shape[-2], query.shape[:-1])
    state = _bytes(query)
    debug = unknown((0,), query)
    return out, lse, None, None, None, None, state, state, debug


@transfer("_scaled_dot_product_efficient_attention")
def _scaled_dot_product_efficient_attention(
    query: Interval,
    key: Interval,
    value: Interval,
    attn_bias: Interval | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Interval, ...]:
    """As on a CPU; log sum exp is padded to a multiple of 32 rows with inf."""
    out, logits = _attend(query, key, value, attn_bias, dropout_p, scale)
    rows = (query.shape[-2] + 31) // 32 * 32 if compute_log_sumexp else 0
    lse = _logsumexp(logits, key.shape[-2], (*query.shape[:-2], rows), padded=True)
    state = _bytes(query)
    return out, lse, state, state


@transfer("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable")
def _scaled_dot_product_cudnn_attention(
    query: Interval,
    key: Interval,
    value: Interval,
    attn_bias: Interval | None = None,
    compute_log_sumexp: bool = True,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    scale: float | None = None,
) -> tuple[Interval | None, ...]:
    """As on a CPU; log sum exp keeps a last dimension of 1."""
    out, logits = _attend(query, key, value, attn_bias, dropout_p, scale)
    lse = _logsumexp(logits, key.shape[-2], (*query.shape[:-1], 1))
    state = _bytes(query)
    return out, lse, None, None, None, None, state, state, unknown((0,), query)


@transfer("_scaled_dot_product_attention_math")
def _scaled_dot_product_attention_math(
    query: Interval,
    key: Interval,
    value: Interval,
    attn_mask: Interval | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    dropout_mask: Interval | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Interval, Interval]:
    """As the fused kernels, with the attention weights as second output."""
    out, logits = _attend(query, key, value, attn_mask, dropout_p, scale)
    top = 1.0 if dropout_p <= 0 else 1 / (1 - dropout_p) if dropout_p < 1 else math.inf
    weights = logits.constant(0.0, top).rounded(16).with_nan(out.may_nan)
    return out, weights.interval((*query.shape[:-1], key.shape[-2]), query.dtype)
