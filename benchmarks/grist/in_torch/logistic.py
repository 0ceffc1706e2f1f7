"""Logistic regressions with the cross entropy written as log h and log(1 - h)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_torch._build import built

_HIT = Flaw("log", "torch.log(h)", "the sigmoid underflows to 0", {"bias": Set(-200)})
_REST = Flaw("log", "torch.log(1 - h)", "the sigmoid rounds to 1", {"bias": Set(60)})
BOTH = (_HIT.target(), _REST.target())
LAYER = tuple(
    replace(flaw, witness={"linear.weight": Set(0), "linear.bias": flaw.witness["bias"]})
    for flaw in BOTH
)


class Logistic(nn.Module):
    """One sigmoid unit, `x [N, features]` and labels y in {0, 1} to the mean cross entropy."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss `[]`."""
        h = torch.sigmoid(x @ self.weight + self.bias)
        return -(y * torch.log(h) + (1 - y) * torch.log(1 - h)).mean()


class LogisticLayer(nn.Module):
    """The same around `nn.Linear` with its default weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss `[]`."""
        h = torch.sigmoid(self.linear(x))
        return -(y * torch.log(h) + (1 - y) * torch.log(1 - h)).mean()


def _points(rows: int, features: int, low: int, high: int) -> dict[str, Tensor]:
    x = torch.randint(low, high + 1, (rows, features)).float()
    y = (x.sum(1, keepdim=True) > features * (low + high) / 2).float()
    return {"x": x, "y": y}


def _zeros(seed: int) -> Built:
    torch.manual_seed(seed)
    module = Logistic(torch.zeros(2, 1), torch.zeros(1))
    return built(module, _points(6, 2, 1, 6), {"x": (1, 6), "y": (0, 1)})


@case("26", *BOTH, training=Training("SGD", 1.0))
def case_26(seed: int) -> Built:
    """A unit h = σ(xW + b), W zeros, -mean(y log h + (1 - y) log(1 - h)); x [6, 2] 1..6."""
    return _zeros(seed)


@case("33", *BOTH, training=Training("SGD", 1.0))
def case_33(seed: int) -> Built:
    """A unit h = σ(xW + b), W zeros, -mean(y log h + (1 - y) log(1 - h)); x [6, 2] 1..6."""
    return _zeros(seed)


@case("37", *LAYER, training=Training("SGD", 0.01))
def case_37(seed: int) -> Built:
    """A unit h = σ(Linear(2, 1)(x)), -mean(y log h + (1 - y) log(1 - h)); x [6, 2] 1..6."""
    torch.manual_seed(seed)
    return built(LogisticLayer(), _points(6, 2, 1, 6), {"x": (1, 6), "y": (0, 1)})


@case("38", *LAYER, training=Training("SGD", 0.1))
def case_38(seed: int) -> Built:
    """A unit h = σ(Linear(2, 1)(x)), -mean(y log h + (1 - y) log(1 - h)); x, y the XOR table."""
    torch.manual_seed(seed)
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    return built(LogisticLayer(), {"x": x, "y": y}, {"x": (0, 1), "y": (0, 1)})


@case("53", *BOTH, training=Training("manual step", 1.0))
def case_53(seed: int) -> Built:
    """A unit h = σ(xW + b), W zeros, -mean(y log h + (1 - y) log(1 - h)); x [12, 1] 0..5."""
    torch.manual_seed(seed)
    module = Logistic(torch.zeros(1, 1), torch.zeros(1, 1))
    return built(module, _points(12, 1, 0, 5), {"x": (0, 5), "y": (0, 1)})


@case("56", *BOTH, training=Training("SGD", 1.0))
def case_56(seed: int) -> Built:
    """A unit h = σ(xW + b), W zeros, -mean(y log h + (1 - y) log(1 - h)); x [6, 2] 1..6."""
    return _zeros(seed)
