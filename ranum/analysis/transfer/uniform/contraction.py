"""Matrix products and convolutions of one pair of bounds, or of one pair and known weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import largest, smallest
from ranum.analysis.transfer.contraction import product_error
from ranum.analysis.transfer.registry import uniform
from ranum.analysis.transfer.uniform._scalar import (
    ANYTHING,
    Bounds,
    Lost,
    Pair,
    Unsure,
    count,
    outward,
    pair,
    product,
    same_dtype,
    settled,
    size,
    summed,
    with_zero,
    working,
)

Outputs = tuple[Value, ...]

_LOST = 0.51
"""Share of the largest number from which on the transfer function gives up on a sum."""


def _summed(a: Pair, b: Interval, terms: int, sums: Sequence[int], conv: bool = False) -> Pair:
    """Bounds on sums of `terms` products of a number in `a` with elements of b.

    Args:
        a: Bounds of one factor.
        b: The other factor; if it is known, its sums over the dimensions `sums` are used.
        terms: Length of the sums.
        sums: Dimensions of b that are summed over.
        conv: True for a convolution, which may compute in TF32.
    """
    if terms <= 0 or 0 in b.shape:
        raise Unsure
    dtype = working(b)
    error = product_error(terms, b.dtype, b.device, conv=conv)
    floor = terms * smallest(dtype)
    if b.is_uniform or not b.is_point:
        corners = product(a, pair(b))
        if size(corners) * terms > _LOST * largest(b.dtype):
            raise Lost
        low, high = outward(corners, dtype)
        worst = size((low, high)) * terms
        least, most = low * terms, high * terms
    else:
        total = b.lower.sum(tuple(sums), dtype=dtype)
        magnitude = b.lower.abs().sum(tuple(sums), dtype=dtype)
        centre, radius = (a[0] + a[1]) / 2, (a[1] - a[0]) / 2
        middle, spread = total * centre, magnitude * radius
        worst = float(magnitude.max()) * size(a)
        least, most = float((middle - spread).min()), float((middle + spread).max())
    if worst > _LOST * largest(b.dtype):
        raise Lost
    if not worst * (1 + error) <= largest(b.dtype) / 2:
        raise Unsure
    lower, upper = outward((least - error * worst - floor, most + error * worst + floor), dtype)
    # Sums of terms that are not negative are not either. Convolutions may transform first.
    return (max(lower, 0.0) if not conv and a[0] >= 0 and b.low >= 0 else lower), upper


def _plus(total: Pair, addend: Interval | None, terms: int, conv: bool = False) -> Pair:
    """The addend may be the first term of the sum, so every step rounds it too."""
    if addend is None:
        return total
    extra, dtype = pair(addend), working(addend)
    if size(extra) > largest(addend.dtype) / 2:
        raise Unsure
    error = min(product_error(terms + 2, addend.dtype, addend.device, conv=conv), 1.0)
    slack = error * size(extra)
    return outward((total[0] + extra[0] - slack, total[1] + extra[1] + slack), dtype)


def _matrices(a: Interval, b: Interval) -> Pair:
    """`[..., N, K] @ [..., K, M]`; one of them may be known in full."""
    same_dtype(a, b)
    terms = a.shape[-1]
    if a.is_point and not a.is_uniform:
        return _summed(pair(b), a, terms, (-1,))
    return _summed(pair(a), b, terms, (-2,))


@uniform("mm", "bmm", exact=("x", "mat2"), fragile=True)
def mm(out: Outputs, x: Interval, mat2: Interval) -> Pair:
    """`[..., N, K] @ [..., K, M]`."""
    return _matrices(x, mat2)


@uniform("mv", exact=("x", "vec"), fragile=True)
def mv(out: Outputs, x: Interval, vec: Interval) -> Pair:
    """`[N, K] @ [K]`."""
    same_dtype(x, vec)
    if x.is_point and not x.is_uniform:
        return _summed(pair(vec), x, x.shape[-1], (-1,))
    return _summed(pair(x), vec, x.shape[-1], (-1,))


@uniform("dot", exact=("x", "tensor"), fragile=True)
def dot(out: Outputs, x: Interval, tensor: Interval) -> Pair:
    """`[K] . [K]`."""
    return mv(out, x, tensor)


@uniform("addmm", exact=("mat1", "mat2"), fragile=True)
def addmm(
    out: Outputs, x: Interval, mat1: Interval, mat2: Interval, beta: float = 1, alpha: float = 1
) -> Pair:
    """`x + mat1 @ mat2`."""
    if (alpha, beta) != (1, 1):
        raise Unsure
    same_dtype(x, mat1)
    return _plus(_matrices(mat1, mat2), x, mat1.shape[-1])


@uniform("baddbmm", exact=("batch1", "batch2"), fragile=True)
def baddbmm(
    out: Outputs, x: Interval, batch1: Interval, batch2: Interval, beta: float = 1, alpha: float = 1
) -> Pair:
    """`x + batch1 @ batch2`."""
    return addmm(out, x, batch1, batch2, beta, alpha)


@uniform("linear", exact=("weight",), fragile=True)
def linear(out: Outputs, input: Interval, weight: Interval, bias: Interval | None = None) -> Pair:
    """`input @ weight^T + bias`."""
    same_dtype(input, weight, bias)
    terms = input.shape[-1]
    return _plus(_summed(pair(input), weight, terms, (-1,)), bias, terms)


def _channels(a: Pair, weight: Interval, groups: int, *, transposed: bool, partial: bool) -> Pair:
    """Sums over the input channels of a group and all taps; see `contraction.per_channel`."""
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    terms = count(weight) // max(channels, 1)
    a = with_zero(a) if partial else a
    taps = tuple(range(2, len(weight.shape)))
    if transposed and groups > 1:
        weight = weight.merged()
    return _summed(a, weight, terms, (0 if transposed else 1, *taps), conv=True)


@uniform("convolution", exact=("weight",), fragile=True)
def convolution(
    out: Outputs,
    input: Interval,
    weight: Interval,
    bias: Interval | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Pair:
    """Padding, and the border of a transposed convolution, join 0 to the input."""
    same_dtype(input, weight, bias)
    partial = transposed or any(padding)
    total = _channels(pair(input), weight, groups, transposed=transposed, partial=partial)
    return _plus(total, bias, count(weight), conv=True)


@uniform("convolution_backward", wide=True)
def convolution_backward(
    out: Outputs,
    grad_output: Interval,
    input: Interval,
    weight: Interval,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> list[Bounds | None]:
    """The convolution run backwards, and sums over batch and positions."""
    dtype = working(input)
    same_dtype(grad_output, input, weight)
    grad = pair(grad_output)
    results: list[Bounds | None] = [None, None, None]
    outputs = count(grad_output) // max(grad_output.shape[1], 1)
    if output_mask[0]:
        results[0] = ANYTHING
        if grad_output.is_finite and weight.is_finite:
            with suppress(Lost):
                back = _channels(grad, weight, groups, transposed=not transposed, partial=True)
                results[0] = (*back, False)
    if output_mask[1]:
        results[1] = ANYTHING
        terms = min(outputs, count(input) // max(input.shape[1], 1))
        if grad_output.is_finite and input.is_finite:
            one = with_zero(settled(product(grad, pair(input)), dtype))
            low, high, _ = summed(one, terms, dtype)
            slack = product_error(terms, input.dtype, input.device, conv=True) * terms * size(one)
            if high - low < math.inf:
                results[1] = (*settled((low - slack, high + slack), dtype), False)
    if output_mask[2]:
        low, high, lost = summed(grad, outputs, dtype)
        results[2] = (low, high, lost or grad_output.may_nan)
    return results
