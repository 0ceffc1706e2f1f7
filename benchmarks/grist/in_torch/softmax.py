"""Cross entropies written as the logarithm of a softmax."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.grist.case import Built, Flaw, Set, Training, case
from benchmarks.grist.in_torch._build import built, one_hot, pixels

LOG = Flaw("log", "torch.log(", "the softmax underflows to 0").target()
LOG_FREE = replace(LOG, witness={"z": Set(200, first=True)})
LOG_LINEAR = replace(LOG, witness={"weight": Set(100, first=True)})
LOG_DIGITS = replace(LOG, witness={"output.weight": Set(0), "output.bias": Set(200, first=True)})


class FreeLogits(nn.Module):
    """Logits z `[3, 5]` that are themselves trained; labels y one-hot."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.rand(3, 5))

    def forward(self, y: Tensor) -> Tensor:
        """The loss `[]`."""
        return (y * -torch.log(torch.softmax(self.z, 1))).sum(1).mean()


class SoftmaxRegression(nn.Module):
    """`x [N, 4]` and one-hot y `[N, 3]` to the cross entropy.

    Args:
        bias: Zeros in the shape the program gave its bias.
        mean: Mean over the rows; otherwise the sum.
        outside: The minus sign is taken of the loss, not of the logarithm.
    """

    def __init__(self, bias: tuple[int, ...], mean: bool, outside: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3))
        self.bias = nn.Parameter(torch.zeros(bias))
        self.mean, self.outside = mean, outside

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss `[]`."""
        p = torch.softmax(x @ self.weight + self.bias, 1)
        rows = (y * torch.log(p)).sum(1) if self.outside else (y * -torch.log(p)).sum(1)
        loss = rows.mean() if self.mean else rows.sum()
        return -loss if self.outside else loss


class Digits(nn.Module):
    """784-98-10 with dropout; log of the softmax into the negative log-likelihood."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(784, 98)
        self.output = nn.Linear(98, 10)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """The loss `[]`; x `[N, 784]`, label `[N]`."""
        p = torch.softmax(self.output(F.dropout(torch.relu(self.hidden(x)))), 1)
        return F.nll_loss(torch.log(p), label)


def _free(seed: int) -> Built:
    torch.manual_seed(seed)
    return built(FreeLogits(), {"y": one_hot(3, 5)}, {"y": (0, 1)})


def _regression(seed: int, bias: tuple[int, ...], mean: bool, outside: bool = False) -> Built:
    torch.manual_seed(seed)
    inputs = {"x": torch.randint(1, 8, (8, 4)).float(), "y": one_hot(8, 3)}
    return built(SoftmaxRegression(bias, mean, outside), inputs, {"x": (1, 7), "y": (0, 1)})


@case("12", LOG_DIGITS, training=Training("SGD", 0.1, 128))
def case_12(seed: int) -> Built:
    """P = softmax(Linear(98, 10)(dropout(relu(Linear(784, 98)(x))))); NLL(log P, label)."""
    torch.manual_seed(seed)
    inputs = {"x": pixels(128, 784), "label": torch.randint(10, (128,))}
    return built(Digits(), inputs, {"x": (0, 1)})


@case("23", LOG_FREE, training=Training("Adam", 0.1))
def case_23(seed: int) -> Built:
    """mean_rows Σ y (-log softmax(z)); z [3, 5] is the only tensor, trained freely."""
    return _free(seed)


@case("27", LOG_FREE, training=Training("Adam", 0.1))
def case_27(seed: int) -> Built:
    """mean_rows Σ y (-log softmax(z)); z [3, 5] is the only tensor, trained freely."""
    return _free(seed)


@case("32", LOG_LINEAR, training=Training("SGD", 0.1))
def case_32(seed: int) -> Built:
    """P = softmax(xW + b), W zeros[4, 3], b zeros[1]; Σ y (-log P); x [8, 4] in 1..7."""
    return _regression(seed, (1,), mean=False)


@case("34", LOG_LINEAR, training=Training("SGD", 0.1))
def case_34(seed: int) -> Built:
    """P = softmax(xW + b), b zeros[1]; mean_rows Σ y (-log P); x [8, 4] in 1..7."""
    return _regression(seed, (1,), mean=True)


@case("46", LOG_FREE, training=Training("Adam", 0.1))
def case_46(seed: int) -> Built:
    """mean_rows Σ y (-log softmax(z)); z [3, 5] is the only tensor, trained freely."""
    return _free(seed)


@case("47", LOG_LINEAR, training=Training("SGD", 0.1))
def case_47(seed: int) -> Built:
    """P = softmax(xW + b), b zeros[3]; mean_rows Σ y (-log P); x [8, 4] in 1..7."""
    return _regression(seed, (3,), mean=True)


@case("54", LOG_LINEAR, training=Training("Adam", 0.1))
def case_54(seed: int) -> Built:
    """P = softmax(xW + b), b zeros[1, 3]; -mean_rows Σ y log P; x [8, 4] in 1..7."""
    return _regression(seed, (1, 3), mean=True, outside=True)


@case("57", LOG_FREE, training=Training("Adam", 0.1))
def case_57(seed: int) -> Built:
    """mean_rows Σ y (-log softmax(z)); z [3, 5] is the only tensor, trained freely."""
    return _free(seed)
