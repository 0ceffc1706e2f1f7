"""Three small programs: a divergence, a ranking loss, an edge softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_torch._build import built

LOG = Flaw("log", "torch.log(v)", "v = 0")
RATIO = Flaw("div", "a / total", "the logarithms of a group add up to 0", {"v": Set(1)})
ROOT = Flaw(
    "sqrt",
    "torch.sqrt(",
    "the softmax underflows to 0",
    {"scores": Set(0), "scores[0]": Set(200)},
    gradient=True,
)


class Divergence(nn.Module):
    """The KL term of a graph auto-encoder whose encoder is the identity: mean = scale = x."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([[1.0, 2.0], [2.0, 1.0], [-1.0, 1.0]]))

    def forward(self) -> Tensor:
        """The loss `[]`."""
        mean = scale = self.x
        return -0.5 * (1 + scale - mean.square() - torch.log(scale)).sum(1).mean()


class Ranking(nn.Module):
    """Scores of two groups of three; the square root of each group's softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([0.8, 0.1, 0.1, 0.8, 0.1, 0.8]).reshape(6, 1))

    def forward(self, label: Tensor) -> Tensor:
        """The loss `[]` for `label [6, 1]` in {0, 1}."""
        logits = torch.cat([self.scores[0::3], self.scores[1::3], self.scores[2::3]], 1)
        labels = torch.cat([label[0::3], label[1::3], label[2::3]], 1)
        return -(labels * torch.sqrt(torch.softmax(logits, 1))).sum(1).mean()


class EdgeSoftmax(nn.Module):
    """What was meant as a softmax over the edges of each node, with log in place of exp."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("group", torch.tensor([0, 0, 0, 1, 1, 1]))

    def forward(self, v: Tensor) -> Tensor:
        """The sum `[]` of the edges' shares, `v [6]`."""
        a = torch.log(v)
        total = torch.zeros(2).index_add(0, self.group, a)
        return (a / total[self.group]).sum()


@case("4", Flaw("log", "torch.log(scale)", "scale <= 0").target(), training=Training("Adam", 0.1))
def case_4(seed: int) -> Built:
    """-0.5 mean_rows Σ (1 + s - mu² - log s) with mu = s = x, x [3, 2] trained freely."""
    return built(Divergence(), {}, {})


@case("5", ROOT.target(), training=Training("Adam", 0.1))
def case_5(seed: int) -> Built:
    """-mean_groups Σ label sqrt(softmax(scores)), scores [6, 1] trained freely."""
    label = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0]).reshape(6, 1)
    return built(Ranking(), {"label": label}, {"label": (0, 1)})


@case("13", LOG.target(), RATIO, training=Training("none", 0.0))
def case_13(seed: int) -> Built:
    """Edges: a = log v, a / segment_sum(a, {0, 0, 0, 1, 1, 1})[group]; v [6] in {0, 1, 2}."""
    v = torch.tensor([0.0, 1.0, 2.0, 1.0, 2.0, 2.0])
    return built(EdgeSoftmax(), {"v": v}, {"v": (0, 2)})
