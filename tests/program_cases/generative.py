"""Autoencoders, adversarial nets, flows, diffusion, mixtures."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from program_cases.pairs import pair
from torch import nn

LOG_2PI = math.log(2 * math.pi)


def images():
    return (torch.rand(8, 12),)


def points():
    return (torch.randn(8, 4),)


@pair("variational autoencoder", images)
def variational_autoencoder():
    encoder = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 6))
    decoder = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 12))

    def safe(x):
        mean, log_variance = encoder(x).chunk(2, -1)
        log_variance = log_variance.clamp(-10, 10)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        reconstruction = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        return (reconstruction + kl) / len(x)

    def wrong(x):
        mean, log_variance = encoder(x).chunk(2, -1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)  # RN104
        reconstruction = F.binary_cross_entropy(torch.sigmoid(decoder(z)), x, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())  # RN104
        return (reconstruction + kl) / len(x)

    return safe, wrong


@pair("beta-vae with softplus scale", images)
def softplus_scale():
    encoder, decoder = nn.Linear(12, 6), nn.Linear(3, 12)

    def safe(x):
        mean, raw = encoder(x).chunk(2, -1)
        scale = F.softplus(raw) + 1e-4
        z = mean + scale * torch.randn_like(scale)
        kl = (-torch.log(scale) + (scale**2 + mean**2 - 1) / 2).sum(-1).mean()
        return F.mse_loss(decoder(z), x) + 4 * kl

    def wrong(x):
        mean, raw = encoder(x).chunk(2, -1)
        scale = F.relu(raw)
        z = mean + scale * torch.randn_like(scale)
        kl = (-torch.log(scale) + (scale**2 + mean**2 - 1) / 2).sum(-1).mean()  # RN101
        return F.mse_loss(decoder(z), x) + 4 * kl

    return safe, wrong


@pair("gan discriminator", images)
def discriminator():
    net = nn.Sequential(nn.Linear(12, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    generator = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 12), nn.Sigmoid())

    def safe(x):
        fake = generator(torch.randn(8, 3))
        return (F.softplus(-net(x)) + F.softplus(net(fake))).mean()

    def wrong(x):
        fake = generator(torch.randn(8, 3))
        real_score, fake_score = torch.sigmoid(net(x)), torch.sigmoid(net(fake))
        return -(torch.log(real_score) + torch.log(1 - fake_score)).mean()  # RN101

    return safe, wrong


@pair("wasserstein gan with gradient penalty", images)
def gradient_penalty():
    net = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 1))

    def penalty(x, norm):
        mixed = x.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(mixed).sum(), mixed, create_graph=True)
        return ((norm(slope) - 1) ** 2).mean()

    def safe(x):
        return -net(x).mean() + 10 * penalty(x, lambda s: torch.sqrt((s**2).sum(-1) + 1e-12))

    def wrong(x):
        return -net(x).mean() + 10 * penalty(x, lambda s: torch.sqrt((s**2).sum(-1)))  # RN106

    return safe, wrong


@pair("realnvp coupling", points)
def realnvp():
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4))

    def likelihood(z, log_det):
        return -(-0.5 * (z**2 + LOG_2PI).sum(-1) + log_det).mean()

    def safe(x):
        kept, moved = x.chunk(2, -1)
        scale, shift = net(kept).chunk(2, -1)
        scale = torch.tanh(scale)
        z = torch.cat([kept, moved * torch.exp(scale) + shift], -1)
        return likelihood(z, scale.sum(-1))

    def wrong(x):
        kept, moved = x.chunk(2, -1)
        scale, shift = net(kept).chunk(2, -1)
        z = torch.cat([kept, moved * torch.exp(scale) + shift], -1)  # RN104
        return likelihood(z, scale.sum(-1))

    return safe, wrong


@pair("planar flow", points)
def planar_flow():
    u, w, b = (nn.Parameter(torch.randn(4) * 0.1) for _ in range(3))

    def safe(z):
        activation = torch.tanh(z @ w + b.sum())
        psi = (1 - activation**2)[:, None] * w
        log_det = torch.log((1 + psi @ u).abs() + 1e-6)
        return -log_det.mean() + ((z + u * activation[:, None]) ** 2).mean()

    def wrong(z):
        activation = torch.tanh(z @ w + b.sum())
        psi = (1 - activation**2)[:, None] * w
        log_det = torch.log((1 + psi @ u).abs())  # RN101
        return -log_det.mean() + ((z + u * activation[:, None]) ** 2).mean()

    return safe, wrong


@pair("diffusion schedule", points)
def diffusion():
    net = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 4))
    betas = torch.linspace(1e-4, 0.02, 100)
    kept = torch.cumprod(1 - betas, 0)
    cosine = torch.cos(torch.linspace(0, 1, 101) * math.pi / 2) ** 2

    def safe(x):
        t = torch.randint(0, 100, (8,))
        share = kept[t][:, None]
        noise = torch.randn_like(x)
        noisy = share.sqrt() * x + (1 - share).sqrt() * noise
        guess = net(torch.cat([noisy, t[:, None] / 100], -1))
        weight = (share / (1 - share)).clamp(max=5.0)
        return (weight * (guess - noise) ** 2).mean()

    def wrong(x):
        t = torch.randint(0, 101, (8,))
        share = cosine[t][:, None]
        noise = torch.randn_like(x)
        noisy = share.sqrt() * x + (1 - share).sqrt() * noise
        guess = net(torch.cat([noisy, t[:, None] / 100], -1))
        weight = share / (1 - share)  # RN103
        return (weight * (guess - noise) ** 2).mean()

    return safe, wrong


@pair("mixture density network", points)
def mixture_density():
    net = nn.Linear(3, 9)

    def parts(x):
        logits, mean, raw = net(x[:, :3]).chunk(3, -1)
        return logits, (x[:, 3:] - mean), raw

    def safe(x):
        logits, distance, raw = parts(x)
        scale = F.softplus(raw) + 1e-3
        log_density = -0.5 * (distance / scale) ** 2 - torch.log(scale) - 0.5 * LOG_2PI
        return -torch.logsumexp(F.log_softmax(logits, -1) + log_density, -1).mean()

    def wrong(x):
        logits, distance, raw = parts(x)
        scale = F.softplus(raw) + 1e-3
        density = torch.exp(-0.5 * (distance / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
        return -torch.log((F.softmax(logits, -1) * density).sum(-1)).mean()  # RN101

    return safe, wrong


@pair("vector quantisation with perplexity", points)
def vector_quantisation():
    codes = nn.Parameter(torch.randn(6, 4))
    encoder = nn.Linear(4, 4)

    def usage(x):
        z = encoder(x)
        chosen = torch.cdist(z, codes).argmin(-1)
        quantised = codes[chosen]
        loss = F.mse_loss(quantised.detach(), z) * 0.25 + F.mse_loss(quantised, z.detach())
        return loss, torch.softmax(-torch.cdist(z, codes), -1).mean(0)

    def safe(x):
        loss, share = usage(x)
        return loss + 0.1 * (share * torch.log(share + 1e-10)).sum()

    def wrong(x):
        loss, share = usage(x)
        return loss + 0.1 * (share * torch.log(share)).sum()  # RN101

    return safe, wrong


@pair("gumbel softmax by hand", points)
def gumbel():
    net = nn.Linear(4, 5)

    def safe(x):
        noise = torch.rand(8, 5).clamp(1e-6, 1 - 1e-6)
        soft = torch.softmax((net(x) - torch.log(-torch.log(noise))) / 0.5, -1)
        return (soft * torch.arange(5)).sum(-1).mean()

    def wrong(x):
        noise = torch.rand(8, 5)
        soft = torch.softmax((net(x) - torch.log(-torch.log(noise))) / 0.5, -1)  # RN101
        return (soft * torch.arange(5)).sum(-1).mean()

    return safe, wrong
