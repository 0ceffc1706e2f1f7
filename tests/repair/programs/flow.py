"""Normalising flow: affine coupling and a planar layer. log|det J| is -inf at times."""

import math

import torch
import torch.nn as nn


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.s = nn.Linear(2, 2)
        self.t = nn.Linear(2, 2)
        self.u = nn.Parameter(torch.randn(4))
        self.w = nn.Parameter(torch.randn(4))
        self.b = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        x1, x2 = x[:, :2], x[:, 2:]
        s = self.s(x1)
        y2 = (x2 - self.t(x1)) * torch.exp(-s)
        z = torch.cat([x1, y2], dim=1)
        # planar layer
        lin = z @ self.w + self.b
        psi = (1 - torch.tanh(lin) ** 2).unsqueeze(1) * self.w
        log_det = torch.log(torch.abs(1 + psi @ self.u))
        prior = -0.5 * (torch.tanh(z) ** 2).sum(1) - math.log(2 * math.pi)
        return -(prior + log_det - s.sum(1)).mean()


def make():
    torch.manual_seed(0)
    return Flow(), torch.randn(9, 4)
