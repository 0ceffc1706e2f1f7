"""Scaled dot product attention on one pair of bounds; see `transfer.attention`."""

from __future__ import annotations

import math

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import largest, sum_error
from ranum.analysis.transfer.attention import logit_unit
from ranum.analysis.transfer.registry import uniform
from ranum.analysis.transfer.uniform._scalar import (
    ANYTHING,
    Bounds,
    Unsure,
    outward,
    pair,
    peak,
    same_dtype,
    tainted,
    with_zero,
    working,
)

Outputs = tuple[Value, ...]


def _logit(query: Interval, key: Interval, scale: float | None) -> tuple[float, float]:
    """Largest |q . k| scale, and the scale."""
    width, dtype = query.shape[-1], working(query)
    factor = abs(1 / math.sqrt(max(width, 1)) if scale is None else scale)
    total = peak(query) * peak(key) * width * (1 + 2 * sum_error(width, dtype))
    if not total * max(factor, 1.0) <= largest(dtype) / 2:
        raise Unsure
    return total * factor, factor


@uniform("_scaled_dot_product_flash_attention_for_cpu", wide=True)
def flash_attention(
    out: Outputs,
    query: Interval,
    key: Interval,
    value: Interval,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    attn_mask: Interval | None = None,
    scale: float | None = None,
) -> list[Bounds]:
    """Between the extremes of `value`; and log sum exp of the logits. No mask, no dropout."""
    if attn_mask is not None or dropout_p > 0:
        raise Unsure
    same_dtype(query, key, value)
    dtype, keys = working(query), key.shape[-2]
    if keys < 1:
        raise Unsure
    try:
        top, _ = _logit(query, key, scale)
        lse = outward(
            (min(-top, 0.0), top + math.log(keys)), dtype, 64, sum_error(keys + 64, dtype)
        )
        lost = tainted(query, key)
    except Unsure:
        lse, lost = ANYTHING[:2], True
    slack = (2 * sum_error(keys + 64, dtype) + 8 * unit_roundoff(query.dtype)) * peak(value)
    result = ANYTHING
    if peak(value) * keys < largest(dtype) / 2:
        low, high = with_zero(pair(value)) if lost else pair(value)
        result = (*outward((low - slack, high + slack), dtype), lost or value.may_nan)
    return [result, (*lse, lost)]


@uniform(
    "_scaled_dot_product_flash_attention_for_cpu_backward", aside=("logsumexp", "out"), wide=True
)
def flash_attention_backward(
    outputs: Outputs,
    grad_out: Interval,
    query: Interval,
    key: Interval,
    value: Interval,
    logsumexp: Interval,
    dropout_p: float,
    is_causal: bool,
    attn_mask: Interval | None = None,
    scale: float | None = None,
    out: Interval | None = None,
) -> list[Bounds]:
    """2 E |grad| |value| |key| scale for the query, and alike. No mask, no dropout."""
    if attn_mask is not None or dropout_p > 0:
        raise Unsure
    anything = [ANYTHING] * 3
    if not all(x.is_finite for x in (grad_out, query, key, value)):
        return anything
    dtype, width, features = working(query), query.shape[-1], value.shape[-1]
    rows, keys = query.shape[-2], key.shape[-2]
    heads = max(query.shape[1] // max(key.shape[1], 1), 1) if len(query.shape) == 4 else 1
    g, q, k, v = (peak(x) for x in (grad_out, query, key, value))
    try:
        top, factor = _logit(query, key, scale)
    except Unsure:
        return anything
    error = sum_error(width + features + rows * heads + keys + 64, dtype)
    error += 64 * unit_roundoff(query.dtype)
    of_logits = sum_error(width + 16, dtype) + 16 * logit_unit(query.dtype)
    exponent = 2 * of_logits * (top + math.log(max(keys, 1)) + 1) + sum_error(keys + 64, dtype)
    if exponent > 80:
        return anything
    weight = math.exp(exponent) * (1 + 4 * error)
    to_logits = 2 * features * g * v * weight
    sizes = (
        to_logits * k * factor * (1 + 4 * error),
        rows * heads * to_logits * q * factor,
        rows * heads * g * weight,
    )
    worst = max(*sizes, to_logits, features * keys * g * v, rows * heads * q * to_logits * 4)
    if not worst < largest(query.dtype) / 4:
        return anything
    return [(*outward((-reach, reach), dtype), False) for reach in sizes]
