"""Layers by hand: norms, attention, recurrent nets, graphs, sequence losses."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from program_cases.pairs import pair
from torch import nn


def features():
    return torch.randn(8, 6), torch.arange(8) % 4


def sentences():
    padding = torch.ones(3, 5).bool()
    padding[1, 3:] = False
    padding[2, 2:] = False
    return torch.randn(3, 5, 8), padding


def graph():
    adjacency = (torch.rand(6, 6) > 0.6).float()
    adjacency[0] = 0
    return torch.randn(6, 4), adjacency


@pair("rms norm by hand", features)
def rms_norm():
    gain, head = nn.Parameter(torch.ones(6)), nn.Linear(6, 4)

    def safe(x, y):
        x = gain * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return F.cross_entropy(head(x), y)

    def wrong(x, y):
        x = F.relu(x)
        x = gain * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))  # RN102
        return F.cross_entropy(head(x), y)

    return safe, wrong


@pair("layer norm by hand", features)
def layer_norm():
    first, head = nn.Linear(6, 6), nn.Linear(6, 4)

    def safe(x, y):
        x = first(x)
        x = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)
        return F.cross_entropy(head(x), y)

    def wrong(x, y):
        x = first(x)
        x = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)  # RN103
        return F.cross_entropy(head(x), y)

    return safe, wrong


@pair("batch norm by hand", features)
def batch_norm():
    first, head = nn.Linear(6, 6), nn.Linear(6, 4)

    def safe(x, y):
        x = first(x)
        centred = x - x.mean(0)
        x = centred / torch.sqrt(centred.pow(2).mean(0) + 1e-5)
        return F.cross_entropy(head(x), y)

    def wrong(x, y):
        x = first(x)
        variance = (x**2).mean(0) - x.mean(0) ** 2
        x = (x - x.mean(0)) / torch.sqrt(variance + 1e-5)  # RN102 RN103
        return F.cross_entropy(head(x), y)

    return safe, wrong


@pair("weight standardisation", features)
def weight_standardisation():
    weight = nn.Parameter(torch.randn(4, 6))

    def safe(x, y):
        w = weight - weight.mean(1, keepdim=True)
        return F.cross_entropy(x @ (w / (w.std(1, keepdim=True) + 1e-5)).T, y)

    def wrong(x, y):
        w = weight - weight.mean(1, keepdim=True)
        return F.cross_entropy(x @ (w / w.std(1, keepdim=True)).T, y)  # RN103

    return safe, wrong


@pair("attention with padding", sentences)
def attention():
    qkv, head = nn.Linear(8, 24), nn.Linear(8, 2)

    def scores(x):
        q, k, v = qkv(x).chunk(3, -1)
        return q @ k.transpose(1, 2) / math.sqrt(8), v

    def safe(x, padding):
        score, v = scores(x)
        shares = score.masked_fill(~padding[:, None], -1e9).softmax(-1)
        mixed = (shares @ v) * padding[..., None]
        return head(mixed.sum(1) / padding.sum(1, keepdim=True).clamp(min=1)).pow(2).mean()

    def wrong(x, padding):
        score, v = scores(x)
        relevant = score > 0
        shares = score.masked_fill(~relevant, -math.inf).softmax(-1)  # RN110
        return head((shares @ v).mean(1)).pow(2).mean()

    return safe, wrong


@pair("attention, softmax by hand", sentences)
def attention_by_hand():
    qkv, head = nn.Linear(8, 24), nn.Linear(8, 2)

    def safe(x, padding):
        q, k, v = qkv(x).chunk(3, -1)
        score = q @ k.transpose(1, 2) / math.sqrt(8)
        e = torch.exp(score - score.max(-1, keepdim=True)[0])
        return head((e / e.sum(-1, keepdim=True)) @ v).pow(2).mean()

    def wrong(x, padding):
        q, k, v = qkv(x).chunk(3, -1)
        e = torch.exp(q @ k.transpose(1, 2) / math.sqrt(8))  # RN104
        return head((e / e.sum(-1, keepdim=True)) @ v).pow(2).mean()  # RN103

    return safe, wrong


@pair("linear attention", sentences)
def linear_attention():
    qkv, head = nn.Linear(8, 24), nn.Linear(8, 2)

    def mixed(x, feature, eps):
        q, k, v = qkv(x).chunk(3, -1)
        q, k = feature(q), feature(k)
        return q @ (k.transpose(1, 2) @ v), (q @ k.sum(1, keepdim=True).transpose(1, 2)) + eps

    def safe(x, padding):
        top, bottom = mixed(x, lambda t: F.elu(t) + 1, 1e-6)
        return head(top / bottom).pow(2).mean()

    def wrong(x, padding):
        top, bottom = mixed(x, F.relu, 0.0)
        return head(top / bottom).pow(2).mean()  # RN103

    return safe, wrong


@pair("mean pooling over words", sentences)
def mean_pooling():
    net = nn.Linear(8, 2)

    def safe(x, padding):
        mask = padding[..., None].float()
        pooled = (net(x) * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return pooled.pow(2).mean()

    def wrong(x, padding):
        h = net(x)
        mask = (h.abs().sum(-1, keepdim=True) > 0.5).float()
        pooled = (h * mask).sum(1) / mask.sum(1)  # RN103
        return pooled.pow(2).mean()

    return safe, wrong


@pair("loss over the words that count", sentences)
def word_loss():
    net = nn.Linear(8, 4)

    def safe(x, padding):
        target = torch.where(padding, torch.arange(5) % 4, -100)
        return F.cross_entropy(net(x).flatten(0, 1), target.flatten(), ignore_index=-100)

    def wrong(x, padding):
        logits = net(x)
        sure = logits.softmax(-1).amax(-1) > 0.6
        target = torch.arange(5).expand(3, 5) % 4
        return F.cross_entropy(logits[sure], target[sure])  # RN109

    return safe, wrong


@pair("mean aggregation in a graph", graph)
def mean_aggregation():
    net = nn.Linear(4, 4)

    def safe(x, adjacency):
        degree = adjacency.sum(1, keepdim=True).clamp(min=1)
        return net(adjacency @ x / degree).relu().pow(2).mean()

    def wrong(x, adjacency):
        degree = adjacency.sum(1, keepdim=True)
        return net(adjacency @ x / degree).relu().pow(2).mean()  # RN103

    return safe, wrong


@pair("graph convolution", graph)
def graph_convolution():
    net = nn.Linear(4, 4)

    def safe(x, adjacency):
        a = adjacency + torch.eye(6)
        root = a.sum(1).pow(-0.5)
        return (root[:, None] * a * root[None] @ net(x)).relu().mean()

    def wrong(x, adjacency):
        root = adjacency.sum(1).pow(-0.5)  # RN105
        return (root[:, None] * adjacency * root[None] @ net(x)).relu().mean()

    return safe, wrong


@pair("graph attention", graph)
def graph_attention():
    left, right, net = nn.Linear(4, 1), nn.Linear(4, 1), nn.Linear(4, 4)

    def logits(x):
        return F.leaky_relu(left(x) + right(x).T, 0.2)

    def safe(x, adjacency):
        a = adjacency + torch.eye(6)
        shares = logits(x).masked_fill(a == 0, -1e9).softmax(-1)
        return (shares @ net(x)).pow(2).mean()

    def wrong(x, adjacency):
        shares = logits(x).masked_fill(adjacency == 0, -math.inf).softmax(-1)  # RN110
        return (shares @ net(x)).pow(2).mean()

    return safe, wrong


@pair("layer scale and residual", features)
def layer_scale():
    scale, inner, head = nn.Parameter(1e-4 * torch.ones(6)), nn.Linear(6, 6), nn.Linear(6, 4)

    def safe(x, y):
        for _ in range(3):
            x = x + scale * inner(F.gelu(x))
        return F.cross_entropy(head(x), y)

    def wrong(x, y):
        for _ in range(3):
            x = x + scale * inner(torch.exp(x))  # RN104
        return F.cross_entropy(head(x), y)

    return safe, wrong


@pair("lstm with ctc", lambda: (torch.randn(2, 9, 6), torch.randint(1, 5, (2, 3))))
def lstm_ctc():
    net, head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 5)
    frames, words = torch.tensor([9, 9]), torch.tensor([3, 3])

    def safe(x, y):
        log_p = F.log_softmax(head(net(x)[0]), -1).transpose(0, 1)
        return F.ctc_loss(log_p, y, frames, words, zero_infinity=True)

    def wrong(x, y):
        log_p = torch.log(F.softmax(30 * head(net(x)[0]), -1)).transpose(0, 1)  # RN101
        return F.ctc_loss(log_p, y, frames, words, zero_infinity=True)

    return safe, wrong


@pair("gru with a learned decay", lambda: (torch.randn(2, 6, 4),))
def gru_decay():
    net, head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 1)
    rate = nn.Parameter(torch.zeros(8))

    def safe(x):
        h = net(x)[0] * torch.exp(-F.softplus(rate))
        return head(h).pow(2).mean()

    def wrong(x):
        h = net(x)[0] / (1 - torch.exp(-F.relu(rate)))  # RN103
        return head(h).pow(2).mean()

    return safe, wrong


@pair("conditional random field", lambda: (torch.randn(2, 5, 3),))
def random_field():
    emit, move = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 4) * 0.1)

    def safe(x):
        score = emit(x)
        alpha = score[:, 0]
        for t in range(1, 5):
            alpha = torch.logsumexp(alpha[:, :, None] + move, 1) + score[:, t]
        return (torch.logsumexp(alpha, -1) - score[..., 0].sum(-1)).mean()

    def wrong(x):
        score = emit(x)
        alpha = score[:, 0]
        for t in range(1, 5):
            every = alpha[:, :, None] + move + score[:, None, t]
            alpha = torch.log(torch.exp(every).sum(1))  # RN101 RN104
        return (torch.logsumexp(alpha, -1) - score[..., 0].sum(-1)).mean()

    return safe, wrong


@pair("swish and mish by hand", features)
def activations():
    inner, head = nn.Linear(6, 6), nn.Linear(6, 4)

    def safe(x, y):
        x = inner(x)
        return F.cross_entropy(head(x * torch.sigmoid(x) + x * torch.tanh(F.softplus(x))), y)

    def wrong(x, y):
        x = 10 * inner(x)
        return F.cross_entropy(head(x * torch.tanh(torch.log(1 + torch.exp(x)))), y)  # RN104

    return safe, wrong


@pair("noisy top-k experts", features)
def experts():
    gate, one, two = nn.Linear(6, 2), nn.Linear(6, 4), nn.Linear(6, 4)

    def safe(x, y):
        share = F.softmax(gate(x), -1)
        out = share[:, :1] * one(x) + share[:, 1:] * two(x)
        balance = share.mean(0)
        spread = balance.var(unbiased=False) / (balance.mean() ** 2 + 1e-10)
        return F.cross_entropy(out, y) + 0.01 * spread

    def wrong(x, y):
        share = F.relu(gate(x))
        share = share / share.sum(-1, keepdim=True)  # RN103
        out = share[:, :1] * one(x) + share[:, 1:] * two(x)
        return F.cross_entropy(out, y)

    return safe, wrong


@pair("hyperbolic distance", features)
def hyperbolic():
    net = nn.Linear(6, 2)

    def inside(x):
        v = net(x)
        return 0.9 * v / (1 + v.norm(dim=-1, keepdim=True))

    def safe(x, y):
        a = inside(x)
        gap = (a - a.flip(0)).pow(2).sum(-1)
        bottom = (1 - a.pow(2).sum(-1)).clamp(min=1e-3) ** 2
        return torch.acosh(1 + (2 * gap / bottom).clamp(min=1e-6)).mean()

    def wrong(x, y):
        a = inside(x)
        gap = (a - a.flip(0)).pow(2).sum(-1)
        bottom = (1 - a.pow(2).sum(-1)).clamp(min=1e-3) ** 2
        return torch.acosh(1 + 2 * gap / bottom).mean()  # RN106

    return safe, wrong


@pair("angle between vectors", lambda: (torch.randn(5, 3), torch.randn(5, 3)))
def angle():
    net = nn.Linear(3, 3)

    def safe(a, b):
        a, b = net(a), net(b)
        return torch.atan2(torch.cross(a, b, dim=-1).norm(dim=-1), (a * b).sum(-1)).mean()

    def wrong(a, b):
        a, b = net(a), net(b)
        return torch.acos(F.cosine_similarity(a, b, dim=-1)).mean()  # RN108

    return safe, wrong
