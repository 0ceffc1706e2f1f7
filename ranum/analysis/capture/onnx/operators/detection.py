"""Choosing boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import number
from ranum.analysis.capture.onnx.registry import lowering

Corners = tuple[float, float, float, float]


@lowering("NonMaxSuppression")
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Rows (batch, class, box) of the best boxes that do not overlap a better one.

    The choice is made outside torch, for the values at hand; the report says so.
    """
    limit = 0 if most is None else number(most)
    overlap = 0.0 if iou_threshold is None else float(iou_threshold)
    least = None if score_threshold is None else float(score_threshold)
    rows = []
    for batch, (corners, by_class) in enumerate(zip(boxes.tolist(), scores.tolist(), strict=True)):
        frames = [_corners(box, bool(center_point_box)) for box in corners]
        for kind, points in enumerate(by_class):
            order = sorted(range(len(points)), key=points.__getitem__, reverse=True)
            kept: list[int] = []
            for index in order:
                if len(kept) >= limit or (least is not None and points[index] <= least):
                    break
                if all(_overlap(frames[index], frames[other]) <= overlap for other in kept):
                    kept.append(index)
            rows += [[batch, kind, index] for index in kept]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


def _corners(box: list[float], centred: bool) -> Corners:
    a, b, c, d = box
    if centred:
        return b - d / 2, a - c / 2, b + d / 2, a + c / 2
    return min(a, c), min(b, d), max(a, c), max(b, d)


def _overlap(first: Corners, second: Corners) -> float:
    """Area of the intersection over that of the union."""
    height = min(first[2], second[2]) - max(first[0], second[0])
    width = min(first[3], second[3]) - max(first[1], second[1])
    common = max(height, 0.0) * max(width, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - common
    return common / union if union > 0 else 0.0
