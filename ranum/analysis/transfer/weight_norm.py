"""Weights as a direction and a length: w = g v / |v|."""

from __future__ import annotations

import math

import torch

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import Box, accumulator, largest, smallest, sum_error
from ranum.analysis.transfer.norms import linalg_vector_norm
from ranum.analysis.transfer.registry import transfer


def _kept(v: Interval, dim: int) -> int:
    return dim % len(v.shape)


@transfer("_weight_norm_interface")
def _weight_norm_interface(v: Interval, g: Interval, dim: int = 0) -> tuple[Interval, Interval]:
    """G v / |v|, with one norm |v| for each index along `dim`: at most |g|, NaN for v = 0."""
    rank, keep = len(v.shape), _kept(v, dim)
    others = [d for d in range(rank) if d != keep]
    stats = tuple(n if d == keep else 1 for d, n in enumerate(v.shape))
    dtype = accumulator(v.dtype) if v.dtype in (torch.float16, torch.bfloat16) else v.dtype
    wide = Interval(v.lower.to(dtype), v.upper.to(dtype), v.shape, dtype, v.may_nan)
    norms = (
        linalg_vector_norm(wide, 2, others, keepdim=True)
        if others
        else Interval(wide.lower.abs(), wide.upper.abs(), v.shape, dtype, v.may_nan)
    )
    if not others and not wide.lower.equal(wide.upper):
        size = Box.of(wide).abs()
        norms = size.interval(v.shape, dtype)
    terms = math.prod(v.shape) // max(v.shape[keep], 1)
    out = Box.of(v) * (Box.of(g) / Box.of(norms))
    if norms.low > smallest(dtype) ** 0.5 and v.is_finite and g.is_finite:
        slack = 1 + 4 * sum_error(terms, dtype) + 8 * unit_roundoff(dtype)
        reach = Box.of(g).magnitude * slack
        out = out.replaced(out.lower.clamp(min=-reach), out.upper.clamp(max=reach))
    return out.interval(v.shape, v.dtype), Interval.between(
        norms.lower, norms.upper, stats, dtype, norms.may_nan
    )


@transfer("_weight_norm_interface_backward", phase="backward")
def _weight_norm_interface_backward(
    grad_w: Interval, saved_v: Interval, saved_g: Interval, saved_norms: Interval, dim: int
) -> tuple[Interval, Interval]:
    """G / |v| (dw - u (u . dw)) for v and u . dw for g, u = v / |v| the unit direction."""
    keep = _kept(saved_v, dim)
    terms = math.prod(saved_v.shape) // max(saved_v.shape[keep], 1)
    upstream, lengths, norms = Box.of(grad_w), Box.of(saved_g), Box.of(saved_norms)
    slack = 1 + 8 * sum_error(terms + 8, norms.dtype) + 16 * unit_roundoff(grad_w.dtype)
    along = 2 * math.sqrt(max(terms, 1)) * upstream.peak * slack
    across = lengths.peak * (upstream.peak + along) * slack
    lost = norms.low <= smallest(norms.dtype) ** 0.5
    finite = upstream.is_finite and lengths.is_finite and norms.is_finite and saved_v.is_finite
    across = math.inf if lost or not finite else across / norms.low
    limit = largest(norms.dtype) / max(terms, 1) / 4
    top = upstream.constant(-math.inf, math.inf).with_nan()
    products = terms * upstream.peak * Box.of(saved_v).peak
    boxes = [
        upstream.constant(-size, size).rounded() if size < limit and products < limit else top
        for size in (across, along if not lost and finite else math.inf)
    ]
    return (
        boxes[0].interval(saved_v.shape, saved_v.dtype),
        boxes[1].interval(saved_g.shape, saved_g.dtype),
    )
