"""Siamese network with contrastive loss: NaN gradients when two images are the same."""

import torch
import torch.nn as nn


class ContrastiveLoss(nn.Module):
    def __init__(self, margin=1.0):
        super().__init__()
        self.margin = margin
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x1, x2, label):
        out1, out2 = self.net(x1), self.net(x2)
        distance = torch.sqrt(torch.sum((out1 - out2) ** 2, dim=1))
        similar = (1 - label) * distance**2
        different = label * torch.clamp(self.margin - distance, min=0.0) ** 2
        return torch.mean(similar + different)


def make():
    torch.manual_seed(0)
    label = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    return ContrastiveLoss(), torch.rand(5, 6), torch.rand(5, 6), label
