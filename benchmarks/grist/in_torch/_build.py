"""What the PyTorch cases share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.grist.case import Built


def built(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    ranges: Mapping[str, tuple[float, float]],
) -> Built:
    """A module that returns its loss, with its inputs."""
    return Built(module, inputs, ranges, dict(module.named_parameters()))


def pixels(rows: int, width: int) -> Tensor:
    """A batch of images in [0, 1], `[rows, width]`; about a fifth of them is ink."""
    ink = torch.rand(rows, width)
    return torch.where(ink > 0.8, torch.rand(rows, width), torch.zeros(()))


def one_hot(rows: int, classes: int) -> Tensor:
    """Random labels `[rows, classes]`."""
    return nn.functional.one_hot(torch.randint(classes, (rows,)), classes).float()
