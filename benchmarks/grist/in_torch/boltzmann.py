"""Restricted Boltzmann machines, whose free energy holds log(1 + exp(.))."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_torch._build import built, pixels

EXP = Flaw("exp", "torch.exp(a)", "a pre-activation exceeds 88.7", {"hidden": Set(100)}).target()


class Boltzmann(nn.Module):
    """784 visible and 500 hidden units, one Gibbs step; the difference of free energies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(500, 784))
        self.visible = nn.Parameter(torch.zeros(784))
        self.hidden = nn.Parameter(torch.zeros(500))

    def forward(self, v: Tensor) -> Tensor:
        """F(v) - F(v') `[]` for `v [N, 784]`."""
        h = self.sample(F.linear(v, self.weight, self.hidden))
        again = self.sample(F.linear(h, self.weight.t(), self.visible))
        return self.energy(v) - self.energy(again)

    def sample(self, a: Tensor) -> Tensor:
        """Units that are on: 1 with probability σ(a), else 0."""
        p = torch.sigmoid(a)
        return torch.relu(torch.sign(p - torch.rand_like(p)))

    def energy(self, v: Tensor) -> Tensor:
        """Mean free energy `[]`."""
        a = F.linear(v, self.weight, self.hidden)
        units = torch.log(1 + torch.exp(a)).sum(1)
        return (-units - v.mv(self.visible)).mean()


def _machine(seed: int) -> Built:
    torch.manual_seed(seed)
    return built(Boltzmann(), {"v": pixels(64, 784)}, {"v": (0, 1)})


@case("22", EXP, training=Training("SGD", 0.1, 64))
def case_22(seed: int) -> Built:
    """F(v) - F(v'), F(v) = mean(-Σ log(1 + exp(Wv + c)) - v·b), v' after one Gibbs step."""
    return _machine(seed)


@case("51", EXP, training=Training("SGD", 0.1, 64))
def case_51(seed: int) -> Built:
    """F(v) - F(v'), F(v) = mean(-Σ log(1 + exp(Wv + c)) - v·b), v' after one Gibbs step."""
    return _machine(seed)


@case("62", EXP, training=Training("Adam", 0.005, 64))
def case_62(seed: int) -> Built:
    """F(v) - F(v'), F(v) = mean(-Σ log(1 + exp(Wv + c)) - v·b), v' after one Gibbs step."""
    return _machine(seed)


@case("63", EXP, training=Training("Adam", 0.005, 64))
def case_63(seed: int) -> Built:
    """F(v) - F(v'), F(v) = mean(-Σ log(1 + exp(Wv + c)) - v·b), v' after one Gibbs step."""
    return _machine(seed)
