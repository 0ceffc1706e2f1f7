"""Segmentation, detection, classification."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from program_cases.pairs import pair
from torch import nn


def pixels():
    return torch.randn(2, 3, 6, 6), torch.randint(0, 2, (2, 1, 6, 6)).float()


def features():
    return torch.randn(8, 6), torch.arange(8) % 4


def boxes():
    corner = torch.rand(6, 2) * 0.5
    return torch.randn(6, 8), torch.cat([corner, corner + 0.1 + torch.rand(6, 2) * 0.3], -1)


@pair("dice", pixels)
def dice():
    net = nn.Conv2d(3, 1, 3, padding=1)

    def safe(x, y):
        p = torch.sigmoid(net(x))
        return 1 - (2 * (p * y).sum((1, 2, 3)) + 1).div((p + y).sum((1, 2, 3)) + 1).mean()

    def wrong(x, y):
        p = (torch.sigmoid(net(x)) > 0.5).float()
        loss = 1 - (2 * (p * p).sum((1, 2, 3)) / (p + p).sum((1, 2, 3))).mean()  # RN103
        return loss + F.mse_loss(net(x), y)

    return safe, wrong


@pair("focal", pixels)
def focal():
    net = nn.Conv2d(3, 1, 3, padding=1)

    def safe(x, y):
        logits = net(x)
        p = torch.sigmoid(logits)
        error = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
        return (error * (1 - (p * y + (1 - p) * (1 - y))) ** 2).mean()

    def wrong(x, y):
        p = torch.sigmoid(net(x))
        error = -(y * torch.log(p) + (1 - y) * torch.log(1 - p))  # RN101
        return (error * (1 - (p * y + (1 - p) * (1 - y))) ** 2).mean()

    return safe, wrong


@pair("focal for classes", features)
def focal_classes():
    net = nn.Linear(6, 4)

    def safe(x, y):
        log_p = F.log_softmax(net(x), -1).gather(-1, y[:, None])
        return -((1 - log_p.exp()) ** 2 * log_p).mean()

    def wrong(x, y):
        p = F.softmax(net(x), -1).gather(-1, y[:, None])
        return -((1 - p) ** 2 * torch.log(p)).mean()  # RN101

    return safe, wrong


@pair("tversky", pixels)
def tversky():
    net = nn.Conv2d(3, 1, 3, padding=1)

    def safe(x, y):
        p = torch.sigmoid(net(x)).flatten(1)
        y = y.flatten(1)
        hit, false, missed = (p * y).sum(1), (p * (1 - y)).sum(1), ((1 - p) * y).sum(1)
        return ((1 - (hit + 1e-6) / (hit + 0.3 * false + 0.7 * missed + 1e-6)) ** 2).mean()

    def wrong(x, y):
        p = torch.relu(net(x)).flatten(1)
        y = y.flatten(1)
        hit, false, missed = (p * p).sum(1), (p * p).sum(1), p.sum(1)
        return (1 - hit / (hit + 0.3 * false + 0.7 * missed)).mean() + y.mean()  # RN103

    return safe, wrong


@pair("intersection over union", boxes)
def iou():
    net = nn.Linear(8, 4)

    def parts(x, target):
        centre, size = torch.sigmoid(net(x)).chunk(2, -1)
        low, high = centre - size / 2, centre + size / 2
        overlap = torch.minimum(high, target[:, 2:]) - torch.maximum(low, target[:, :2])
        both = overlap.clamp(min=0).prod(-1)
        union = size.prod(-1) + (target[:, 2:] - target[:, :2]).clamp(min=0).prod(-1) - both
        return both, union

    def safe(x, target):
        both, union = parts(x, target)
        return (1 - both / union.clamp(min=1e-6)).mean()

    def wrong(x, target):
        both, union = parts(x, target)
        return (1 - both / union).mean()  # RN103

    return safe, wrong


@pair("-log iou", boxes)
def log_iou():
    net = nn.Linear(8, 4)

    def ratio(x, target):
        size = torch.sigmoid(net(x))[:, :2]
        both = torch.minimum(size, target[:, 2:]).clamp(min=0).prod(-1)
        return both / (size.prod(-1) + target[:, 2:].abs().prod(-1) - both).clamp(min=1e-6)

    def safe(x, target):
        return -torch.log(ratio(x, target).clamp(min=1e-6)).mean()

    def wrong(x, target):
        return -torch.log(ratio(x, target)).mean()  # RN101

    return safe, wrong


@pair("yolo box sizes", boxes)
def yolo():
    net = nn.Linear(8, 4)
    anchors = torch.tensor([0.2, 0.3])

    def safe(x, target):
        size = (2 * torch.sigmoid(net(x)[:, 2:])) ** 2 * anchors
        return F.mse_loss(size, target[:, 2:])

    def wrong(x, target):
        size = torch.exp(net(x)[:, 2:]) * anchors  # RN104
        return F.mse_loss(size, target[:, 2:])

    return safe, wrong


@pair("label smoothing by hand", features)
def label_smoothing():
    net = nn.Linear(6, 4)

    def safe(x, y):
        log_p = F.log_softmax(net(x), -1)
        return (-0.9 * log_p.gather(-1, y[:, None]).squeeze(-1) - 0.1 * log_p.mean(-1)).mean()

    def wrong(x, y):
        soft = F.one_hot(y, 4) * 0.9 + 0.025
        return -(soft * F.softmax(net(x), -1).log()).sum(-1).mean()  # RN101

    return safe, wrong


@pair("mixup with soft labels", features)
def mixup():
    net = nn.Linear(6, 4)

    def mixed(x, y):
        share = torch.rand(8, 1)
        soft = F.one_hot(y, 4).float()
        return share * x + (1 - share) * x.flip(0), share * soft + (1 - share) * soft.flip(0)

    def safe(x, y):
        x, soft = mixed(x, y)
        return -(soft * F.log_softmax(net(x), -1)).sum(-1).mean()

    def wrong(x, y):
        x, soft = mixed(x, y)
        e = torch.exp(net(x))  # RN104
        return -(soft * torch.log(e / e.sum(-1, keepdim=True))).sum(-1).mean()  # RN101 RN103

    return safe, wrong


@pair("distillation", features)
def distillation():
    student, teacher = nn.Linear(6, 4), nn.Linear(6, 4)

    def safe(x, y):
        target = F.log_softmax(teacher(x).detach() / 2, -1)
        guess = F.log_softmax(student(x) / 2, -1)
        kl = F.kl_div(guess, target, log_target=True, reduction="batchmean")
        return 4 * kl + F.cross_entropy(student(x), y)

    def wrong(x, y):
        target = F.softmax(teacher(x).detach() / 0.5, -1)
        guess = F.softmax(student(x) / 0.5, -1)
        kl = (target * torch.log(target / guess)).sum(-1).mean()  # RN101 RN103
        return 4 * kl + F.cross_entropy(student(x), y)

    return safe, wrong


@pair("class balance weights", features)
def class_balance():
    net = nn.Linear(6, 4)

    def safe(x, y):
        logits = net(x)
        count = F.one_hot(logits.argmax(-1), 4).sum(0).float()
        return F.cross_entropy(logits, y, weight=8 / (count + 1))

    def wrong(x, y):
        logits = net(x)
        count = F.one_hot(logits.argmax(-1), 4).sum(0).float()
        return F.cross_entropy(logits, y, weight=8 / count)  # RN103

    return safe, wrong


@pair("spectral norm by hand", features)
def spectral_norm():
    weight = nn.Parameter(torch.randn(4, 6))
    start = F.normalize(torch.randn(4), dim=0)

    def safe(x, y):
        v = F.normalize(weight.T @ start, dim=0)
        u = F.normalize(weight @ v, dim=0)
        sigma = (u * (weight @ v)).sum()
        return F.cross_entropy(x @ (weight / (sigma.abs() + 1e-6)).T, y)

    def wrong(x, y):
        v = weight.T @ start
        v = v / v.norm()  # RN103
        sigma = (weight @ v).norm()
        return F.cross_entropy(x @ (weight / sigma).T, y)  # RN103

    return safe, wrong
