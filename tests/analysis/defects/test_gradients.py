"""Gradient-only defects: where torch's own gradient is not finite, and where it is.

What is expected of a program is what autograd gives at the point named beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis import analyze

X = torch.tensor([[0.3, -0.7, 0.9], [0.5, 0.2, -0.4]])
ZERO, ONE = torch.zeros(2, 3), torch.ones(2, 3)
MIXED = torch.tensor([[0.0, -0.7, 1.0], [0.0, 0.0, 0.0]])

Case = tuple[Callable[[Tensor], Tensor], Tensor, str]

# name -> (step, where its gradient is not finite, operator to blame)
LOST: dict[str, Case] = {
    "sqrt at 0": (lambda x: (x * x).sum(-1).sqrt(), ZERO, "sqrt"),
    "norm by hand at 0": (lambda x: x.square().sum().sqrt(), ZERO, "sqrt"),
    "power below 1 at 0": (lambda x: x.abs() ** 0.7, ZERO, "pow"),
    "acos at 1": (lambda x: torch.acos(x.clamp(-1, 1)), ONE, "acos"),
    "asin at -1": (lambda x: torch.asin(x.clamp(-1, 1)), -ONE, "asin"),
    "acosh at 1": (lambda x: torch.acosh(1 + x.abs()), ZERO, "acosh"),
    "the branch of where that is not taken": (
        lambda x: torch.where(x.abs() > 0.1, x.abs().sqrt(), 0.0), ZERO, "sqrt"
    ),
    "the part that masked_fill throws away": (
        lambda x: x.abs().sqrt().masked_fill(x.abs() < 0.1, 0.0), ZERO, "sqrt"
    ),
    "log behind a where": (lambda x: torch.where(x > 0, torch.log(x), 0.0), ZERO, "log"),
    "sign times root": (lambda x: x.sign() * x.abs().sqrt(), ZERO, "sqrt"),
    "root of a variance": (lambda x: x.var(-1).sqrt(), ONE, "sqrt"),
    "distance by hand": (lambda x: (x[0] - x[1]).square().sum().sqrt(), ONE, "sqrt"),
}  # fmt: skip

# name -> (step, the point where one would fear for its gradient)
KEPT: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "norm at 0": (lambda x: x.norm(dim=-1), ZERO),
    "3-norm at 0": (lambda x: x.norm(p=3, dim=-1), ZERO),
    "maximum norm at 0": (lambda x: x.norm(p=math.inf, dim=-1), ZERO),
    "p-norm below 1 at 0": (lambda x: x.norm(p=0.5, dim=-1), MIXED),
    "1-norm at 0": (lambda x: x.norm(p=1, dim=-1), ZERO),
    "sqrt with eps": (lambda x: ((x * x).sum(-1) + 1e-12).sqrt(), ZERO),
    "power above 1 at 0": (lambda x: x.abs() ** 1.5, ZERO),
    "acos short of its ends": (lambda x: torch.acos(x.clamp(-0.999, 0.999)), ONE),
    "atan2 at the origin": (lambda x: torch.atan2(x, x * 0.5), ZERO),
    "where on both sides of a root": (
        lambda x: torch.where(x > 0.1, torch.where(x > 0.1, x, 1.0).sqrt(), 0.0), ZERO
    ),
    "where on both sides of a log": (
        lambda x: torch.where(x > 0, torch.where(x > 0, x, 1.0).log(), 0.0), ZERO
    ),
    "where on both sides of a quotient": (
        lambda x: torch.where(x == 0, 0.0, x.sin() / torch.where(x == 0, 1.0, x)), ZERO
    ),
    "where with two conditions": (
        lambda x: torch.where((x > 0.1) & (x < 0.9), x, 0.5).log(), ZERO
    ),
    "masked_fill before a quotient": (lambda x: 1 / x.masked_fill(x == 0, 1.0), ZERO),
    "one where it is zero": (lambda x: 1 / (x + (x == 0)), ZERO),
    "std of a constant": (lambda x: x.std(-1), ONE),
    "product with zeros": (lambda x: x.prod(-1), MIXED),
    "cumulative product with zeros": (lambda x: x.tanh().cumprod(-1), MIXED),
    "pairwise distance of equal points": (
        lambda x: F.pairwise_distance(x, x.detach()), ONE
    ),
    "cosine similarity of zero": (lambda x: F.cosine_similarity(x, x.flip(0), dim=-1), ZERO),
    "triplet loss of equal points": (lambda x: F.triplet_margin_loss(x, x.flip(0), x), ONE),
    "normalize at 0": (lambda x: F.normalize(x, dim=-1), ZERO),
    "maximum of ties": (lambda x: x.amax(-1), ONE),
    "logaddexp far apart": (lambda x: torch.logaddexp(100 * x, -100 * x), ONE),
    "logcumsumexp": (lambda x: torch.logcumsumexp(100 * x, -1), ONE),
    "logsumexp": (lambda x: torch.logsumexp(100 * x, -1), ZERO),
    "absolute value at 0": (lambda x: x.abs(), ZERO),
    "softplus": (lambda x: F.softplus(100 * x), ONE),
}  # fmt: skip


def gradient(step: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    x = point.clone().requires_grad_()
    loss = step(x).mean()
    assert loss.isfinite()
    loss.backward()
    return x.grad


def found(step: Callable[[Tensor], Tensor], x: Tensor) -> list[tuple[str, str, bool]]:
    recorded = x.clone().requires_grad_()
    analysis = analyze(lambda x: step(x).mean(), recorded, inputs={"x": (-1.0, 1.0)})
    assert analysis.is_complete, analysis
    return [(defect.code, defect.op, defect.gradient_only) for defect in analysis.defects]


@pytest.mark.parametrize("name", LOST)
def test_a_gradient_that_torch_loses_is_named(name):
    step, point, op = LOST[name]
    assert not gradient(step, point).isfinite().all()
    assert found(step, X) == [("RN106", op, True)]


@pytest.mark.parametrize("name", KEPT)
def test_a_gradient_that_torch_keeps_stays_quiet(name):
    step, point = KEPT[name]
    assert gradient(step, point).isfinite().all()
    assert found(step, X) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_lose_the_gradient_of_a_root_with_too_small_an_eps(dtype):
    def step(x: Tensor) -> Tensor:
        return (x.to(dtype) ** 2 + 1e-10).sqrt().float()

    def enough(x):
        return (x.to(dtype) ** 2 + 1e-3).sqrt().float()

    is_lost = not gradient(step, ZERO).isfinite().all()
    assert is_lost == (dtype == torch.float16)
    assert [op for _, op, _ in found(step, X)] == (["sqrt"] if is_lost else [])
    assert found(enough, X) == []


@pytest.mark.parametrize(("scale", "codes"), [(0.125, []), (1.0, []), (100.0, ["RN106"])])
def test_attention_scaled_before_the_product_is_as_quiet_as_within(scale, codes):
    def step(x: Tensor) -> Tensor:
        x = x * 100
        return F.scaled_dot_product_attention(x, x, x, scale=scale).mean()

    x = torch.rand(1, 2, 40, 64).requires_grad_()
    analysis = analyze(step, x, inputs={"x": (-20, 20)})
    assert [defect.code for defect in analysis.defects] == codes
