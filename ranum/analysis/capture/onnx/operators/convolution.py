"""Convolutions: [N, C, ...] with kernels [C_out, C_in / groups, ...]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import (
    filled,
    ints,
    sized,
    spatial_pads,
    torch_pads,
)
from ranum.analysis.capture.onnx.registry import UnsupportedError, lowering


def convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """A convolution in any number of dimensions."""
    rank = x.dim() - 2
    step, spread = filled(rank, strides), filled(rank, dilations)
    kernel = list(weight.shape[2:])
    before, after = spatial_pads(auto_pad, pads, x.shape[2:], kernel, step, spread)
    outside = list(before)
    if before != after:
        sized([*x.shape[:2], *(n + a + b for n, a, b in zip(x.shape[2:], before, after))])  # noqa: B905
        x, outside = F.pad(x, torch_pads(before, after)), [0] * rank
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x.shape[2:], outside, spread, kernel, step, strict=True)
    ]
    sized([x.shape[0], weight.shape[0], *[max(n, 0) for n in out]])
    return torch.convolution(x, weight, bias, step, outside, spread, False, [0] * rank, group)


@lowering("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Sums of products under a moving kernel."""
    return convolved(
        x, weight, bias, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads,
        strides=strides,
    )  # fmt: skip


@lowering("ConvTranspose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The transpose of a convolution; kernels are [C_in, C_out / groups, ...]."""
    rank = x.dim() - 2
    step, spread = filled(rank, strides), filled(rank, dilations)
    extra = filled(rank, output_padding, 0)
    reach = [d * (k - 1) + 1 for d, k in zip(spread, weight.shape[2:], strict=True)]
    whole = [
        s * (n - 1) + e + r for s, n, e, r in zip(step, x.shape[2:], extra, reach, strict=True)
    ]
    sized([x.shape[0], weight.shape[1] * group, *whole])
    wanted = list(output_shape) if output_shape else None
    if wanted is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(x.shape[2:], step, strict=True)]
    if wanted is not None:
        sized([x.shape[0], weight.shape[1] * group, *wanted])
        cut = [have - want for have, want in zip(whole, wanted, strict=True)]
        half = [n // 2 for n in cut]
        rest = [n - n // 2 for n in cut]
        # What cannot be halved goes to the end for SAME_UPPER and to the start otherwise.
        before, after = (half, rest) if auto_pad == "SAME_UPPER" else (rest, half)
    else:
        before, after = spatial_pads(
            "NOTSET" if auto_pad == "NOTSET" else "VALID", pads, x.shape[2:], reach, step, spread
        )
    if before == after and min(before, default=0) >= 0:
        return torch.convolution(x, weight, bias, step, before, spread, True, extra, group)
    # torch wants less extra than the stride or the dilation: none here, it is padding below.
    full = torch.convolution(x, weight, bias, step, [0] * rank, spread, True, [0] * rank, group)
    ends = [e - a for e, a in zip(extra, after, strict=True)]
    starts = [-b for b in before]
    if bias is not None and any(n > 0 for n in (*starts, *ends)):
        raise UnsupportedError("padding that grows the output of a transposed convolution")
    return F.pad(full, torch_pads(starts, ends))


@lowering("Col2Im")
def col2im(
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Columns of blocks, [N, C * block, L], summed up where they overlap."""
    image, block = ints(image_shape), ints(block_shape)
    rank = len(image)
    step, spread = filled(rank, strides), filled(rank, dilations)
    given = filled(2 * rank, pads, 0)
    before, after = given[:rank], given[rank:]
    if rank == 2 and before == after:
        sized([x.shape[0], x.shape[1], *image])
        return F.fold(x, (*image,), (*block,), (*spread,), (*before,), (*step,))
    channels = x.shape[1] // math.prod(block)
    padded = [n + a + b for n, a, b in zip(image, before, after, strict=True)]
    sized([x.shape[0], channels, *padded])
    places = _block_places(padded, block, step, spread).reshape(-1)
    flat = x.reshape(x.shape[0], channels, -1)
    total = x.new_zeros(x.shape[0], channels, math.prod(padded))
    total = total.index_add(2, places, flat).reshape(x.shape[0], channels, *padded)
    return F.pad(total, torch_pads([-n for n in before], [-n for n in after]))


def _block_places(
    image: Sequence[int], block: Sequence[int], step: Sequence[int], spread: Sequence[int]
) -> Tensor:
    """Flat image index of each block element (rows) of each block (columns)."""
    inner = torch.zeros(1, 1, dtype=torch.int64)
    for size, k, s, d in zip(image, block, step, spread, strict=True):
        count = (size - d * (k - 1) - 1) // s + 1
        along = torch.arange(k).reshape(-1, 1) * d + torch.arange(count) * s
        rows = (inner.unsqueeze(1).unsqueeze(3) * size) + along.unsqueeze(0).unsqueeze(2)
        inner = rows.reshape(inner.shape[0] * k, inner.shape[1] * count)
    return inner


@lowering("DeformConv")
def deform_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """A 2-d convolution whose kernel elements are moved by learnt offsets.

    Samples are bilinear, with zeros outside; `offset` is [N, groups * kh * kw * 2, H, W] with
    rows before columns.
    """
    if x.dim() != 4:
        raise UnsupportedError("deformable convolution in other than two dimensions")
    (kh, kw), step, spread = weight.shape[2:], filled(2, strides), filled(2, dilations)
    given = filled(4, pads, 0)
    n, channels = x.shape[:2]
    height, width = offset.shape[2:]
    sized([n, channels, kh * kw, height, width])
    rows = torch.arange(height).reshape(1, -1, 1) * step[0] - given[0]
    columns = torch.arange(width).reshape(1, 1, -1) * step[1] - given[1]
    kernel_rows = torch.arange(kh).repeat_interleave(kw).reshape(-1, 1, 1) * spread[0]
    kernel_columns = torch.arange(kw).repeat(kh).reshape(-1, 1, 1) * spread[1]
    moved = offset.reshape(n, offset_group, kh * kw, 2, height, width)
    y = (rows + kernel_rows).to(x.dtype) + moved[:, :, :, 0]  # [N, G, K, H, W]
    z = (columns + kernel_columns).to(x.dtype) + moved[:, :, :, 1]
    samples = _bilinear(x.reshape(n, offset_group, -1, *x.shape[2:]), y, z)
    if mask is not None:
        weights = mask.reshape(n, offset_group, 1, kh * kw, height, width)
        samples = samples * weights
    samples = samples.reshape(n, group, channels // group * kh * kw, height * width)
    kernels = weight.reshape(group, weight.shape[0] // group, -1)
    result = torch.matmul(kernels, samples).reshape(n, weight.shape[0], height, width)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def _bilinear(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Samples of [N, G, C, H, W] at rows y and columns z [N, G, K, h, w]; zeros outside."""
    n, groups, channels, height, width = x.shape
    flat = x.reshape(n, groups, channels, height * width)
    top, left = y.floor(), z.floor()
    result = torch.zeros((), dtype=x.dtype)
    for row, near_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, near_z in ((left, 1 - (z - left)), (left + 1, z - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            index = place.long().reshape(n, groups, 1, -1).expand(-1, -1, channels, -1)
            picked = flat.gather(3, index).reshape(n, groups, channels, *y.shape[2:])
            weight = (near_y * near_z * inside.to(x.dtype)).unsqueeze(2)
            result = result + picked * weight
    return result
