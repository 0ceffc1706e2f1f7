"""Relational facts: each one narrows, and holds in floating point."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ranum.analysis import analyze

SHAPES = [(5,), (3, 7), (2, 3, 4)]
RANGE = (-1e4, 1e4)


def shifted_softmax(x: Tensor) -> Tensor:
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def shift(x: Tensor) -> Tensor:
    return x - x.max(-1, keepdim=True)[0]


def sum_of_shifted(x: Tensor) -> Tensor:
    return (x - x.amax(-1, keepdim=True)).exp().sum(-1)


def square(x: Tensor) -> Tensor:
    return x * x


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def rms_in_float32(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + 1e-6)


def layer_norm(x: Tensor) -> Tensor:
    c = x - x.mean(-1, keepdim=True)
    return c / torch.sqrt(c.pow(2).mean(-1, keepdim=True) + 1e-5)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def unit_eps(x: Tensor) -> Tensor:
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-8)


def sum_of_softmax(x: Tensor) -> Tensor:
    return x.softmax(-1).sum(-1)


def sum_of_shares(x: Tensor) -> Tensor:
    return shifted_softmax(x).sum(-1, keepdim=True)


def sum_of_rows_of_shares(x: Tensor) -> Tensor:
    return x.softmax(-1).sum() / x.shape[:-1].numel()


FACTS = {
    sum_of_softmax: lambda n: (1, 1),
    sum_of_shares: lambda n: (1, 1),
    sum_of_rows_of_shares: lambda n: (1, 1),
    shifted_softmax: lambda n: (0, 1),
    shift: lambda n: (-2e4, 0),
    sum_of_shifted: lambda n: (1, n),
    square: lambda n: (0, 1e8),
    rms: lambda n: (-math.sqrt(n), math.sqrt(n)),
    rms_in_float32: lambda n: (-math.sqrt(n), math.sqrt(n)),
    layer_norm: lambda n: (-math.sqrt(n), math.sqrt(n)),
    unit: lambda n: (-1, 1),
    unit_eps: lambda n: (-1, 1),
}


def bound(function, x: Tensor):
    analysis = analyze(lambda x: {"loss": function(x)}, x, inputs={"x": RANGE}, backward=False)
    return analysis, analysis.bounds["loss"]


@pytest.mark.parametrize("function", FACTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_fact_narrows_to_what_is_true(function, shape):
    analysis, interval = bound(function, torch.rand(shape))
    lower, upper = FACTS[function](shape[-1])
    assert interval.is_finite
    assert interval.low >= lower - 1e-3 * max(1, abs(lower))
    assert interval.high <= upper + 1e-3 * max(1, abs(upper))
    assert analysis.defects == ()


@pytest.mark.parametrize("function", FACTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_fact_holds_in_floating_point(function, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 33, dtype=torch.float64, generator=generator)
    _, interval = bound(function, x[:4].to(dtype))
    hard = [x * 1e4, x * -1e4, (x - 0.5) * 1e-30, (x > 0.97) * 1e4, 1e4 + x * 1e-3, x * 0]
    hard += [(x - 0.5) * 10.0**e for e in range(-24, 5)]
    for data in hard:
        result = function(data.clamp(*RANGE).to(dtype))
        assert bool((result >= interval.low).all()), data
        assert bool((result <= interval.high).all()), data


def whole_shares(e: Tensor) -> Tensor:
    return torch.div(e, e.sum(-1, keepdim=True), rounding_mode="floor")


LOOKALIKES = {
    "maximum over another dimension": lambda x: (x - x.amax(0, keepdim=True)).exp().sum(-1).log(),
    "maximum of something else": lambda x: (x - (2 * x).amax(-1, keepdim=True)).exp().sum(-1).log(),
    "variance of uncentred data": lambda x: torch.sqrt((x * x).mean(-1) - x.mean(-1) ** 2),
    "shares of another dimension": lambda x: 1 / x.softmax(0).sum(-1),
    "shares cut to whole numbers": lambda x: 1 / whole_shares(x.sigmoid() + 0.1).sum(-1),
    "norm of another tensor": lambda x: x / (x + 1).norm(dim=-1, keepdim=True),
    "no floor": lambda x: x / x.norm(dim=-1, keepdim=True),
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_lookalike_is_still_reported(name):
    analysis = analyze(lambda x: LOOKALIKES[name](x).sum(), torch.rand(4, 5), inputs={"x": RANGE})
    assert analysis.defects, analysis


def trained(function):
    """A training step: the function of a weight, at points where a root can be 0."""
    weight = torch.nn.Parameter(torch.tensor([-1.0, 0.0, 1e-20]))
    return (lambda x: function(x * weight).sum()), weight


def test_relu_drops_the_infinite_gradient_of_its_root():
    step, weight = trained(lambda x: torch.sqrt(torch.relu(x)))
    step(torch.ones(3)).backward()
    assert weight.grad.isfinite().all()
    assert not analyze(step, torch.ones(3)).defects


@pytest.mark.parametrize(
    "unsafe",
    [
        lambda x: torch.sqrt(x.clamp(min=0)),  # the gradient of clamp passes at its end
        lambda x: torch.sqrt(torch.relu(x) * 1e-30),  # 0 where relu is not, by underflow
        lambda x: torch.sqrt(torch.relu(x) * x),  # the other factor has no mask
    ],
)
def test_what_else_looks_like_a_root_of_relu_is_reported(unsafe):
    step, weight = trained(unsafe)
    step(torch.ones(3)).backward()
    assert not weight.grad.isfinite().all()
    (defect,) = analyze(step, torch.ones(3)).defects
    assert defect.op == "sqrt"
