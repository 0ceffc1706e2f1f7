"""Free energy of an RBM. Goes to inf with large weights."""

import torch
import torch.nn as nn


class RBM(nn.Module):
    def __init__(self, n_vis=784, n_hid=5):
        super().__init__()
        self.W = nn.Parameter(torch.randn(n_hid, n_vis) * 1e-2)
        self.v_bias = nn.Parameter(torch.zeros(n_vis))
        self.h_bias = nn.Parameter(torch.zeros(n_hid))

    def free_energy(self, v):
        vbias_term = v.mv(self.v_bias)
        wx_b = torch.nn.functional.linear(v, self.W, self.h_bias)
        hidden_term = wx_b.exp().add(1).log().sum(1)
        other = torch.log(1 + torch.exp(wx_b)).sum(1)
        return (-0.5 * (hidden_term + other) - vbias_term).mean()

    def forward(self, v, v_gibbs):
        return self.free_energy(v) - self.free_energy(v_gibbs)


def make():
    torch.manual_seed(0)
    return RBM(), torch.bernoulli(torch.full((6, 784), 0.5)), torch.rand(6, 784)
