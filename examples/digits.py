"""An ordinary LightningModule on scikit-learn's handwritten digits, with two ordinary mistakes.

The cross entropy is written by hand, as the log of a softmax, and the learning rate is too
high. `demo.py` trains it without and with Ranum.
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class LitDigits(pl.LightningModule):
    def __init__(self, learning_rate: float = 0.2) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        y = F.one_hot(labels, 10).float()
        loss = -(y * torch.log(torch.softmax(logits, -1))).sum(-1).mean()
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        accuracy = (self(images).argmax(-1) == labels).float().mean()
        self.log("test_accuracy", accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9)


def digits(batch_size: int = 32) -> tuple[DataLoader, DataLoader]:
    """Training and test loader: 1,797 real 8 x 8 images, pixels in [0, 1], bundled."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    train_x, test_x, train_y, test_y = train_test_split(
        images, torch.tensor(data.target), test_size=0.2, random_state=0, stratify=data.target
    )
    train = DataLoader(TensorDataset(train_x, train_y), batch_size=batch_size, shuffle=True)
    test = DataLoader(TensorDataset(test_x, test_y), batch_size=len(test_y))
    return train, test
