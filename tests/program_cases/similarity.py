"""Losses on embeddings: contrastive, triplet, angular, optimal transport."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from program_cases.pairs import pair
from torch import nn


def views():
    return torch.randn(6, 8), torch.randn(6, 8)


def labelled():
    return torch.randn(6, 8), torch.tensor([0, 1, 2, 0, 1, 2])


@pair("infonce", views)
def infonce():
    net = nn.Linear(8, 5)
    target = torch.arange(6)

    def safe(a, b):
        a, b = F.normalize(net(a), dim=-1), F.normalize(net(b), dim=-1)
        return F.cross_entropy(a @ b.T / 0.07, target)

    def wrong(a, b):
        a, b = net(a), net(b)
        a = a / a.norm(dim=-1, keepdim=True)  # RN103
        b = b / b.norm(dim=-1, keepdim=True)  # RN103
        return F.cross_entropy(a @ b.T / 0.07, target)

    return safe, wrong


@pair("nt-xent by hand", views)
def nt_xent():
    net = nn.Linear(8, 5)
    own = torch.eye(12).bool()
    positive = torch.arange(12).roll(6)

    def safe(a, b):
        z = F.normalize(net(torch.cat([a, b])), dim=-1)
        logits = (z @ z.T / 0.1).masked_fill(own, -1e4)
        return F.cross_entropy(logits, positive)

    def wrong(a, b):
        z = net(torch.cat([a, b]))
        score = torch.exp(z @ z.T / 0.1).masked_fill(own, 0.0)  # RN104
        return -torch.log(score[torch.arange(12), positive] / score.sum(-1)).mean()  # RN101 RN103

    return safe, wrong


@pair("clip with a learned temperature", views)
def clip_loss():
    image, text = nn.Linear(8, 5), nn.Linear(8, 5)
    log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    target = torch.arange(6)

    def embedded(a, b):
        return F.normalize(image(a), dim=-1) @ F.normalize(text(b), dim=-1).T

    def safe(a, b):
        logits = log_scale.clamp(max=math.log(100)).exp() * embedded(a, b)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def wrong(a, b):
        temperature = torch.relu(log_scale)
        logits = embedded(a, b) / temperature  # RN103
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return safe, wrong


@pair("triplet with euclidean distance", views)
def triplet():
    net = nn.Linear(8, 5)

    def safe(a, b):
        anchor, positive = net(a), net(b)
        near = torch.sqrt(((anchor - positive) ** 2).sum(-1) + 1e-9)
        far = torch.sqrt(((anchor - positive.roll(1, 0)) ** 2).sum(-1) + 1e-9)
        return F.relu(near - far + 1).mean()

    def wrong(a, b):
        anchor, positive = net(a), net(b)
        near = torch.sqrt(((anchor - positive) ** 2).sum(-1))  # RN106
        far = torch.sqrt(((anchor - positive.roll(1, 0)) ** 2).sum(-1))  # RN106
        return F.relu(near - far + 1).mean()

    return safe, wrong


@pair("batch-hard triplet from gram matrix", labelled)
def batch_hard():
    net = nn.Linear(8, 5)

    def squared(z):
        return z.pow(2).sum(-1)[:, None] + z.pow(2).sum(-1)[None] - 2 * z @ z.T

    def safe(x, y):
        distance = squared(net(x)).clamp(min=1e-12).sqrt()
        same = y[:, None] == y[None]
        return F.relu((distance * same).amax(-1) - (distance + 1e3 * same).amin(-1) + 0.3).mean()

    def wrong(x, y):
        distance = squared(net(x)).sqrt()  # RN102
        same = y[:, None] == y[None]
        return F.relu((distance * same).amax(-1) - (distance + 1e3 * same).amin(-1) + 0.3).mean()

    return safe, wrong


@pair("cosine similarity by hand", views)
def cosine():
    net = nn.Linear(8, 5)

    def safe(a, b):
        a, b = net(a), net(b)
        return 1 - ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-8)).mean()

    def wrong(a, b):
        a, b = net(a), net(b)
        return 1 - ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()  # RN103

    return safe, wrong


@pair("arcface", labelled)
def arcface():
    net, centres = nn.Linear(8, 5), nn.Parameter(torch.randn(3, 5))
    margin, scale = 0.5, 30.0

    def cosines(x):
        return F.linear(F.normalize(net(x)), F.normalize(centres))

    def safe(x, y):
        cosine = cosines(x)
        angle = torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
        logits = torch.where(F.one_hot(y, 3).bool(), torch.cos(angle + margin), cosine)
        return F.cross_entropy(scale * logits, y)

    def wrong(x, y):
        cosine = cosines(x)
        angle = torch.acos(cosine)  # RN108
        logits = torch.where(F.one_hot(y, 3).bool(), torch.cos(angle + margin), cosine)
        return F.cross_entropy(scale * logits, y)

    return safe, wrong


@pair("arcface through the sine", labelled)
def arcface_sine():
    net, centres = nn.Linear(8, 5), nn.Parameter(torch.randn(3, 5))

    def cosines(x):
        return F.linear(F.normalize(net(x)), F.normalize(centres))

    def safe(x, y):
        cosine = cosines(x)
        sine = torch.sqrt((1 - cosine**2).clamp(min=1e-6))
        logits = torch.where(F.one_hot(y, 3).bool(), cosine * 0.88 - sine * 0.48, cosine)
        return F.cross_entropy(30 * logits, y)

    def wrong(x, y):
        cosine = cosines(x)
        sine = torch.sqrt(1 - cosine**2)  # RN102
        logits = torch.where(F.one_hot(y, 3).bool(), cosine * 0.88 - sine * 0.48, cosine)
        return F.cross_entropy(30 * logits, y)

    return safe, wrong


@pair("sinkhorn", views)
def sinkhorn():
    net = nn.Linear(8, 5)

    def cost(a, b):
        return torch.cdist(net(a), net(b)) ** 2

    def safe(a, b):
        c = cost(a, b)
        f, g = torch.zeros(6), torch.zeros(6)
        for _ in range(3):
            f = -0.1 * torch.logsumexp((g[None] - c) / 0.1 - math.log(6), 1)
            g = -0.1 * torch.logsumexp((f[:, None] - c) / 0.1 - math.log(6), 0)
        return (f + g).mean()

    def wrong(a, b):
        c = cost(a, b)
        kernel = torch.exp(-c / 0.1)
        u, v = torch.ones(6), torch.ones(6)
        for _ in range(1):
            u = 1 / (kernel @ v)  # RN103
            v = u.tanh()
        return (u.tanh()[:, None] * kernel * v[None] * c).sum()

    return safe, wrong


@pair("supervised contrastive", labelled)
def supervised_contrastive():
    net = nn.Linear(8, 5)
    own = torch.eye(6).bool()

    def log_shares(x):
        z = F.normalize(net(x), dim=-1)
        return F.log_softmax((z @ z.T / 0.1).masked_fill(own, -1e9), -1)

    def safe(x, y):
        same = (y[:, None] == y[None]) & ~own
        total = (log_shares(x) * same).sum(-1)
        return -(total / same.sum(-1).clamp(min=1)).mean()

    def wrong(x, y):
        close = (log_shares(x) > -2) & ~own
        total = (log_shares(x) * close).sum(-1)
        return -(total / close.sum(-1)).mean()  # RN103

    return safe, wrong
