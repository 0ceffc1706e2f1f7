"""Plain PyTorch: the nets of the tutorials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.clean.case import Case, Workload, add


def _cross_entropy(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"])


def _mlp() -> Workload:
    model = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 32), nn.Tanh(),
        nn.Linear(32, 5),
    )  # fmt: skip
    return Workload(
        model, {"x": torch.randn(8, 16), "y": torch.randint(0, 5, (8,))}, _cross_entropy
    )


def _cnn() -> Workload:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    images, labels = torch.rand(4, 3, 16, 16), torch.randint(0, 5, (4,))
    return Workload(model, {"x": images, "y": labels}, _cross_entropy)


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.layers = kind(16, 16, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.layers(self.embedding(x))
        scores: Tensor = self.head(states[:, -1])
        return scores


def _recurrent(kind: type[nn.RNNBase]) -> Workload:
    tokens, labels = torch.randint(0, 30, (4, 6)), torch.randint(0, 3, (4,))
    return Workload(_Recurrent(kind), {"x": tokens, "y": labels}, _cross_entropy)


def _autoencoder() -> Workload:
    model = nn.Sequential(
        nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 4), nn.Linear(4, 16), nn.GELU(),
        nn.Linear(16, 32), nn.Sigmoid(),
    )  # fmt: skip

    def loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        return F.mse_loss(model(batch["x"]), batch["x"])

    return Workload(model, {"x": torch.rand(8, 32)}, loss)


class _VariationalAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, spread = self.encoder(x).chunk(2, -1)
        deviation = F.softplus(spread) + 1e-4
        z = mean + deviation * torch.randn_like(deviation)
        return self.decoder(z), mean, deviation


def _variational_autoencoder() -> Workload:
    def loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        logits, mean, deviation = model(batch["x"])
        divergence = -0.5 + deviation.square() / 2 + mean.square() / 2 - deviation.log()
        fit = F.binary_cross_entropy_with_logits(logits, batch["x"], reduction="sum")
        return (fit + divergence.sum()) / len(mean)

    return Workload(_VariationalAutoencoder(), {"x": torch.rand(8, 32)}, loss)


class _Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.body = nn.Transformer(16, 4, 1, 1, 32, batch_first=True)
        self.head = nn.Linear(16, 30)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(
            target.shape[1], dtype=self.head.weight.dtype
        )
        states = self.body(
            self.embedding(source), self.embedding(target), tgt_mask=mask, tgt_is_causal=True
        )
        scores: Tensor = self.head(states)
        return scores


def _transformer() -> Workload:
    def loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        scores = model(batch["source"], batch["target"][:, :-1])
        return F.cross_entropy(scores.flatten(0, 1), batch["target"][:, 1:].flatten())

    source, target = torch.randint(0, 30, (2, 6)), torch.randint(0, 30, (2, 6))
    return Workload(_Translator(), {"source": source, "target": target}, loss)


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU())
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU())
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.down(x)
        inner = self.up(self.inner(F.avg_pool2d(kept, 2)))
        scores: Tensor = self.out(torch.cat([kept, inner], 1))
        return scores


def _unet() -> Workload:
    """Segmentation with cross entropy and a smoothed Dice term."""

    def loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        logits, target = model(batch["x"]), batch["y"]
        chance = logits.sigmoid()
        overlap = (chance * target).sum((1, 2, 3))
        dice = 1 - (2 * overlap + 1) / (chance.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)
        return F.binary_cross_entropy_with_logits(logits, target) + dice.mean()

    images, masks = torch.rand(2, 1, 16, 16), torch.randint(0, 2, (2, 1, 16, 16)).float()
    return Workload(_UNet(), {"x": images, "y": masks}, loss)


def _critic() -> Workload:
    """The two losses of a GAN in one step, with logits."""
    maker = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 32), nn.Tanh())
    judge = nn.Sequential(nn.Linear(32, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        maker, judge = model[0], model[1]  # type: ignore[index]
        made = maker(batch["noise"])
        return (
            F.softplus(-judge(batch["x"])) + F.softplus(judge(made.detach())) + F.softplus(
                -judge(made))
        ).mean()  # fmt: skip

    batch = {"x": torch.rand(8, 32) * 2 - 1, "noise": torch.randn(8, 8)}
    return Workload(nn.ModuleList([maker, judge]), batch, loss)


add(Case("MLP", _mlp))
add(Case("CNN with BatchNorm", _cnn))
add(Case("LSTM", lambda: _recurrent(nn.LSTM)))
add(Case("GRU", lambda: _recurrent(nn.GRU)))
add(Case("Elman net", lambda: _recurrent(nn.RNN)))
add(Case("autoencoder", _autoencoder))
add(Case("variational autoencoder", _variational_autoencoder))
add(Case("nn.Transformer", _transformer))
add(Case("U-Net", _unet))
add(Case("GAN", _critic))
