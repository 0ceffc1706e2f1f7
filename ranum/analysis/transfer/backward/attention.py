"""Gradients of scaled dot product attention."""

from __future__ import annotations

import math
from typing import Any

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import Box, largest, sum_error
from ranum.analysis.transfer.attention import _logits, logit_unit
from ranum.analysis.transfer.backward._common import Mask
from ranum.analysis.transfer.registry import transfer


def _attention_backward(
    grad_out: Interval,
    query: Interval,
    key: Interval,
    value: Interval,
    mask: Interval | None,
    dropout: float,
    scale: float | None,
) -> tuple[Interval, Interval, Interval, Box]:
    """Gradients for query, key and value, and the one for the logits.

    With P = softmax(q k scale), |P| <= 1 and rows adding up to 1: |dV| <= L |dO|; dP = dO V
    and dS = P (dP - sum P dP) are at most 2 E |dO| |V|; dQ = dS K scale adds up at most
    |dS| |K| scale, and dK at most L times |dS| |Q| scale. P is made again from log sum exp,
    so an error of the logits multiplies it by exp(error).
    """
    width, features = query.shape[-1], value.shape[-1]
    rows, keys = query.shape[-2], key.shape[-2]
    heads = max(query.shape[1] // max(key.shape[1], 1), 1) if len(query.shape) == 4 else 1
    factor = abs(1 / math.sqrt(max(width, 1)) if scale is None else scale)
    keep = 1 / (1 - dropout) if dropout < 1 else math.inf
    g, q, k, v = (Box.of(x).peak for x in (grad_out, query, key, value))
    logits = _logits(query, key, mask, scale)
    finite = all(x.is_finite for x in (grad_out, query, key, value))
    unit = unit_roundoff(query.dtype)
    terms = width + features + rows * heads + keys
    error = sum_error(terms + 64, logits.dtype) + 64 * unit
    logit_error = sum_error(width + 16, logits.dtype) + 16 * logit_unit(query.dtype)
    size = max(abs(logits.high), 0.0 if math.isinf(logits.low) else abs(logits.low))
    exponent = 2 * logit_error * (size + math.log(max(keys, 1)) + 1)  # then and now
    exponent += sum_error(keys + 64, logits.dtype)  # of log sum exp
    if not finite or logits.may_nan or exponent > 80:
        top = logits.constant(-math.inf, math.inf).with_nan()
        boxes = (top, top, top, top)
    else:
        weight = math.exp(exponent) * (1 + 4 * error)
        to_logits = 2 * features * g * v * weight * keep
        to_query = to_logits * k * factor * (1 + 4 * error)
        to_key = rows * heads * to_logits * q * factor
        to_value = rows * heads * g * weight * keep
        sizes = (to_query, to_key, to_value, to_logits)
        boxes = tuple(logits.constant(-s, s).rounded() for s in sizes)  # type: ignore[assignment]
        worst = max(*sizes, features * keys * g * v, rows * heads * q * to_logits * 4)
        if not worst < largest(query.dtype) / 4:
            boxes = tuple(  # type: ignore[assignment]
                logits.constant(-math.inf, math.inf).with_nan() for _ in range(4)
            )
    return (
        boxes[0].interval(query.shape, query.dtype),
        boxes[1].interval(key.shape, key.dtype),
        boxes[2].interval(value.shape, value.dtype),
        boxes[3],
    )


@transfer(
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_cudnn_attention_backward",
    phase="backward",
)
def fused_attention_backward(
    grad_out: Interval,
    query: Interval,
    key: Interval,
    value: Interval,
    dropout_p: float,
    attn_mask: Interval | None = None,
    attn_bias: Interval | None = None,
    scale: float | None = None,
    **_: Any,
) -> tuple[Interval, ...]:
    """2 E |grad| |value| |key| scale for the query, and alike; `_attention_backward` says why.

    What else the operators get, the forward's results and the state of the dropout generator,
    narrows nothing.
    """
    mask = attn_bias if attn_mask is None else attn_mask
    return _attention_backward(grad_out, query, key, value, mask, dropout_p, scale)[:3]


@transfer("_scaled_dot_product_efficient_attention_backward", phase="backward")
def efficient_attention_backward(
    grad_out_: Interval,
    query: Interval,
    key: Interval,
    value: Interval,
    attn_bias: Interval | None,
    dropout_p: float,
    grad_input_mask: Mask,
    scale: float | None = None,
    **_: Any,
) -> tuple[Interval | None, ...]:
    """As the other fused ones, with the gradient of the bias: that of the logits."""
    *three, logits = _attention_backward(grad_out_, query, key, value, attn_bias, dropout_p, scale)
    bias = None
    if attn_bias is not None:
        copies = math.prod(query.shape[:-1]) * key.shape[-2] // max(math.prod(attn_bias.shape), 1)
        bias = logits.times(max(copies, 1)).interval(attn_bias.shape, attn_bias.dtype)
    wanted = zip((*three, bias), grad_input_mask, strict=True)
    return tuple(result if flag else None for result, flag in wanted)
