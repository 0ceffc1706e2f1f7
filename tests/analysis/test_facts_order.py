"""Facts about maxima, running sums, chosen shares, permutations and guarded quotients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranum.analysis import analyze

RANGE = (-1e4, 1e4)
N = 12
KEPT = torch.cat([torch.zeros(3), torch.ones(N - 3)])


def below_maximum(x: Tensor) -> Tensor:
    return x - torch.maximum(x, x.flip(-1))


def below_logsumexp(x: Tensor) -> Tensor:
    return x - x.logsumexp(-1, keepdim=True)


def sinking_sum(x: Tensor) -> Tensor:
    sums = (-x.abs()).cumsum(-1)
    return sums[..., -1:] - sums


def running_softmax(x: Tensor) -> Tensor:
    """The sum of exp(x - max) over the last dimension, kept up to date as in RWKV."""
    peak = torch.full_like(x[..., 0], -1e38)
    total = torch.zeros_like(peak)
    for key in x.unbind(-1):
        new = torch.maximum(peak, key * 1.0)
        total = torch.exp(peak - new) * total + torch.exp(key * 1.0 - new)
        peak = new
    return total


def chosen_shares(x: Tensor) -> Tensor:
    return x.softmax(-1).topk(2, -1).values.sum(-1)


def shuffled(x: Tensor) -> Tensor:
    return KEPT.to(x.dtype).expand(x.shape).gather(-1, x.argsort(-1)).sum(-1)


def guarded_unit(x: Tensor) -> Tensor:
    norm = x.norm(dim=-1, keepdim=True)
    return (x / norm).masked_fill(norm == 0, 0.0)


def guarded_unit_by_where(x: Tensor) -> Tensor:
    norm = x.norm(dim=-1, keepdim=True).expand(x.shape)
    return torch.where(norm > 0, x / norm, 0.5)


def attention(x: Tensor) -> Tensor:
    weights = (x.unsqueeze(-1) * x.unsqueeze(-2)).softmax(-1)
    return weights @ x.clamp(2.0, 3.0).unsqueeze(-1).expand(*x.shape, 5)


def attention_with_dropout(x: Tensor) -> Tensor:
    weights = F.dropout((x.unsqueeze(-1) * x.unsqueeze(-2)).softmax(-1), 0.5)
    return weights @ x.clamp(2.0, 3.0).unsqueeze(-1).expand(*x.shape, 5)


def attention_by_hand(x: Tensor) -> Tensor:
    logits = x.unsqueeze(-1) * x.unsqueeze(-2) / 100
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    return weights @ x.clamp(2.0, 3.0).unsqueeze(-1).expand(*x.shape, 5)


def share_of_ties(x: Tensor) -> Tensor:
    return 1 / (x == x.amax(-1, keepdim=True)).sum(-1)


def share_of_lowest(x: Tensor) -> Tensor:
    return 1 / (x.amin(-1, keepdim=True) == x).sum(-1)


def sorted_sums(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ordered = x.sort(-1, descending=True).values
    return ordered, ordered.cumsum(-1), torch.arange(1, N + 1).to(x.dtype)


def size_of_support(x: Tensor) -> Tensor:
    """What sparsemax divides by."""
    ordered, sums, ranks = sorted_sums(x)
    return 1 / (1 + ranks * ordered > sums).sum(-1)


def size_of_support_by_threshold(x: Tensor) -> Tensor:
    ordered, sums, ranks = sorted_sums(x)
    return 1 / (ordered - (sums - 1) / ranks > 0).to(x.dtype).sum(-1)


def variance_by_moments(x: Tensor) -> Tensor:
    return (x * x).mean(-1) - x.mean(-1) ** 2


FACTS = {
    size_of_support: (0.08, 1.01),
    size_of_support_by_threshold: (0.08, 1.01),
    variance_by_moments: (-600, 1.01e8),
    attention: (1.9, 3.1),
    attention_with_dropout: (-0.1, 6.1),
    attention_by_hand: (1.9, 3.1),
    below_maximum: (-2e4, 0),
    below_logsumexp: (-3e4, 0),
    sinking_sum: (-3e5, 0),
    running_softmax: (0.999, 1e3),
    chosen_shares: (2 / N * 0.99, 3),
    shuffled: (N - 3 - 0.1, N - 3 + 0.1),
    guarded_unit: (-1.6, 1.6),
    guarded_unit_by_where: (-1.6, 1.6),
    share_of_ties: (0.08, 1.01),
    share_of_lowest: (0.08, 1.01),
}


def bound(function, x: Tensor):
    analysis = analyze(lambda x: {"loss": function(x)}, x, inputs={"x": RANGE}, backward=False)
    assert analysis.is_complete, analysis
    return analysis, analysis.bounds["loss"]


@pytest.mark.parametrize("function", FACTS)
def test_a_fact_narrows_to_what_is_true(function):
    analysis, interval = bound(function, torch.rand(3, N))
    lower, upper = FACTS[function]
    assert not interval.may_nan
    assert interval.low >= lower
    assert interval.high <= upper
    assert analysis.defects == ()


@pytest.mark.parametrize("function", FACTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_fact_holds_in_floating_point(function, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, N, dtype=torch.float64, generator=generator)
    _, interval = bound(function, x[:4].to(dtype))
    hard = [x * 1e4, x * -1e4, (x > 0.9) * 1e4, 1e4 + x * 1e-3, x * 0, x.round() * 1e-23]
    hard += [(x - 0.5) * 10.0**e for e in range(-24, 5)]
    for data in hard:
        result = function(data.clamp(*RANGE).to(dtype))
        assert bool((result >= interval.low).all()), data
        assert bool((result <= interval.high).all()), data


LOOKALIKES = {
    "margin that the sums absorb": lambda x: (
        1 / (1e-5 + sorted_sums(x)[0] > sorted_sums(x)[1]).sum(-1)
    ),
    "no margin": lambda x: 1 / (sorted_sums(x)[0] > sorted_sums(x)[1]).sum(-1),
    "sums of others": lambda x: 1 / (1 + sorted_sums(x)[0] > (x + 1).cumsum(-1)).sum(-1),
    "ranks from 2": lambda x: (
        1 / (1 + (sorted_sums(x)[2] + 1) * sorted_sums(x)[0] > sorted_sums(x)[1]).sum(-1)
    ),
    "square of another mean": lambda x: (
        ((x * x).mean(-1) - (2 * x).mean(-1) ** 2 + 1e5).rsqrt()
    ),
    "moments over other dimensions": lambda x: ((x * x).mean(-1) - x.mean() ** 2 + 1e5).rsqrt(),
    "a clamp behind the root": lambda x: x * x.square().sum().rsqrt().clamp_max(1e7),
    "weights of another dimension": lambda x: (
        1 / (x.unsqueeze(-1).expand(4, N, N).softmax(-2) @ x.clamp(2.0, 3.0).unsqueeze(-1))
    ),
    "maximum of others": lambda x: (x - torch.maximum(x + 1, 2 * x)).exp(),
    "running sum of both signs": lambda x: (x.cumsum(-1)[..., -1:] - x.cumsum(-1)).exp(),
    "first running sum": lambda x: (
        (-x.abs()).cumsum(-1)[..., :1] - (-x.abs()).cumsum(-1)
    ).exp(),
    "smallest shares": lambda x: 1 / x.softmax(-1).topk(2, -1, largest=False).values.sum(-1),
    "shares of another dimension": lambda x: 1 / x.softmax(0).topk(2, -1).values.sum(-1),
    "gather with repeats": lambda x: (
        x / KEPT.expand(x.shape).gather(-1, x.argmax(-1, keepdim=True).expand(x.shape)).sum()
    ),
    "equal to another maximum": lambda x: 1 / (x == (x + 1).amax(-1, keepdim=True)).sum(-1),
    "maximum of a larger part": lambda x: 1 / (x == x.amax()).sum(-1),
    "guard on another tensor": lambda x: (x / x.norm()).masked_fill(x == 0, 0.0),
    "guard the wrong way": lambda x: (x / x.norm()).masked_fill(x.norm() != 0, 0.0),
    "only one reader is guarded": lambda x: (q := x / x.norm()) + q.masked_fill(x.norm() == 0, 0),
    "two draws": lambda x: (
        (x + torch.randn_like(x)) * 1e4
        - torch.maximum((x + torch.randn_like(x)) * 1e4, x)
    ).exp(),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_lookalike_is_still_reported(name):
    analysis = analyze(lambda x: LOOKALIKES[name](x).sum(), torch.rand(4, N), inputs={"x": RANGE})
    assert analysis.defects, analysis


def test_the_gradient_of_a_norm_is_zero_at_zero_and_not_reported():
    layer = nn.Linear(6, 6)
    for step in (
        lambda x: layer(x).norm(dim=-1).sum(),
        lambda x: F.normalize(layer(x), dim=-1).pow(3).sum(),
    ):
        assert analyze(step, torch.rand(4, 6)).defects == ()


def test_a_guard_of_the_value_does_not_guard_the_gradient():
    layer = nn.Linear(6, 6)

    def step(x: Tensor) -> Tensor:
        total = layer(x).abs()
        return torch.where(total > 0, x / total, 0.0).sum()

    (defect,) = analyze(step, torch.rand(4, 6)).defects
    assert defect.code == "RN106"
    assert defect.op == "div"


def test_moments_of_equal_elements_are_below_zero_by_more_than_eps():
    x = torch.linspace(25, 31.4, 500).unsqueeze(-1).expand(500, 3600).contiguous()
    variance = (x * x).mean(-1) - x.mean(-1) ** 2
    assert (variance + 1e-3).min() < 0
    analysis = analyze(
        lambda x: ((x * x).mean(-1) - x.mean(-1) ** 2 + 1e-3).rsqrt().sum(),
        x[:4],
        inputs={"x": (25.0, 31.4)},
        backward=False,
    )
    assert [defect.code for defect in analysis.defects] == ["RN102"]
