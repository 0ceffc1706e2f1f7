"""A plain PyTorch loop under guard: it meets two faults and learns all the same.

    python examples/plain_loop.py

The task is to fit mean and spread of noisy measurements. Two things go wrong, as they do:
the hand-written likelihood takes the logarithm of a spread that becomes zero, and a sensor
gives a NaN. Without a guard (`--without`) the first of them ends the training for good.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ranum import Guard, Incident

STEPS = 800


class Gaussian(nn.Module):
    """Predicts a mean and a spread; the relu lets the spread become exactly zero."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 32), nn.BatchNorm1d(32), nn.Tanh())
        self.mean = nn.Linear(32, 1)
        self.spread = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x)
        return self.mean(hidden), torch.relu(self.spread(hidden))


def negative_log_likelihood(model: Gaussian, x: Tensor, y: Tensor) -> Tensor:
    mean, spread = model(x)
    return (torch.log(spread) + ((y - mean) / spread) ** 2 / 2).mean()


def measurements() -> Iterator[tuple[Tensor, Tensor]]:
    """y = sin(x) with noise of 0.1; a sensor fails in step 40."""
    for step in range(STEPS):
        x = torch.rand(64, 1) * 6 - 3
        y = torch.sin(x) + 0.1 * torch.randn(64, 1)
        if step == 40:
            y[7] = torch.nan
        yield x, y


def error(model: Gaussian) -> float:
    """Mean absolute error against the noiseless curve."""
    model.eval()
    with torch.no_grad():
        x = torch.linspace(-3, 3, 200)[:, None]
        return float((model(x)[0] - torch.sin(x)).abs().mean())


def tell(incident: Incident) -> None:
    print(f"step {incident.step}: {incident.finding.message}")
    print(f"  because: {incident.culprit or 'no operator made it'}")
    print(f"  {incident.action}: {incident.detail}")


def build() -> tuple[Gaussian, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Gaussian()
    nn.init.constant_(model.spread.bias, 2.0)
    return model, torch.optim.Adam(model.parameters(), lr=0.02)


def train_without() -> Gaussian:
    model, optimizer = build()
    for x, y in measurements():
        optimizer.zero_grad()
        negative_log_likelihood(model, x, y).backward()
        optimizer.step()
    return model


def train() -> Gaussian:
    model, optimizer = build()
    guard = Guard(model, optimizer, snapshot_every=20, on_incident=tell)
    for x, y in measurements():
        with guard.step((x, y)) as step:
            step.backward(negative_log_likelihood, model, x, y)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--without", action="store_true", help="train without the guard")
    model = train_without() if parser.parse_args().without else train()
    print(f"mean error after {STEPS} steps: {error(model):.3f}")
