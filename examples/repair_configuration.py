"""A hopeless training configuration, repaired: learning rate 10, and weights all zero.

    python examples/repair_configuration.py

The data are scikit-learn's handwritten digits (1,797 images of 8 x 8, no download); the loop is
an ordinary one. Takes some ten seconds on one core.
"""

from __future__ import annotations

import copy

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

from ranum.repair.search import (
    Reporter,
    SearchSpace,
    TrialRecord,
    apply_configuration,
    build_optimizer,
    read_configuration,
    repair_configuration,
)

EPOCHS = 12


def digits() -> tuple[torch.Tensor, ...]:
    """Images to train and to validate with, then their labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    return tuple(
        torch.tensor(part, dtype=kind)
        for part, kind in zip(parts, [torch.float32] * 2 + [torch.int64] * 2, strict=True)
    )


def main() -> None:
    images, held_out, labels, held_out_labels = digits()

    model = nn.Sequential(
        nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
    )
    for weight in model.parameters():
        nn.init.zeros_(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    faulty = read_configuration(model, optimizer, batch_size=64)

    def train(configuration: dict[str, object], report: Reporter) -> float:
        """Trains a copy; returns the share of held-out digits that it gets wrong."""
        candidate = copy.deepcopy(model)
        apply_configuration(candidate, configuration, seed=report.seed)
        optimizer = build_optimizer(
            configuration["optimizer"], candidate.parameters(), configuration["learning_rate"]
        )
        shuffle = torch.Generator().manual_seed(report.seed)
        error = 1.0
        for epoch in range(EPOCHS):
            order = torch.randperm(len(images), generator=shuffle)
            for batch in order.split(configuration["batch_size"]):
                optimizer.zero_grad()
                F.cross_entropy(candidate(images[batch]), labels[batch]).backward()
                optimizer.step()
            with torch.no_grad():
                guesses = candidate(held_out).argmax(-1)
            error = (guesses != held_out_labels).float().mean().item()
            report(epoch, error)
        return error

    def show(trial: TrialRecord) -> None:
        changed = {k: v for k, v in trial.configuration.items() if v != faulty[k]}
        outcome = f"error {trial.score:.3f}" if trial.state == "complete" else trial.reason
        print(f"{trial.number:3} {trial.phase:9} {outcome:56} {changed or 'as it is'}")

    space = SearchSpace(learning_rate=(1e-4, 1.0))
    result = repair_configuration(train, faulty, space, budget=30, target=0.06, on_trial=show)
    print(f"\n{result}")


if __name__ == "__main__":
    main()
