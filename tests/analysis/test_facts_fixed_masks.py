"""Masks written in place by slices: places that no data decides lose no further row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ranum.analysis import analyze

INF = math.inf
LAYER = nn.Linear(5, 5)
X = torch.linspace(-1, 1, 40).reshape(2, 4, 5)
LEAST = torch.finfo(torch.float32).min


def written(scores: Tensor, least: int = 3) -> Tensor:
    """Scores with -inf from column `least` on in the first two rows, [N, 4, 5]."""
    scores = scores.clone()
    scores[:, :2, least:] = torch.full_like(scores[:, :2, least:], -INF)
    return scores


def chosen(scores: Tensor) -> Tensor:
    """The same for the corner of a band, kept where a constant mask says so."""
    scores = scores.clone()
    corner = scores[:, :2, :3]
    mask = torch.ones(2, 3).triu(1).bool().expand(corner.shape)
    scores[:, :2, :3] = torch.full_like(corner, -INF).where(mask, corner)
    return scores


def lost(step, **settings) -> bool:
    codes = {defect.code for defect in analyze(step, X, **settings).defects}
    assert codes <= {"RN110", "RN111"}
    return bool(codes)


def by_hand(scores: Tensor) -> Tensor:
    exponential = (scores - scores.amax(-1, keepdim=True)).exp()
    return exponential / exponential.sum(-1, keepdim=True)


@pytest.mark.parametrize("mask", [written, chosen])
@pytest.mark.parametrize(
    "weigh",
    [
        lambda x: x.softmax(-1),
        lambda x: x.log_softmax(-1).exp(),
        lambda x: x.logsumexp(-1),
        by_hand,
        lambda x: (x + torch.tensor([0.0, -1e4, LEAST, 0.0, 0.0])).softmax(-1),
        lambda x: torch.cat([x, x.flip(-1)], -1).transpose(1, 2).softmax(1),
        lambda x: x.double().softmax(-1),
    ],
)
def test_a_mask_written_in_place_loses_no_row(mask, weigh):
    assert not lost(lambda x: weigh(mask(LAYER(x))).sum())


@pytest.mark.parametrize(
    "mask",
    [
        lambda s, x: written(s).masked_fill(x > 2, -INF),
        lambda s, x: written(s).where(x < 2, -INF),
        lambda s, x: written(s) + torch.where(x < 2, 0.0, -INF),
        lambda s, x: written(s.masked_fill(x > 2, -INF)),
    ],
)
@pytest.mark.parametrize("weigh", [lambda x: x.softmax(-1), lambda x: x.logsumexp(-1)])
def test_a_mask_made_of_data_may_lose_a_row(mask, weigh):
    assert lost(lambda x: weigh(mask(LAYER(x), x)).sum(), inputs={"x": (-3.0, 3.0)})


def test_an_index_made_of_data_may_pick_the_masked_elements():
    def step(x: Tensor) -> Tensor:
        return written(LAYER(x)).gather(-1, (x > 2).long() * 4).softmax(-1).sum()

    assert lost(step, inputs={"x": (-3.0, 3.0)})


def test_a_row_that_is_lost_in_the_recorded_step_is_reported():
    assert lost(lambda x: written(LAYER(x), 0).softmax(-1).sum())


@pytest.mark.parametrize(
    "overflow",
    [
        lambda x: x + torch.full((5,), LEAST),
        lambda x: x + x,
        lambda x: x.half(),
    ],
)
def test_numbers_that_may_become_infinite_may_lose_a_row(overflow):
    """Finite scores of a row that overflow to -inf are no places of the mask."""
    inputs = {"x": (-3e38, 3.0)}
    assert any(
        defect.code == "RN110"
        for defect in analyze(
            lambda x: overflow(written(x)).softmax(-1).sum(), X, inputs=inputs, backward=False
        ).defects
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_least_number_is_what_a_row_left_by_its_mask_can_be(dtype):
    least = torch.finfo(dtype).min
    for measure in (lambda x: x.amax(-1), lambda x: x.logsumexp(-1)):
        low = analyze(
            lambda x, f=measure: {"loss": f(written(x)[:, :2])},
            X.to(dtype),
            inputs={"x": (least, 0.0)},
            backward=False,
        )
        assert low.bounds["loss"].low == least
        assert bool((measure(written(torch.full_like(X, least, dtype=dtype))) >= least).all())
