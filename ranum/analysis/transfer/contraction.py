"""Matrix products and convolutions.

A product sums K terms a_k b_k. With known weights b the centre c and radius r of a give
c b +- r |b|; with two intervals the four corner products are summed. Either is widened by
2 expm1(K u) of the sum of magnitudes, which covers every order of summation, FMA, and our
own rounding (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, section
3.1). Not covered: FFT and Winograd convolutions in half precision, whose transforms lose
more than that in the worst case.

Rows of the left operand are merged unless the product is small: what is kept is the output
feature or channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ranum.analysis.interval import MERGE_ABOVE, Interval
from ranum.analysis.transfer._common import (
    HALF_TYPES,
    Box,
    accumulator,
    broadcast_shapes,
    largest,
    like,
    outward,
    smallest,
    sum_error,
    unknown,
)
from ranum.analysis.transfer.registry import transfer

CHEAP_PRODUCT = 1 << 20
"""Products of bounds with at most this many multiplications keep their rows."""

_SPLITS = 16
"""Partial sums that split-K kernels of half types may round to the half type."""

_INPUT_ROUNDING = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}
"""Relative error per product where float32 operands are rounded first (TF32, bfloat16)."""


def product_error(
    terms: int, dtype: torch.dtype, device: torch.device, conv: bool = False
) -> float:
    """Relative error of a sum of products against the sum of magnitudes, twice over."""
    error = sum_error(terms, accumulator(dtype))
    if dtype in HALF_TYPES:
        error += _SPLITS * torch.finfo(dtype).eps
    elif dtype == torch.float32:
        error += _INPUT_ROUNDING[torch.get_float32_matmul_precision()]
        if conv and device.type == "cuda" and torch.backends.cudnn.allow_tf32:
            error += _INPUT_ROUNDING["high"]
    return 2 * error


class _Sum(NamedTuple):
    """Bounds on sums of products; `overflow` if partial sums may leave the dtype."""

    lower: Tensor
    upper: Tensor
    overflow: bool


# --- the core ------------------------------------------------------------------------------


def _contract(a: Interval, b: Interval) -> _Sum:
    """`[..., N, K] @ [..., K, M]` on bounds; both finite, K > 0."""
    terms = a.shape[-1]
    work = accumulator(a.dtype)
    error = product_error(terms, a.dtype, a.device)
    floor = terms * smallest(work)
    if b.lower is b.upper and b.lower.shape[-2] == terms:
        return _by_weights(a, b.lower.to(work), error, floor)
    if a.lower is a.upper and a.lower.shape[-1] == terms:
        flipped = _by_weights(_flipped(b), a.lower.to(work).mT, error, floor)
        return _Sum(flipped.lower.mT, flipped.upper.mT, flipped.overflow)
    left = Box(a.lower.double().unsqueeze(-1), a.upper.double().unsqueeze(-1), work)
    right = Box(b.lower.double().unsqueeze(-3), b.upper.double().unsqueeze(-3), work)
    product = left * right  # [..., N, K, M]
    repeats = 1 if product.lower.shape[-2] == terms else terms
    size = product.magnitude.sum(-2) * repeats
    slack = error * size + floor
    lower = product.lower.sum(-2) * repeats
    # Rounding takes no more than its share from a sum of terms that are not negative.
    share = error * torch.where((product.lower >= 0).all(-2), lower, size)
    upper = product.upper.sum(-2) * repeats + slack
    return _Sum(lower - share - floor, upper, _exceeds(size, a.dtype))


def _by_weights(a: Interval, weights: Tensor, error: float, floor: float) -> _Sum:
    """Centre and radius against known weights `[..., K, M]`."""
    low, high = a.lower.to(weights.dtype), a.upper.to(weights.dtype)
    centre = low / 2 + high / 2
    size = torch.maximum(low.abs(), high.abs())
    radius = torch.maximum(high - centre, centre - low) + error * size
    if centre.shape[-1] == weights.shape[-2]:
        middle, spread = centre @ weights, radius @ weights.abs()
    else:
        middle = centre * weights.sum(-2, keepdim=True)
        spread = radius * weights.abs().sum(-2, keepdim=True)
    spread = spread + floor
    # The radius holds `error` times the sum of magnitudes, so it bounds that sum.
    overflow = _exceeds(spread / error, a.dtype)
    if overflow and centre.shape[-1] == weights.shape[-2]:
        overflow = _exceeds(size @ weights.abs(), a.dtype)
    elif overflow:
        overflow = _exceeds(size * weights.abs().sum(-2, keepdim=True), a.dtype)
    return _Sum(middle - spread, middle + spread, overflow)


def _exceeds(size: Tensor, dtype: torch.dtype) -> bool:
    """True if sums may pass half the largest number: the other half is left to the addend."""
    return bool((~(size <= largest(dtype) / 2)).any())


def _flipped(x: Interval) -> Interval:
    shape = (*x.shape[:-2], x.shape[-1], x.shape[-2])
    lower = x.lower.mT
    return Interval(lower, lower if x.lower is x.upper else x.upper.mT, shape, x.dtype, x.may_nan)


def _thinned(a: Interval, b: Interval) -> tuple[Interval, Interval]:
    """Rows merged where keeping them would be dear; known operands stay whole."""
    rows, columns = a.lower.shape[-2], b.lower.shape[-1]
    batch = math.prod(broadcast_shapes(a.lower.shape[:-2], b.lower.shape[:-2]))
    inner = max(a.lower.shape[-1], b.lower.shape[-2])
    if batch * rows * inner * columns <= CHEAP_PRODUCT and batch * rows * columns <= MERGE_ABOVE:
        return a, b
    rank = len(a.shape)
    if a.is_point and not b.is_point:
        b = b.merged(keep=(rank - 2,))
        if rank > 2:
            a = a.merged(keep=(rank - 2, rank - 1))
        return a, b
    a = a.merged(keep=(rank - 1,))
    if rank > 2 and not b.is_point:
        b = b.merged(keep=(rank - 2, rank - 1))
    return a, b


def _product(a: Interval, b: Interval) -> tuple[Box, bool]:
    """`a @ b` as a box that contains all rounding, and whether all sums stay finite."""
    shape = (*broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    zero = torch.zeros((1,) * len(shape), dtype=torch.float64, device=a.device)
    if a.shape[-1] == 0 or 0 in shape:
        return Box(zero, zero, accumulator(a.dtype)), True
    if not (a.is_finite and b.is_finite):
        return Box(zero - math.inf, zero + math.inf, accumulator(a.dtype), may_nan=True), False
    total = _contract(*_thinned(a, b))
    if total.overflow:
        return Box(zero - math.inf, zero + math.inf, accumulator(a.dtype), may_nan=True), False
    lower, upper = total.lower.double(), total.upper.double()
    sign = _sign(a) * _sign(b)
    lower = lower.clamp(min=0.0) if sign > 0 else lower
    upper = upper.clamp(max=0.0) if sign < 0 else upper
    return Box(lower, upper, accumulator(a.dtype)), True


def _sign(x: Interval) -> int:
    """1 or -1 if no element has the other sign, else 0. Sums of one sign keep it, rounded."""
    return int(x.low >= 0) - int(x.high <= 0)


def _matrix_product(
    a: Interval,
    b: Interval,
    shape: Sequence[int],
    addend: Interval | None = None,
    beta: float = 1,
    alpha: float = 1,
    squeeze: Sequence[int] = (),
) -> Interval:
    """Beta addend + alpha (a @ b), with `squeeze` dimensions of the product dropped."""
    box, finite = _product(a, b)
    if squeeze:
        box = box.replaced(box.lower.squeeze(tuple(squeeze)), box.upper.squeeze(tuple(squeeze)))
    if alpha != 1:
        box = box * float(alpha)
    if addend is not None and beta != 0:
        extra = Box.of(addend) * float(beta)
        error = product_error(a.shape[-1] + 2, a.dtype, a.device)
        if not finite or not extra.is_finite or extra.peak > largest(a.dtype) / 2:
            return unknown(shape, a)
        # The addend may be the first term of the sum, so every step rounds it too.
        slack = error * extra.magnitude
        box = box + extra.replaced(extra.lower - slack, extra.upper + slack)
    return _limited(box.interval(shape, a.dtype))


def _limited(result: Interval) -> Interval:
    """Without rows, the dimension before the last, if there are too many bounds."""
    if result.lower.numel() <= MERGE_ABOVE or len(result.shape) < 2:
        return result
    return result.merged(keep=(len(result.shape) - 1,))


def _seen(x: Interval, shape: Sequence[int], *dims: int) -> Interval:
    """The interval with dimensions of size 1 put in at `dims`."""
    lower, upper = x.lower, x.upper
    for dim in dims:
        lower, upper = lower.unsqueeze(dim), upper.unsqueeze(dim)
    if x.lower is x.upper:
        upper = lower
    return Interval(lower, upper, tuple(shape), x.dtype, x.may_nan)


# --- matrix products -----------------------------------------------------------------------


@transfer("mm", "bmm")
def mm(x: Interval, mat2: Interval) -> Interval:
    """`[..., N, K] @ [..., K, M]`."""
    return _matrix_product(x, mat2, (*x.shape[:-1], mat2.shape[-1]))


@transfer("addmm")
def addmm(
    x: Interval, mat1: Interval, mat2: Interval, beta: float = 1, alpha: float = 1
) -> Interval:
    """Beta x + alpha mat1 @ mat2; x is not read if beta is 0."""
    shape = (mat1.shape[0], mat2.shape[1])
    return _matrix_product(mat1, mat2, shape, x, beta, alpha)


@transfer("baddbmm")
def baddbmm(
    x: Interval, batch1: Interval, batch2: Interval, beta: float = 1, alpha: float = 1
) -> Interval:
    """Beta x + alpha batch1 @ batch2, per batch; x is not read if beta is 0."""
    shape = (*batch1.shape[:-1], batch2.shape[-1])
    return _matrix_product(batch1, batch2, shape, x, beta, alpha)


@transfer("addbmm")
def addbmm(
    x: Interval, batch1: Interval, batch2: Interval, beta: float = 1, alpha: float = 1
) -> Interval:
    """Beta x + alpha times the sum over the batch of batch1 @ batch2: one long product."""
    # One bound for every batch and inner index: a product with B K terms.
    a = like(0, 0, batch1.shape, x) if batch1.is_empty_tensor else batch1.merged(keep=(1,))
    b = like(0, 0, batch2.shape, x) if batch2.is_empty_tensor else batch2.merged(keep=(2,))
    inner = batch1.shape[0] * batch1.shape[2]
    rows, columns = batch1.shape[1], batch2.shape[2]
    left = Interval(a.lower[0], a.upper[0], (rows, inner), a.dtype, a.may_nan)
    right = Interval(b.lower[0], b.upper[0], (inner, columns), b.dtype, b.may_nan)
    return _matrix_product(left, right, (rows, columns), x, beta, alpha)


@transfer("mv")
def mv(x: Interval, vec: Interval) -> Interval:
    """`[N, K] @ [K]`."""
    column = _seen(vec, (*vec.shape, 1), 1)
    return _matrix_product(x, column, (x.shape[0],), squeeze=(1,))


@transfer("addmv")
def addmv(x: Interval, mat: Interval, vec: Interval, beta: float = 1, alpha: float = 1) -> Interval:
    """Beta x + alpha mat @ vec; x is not read if beta is 0."""
    column = _seen(vec, (*vec.shape, 1), 1)
    return _matrix_product(mat, column, (mat.shape[0],), x, beta, alpha, squeeze=(1,))


@transfer("dot")
def dot(x: Interval, tensor: Interval) -> Interval:
    """`[K] . [K]`."""
    row, column = _seen(x, (1, *x.shape), 0), _seen(tensor, (*tensor.shape, 1), 1)
    return _matrix_product(row, column, (), squeeze=(0, 1))


@transfer("addr")
def addr(
    x: Interval, vec1: Interval, vec2: Interval, beta: float = 1, alpha: float = 1
) -> Interval:
    """Beta x + alpha vec1 outer vec2; x is not read if beta is 0."""
    column, row = _seen(vec1, (*vec1.shape, 1), 1), _seen(vec2, (1, *vec2.shape), 0)
    return _matrix_product(column, row, (vec1.shape[0], vec2.shape[0]), x, beta, alpha)


@transfer("linear")
def linear(input: Interval, weight: Interval, bias: Interval | None = None) -> Interval:
    """Input @ weight^T + bias; rows of all leading dimensions alike."""
    rank = len(input.shape)
    if input.is_empty_tensor:
        input = like(0, 0, input.shape, input)
    rows = input if rank == 2 else input.merged(keep=(rank - 1,))
    lower = rows.lower.reshape(-1, rows.lower.shape[-1])
    upper = lower if rows.lower is rows.upper else rows.upper.reshape(lower.shape)
    flat = (math.prod(input.shape[:-1]), input.shape[-1])
    rows = Interval(lower, upper, flat, input.dtype, input.may_nan)
    result = _matrix_product(rows, _flipped(weight), (flat[0], weight.shape[0]), bias)
    if rank == 2:
        return result
    result = result.merged(keep=(1,))
    shape = (*input.shape[:-1], weight.shape[0])
    return Interval.between(result.lower[0], result.upper[0], shape, result.dtype, result.may_nan)


# --- convolutions --------------------------------------------------------------------------


@transfer("convolution")
def convolution(
    input: Interval,
    weight: Interval,
    bias: Interval | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Interval:
    """One bound per output channel: sum over input channels and taps of w x, plus bias.

    Padding reads zeros, and a transposed convolution reaches some outputs by a part of its
    taps only: both join 0 to the input.
    """
    spatial = len(input.shape) - 2
    kernel = weight.shape[2:]
    sizes = []
    for d in range(spatial):
        size, k = input.shape[2 + d], kernel[d]
        s, p, dil = (_at(item, d) for item in (stride, padding, dilation))
        if transposed:
            sizes.append((size - 1) * s - 2 * p + dil * (k - 1) + _at(output_padding, d) + 1)
        else:
            sizes.append((size + 2 * p - dil * (k - 1) - 1) // s + 1)
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    shape = (input.shape[0], channels, *sizes)
    partial = transposed or any(padding)
    box = per_channel(input, weight, groups, transposed=transposed, partial=partial)
    if bias is not None:
        extra = Box.of(bias)
        extra = extra.replaced(extra.lower.reshape(1, -1), extra.upper.reshape(1, -1))
        error = product_error(math.prod(weight.shape), input.dtype, weight.device)
        if box.may_nan or not extra.is_finite or extra.peak > largest(input.dtype) / 2:
            return unknown(shape, input)
        slack = min(error, 1.0) * extra.magnitude
        box = box + extra.replaced(extra.lower - slack, extra.upper + slack)
    layout = (1, -1, *(1,) * spatial)
    lower, upper = box.lower.reshape(layout), box.upper.reshape(layout)
    return outward(lower, upper, shape, input.dtype, box.may_nan)


def _at(values: Sequence[int], index: int) -> int:
    return values[index] if len(values) > 1 else values[0]


def per_channel(
    input: Interval, weight: Interval, groups: int, *, transposed: bool, partial: bool
) -> Box:
    """Bounds `[1, channels]` of a convolution's sums, one for all positions.

    Args:
        input: `[N, C, ...]`.
        weight: `[O, C / groups, ...]`, or `[C, O / groups, ...]` if transposed.
        groups: Number of channel groups.
        transposed: Which of the two layouts `weight` has.
        partial: True if some positions miss some taps.
    """
    dtype = accumulator(input.dtype)
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    terms = math.prod(weight.shape) // max(channels, 1)
    zero = torch.zeros((1, max(channels, 1)), dtype=torch.float64, device=weight.device)
    if terms == 0 or input.is_empty_tensor or weight.is_empty_tensor:
        return Box(zero, zero, dtype)
    top = Box(zero - math.inf, zero + math.inf, dtype, may_nan=True)
    if not (input.is_finite and weight.is_finite):
        return top
    x = input.merged(keep=(1,))
    low, high = x.lower.to(dtype), x.upper.to(dtype)
    if partial:
        low, high = low.clamp(max=0), high.clamp(min=0)
    # [groups, 1, channels per group], or size 1 where merged
    view = (groups, 1, -1) if low.shape[1] > 1 else (1, 1, 1)
    low, high = low.reshape(view), high.reshape(view)
    error = product_error(terms, input.dtype, weight.device, conv=True)
    known = weight.lower is weight.upper and weight.lower.shape == weight.shape
    if known:
        taps = _grouped(weight.lower.to(dtype), groups, transposed)
        sums, sizes = taps.sum(-1), taps.abs().sum(-1)
        centre = low / 2 + high / 2
        size = torch.maximum(low.abs(), high.abs())
        radius = torch.maximum(high - centre, centre - low) + error * size
        middle = (centre * sums).sum(-1)
        spread = (radius * sizes).sum(-1) + terms * smallest(dtype)
        overflow = _exceeds((size * sizes).sum(-1), input.dtype)
        lower, upper = middle - spread, middle + spread
    else:
        merged = all(n == 1 for n in weight.lower.shape[2:])
        repeats = math.prod(weight.shape[2:]) if merged else 1
        layout = weight.lower.shape[2:] if merged else weight.shape[2:]
        layout = (*weight.shape[:2], *layout)
        if weight.is_uniform and low.numel() == 1:  # one product stands for all
            layout, groups, repeats = tuple(weight.lower.shape), 1, terms
        taps_low, taps_high = (
            _grouped(bound.double().expand(layout), groups, transposed)
            for bound in (weight.lower, weight.upper)
        )
        x_box = Box(low.double().unsqueeze(-1), high.double().unsqueeze(-1), dtype)
        product = x_box * Box(taps_low, taps_high, dtype)
        magnitude = product.magnitude.sum((-2, -1)) * repeats
        slack = error * magnitude + terms * smallest(dtype)
        lower = product.lower.sum((-2, -1)) * repeats - slack
        upper = product.upper.sum((-2, -1)) * repeats + slack
        overflow = _exceeds(magnitude, input.dtype)
    if overflow:
        return top
    lower, upper = lower.double().reshape(1, -1), upper.double().reshape(1, -1)
    return Box(lower, upper, dtype)


def _grouped(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """Weights as `[groups, outputs per group, inputs per group, taps]`."""
    if transposed:
        taps = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return taps.transpose(1, 2)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
