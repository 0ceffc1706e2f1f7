"""A training script with a defect, and its cure: `python examples/fix.py`.

The classifier below writes its cross entropy as the logarithm of a softmax, and its inputs are
raw sensor values of up to a few hundred. The softmax underflows, and all weights become NaN.

1. Trains as it is, and shows the step at which the loss is lost.
2. Analyses one training step, before any training, and prints the defect and the diff.
3. Trains again with the diff made live, from the same seed. The file is not touched;
   `ranum fix examples/fix.py:make --diff | git apply` would change it for good.

Exits with 1 unless the first run fails and the second ends with a finite loss.
"""

from __future__ import annotations

import argparse
import math
import sys

import torch
from torch import Tensor, nn

import ranum

STEPS = 60


class Classifier(nn.Module):
    """Two layers and a cross entropy by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss `[]` of `x [N, 8]` and one-hot labels `y [N, 4]`."""
        p = torch.softmax(self.net(x), dim=-1)
        return -(y * torch.log(p)).sum(-1).mean()


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Four clouds of points, and the cloud that each belongs to."""
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(4, (64,), generator=random)
    centres = 300 * torch.eye(8)[:4]
    x = centres[label] + 50 * torch.randn(64, 8, generator=random)
    return x, torch.eye(4)[label]


def make() -> tuple[nn.Module, Tensor, Tensor]:
    """The model and an example batch, as `ranum fix examples/fix.py:make` wants them."""
    torch.manual_seed(0)
    return Classifier(), *batch(0)


def train(rate: float) -> list[float]:
    """Losses of a training from the same seed."""
    model, *_ = make()
    optimizer = torch.optim.SGD(model.parameters(), rate)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(*batch(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def report(name: str, losses: list[float]) -> bool:
    """Prints how a training went; True if every loss was finite."""
    bad = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None)
    print(f"{name}: loss {losses[0]:.2f} -> {losses[-1]:.2f}", end="")
    print("" if bad is None else f"; lost in step {bad}")
    return bad is None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    rate = parser.parse_args().rate
    failed = not report("as written", train(rate))
    model, x, y = make()
    cures = ranum.fix(ranum.analyze(model, x, y))
    for cure in cures:
        print(cure)
    print(cures.diff(), end="")
    print(f"patched program: {cures.verify()}")
    with cures.apply():
        cured = report("as cured", train(rate))
    return 0 if failed and cured else 1


if __name__ == "__main__":
    sys.exit(main())
