"""Healthy training steps to measure on: a CNN with BatchNorm, an MLP, a small GPT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Workload:
    """A model, a batch for it, and the loss of its output.

    Attributes:
        name: For the tables.
        model: In training mode.
        batch: Input `[N, ...]` and target.
        criterion: From the model's output and the target to a loss `[]`.
    """

    name: str
    model: nn.Module
    batch: tuple[Tensor, Tensor]
    criterion: Callable[[Tensor, Tensor], Tensor]

    def loss(self) -> Tensor:
        """The loss of the batch."""
        inputs, targets = self.batch
        return self.criterion(self.model(inputs), targets)

    @property
    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def cnn(*, width: int = 16, blocks: int = 2, size: int = 32, batch: int = 8) -> Workload:
    """Residual blocks of convolution, BatchNorm and ReLU on images `[N, 3, size, size]`."""
    model = nn.Sequential(
        _Convolution(3, width),
        *(_Residual(width) for _ in range(blocks)),
        _Convolution(width, 2 * width, stride=2),
        *(_Residual(2 * width) for _ in range(blocks)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
    return Workload("CNN with BatchNorm", model, (images, labels), F.cross_entropy)


def mlp(*, width: int = 512, layers: int = 4, batch: int = 64) -> Workload:
    """Fully connected layers with ReLU on `[N, 256]`."""
    widths = [256, *[width] * layers]
    hidden = [
        part for before, after in pairwise(widths) for part in (nn.Linear(before, after), nn.ReLU())
    ]
    model = nn.Sequential(*hidden, nn.Linear(width, 10))
    rows, labels = torch.randn(batch, 256), torch.randint(0, 10, (batch,))
    return Workload("MLP", model, (rows, labels), F.cross_entropy)


def gpt(
    *, width: int = 128, layers: int = 4, context: int = 64, vocabulary: int = 512, batch: int = 2
) -> Workload:
    """A causal transformer on tokens `[N, T]`."""
    model = _GPT(width, layers, context, vocabulary)
    tokens = torch.randint(0, vocabulary, (batch, context + 1))

    def criterion(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return Workload("small GPT", model, (tokens[:, :-1], tokens[:, 1:]), criterion)


class _Convolution(nn.Sequential):
    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _Convolution(channels, channels), _Convolution(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _GPT(nn.Module):
    def __init__(self, width: int, layers: int, context: int, vocabulary: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.token(tokens) + self.position(positions))))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attention(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))
