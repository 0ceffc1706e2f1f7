"""Mixture density network (1-D target). The negative log likelihood overflows."""

import math

import torch
import torch.nn as nn


class MDN(nn.Module):
    def __init__(self, n_gaussians=3):
        super().__init__()
        self.z_h = nn.Sequential(nn.Linear(2, 10), nn.Tanh())
        self.z_pi = nn.Linear(10, n_gaussians)
        self.z_mu = nn.Linear(10, n_gaussians)
        self.z_sigma = nn.Linear(10, n_gaussians)

    def forward(self, x, y):
        h = self.z_h(x)
        pi = torch.softmax(self.z_pi(h), -1)
        mu = self.z_mu(h)
        sigma = torch.exp(self.z_sigma(h))
        # density of every component
        ret = -0.5 * ((y - mu) / sigma) ** 2
        prob = torch.exp(ret) / sigma / math.sqrt(2 * math.pi)
        return -torch.log(torch.sum(prob * pi, dim=1)).mean()


def make():
    torch.manual_seed(0)
    return MDN(), torch.rand(7, 2), torch.rand(7, 1)
