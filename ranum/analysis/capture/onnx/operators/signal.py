"""Fourier transforms, as products with cosines and sines, and mel filters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import number, sized
from ranum.analysis.capture.onnx.registry import UnsupportedError, lowering
from ranum.analysis.capture.onnx.values import storage_dtype


def _turns(rows: int, columns: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi r c / length, [rows, columns]."""
    sized((rows, columns))
    steps = torch.arange(rows).unsqueeze(1) * torch.arange(columns) % max(length, 1)
    angle = steps.double() * (2 * math.pi / max(length, 1))
    return angle.cos().to(dtype), angle.sin().to(dtype)


def transformed(x: Tensor, length: int, inverse: bool, onesided: bool) -> Tensor:
    """The discrete Fourier transform of [..., T, 1 or 2]; the last dimension is real, imaginary."""
    wide = x.to(torch.float64)  # sums of many products, as exact as a fast transform's
    real = wide[..., 0]
    imaginary = wide[..., 1] if x.shape[-1] == 2 else None
    steps = min(length, real.shape[-1])
    if inverse and onesided:
        return _real_inverse(real[..., :steps], imaginary, length).to(x.dtype)
    rows = length // 2 + 1 if onesided else length
    cos, sin = _turns(steps, rows, length, wide.dtype)
    sin = sin if inverse else -sin
    real = real[..., :steps]
    out_real, out_imaginary = real @ cos, real @ sin
    if imaginary is not None:
        imaginary = imaginary[..., :steps]
        out_real = out_real - imaginary @ sin
        out_imaginary = out_imaginary + imaginary @ cos
    result = torch.stack([out_real, out_imaginary], -1)
    return (result / length if inverse else result).to(x.dtype)


def _real_inverse(real: Tensor, imaginary: Tensor | None, length: int) -> Tensor:
    """From the first half of a spectrum back to a real signal, [..., T, 1]."""
    half = min(real.shape[-1], length // 2 + 1)
    cos, sin = _turns(half, length, length, real.dtype)
    weight = torch.full((half, 1), 2.0, dtype=real.dtype)
    weight[0] = 1.0
    if length % 2 == 0 and half == length // 2 + 1:
        weight[-1] = 1.0
    result = real[..., :half] @ (cos * weight)
    if imaginary is not None:
        result = result - imaginary[..., :half] @ (sin * weight)
    return (result / length).unsqueeze(-1)


@lowering("DFT", since=20)
def dft(
    x: Tensor,
    length: Tensor | None = None,
    axis: Tensor | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """The transform along an axis of [N, ..., 1 or 2]."""
    return dft_by_attribute(
        x,
        length,
        axis=-2 if axis is None else number(axis),
        inverse=inverse,
        onesided=onesided,
    )


@lowering("DFT", since=17)
def dft_by_attribute(
    x: Tensor, length: Tensor | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0
) -> Tensor:
    """Before opset 20 the axis is an attribute."""
    axis %= x.dim()
    if inverse and onesided and length is None:
        count = 2 * (x.shape[axis] - 1)
    else:
        count = x.shape[axis] if length is None else number(length)
    moved = x.movedim(axis, -2)
    return transformed(moved, count, bool(inverse), bool(onesided)).movedim(-2, axis)


@lowering("STFT")
def stft(
    signal: Tensor,
    step: Tensor,
    window: Tensor | None = None,
    length: Tensor | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """Transforms of overlapping frames of [N, T, 1 or 2], [N, frames, bins, 2]."""
    if length is None and window is None:
        raise UnsupportedError("neither a window nor a frame length")
    size = number(length) if length is not None else (0 if window is None else len(window))
    count = max(signal.shape[1] - size, 0) // max(number(step), 1) + 1
    sized((signal.shape[0], count, size, signal.shape[2]))
    frames = signal.unfold(1, size, number(step)).transpose(2, 3)  # [N, frames, size, 1 or 2]
    if window is not None:
        low = (size - len(window)) // 2
        frames = frames * F.pad(window, [low, size - len(window) - low]).unsqueeze(-1)
    return transformed(frames, size, False, bool(onesided))


@lowering("MelWeightMatrix")
def mel_weight_matrix(
    bins: Tensor,
    length: Tensor,
    rate: Tensor,
    lower: Tensor,
    upper: Tensor,
    *,
    output_datatype: int = TensorProto.FLOAT,
) -> Tensor:
    """Triangular filters on the mel scale, [spectrum bins, mel bins]."""
    count, size = number(bins), number(length)
    spectrum = size // 2 + 1
    sized((spectrum, count))
    low, high = (2595 * math.log10(1 + float(f) / 700) for f in (lower, upper))
    mel = low + torch.arange(count + 2, dtype=torch.float64) * ((high - low) / (count + 2))
    hertz = 700 * (10 ** (mel / 2595) - 1)
    places = ((size + 1) * hertz / number(rate)).floor().long().tolist()
    weights = torch.zeros(spectrum, count, dtype=torch.float64)
    for i in range(count):
        left, centre, right = places[i : i + 3]
        if left == centre:
            weights[centre, i] = 1.0
        for j in range(left, centre + 1):
            if centre > left:
                weights[j, i] = (j - left) / (centre - left)
        for j in range(centre, right):
            if right > centre:
                weights[j, i] = (right - j) / (right - centre)
    return weights.to(storage_dtype(output_datatype))
