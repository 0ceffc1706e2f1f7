"""Runs in which nothing is wrong. Each learns; a finding about one is a false alarm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.symptoms import task
from benchmarks.symptoms.task import Case, Task, adam, fit, mlp, sgd


def mlp_adam() -> Task:
    model = mlp()
    return fit(model, adam(model, 3e-3), task.standardised())


def mlp_validated() -> Task:
    """Enough data and little capacity: the validation loss follows."""
    x, y = task.standardised()
    mixed = torch.randperm(len(x))  # in their own order, the last are other people's
    x, y = x[mixed], y[mixed]
    model = mlp(width=32)
    return fit(model, adam(model, 1e-3), (x[:1400], y[:1400]), held_out=(x[1400:], y[1400:]))


def mlp_momentum() -> Task:
    model = mlp()
    return fit(model, sgd(model, 0.05, 0.9), task.standardised())


def mlp_raw_pixels() -> Task:
    """Pixels of 0 to 16, as they come; it trains well."""
    model = mlp()
    return fit(model, adam(model), task.digits(1.0))


def tanh_net() -> Task:
    model = mlp(16, depth=4, outputs=4, activation=nn.Tanh)
    return fit(model, sgd(model, 0.1), task.classes())


def sigmoid_net() -> Task:
    """One hidden layer of sigmoids, as thirty years ago."""
    model = mlp(depth=1, activation=nn.Sigmoid)
    return fit(model, adam(model, 1e-2), task.standardised())


def cnn_plain() -> Task:
    model = task.cnn(norm=False)
    return fit(model, adam(model, 2e-3), task.pictures())


def cnn_norm() -> Task:
    model = task.cnn(norm=True)
    return fit(model, adam(model, 2e-3), task.pictures())


def resnet() -> Task:
    """Pre-activation blocks under momentum, with label smoothing and dropout."""
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        task.Residual(12), task.Residual(12),
        nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(0.1), nn.Linear(48, 10),
    )  # fmt: skip
    return fit(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4),
        task.pictures(),
        loss=lambda outputs, labels: F.cross_entropy(outputs, labels, label_smoothing=0.1),
    )


def warmed(optimizer: torch.optim.Optimizer, rate: float, steps: int, i: int) -> None:
    """Linear warm-up to `rate` over `steps`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1.0, (i + 1) / steps)


def gpt(rate: float = 3e-3, warm_up: int = 50, tied: bool = False) -> Task:
    """Next token of a random source with four successors per token: floor log 4."""
    model = task.GPT()
    if tied:
        model.head.weight = model.tokens.weight
        nn.init.normal_(model.tokens.weight, std=0.02)
    optimizer = adam(model, rate, 0.1)
    table = torch.randint(32, (32, 4))

    def step(i: int) -> Tensor:
        warmed(optimizer, rate, warm_up, i)
        tokens = [torch.randint(32, (16,))]
        for _ in range(16):
            tokens.append(table[tokens[-1], torch.randint(4, (16,))])
        x = torch.stack(tokens, 1)
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return Task(model, optimizer, step)


def gpt_tied() -> Task:
    """Embedding and head share weights of deviation 0.02; a warm-up of 200 steps."""
    return gpt(rate=2e-3, warm_up=200, tied=True)


TEXT = " ".join(
    f"{a} {b} {c}."
    for a in ("the cat", "a dog", "the old man", "my sister", "nobody")
    for b in ("sees", "follows", "likes", "has lost", "would not sell")
    for c in ("the house", "a red ball", "the moon", "two small birds")
)


def gpt_characters() -> Task:
    """Characters of simple sentences."""
    letters = sorted(set(TEXT))
    data = torch.tensor([letters.index(letter) for letter in TEXT])
    model = task.GPT(len(letters))
    optimizer = adam(model, 2e-3, 0.01)

    def step(i: int) -> Tensor:
        starts = torch.randint(len(data) - 25, (16,))
        x = torch.stack([data[s : s + 25] for s in starts])
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return Task(model, optimizer, step)


def lstm() -> Task:
    """Digits read row by row."""
    body, head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)
    model = nn.ModuleList([body, head])
    x, y = task.standardised()
    rows = x.view(-1, 8, 8)

    def step(i: int) -> Tensor:
        pick = torch.randint(len(rows), (32,))
        return F.cross_entropy(head(body(rows[pick])[0][:, -1]), y[pick])

    return Task(model, adam(model, 5e-3), step)


def lstm_memory() -> Task:
    """The class stands in the first of ten steps: a plateau before it is found."""
    body, head = nn.LSTM(4, 24, batch_first=True), nn.Linear(24, 4)
    model = nn.ModuleList([body, head])

    def step(i: int) -> Tensor:
        first = torch.randint(4, (32,))
        x = torch.cat([F.one_hot(first, 4)[:, None].float(), torch.randn(32, 9, 4) * 0.1], 1)
        return F.cross_entropy(head(body(x)[0][:, -1]), first)

    return Task(model, adam(model, 5e-3), step)


def autoencoder() -> Task:
    """Digits in [0, 1] through a code of 8, with a sigmoid at the end."""
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8),
        nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid(),
    )  # fmt: skip
    x, _ = task.digits()
    return fit(model, adam(model, 3e-3), (x, x), loss=F.mse_loss)


def variational() -> Task:
    """Bernoulli likelihood and a Gaussian code: the loss is a sum of two."""
    encoder, decoder = mlp(depth=1, outputs=16), mlp(8, depth=1, outputs=64)
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    x, _ = task.digits()

    def step(i: int) -> Tensor:
        batch = x[torch.randint(len(x), (32,))]
        mean, log_variance = encoder(batch).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        fits = F.binary_cross_entropy_with_logits(decoder(code), batch, reduction="none").sum(1)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
        return (fits + divergence).mean()

    return Task(model, adam(model, 2e-3), step)


def _gan() -> tuple[nn.Module, nn.Module, Tensor]:
    generator = mlp(8, depth=2, outputs=2)
    discriminator = mlp(2, depth=2, outputs=1, activation=lambda: nn.LeakyReLU(0.2))
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    return generator, discriminator, corners


def _real(corners: Tensor) -> Tensor:
    return corners[torch.randint(4, (64,))] + 0.1 * torch.randn(64, 2)


def gan() -> Task:
    """Both players at once, each with gradients of its own loss; the loss shown is the sum."""
    generator, discriminator, corners = _gan()
    model = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.5, 0.999))

    def step(i: int) -> Tensor:
        fake, real = generator(torch.randn(64, 8)), _real(corners)
        ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)
        judge = F.binary_cross_entropy_with_logits
        loss = judge(discriminator(real), ones) + judge(discriminator(fake.detach()), zeros)
        discriminator.requires_grad_(False)
        loss = loss + judge(discriminator(fake), ones)
        discriminator.requires_grad_(True)
        return loss

    return Task(model, optimizer, step)


def gan_in_turns() -> Task:
    """One player per step: the loss shown is now one's, now the other's."""
    generator, discriminator, corners = _gan()
    model = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.5, 0.999))
    ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)
    judge = F.binary_cross_entropy_with_logits

    def step(i: int) -> Tensor:
        fake = generator(torch.randn(64, 8))
        if i % 2:
            discriminator.requires_grad_(False)
            loss = judge(discriminator(fake), ones)
            discriminator.requires_grad_(True)
            return loss
        real = discriminator(_real(corners))
        return judge(real, ones) + judge(discriminator(fake.detach()), zeros)

    return Task(model, optimizer, step)


def regression() -> Task:
    x, y = task.surface()
    model = mlp(8, outputs=1)
    return fit(model, adam(model, 3e-3), (x, y), loss=F.mse_loss)


def regression_raw_units() -> Task:
    """Targets of thousands: losses of 1e7 and gradients to match."""
    x = torch.randn(512, 8)
    model = mlp(8, depth=1, outputs=1)
    y = 3000 + 1000 * x @ torch.randn(8, 1)
    return fit(model, adam(model, 0.05), (x, y), loss=F.mse_loss, batch=64)


def least_squares() -> Task:
    """A linear model from zero, on the full batch: no noise at all."""
    model = nn.Linear(8, 1)
    nn.init.zeros_(model.weight)
    x = torch.randn(128, 8)
    y = x @ torch.randn(8, 1)
    everything = torch.arange(128)
    return fit(model, sgd(model, 0.1), (x, y), loss=F.mse_loss, order=lambda i: everything)


def likelihood() -> Task:
    """A predicted variance: the loss goes from one to below zero."""
    x, y = task.surface(features=4)
    model = mlp(4, 32, 1, 2, nn.Tanh)

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        mean, log_variance = outputs.unbind(1)
        return 0.5 * (log_variance + (target[:, 0] - mean) ** 2 / log_variance.exp()).mean()

    return fit(model, adam(model, 5e-3), (x, y), loss=loss, batch=64)


def contrastive() -> Task:
    """Two noisy views of a digit should agree: cosine similarity over 0.1."""
    model = mlp(depth=2, outputs=16)
    x, _ = task.standardised()

    def step(i: int) -> Tensor:
        batch = x[torch.randint(len(x), (64,))]
        one, two = (
            F.normalize(model(batch * (torch.rand_like(batch) > 0.2) + 0.2 * noise), dim=1)
            for noise in (torch.randn_like(batch), torch.randn_like(batch))
        )
        return F.cross_entropy(one @ two.T / 0.1, torch.arange(64))

    return Task(model, adam(model, 1e-3), step)


def _trained_body(steps: int = 150) -> nn.Sequential:
    """An MLP trained on the digits 0 to 4."""
    x, y = task.standardised()
    few = (x[y < 5], y[y < 5])
    model = mlp(outputs=5)
    run = fit(model, adam(model, 3e-3), few)
    for i in range(steps):
        run.optimizer.zero_grad()
        run.step(i).backward()
        run.optimizer.step()
    return model


def _others() -> tuple[Tensor, Tensor]:
    x, y = task.standardised()
    return x[y >= 5], y[y >= 5] - 5


def fine_tuning() -> Task:
    """A trained net with a new head from zero, all trained at a small rate."""
    model = _trained_body()
    model[-1] = nn.Linear(64, 5)
    nn.init.zeros_(model[-1].weight)
    return fit(model, adam(model, 3e-4), _others())


def fine_tuning_again() -> Task:
    """A trained net trained on, on what it knows: the loss is near its floor from the start."""
    x, y = task.standardised()
    model = _trained_body(300)
    return fit(model, adam(model, 1e-5), (x[y < 5], y[y < 5]))


def head_only() -> Task:
    """Frozen features, a new head."""
    model = _trained_body()
    model.requires_grad_(False)
    model[-1] = nn.Linear(64, 5)
    return fit(model, torch.optim.Adam(model[-1].parameters(), lr=3e-3), _others())


def policy() -> Task:
    """REINFORCE with a baseline on a contextual bandit: the loss measures nothing."""
    model = mlp(8, 32, 1, 4, nn.Tanh)
    best = torch.randn(8, 4)
    mean = 0.0

    def step(i: int) -> Tensor:
        nonlocal mean
        x = torch.randn(32, 8)
        choice = torch.distributions.Categorical(logits=model(x))
        action = choice.sample()
        reward = (x @ best).gather(1, action[:, None])[:, 0]
        advantage = reward - mean
        mean += 0.05 * (float(reward.mean()) - mean)
        return -(choice.log_prob(action) * advantage).mean()

    return Task(model, adam(model, 5e-3), step)


def value_learning() -> Task:
    """Q-learning with a target net on a random walk; targets move, losses rise and fall."""
    model, target = mlp(7, 32, 1, 2, nn.ReLU), mlp(7, 32, 1, 2, nn.ReLU)
    target.load_state_dict(model.state_dict())

    def step(i: int) -> Tensor:
        if i % 50 == 0:
            target.load_state_dict(model.state_dict())
        place, action = torch.randint(7, (32,)), torch.randint(2, (32,))
        there = (place + 2 * action - 1).clamp(0, 6)
        reward = (there == 6).float()
        with torch.no_grad():
            ahead = target(F.one_hot(there, 7).float()).amax(1)
        value = model(F.one_hot(place, 7).float()).gather(1, action[:, None])[:, 0]
        return F.smooth_l1_loss(value, reward + 0.9 * ahead * (there != 6))

    return Task(model, adam(model, 3e-3), step)


def denoiser() -> Task:
    """Noise predicted from a noisy picture: falls from 1 and stays well above 0."""
    model = mlp(65, 128, 2, 64, nn.SiLU)
    x, _ = task.standardised()

    def step(i: int) -> Tensor:
        batch, time = x[torch.randint(len(x), (64,))], torch.rand(64, 1)
        noise = torch.randn_like(batch)
        seen = torch.cos(time) * batch + torch.sin(time) * noise
        return F.mse_loss(model(torch.cat([seen, time], 1)), noise)

    return Task(model, adam(model, 2e-3), step)


def segmentation() -> Task:
    """A class per pixel, most of them background."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 1),
    )  # fmt: skip
    x, _ = task.pictures()
    y = (F.avg_pool2d(x, 3, 1, 1)[:, 0] > 1.0).long()
    return fit(model, adam(model, 2e-3), (x, y), batch=16)


def several_labels() -> Task:
    """Six yes-or-no questions, rarely yes."""
    x, _ = task.classes(1024)
    y = (x @ torch.randn(16, 6) > 5.0).float()
    model = mlp(16, outputs=6)
    return fit(model, adam(model, 3e-3), (x, y), loss=F.binary_cross_entropy_with_logits)


def small_batches() -> Task:
    """Batches of two, one label in ten wrong: the loss of a batch says little."""
    x, y = task.classes()
    y = torch.where(torch.rand(len(y)) < 0.1, torch.randint(4, y.shape), y)
    model = mlp(16, 32, outputs=4)
    return fit(model, sgd(model, 0.01), (x, y), batch=2)


def interpolating() -> Task:
    """Clean labels and batches of four, until the loss is zero but for hard examples."""
    model = mlp(16, 128, outputs=4)
    return fit(model, adam(model, 1e-3), task.classes(256), batch=4)


def cosine() -> Task:
    """LayerNorm, dropout, weight decay; the rate rises for 30 steps and decays to zero."""
    model = nn.Sequential(
        nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(0.1),
        nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = adam(model, 3e-3, 0.05)
    run = fit(model, optimizer, task.standardised())
    plain = run.step

    def step(i: int) -> Tensor:
        rise, fall = min(1.0, (i + 1) / 30), 0.5 * (1 + torch.cos(torch.tensor(i / 500 * 3.1416)))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * rise * float(fall)
        return plain(i)

    run.step = step
    return run


HEALTHY = (
    Case("MLP, Adam", mlp_adam, 500),
    Case("MLP with validation", mlp_validated, 600),
    Case("MLP, momentum", mlp_momentum, 500),
    Case("MLP, raw pixels 0 to 16", mlp_raw_pixels, 500),
    Case("tanh net, SGD", tanh_net, 600),
    Case("sigmoid net", sigmoid_net, 400),
    Case("CNN", cnn_plain, 300),
    Case("CNN with BatchNorm", cnn_norm, 300),
    Case("ResNet-like", resnet, 200),
    Case("GPT-like, tokens", gpt, 300),
    Case("GPT-like, tied, long warm-up", gpt_tied, 300),
    Case("GPT-like, characters", gpt_characters, 300),
    Case("LSTM", lstm, 300),
    Case("LSTM with a plateau", lstm_memory, 300),
    Case("autoencoder", autoencoder, 500),
    Case("variational autoencoder", variational, 500),
    Case("GAN", gan, 600),
    Case("GAN, in turns", gan_in_turns, 600),
    Case("regression", regression, 600),
    Case("regression in raw units", regression_raw_units, 600),
    Case("least squares, full batch", least_squares, 600),
    Case("predicted variance", likelihood, 800),
    Case("contrastive", contrastive, 400),
    Case("fine-tuning", fine_tuning, 500),
    Case("fine-tuning at the floor", fine_tuning_again, 500),
    Case("frozen features", head_only, 500),
    Case("policy gradient", policy, 600),
    Case("Q-learning", value_learning, 600),
    Case("denoising", denoiser, 500),
    Case("segmentation", segmentation, 300),
    Case("multi-label", several_labels, 500),
    Case("batches of two", small_batches, 1000),
    Case("interpolating", interpolating, 1000),
    Case("cosine schedule to zero", cosine, 500),
)
