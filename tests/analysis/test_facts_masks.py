"""Facts about branches, masks, slots and diagonals, each in floating point."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ranum.analysis import analyze

RANGE = (-1e4, 1e4)
N = 12
CAUSAL = torch.triu(torch.ones(N, N, dtype=torch.bool), 1)
LAST_MASKED = torch.arange(N) == N - 1
ZEROS = torch.zeros(N)
SLOTS = torch.tensor([0, 0, 2, 1, 5, 5, 5, 1, 3, 3, 0, 2])


# --- branches --------------------------------------------------------------------------------


def double_where(x: Tensor) -> Tensor:
    return torch.where(x > 0.5, torch.where(x > 0.5, x, 1.0).log(), -0.7)


def at_least(x: Tensor) -> Tensor:
    return torch.where(x >= 0.3, x, 2.0)


def below(x: Tensor) -> Tensor:
    return torch.where(x < -0.7, -3.0, x)


def negated(x: Tensor) -> Tensor:
    return torch.where(x >= ZEROS, -x, x)


def negated_inside(x: Tensor) -> Tensor:
    return torch.where((x > -1) & (x < 3), -x, 0.5)


def filled_outside(x: Tensor) -> Tensor:
    return x.masked_fill((x > 3) | (x < -2), 0.0)


def kept_inside(x: Tensor) -> Tensor:
    return torch.where((x < 3) & ~(x <= -2), x, 0.0)


def never_zero(x: Tensor) -> Tensor:
    return 1 / torch.where(x != 0, x, 1.0).sign()


def one_where_zero(x: Tensor) -> Tensor:
    return 1 / (x + (x == 0).to(x.dtype)).sign()


def logarithm_taken_above_zero(x: Tensor) -> Tensor:
    return torch.where(x > 0, x.log(), 0.0)


# --- rows masked with -inf -------------------------------------------------------------------


def masked_maximum(x: Tensor) -> Tensor:
    return x.masked_fill(LAST_MASKED, -math.inf).amax(-1)


def causal_maximum(x: Tensor) -> Tensor:
    logits = (x.unsqueeze(-1) + x.unsqueeze(-2)) / 2
    return logits.masked_fill(CAUSAL, -math.inf).amax(-1)


def causal_logsumexp(x: Tensor) -> Tensor:
    logits = (x.unsqueeze(-1) + x.unsqueeze(-2)) / 2
    return logits.masked_fill(CAUSAL, -math.inf).logsumexp(-1)


def causal_softmax(x: Tensor) -> Tensor:
    bias = torch.zeros(N, N, dtype=x.dtype).masked_fill(CAUSAL, -math.inf)
    return (x.unsqueeze(-1) + bias).softmax(-1)


def scaled_after_the_mask(x: Tensor) -> Tensor:
    return (x.masked_fill(LAST_MASKED, -math.inf) / 3 + 1).amax(-1)


# --- slots and diagonals ---------------------------------------------------------------------


def share_of_slot(x: Tensor) -> Tensor:
    """As autograd writes the gradient of scatter_reduce: 1 / (how many equal the largest)."""
    slots = SLOTS.expand(x.shape)
    start = torch.zeros_like(x)
    most = start.scatter_reduce(-1, slots, x, "amax")
    own = (start == most).to(x.dtype)
    put = (x == most.gather(-1, slots)).to(x.dtype)
    return 1 / own.scatter_add(-1, slots, put)


def own_products(x: Tensor) -> Tensor:
    return (x.mm(x.T) / 7).diagonal()


FACTS = {
    double_where: (-0.71, 9.3),
    at_least: (0.29, 1e4),
    below: (-3.0, 1e4),
    negated: (-1e4, 0.0),
    negated_inside: (-3.0, 1.0),
    filled_outside: (-2.0, 3.0),
    kept_inside: (-2.0, 3.0),
    never_zero: (-math.inf, math.inf),
    one_where_zero: (-math.inf, math.inf),
    logarithm_taken_above_zero: (-math.inf, math.inf),
    masked_maximum: (-1e4, 1e4),
    causal_maximum: (-1.1e4, 1.1e4),
    causal_logsumexp: (-1.1e4, 1.1e4),
    causal_softmax: (0.0, 1.001),
    scaled_after_the_mask: (-1e4, 1e4),
    share_of_slot: (0.07, 1.01),
    own_products: (0.0, 1e9),
}
OF_QUOTIENTS = (never_zero, one_where_zero, logarithm_taken_above_zero)
"""Facts that keep an alarm from being raised; the interval is not narrowed."""


def bound(function, x: Tensor):
    analysis = analyze(lambda x: {"loss": function(x)}, x, inputs={"x": RANGE}, backward=False)
    assert analysis.is_complete, analysis
    return analysis, analysis.bounds["loss"]


@pytest.mark.parametrize("function", FACTS)
def test_a_fact_narrows_to_what_is_true(function):
    analysis, interval = bound(function, torch.rand(3, N))
    assert analysis.defects == ()
    if function not in OF_QUOTIENTS:
        lower, upper = FACTS[function]
        assert not interval.may_nan
        assert lower <= interval.low
        assert interval.high <= upper


@pytest.mark.parametrize("function", FACTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_fact_holds_in_floating_point(function, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, N, dtype=torch.float64, generator=generator)
    _, interval = bound(function, x.to(dtype))
    hard = [x * 1e4, x * -1e4, (x > 0.9) * 1e4, 1e4 + x * 1e-3, x * 0, x.round() * 1e-23]
    hard += [0.5 + (x - 0.5) * 1e-7, x.round() * 5 - 2, x.round() * -1.7 + 1]
    hard += [(x - 0.5) * 10.0**e for e in range(-24, 5)]
    for data in hard:
        result = function(data.clamp(*RANGE).to(dtype))
        assert not bool(result.isnan().any()), data
        assert bool((result >= interval.low).all()), data
        assert bool((result <= interval.high).all()), data


LOOKALIKES = {
    "a condition on another tensor": lambda x: torch.where(x.flip(-1) > 0, x, 1.0).log(),
    "the other branch": lambda x: torch.where(x > 0, 1.0, x).log(),
    "either of two conditions": lambda x: torch.where((x > 0) | (x < -1), x, 1.0).log(),
    "a condition that is not one number": lambda x: torch.where(x > SLOTS - 1.0, x, 1.0).log(),
    "the absolute value": lambda x: torch.where(x >= ZEROS, x, -x).exp(),
    "not quite excluded": lambda x: 1 / torch.where(x >= 0, x, 1.0),
    "a square that underflows": lambda x: 1 / torch.where(x != 0, x, 1.0).square(),
    "one added elsewhere": lambda x: 1 / (x.abs() + (x == 1).to(x.dtype)),
    "a row with nothing left": lambda x: x.masked_fill(
        torch.ones(N, dtype=torch.bool), -math.inf
    ).softmax(-1),
    "a mask along the other dimension": lambda x: x.masked_fill(
        (torch.arange(4) == 3).unsqueeze(-1), -math.inf
    ).softmax(-1),
    "an infinity that the mask does not hide": lambda x: (
        torch.where(LAST_MASKED, x, -math.inf).masked_fill(LAST_MASKED, -math.inf).softmax(-1)
    ),
    "the largest of other slots": lambda x: 1 / (
        (torch.zeros_like(x) == 1).to(x.dtype).scatter_add(
            -1, SLOTS.expand(x.shape), (x == x.flip(-1)).to(x.dtype)
        )
    ),
    "the diagonal beside the main one": lambda x: x.mm(x.T).diagonal(1).sqrt(),
    "products of two tensors": lambda x: x.mm((x + 1).T).diagonal().sqrt(),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_lookalike_is_still_reported(name):
    analysis = analyze(lambda x: LOOKALIKES[name](x).sum(), torch.rand(4, N), inputs={"x": RANGE})
    assert analysis.defects, analysis
