"""GAN losses written as in the paper: the discriminator loss becomes nan."""

import torch
from torch import nn

netD = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
netG = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6))


def discriminator_loss(real, noise):
    D_real = torch.sigmoid(netD(real))
    fake_score = netD(netG(noise).detach())
    D_fake = torch.sigmoid(fake_score)
    loss_real = torch.log(D_real)
    loss_fake = torch.log(1 - D_fake)  # minimax loss
    return -(loss_real.mean() + loss_fake.mean())


def make():
    torch.manual_seed(0)
    return discriminator_loss, torch.rand(8, 6), torch.rand(8, 4)
