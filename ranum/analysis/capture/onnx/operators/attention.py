"""Attention: queries, keys and values [N, heads, T, D]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import check_broadcast, sized
from ranum.analysis.capture.onnx.registry import Call, UnsupportedError, lowering
from ranum.analysis.capture.onnx.values import storage_dtype


def _heads(x: Tensor, count: int | None) -> Tensor:
    """[N, T, heads D] as [N, heads, T, D]; four dimensions stay as they are."""
    if x.dim() == 4:
        return x
    if not count:
        raise UnsupportedError("three dimensions without a number of heads")
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def _allowed(
    steps: int, total: int, offset: Tensor | int, causal: int, left: int, right: int
) -> Tensor | None:
    """Which keys a query may see by its place, [..., T, S]; None if all."""
    if not causal and left < 0 and right < 0:
        return None
    base = torch.as_tensor(offset).reshape(-1, 1, 1, 1)
    query, key = torch.arange(steps).reshape(-1, 1) + base, torch.arange(total)
    allowed = torch.ones(1, dtype=torch.bool)
    if causal:
        allowed = allowed & (key <= query)
    if left >= 0:
        allowed = allowed & (key >= query - left)
    if right >= 0:
        allowed = allowed & (key <= query + right)
    return allowed


@lowering("Attention")
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    call: Call,
) -> tuple[Tensor | None, ...]:
    """softmax(scale q k' + mask) v; a query that may see no key gives zeros."""
    packed = q.dim() == 3
    q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    offset: Tensor | int = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    elif nonpad_kv_seqlen is not None:
        offset = nonpad_kv_seqlen - q.shape[2]
    present = (k, v)
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    steps, total = q.shape[2], k.shape[2]
    sized((*q.shape[:2], steps, total))
    allowed = _allowed(steps, total, offset, is_causal, left_window_size, right_window_size)
    if nonpad_kv_seqlen is not None:
        filled = torch.arange(total) < nonpad_kv_seqlen.reshape(-1, 1, 1, 1)
        allowed = filled if allowed is None else allowed & filled
    bias = None
    if mask is not None:
        if mask.shape[-1] < total:
            fill = False if mask.dtype == torch.bool else -math.inf
            mask = F.pad(mask, [0, total - mask.shape[-1]], value=fill)
        check_broadcast(mask, q[..., :1].expand(-1, -1, -1, total))
        if mask.dtype == torch.bool:
            allowed = mask if allowed is None else allowed & mask
        else:
            bias = mask.to(q.dtype)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    plain = not call.wants(3) and softcap == 0.0 and softmax_precision is None
    if plain and v.dtype == q.dtype:
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=_joined(allowed, bias, q.dtype), scale=factor
        )
        seen = None
    else:
        y, seen = _by_hand(
            q, k, v, _joined(allowed, bias, q.dtype), factor, softcap, qk_matmul_output_mode,
            None if softmax_precision is None else storage_dtype(softmax_precision),
        )  # fmt: skip
    if packed:
        y = y.transpose(1, 2).reshape(y.shape[0], steps, -1)
    return y, *present, seen


def _joined(allowed: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask to add: the bias, and minus infinity where a key may not be seen."""
    if allowed is None:
        return bias
    closed = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -math.inf)
    return closed if bias is None else bias + closed


def _by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    factor: float,
    softcap: float,
    mode: int,
    precision: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Attention, and its scores at one of four stages."""
    if mode not in (0, 1, 2, 3):
        raise UnsupportedError(f"qk_matmul_output_mode {mode}")
    root = math.sqrt(factor) if factor > 0 else 1.0
    scores = torch.matmul(q * root, (k * (factor / root)).transpose(-1, -2))
    stages = [scores]
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    stages.append(scores)
    if mask is not None:
        scores = scores + mask
    stages.append(scores)
    wide = scores if precision is None else scores.to(precision)
    weights = torch.softmax(wide, -1)
    if mask is not None:
        closed = (mask == -math.inf).all(-1, keepdim=True)
        weights = torch.where(closed, torch.zeros((), dtype=weights.dtype), weights)
    weights = weights.to(q.dtype)
    stages.append(weights)
    return torch.matmul(weights.to(v.dtype), v), stages[mode]


@lowering("RotaryEmbedding")
def rotary_embedding(
    x: Tensor,
    cosines: Tensor,
    sines: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Pairs of features turned by an angle that depends on the position."""
    packed = x.dim() == 3
    heads = _heads(x, num_heads)
    size = rotary_embedding_dim or heads.shape[-1]
    turned, rest = heads[..., :size], heads[..., size:]
    if positions is not None:
        cosines, sines = cosines[positions], sines[positions]
    cos, sin = cosines.unsqueeze(1), sines.unsqueeze(1)  # [N, 1, T, size / 2]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., : size // 2], turned[..., size // 2 :]
    real, imaginary = first * cos - second * sin, first * sin + second * cos
    if interleaved:
        joined = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        joined = torch.cat([real, imaginary], -1)
    y = torch.cat([joined, rest], -1) if rest.shape[-1] else joined
    return y.transpose(1, 2).reshape(x.shape) if packed else y
