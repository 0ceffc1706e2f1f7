"""Images at other sizes and places, [N, C, ...]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import ints, positive, sized
from ranum.analysis.capture.onnx.registry import UnsupportedError, lowering


@dataclass(frozen=True, slots=True)
class _Axis:
    """One dimension to resize.

    Attributes:
        size: Elements before.
        out: Elements after.
        scale: Out over in, as given or worked out.
        start: First end of the region of interest, as a share.
        end: Its other end.
    """

    size: int
    out: int
    scale: float
    start: float = 0.0
    end: float = 1.0

    @property
    def length(self) -> float:
        """Size after resizing, before it was rounded down to whole elements."""
        return self.scale * self.size

    def coordinates(self, mode: str) -> Tensor:
        """Where each output element lies in the input, [out], float64."""
        x = torch.arange(self.out, dtype=torch.float64)
        last = self.size - 1
        if mode == "half_pixel":
            return (x + 0.5) / self.scale - 0.5
        if mode == "half_pixel_symmetric":
            adjustment = self.out / self.length
            return self.size / 2 * (1 - adjustment) + (x + 0.5) / self.scale - 0.5
        if mode == "pytorch_half_pixel":
            return (x + 0.5) / self.scale - 0.5 if self.length > 1 else x * 0
        if mode == "align_corners":
            return x * last / (self.length - 1) if self.length > 1 else x * 0
        if mode == "asymmetric":
            return x / self.scale
        if mode == "tf_half_pixel_for_nn":
            return (x + 0.5) / self.scale
        if mode == "tf_crop_and_resize":
            if self.out > 1:
                return self.start * last + x * (self.end - self.start) * last / (self.out - 1)
            return x * 0 + 0.5 * (self.start + self.end) * last
        raise UnsupportedError(f"coordinate_transformation_mode {mode}")


_NEAREST: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda x: (x - 0.5).ceil(),
    "round_prefer_ceil": lambda x: (x + 0.5).floor(),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _linear_kernel(distance: Tensor, a: float) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic_kernel(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel.

    References:
        R. Keys, Cubic convolution interpolation for digital image processing, 1981.
    """
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _weights(
    axis: _Axis, where: Tensor, cubic: bool, a: float, antialias: bool, exclude: bool
) -> Tensor:
    """The share of each input element in each output element, [out, in], float64."""
    stretch = min(axis.scale, 1.0) if antialias else 1.0
    reach = math.ceil((2 if cubic else 1) / stretch)
    kernel = _cubic_kernel if cubic else _linear_kernel
    taps = torch.arange(-reach + 1 - (stretch < 1), reach + 1, dtype=torch.float64)
    places = where.floor().unsqueeze(1) + taps
    weights = kernel((places - where.unsqueeze(1)).abs() * stretch, a)
    if exclude:
        weights = weights * ((places >= 0) & (places < axis.size))
    if exclude or antialias:
        weights = weights / weights.sum(1, keepdim=True)
    index = places.clamp(0, axis.size - 1).long()
    sized((axis.out, axis.size))
    matrix = torch.zeros(axis.out, axis.size, dtype=torch.float64)
    return matrix.scatter_add(1, index, weights)


def resized(
    x: Tensor,
    plan: dict[int, _Axis],
    *,
    mode: str,
    transformation: str,
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: bool = False,
    antialias: bool = False,
    extrapolation: float = 0.0,
) -> Tensor:
    """X resized along each planned dimension in turn."""
    if mode not in ("nearest", "linear", "cubic") or nearest_mode not in _NEAREST:
        raise UnsupportedError(f"mode {mode}, {nearest_mode}")
    sized([plan[i].out if i in plan else n for i, n in enumerate(x.shape)])
    outside = None
    for dim, axis in plan.items():
        where = axis.coordinates(transformation)
        if transformation == "tf_crop_and_resize":
            view = [1] * x.dim()
            view[dim] = -1
            off = ((where < 0) | (where > axis.size - 1)).reshape(view)
            outside = off if outside is None else outside | off
        elif axis.size == axis.out and bool((where == torch.arange(axis.out)).all()):
            continue
        if mode == "nearest":
            nearest = _NEAREST[nearest_mode](where).clamp(0, axis.size - 1).long()
            x = x.index_select(dim, nearest)
            continue
        weights = _weights(axis, where, mode == "cubic", cubic_coeff_a, antialias, exclude_outside)
        kind = x.dtype if x.is_floating_point() else torch.float32
        y = torch.matmul(x.to(kind).movedim(dim, -1), weights.to(kind).t()).movedim(-1, dim)
        x = y if x.is_floating_point() else _rounded(y, x.dtype)
    return x if outside is None else torch.where(outside, extrapolation, x).to(x.dtype)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    return x.round().clamp(limits.min, limits.max).to(dtype)


@lowering("Resize", since=11)
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Nearest, linear or cubic interpolation, each dimension by itself."""
    along = positive(list(axes), x.dim()) if axes is not None else list(range(x.dim()))
    inside = [x.shape[axis] for axis in along]
    if scales is not None and scales.numel():
        ratios = [float(ratio) for ratio in scales.tolist()]
        out = [math.floor(n * ratio) for n, ratio in zip(inside, ratios, strict=True)]
    elif sizes is not None and sizes.numel():
        out = ints(sizes)
        ratios = [n / m for n, m in zip(out, inside, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            pick = {"not_larger": min, "not_smaller": max}.get(keep_aspect_ratio_policy)
            if pick is None:
                raise UnsupportedError(f"keep_aspect_ratio_policy {keep_aspect_ratio_policy}")
            ratios = [pick(ratios)] * len(ratios)
            out = [math.floor(ratios[0] * n + 0.5) for n in inside]
    else:
        raise UnsupportedError("neither scales nor sizes")
    region = [0.0] * len(along) + [1.0] * len(along)
    if roi is not None and roi.numel() == len(region):
        region = [float(end) for end in roi.tolist()]
    plan = {
        axis: _Axis(inside[i], out[i], ratios[i], region[i], region[i + len(along)])
        for i, axis in enumerate(along)
    }
    return resized(
        x,
        plan,
        mode=mode,
        transformation=coordinate_transformation_mode,
        nearest_mode=nearest_mode,
        cubic_coeff_a=cubic_coeff_a,
        exclude_outside=bool(exclude_outside),
        antialias=bool(antialias),
        extrapolation=extrapolation_value,
    )


@lowering("Resize", "Upsample", since=9)
def upsample(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    """Before opset 11: coordinates are x / scale, nearest means floor."""
    return upsample_by_attribute(x, mode=mode, scales=scales.tolist())


@lowering("Upsample", since=7)
def upsample_by_attribute(x: Tensor, *, scales: Sequence[float], mode: str = "nearest") -> Tensor:
    """Before opset 9 the scales are an attribute."""
    plan = {
        i: _Axis(n, math.floor(n * scale), float(scale))
        for i, (n, scale) in enumerate(zip(x.shape, scales, strict=True))
    }
    return resized(
        x,
        plan,
        mode="linear" if mode == "bilinear" else mode,
        transformation="asymmetric",
        nearest_mode="floor",
    )


@lowering("GridSample")
def grid_sample(
    x: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:
    """X at the places of a grid in [-1, 1]."""
    names = {"linear": "bilinear", "cubic": "bicubic"}
    chosen = names.get(mode, mode)
    if x.dim() not in (4, 5) or (x.dim() == 5 and chosen == "bicubic"):
        raise UnsupportedError(f"{mode} sampling in {x.dim() - 2} dimensions")
    sized((*x.shape[:2], *grid.shape[1:-1]))
    return F.grid_sample(x, grid.to(x.dtype), chosen, padding_mode, bool(align_corners))


@lowering("AffineGrid")
def affine_grid(theta: Tensor, size: Tensor, *, align_corners: int = 0) -> Tensor:
    """A regular grid in [-1, 1], moved by an affine map [N, D, D + 1]."""
    n, _, *spatial = ints(size)
    sized((n, *spatial, len(spatial) + 1))
    axes = []
    for count in spatial:
        steps = torch.arange(count, dtype=theta.dtype)
        if align_corners:
            axes.append(steps * (2 / (count - 1) if count > 1 else 0.0) - 1)
        else:
            axes.append((steps * 2 + 1) / count - 1)
    mesh = torch.meshgrid(*axes, indexing="ij")
    points = torch.stack([*reversed(mesh), torch.ones_like(mesh[0])], -1)
    flat = points.reshape(1, -1, len(spatial) + 1)
    return torch.matmul(flat, theta.transpose(1, 2)).reshape(n, *spatial, len(spatial))


@lowering("RoiAlign", since=16)
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Each region of interest sampled to a fixed size, [R, C, h, w]."""
    if mode not in ("avg", "max"):
        raise UnsupportedError(f"mode {mode}")
    sized((rois.shape[0], x.shape[1], output_height, output_width))
    shift = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    regions = []
    for roi, batch in zip(rois, ints(batch_indices), strict=True):
        left, top, right, bottom = (roi * spatial_scale - shift).unbind()
        height, width = bottom - top, right - left
        if not shift:
            height, width = height.clamp(min=1.0), width.clamp(min=1.0)
        rows = _samples(top, height, output_height, sampling_ratio)
        columns = _samples(left, width, output_width, sampling_ratio)
        image = x[batch]
        row_weights = _at(rows, image.shape[1])
        column_weights = _at(columns, image.shape[2])
        per_row, per_column = len(rows) // output_height, len(columns) // output_width
        sized((image.shape[0], len(rows), len(columns)))
        if mode == "avg":
            sampled = row_weights @ image @ column_weights.t()
            blocks = sampled.reshape(-1, output_height, per_row, output_width, per_column)
            regions.append(blocks.mean((2, 4)))
            continue
        regions.append(
            _largest(image, row_weights, column_weights)
            .reshape(-1, output_height, per_row, output_width, per_column)
            .amax((2, 4))
        )
    return torch.stack(regions) if regions else x.new_zeros(0, x.shape[1], output_height,
                                                            output_width)  # fmt: skip


def _largest(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The largest of each sample's four weighted neighbours, [C, rows, columns]."""
    best = None
    for row, row_weight in _neighbours(rows):
        for column, column_weight in _neighbours(columns):
            picked = image.index_select(1, row).index_select(2, column)
            weighted = picked * (row_weight.unsqueeze(1) * column_weight)
            best = weighted if best is None else torch.maximum(best, weighted)
    assert best is not None
    return best


def _neighbours(weights: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two pixels beside each place, with their interpolation weights."""
    first = (weights > 0).to(torch.int64).argmax(1)
    second = (first + 1).clamp(max=weights.shape[1] - 1)
    left = weights.gather(1, first.unsqueeze(1)).squeeze(1)
    right = weights.gather(1, second.unsqueeze(1)).squeeze(1)
    return [(first, left), (second, torch.where(second == first, 0.0, right))]


def _samples(start: Tensor, length: Tensor, bins: int, ratio: int) -> Tensor:
    """Places of all samples along one dimension, [bins * samples]."""
    count = ratio if ratio > 0 else max(math.ceil(float(length) / bins), 1)
    sized((bins, count))
    return start + (torch.arange(bins * count) + 0.5).to(start.dtype) * (length / (bins * count))


def _at(places: Tensor, size: int) -> Tensor:
    """Linear interpolation weights of each place, [places, size]; nothing a pixel outside."""
    inside = (places >= -1) & (places <= size)
    held = places.clamp(0, size - 1).unsqueeze(1)
    distance = (held - torch.arange(size).to(places.dtype)).abs()
    return (1 - distance).clamp(min=0) * inside.unsqueeze(1)


@lowering("RoiAlign", since=10)
def roi_align_from_corners(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Before opset 16 pixels are not shifted by half."""
    return roi_align(
        x,
        rois,
        batch_indices,
        coordinate_transformation_mode="output_half_pixel",
        mode=mode,
        output_height=output_height,
        output_width=output_width,
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )
