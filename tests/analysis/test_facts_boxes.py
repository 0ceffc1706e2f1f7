"""Facts about boxes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ranum.analysis import analyze

TARGETS = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]])


def corners(boxes: Tensor) -> Tensor:
    x, y, width, height = boxes.unbind(-1)
    half = 0.5 * width, 0.5 * height
    return torch.stack([x - half[0], y - half[1], x + half[0], y + half[1]], -1)


def area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def union(first: Tensor, second: Tensor) -> Tensor:
    near = torch.max(first[:, None, :2], second[:, :2])
    far = torch.min(first[:, None, 2:], second[:, 2:])
    sides = (far - near).clamp(min=0)
    return area(first)[:, None] + area(second) - sides[..., 0] * sides[..., 1]


def hull(first: Tensor, second: Tensor) -> Tensor:
    near = torch.min(first[:, None, :2], second[:, :2])
    far = torch.max(first[:, None, 2:], second[:, 2:])
    sides = (far - near).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


LAYER = nn.Linear(5, 4)


@pytest.mark.parametrize("measure", [union, hull])
def test_the_area_of_two_boxes_is_at_least_that_of_one(measure):
    def step(x: Tensor, targets: Tensor) -> Tensor:
        return (1 / measure(corners(LAYER(x).sigmoid()), corners(targets))).mean()

    assert analyze(step, torch.randn(3, 5), TARGETS).defects == ()


@pytest.mark.parametrize("measure", [union, hull])
def test_boxes_that_may_be_empty_are_still_reported(measure):
    def step(x: Tensor, targets: Tensor) -> Tensor:
        return (1 / measure(corners(LAYER(x).sigmoid()), corners(targets))).mean()

    analysis = analyze(
        step, torch.randn(3, 5), TARGETS, inputs={"targets": (0.0, 1.0), "x": (-300.0, 300.0)}
    )
    assert {defect.code for defect in analysis.defects} >= {"RN103"}


def test_a_difference_that_is_no_union_is_still_reported():
    def step(x: Tensor, targets: Tensor) -> Tensor:
        boxes, others = corners(LAYER(x).sigmoid()), corners(targets)
        return (1 / (union(boxes, others) - area(others))).mean()

    assert analyze(step, torch.randn(3, 5), TARGETS).defects


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bounds_of_areas_hold_in_floating_point(dtype):
    generator = torch.Generator().manual_seed(0)
    for measure in (union, hull):
        analysis = analyze(
            lambda a, b, f=measure: {"loss": f(corners(a), corners(b))},
            TARGETS.to(dtype),
            TARGETS.to(dtype),
            inputs={"a": (0.01, 1.0), "b": (0.01, 1.0)},
            backward=False,
        )
        low = analysis.bounds["loss"].low
        for least in (0.01, 0.5, 1.0):
            spread = torch.rand(2, 64, 4, dtype=torch.float64, generator=generator)
            first, second = (least + spread * (1 - least)).clamp(0.0101, 0.999).to(dtype)
            first[:, 2:] = second[:, 2:] = 0.0101
            assert bool((measure(corners(first), corners(second)) >= low).all())
