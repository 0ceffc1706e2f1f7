"""Reinforcement learning and probabilistic regression."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from program_cases.pairs import pair
from torch import nn


def transitions():
    return torch.randn(8, 5), torch.randint(0, 3, (8,)), torch.randn(8)


def regression():
    return torch.randn(8, 5), torch.randn(8)


@pair("ppo", transitions)
def ppo():
    policy, value = nn.Linear(5, 3), nn.Linear(5, 1)

    def log_probability(x, action):
        return F.log_softmax(policy(x), -1).gather(-1, action[:, None]).squeeze(-1)

    def surrogate(ratio, advantage):
        return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()

    def safe(x, action, reward):
        advantage = reward - value(x).squeeze(-1).detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        new = log_probability(x, action)
        ratio = torch.exp((new - new.detach()).clamp(-20, 20))
        return surrogate(ratio, advantage) + F.mse_loss(value(x).squeeze(-1), reward)

    def wrong(x, action, reward):
        advantage = reward - value(x).squeeze(-1).detach()
        advantage = (advantage - advantage.mean()) / advantage.std()  # RN103
        old = F.softmax(policy(x), -1).gather(-1, action[:, None]).squeeze(-1).detach()
        new = F.softmax(policy(x), -1).gather(-1, action[:, None]).squeeze(-1)
        ratio = new / old  # RN103
        return surrogate(ratio, advantage) + F.mse_loss(value(x).squeeze(-1), reward)

    return safe, wrong


@pair("soft actor critic", transitions)
def soft_actor_critic():
    policy, critic = nn.Linear(5, 4), nn.Linear(7, 1)

    def sampled(x):
        mean, log_scale = policy(x).chunk(2, -1)
        log_scale = log_scale.clamp(-5, 2)
        noise = torch.randn_like(mean)
        u = mean + log_scale.exp() * noise
        return u, (-0.5 * noise**2 - log_scale - 0.5 * math.log(2 * math.pi))

    def safe(x, action, reward):
        u, log_p = sampled(x)
        correction = 2 * (math.log(2) - u - F.softplus(-2 * u))
        log_p = (log_p - correction).sum(-1)
        return (0.2 * log_p - critic(torch.cat([x, torch.tanh(u)], -1)).squeeze(-1)).mean()

    def wrong(x, action, reward):
        u, log_p = sampled(x)
        correction = torch.log(1 - torch.tanh(u) ** 2)  # RN101
        log_p = (log_p - correction).sum(-1)
        return (0.2 * log_p - critic(torch.cat([x, torch.tanh(u)], -1)).squeeze(-1)).mean()

    return safe, wrong


@pair("policy gradient with entropy", transitions)
def policy_gradient():
    net = nn.Linear(5, 3)

    def safe(x, action, reward):
        log_p = F.log_softmax(net(x), -1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return (-log_p.gather(-1, action[:, None]).squeeze(-1) * reward - 0.01 * entropy).mean()

    def wrong(x, action, reward):
        p = F.softmax(net(x), -1)
        entropy = -(p * p.log()).sum(-1)  # RN101
        log_p = torch.log(p.gather(-1, action[:, None])).squeeze(-1)  # RN101
        return (-log_p * reward - 0.01 * entropy).mean()

    return safe, wrong


@pair("discounted returns, standardised", transitions)
def returns():
    net = nn.Linear(5, 3)

    def discounted(reward):
        total, out = torch.zeros(()), []
        for r in reward.flip(0):
            total = r + 0.99 * total
            out.append(total)
        return torch.stack(out).flip(0)

    def loss(x, action, advantage):
        return (F.cross_entropy(net(x), action, reduction="none") * advantage).mean()

    def safe(x, action, reward):
        g = discounted(reward)
        return loss(x, action, (g - g.mean()) / (g.std() + 1e-6))

    def wrong(x, action, reward):
        g = discounted(reward)
        return loss(x, action, (g - g.mean()) / g.std())  # RN103

    return safe, wrong


@pair("gaussian likelihood with learned variance", regression)
def gaussian_nll():
    net = nn.Linear(5, 2)

    def safe(x, y):
        mean, raw = net(x).unbind(-1)
        variance = F.softplus(raw) + 1e-4
        return (0.5 * torch.log(variance) + (y - mean) ** 2 / (2 * variance)).mean()

    def wrong(x, y):
        mean, raw = net(x).unbind(-1)
        variance = F.relu(raw)
        return (0.5 * torch.log(variance) + (y - mean) ** 2 / (2 * variance)).mean()  # RN101 RN103

    return safe, wrong


@pair("heteroscedastic with log variance", regression)
def log_variance():
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))

    def safe(x, y):
        mean, s = net(x).unbind(-1)
        s = s.clamp(-8, 8)
        return (0.5 * s + 0.5 * torch.exp(-s) * (y - mean) ** 2).mean()

    def wrong(x, y):
        mean, s = net(x).unbind(-1)
        return (0.5 * s + 0.5 * torch.exp(-s) * (y - mean) ** 2).mean()  # RN104

    return safe, wrong


@pair("poisson regression", regression)
def poisson():
    net = nn.Linear(5, 1)

    def safe(x, y):
        rate = F.softplus(net(x).squeeze(-1)) + 1e-6
        return (rate - y.abs() * torch.log(rate)).mean()

    def wrong(x, y):
        rate = torch.relu(net(x).squeeze(-1))
        return (rate - y.abs() * torch.log(rate)).mean()  # RN101

    return safe, wrong


@pair("relative error", regression)
def relative_error():
    net = nn.Linear(5, 1)

    def safe(x, y):
        guess = net(x).squeeze(-1)
        return ((guess - y).abs() / (guess.abs() + y.abs()).clamp(min=1e-8)).mean()

    def wrong(x, y):
        guess = net(x).squeeze(-1)
        return ((guess - y).abs() / y.abs()).mean()  # RN103

    return safe, wrong


@pair("root mean square error", regression)
def rmse():
    net = nn.Linear(5, 1)

    def safe(x, y):
        return torch.sqrt(F.mse_loss(net(x).squeeze(-1), y) + 1e-8)

    def wrong(x, y):
        return torch.sqrt(F.mse_loss(net(x).squeeze(-1), y))  # RN106

    return safe, wrong


@pair("log error", regression)
def rmsle():
    net = nn.Linear(5, 1)

    def safe(x, y):
        guess = F.relu(net(x).squeeze(-1))
        return F.mse_loss(torch.log1p(guess), torch.log1p(y.abs()))

    def wrong(x, y):
        guess = net(x).squeeze(-1)
        return F.mse_loss(torch.log1p(guess), torch.log1p(y.abs()))  # RN101

    return safe, wrong


@pair("pearson correlation", regression)
def pearson():
    net = nn.Linear(5, 1)

    def safe(x, y):
        a, b = net(x).squeeze(-1), y
        a, b = a - a.mean(), b - b.mean()
        return 1 - (a * b).sum() / (a.norm() * b.norm() + 1e-8)

    def wrong(x, y):
        a, b = net(x).squeeze(-1), y
        a, b = a - a.mean(), b - b.mean()
        return 1 - (a * b).sum() / torch.sqrt((a**2).sum() * (b**2).sum())  # RN103 RN106

    return safe, wrong


@pair("huber by hand", regression)
def huber():
    net = nn.Linear(5, 1)

    def safe(x, y):
        error = (net(x).squeeze(-1) - y).abs()
        return torch.where(error < 1, 0.5 * error**2, error - 0.5).mean()

    def wrong(x, y):
        error = (net(x).squeeze(-1) - y).abs()
        return torch.where(error < 1, 0.5 * error**2, torch.sqrt(error)).mean()  # RN106

    return safe, wrong
