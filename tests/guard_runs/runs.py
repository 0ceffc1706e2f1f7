"""Small real training runs, healthy and sick, as streams of readings.

A run builds a model, data and optimizer from a seed; `readings` trains it and yields what a
`TorchReader` measured before every optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.symptoms.task import GPT
from ranum.guards.readings import TorchReader
from ranum.guards.types import Reading


@dataclass
class Task:
    """A model and how one step of it is computed; `step(i)` returns the loss."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[int], Tensor]
    before_update: Callable[[int], None] = lambda i: None


@dataclass(frozen=True)
class Run:
    """A way to build a `Task`, and how many steps to train it."""

    name: str
    build: Callable[[], Task]
    steps: int

    def readings(self, seed: int, *, sample_every: int = 10) -> Iterator[Reading]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            task = self.build()
            reader = TorchReader(task.model, sample_every=sample_every)
            for i in range(self.steps):
                task.optimizer.zero_grad()
                with reader.watch(i):
                    loss = task.step(i)
                loss.backward()
                task.before_update(i)
                state = torch.get_rng_state()
                yield reader.read(step=i, loss=loss, optimizer=task.optimizer)
                torch.set_rng_state(state)
                task.optimizer.step()


def classes(n: int = 512, features: int = 16, k: int = 4) -> tuple[Tensor, Tensor]:
    """A learnable classification task: labels of a random two-layer teacher."""
    x = torch.randn(n, features)
    teacher = torch.tanh(x @ torch.randn(features, 32)) @ torch.randn(32, k)
    return x, teacher.argmax(1)


def images(n: int = 256, k: int = 4) -> tuple[Tensor, Tensor]:
    """Noisy 8 x 8 images of `k` patterns."""
    y = torch.randint(k, (n,))
    patterns = torch.randn(k, 1, 8, 8)
    return patterns[y] + 0.7 * torch.randn(n, 1, 8, 8), y


def classify(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    batch: int = 32,
) -> Task:
    def step(i: int) -> Tensor:
        pick = torch.randint(len(x), (batch,))
        return F.cross_entropy(model(x[pick]), y[pick])

    return Task(model, optimizer, step)


def mlp(width: int = 64, depth: int = 2, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(16, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


# --- healthy -------------------------------------------------------------------------------


def healthy_mlp() -> Task:
    model = mlp()
    return classify(model, torch.optim.Adam(model.parameters(), lr=3e-3), *classes())


def healthy_sgd() -> Task:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return classify(model, optimizer, *classes())


def healthy_tanh() -> Task:
    model = mlp(depth=4, activation=nn.Tanh)
    return classify(model, torch.optim.SGD(model.parameters(), lr=0.1), *classes())


def healthy_cnn() -> Task:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 4),
    )
    return classify(model, torch.optim.Adam(model.parameters(), lr=1e-3), *images())


def healthy_gpt() -> Task:
    model = GPT(length=16)
    rate = 3e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    table = torch.randint(32, (32, 4))

    def step(i: int) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (i + 1) / 50)
        tokens = [torch.randint(32, (16,))]
        for _ in range(16):
            tokens.append(table[tokens[-1], torch.randint(4, (16,))])
        x = torch.stack(tokens, 1)
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return Task(model, optimizer, step)


def healthy_lstm() -> Task:
    lstm, head = nn.LSTM(4, 24, batch_first=True), nn.Linear(24, 4)
    model = nn.ModuleList([lstm, head])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step(i: int) -> Tensor:
        first = torch.randint(4, (32,))
        x = torch.cat([F.one_hot(first, 4)[:, None].float(), torch.randn(32, 9, 4) * 0.1], 1)
        return F.cross_entropy(head(lstm(x)[0][:, -1]), first)

    return Task(model, optimizer, step)


def healthy_likelihood() -> Task:
    """Regression with a predicted variance: the loss goes from about 1 to below zero."""
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    weight = torch.randn(4)

    def step(i: int) -> Tensor:
        x = torch.randn(64, 4)
        target = torch.sin(x @ weight) + 0.05 * torch.randn(64)
        mean, log_variance = model(x).unbind(1)
        return 0.5 * (log_variance + (target - mean) ** 2 / log_variance.exp()).mean()

    return Task(model, optimizer, step)


def healthy_noisy() -> Task:
    """Batches of two, one label in ten wrong: the loss of a batch says little."""
    model = mlp(width=32)
    x, y = classes()
    y = torch.where(torch.rand(len(y)) < 0.1, torch.randint(4, y.shape), y)
    return classify(model, torch.optim.SGD(model.parameters(), lr=0.01), x, y, batch=2)


def healthy_interpolating() -> Task:
    """Clean labels, batches of four, until the loss is zero but for rare hard examples."""
    model = mlp(width=128)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return classify(model, optimizer, *classes(n=256), batch=4)


def healthy_large_targets() -> Task:
    """Targets in raw units of thousands: losses of 1e7 and gradients to match, but it trains."""
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    weight = torch.randn(8, 1) * 1000

    def step(i: int) -> Tensor:
        x = torch.randn(64, 8)
        return F.mse_loss(model(x), 3000 + x @ weight)

    return Task(model, optimizer, step)


def healthy_fine_tuning() -> Task:
    """Only the head is trained, on frozen random features, from zero weights."""
    body = mlp(width=256, depth=2)[:-1]
    head = nn.Linear(256, 4)
    nn.init.zeros_(head.weight)
    body.requires_grad_(False)
    model = nn.Sequential(body, head)
    return classify(model, torch.optim.Adam(head.parameters(), lr=1e-2), *classes())


def healthy_regression() -> Task:
    """Linear least squares from zero weights, full batch: no noise at all."""
    model = nn.Linear(8, 1)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(128, 8)
    target = x @ torch.randn(8, 1)
    return Task(model, optimizer, lambda i: F.mse_loss(model(x), target))


def healthy_autoencoder() -> Task:
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 32))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    basis = torch.randn(6, 32)

    def step(i: int) -> Tensor:
        x = torch.randn(64, 6) @ basis
        return F.mse_loss(model(x), x)

    return Task(model, optimizer, step)


HEALTHY = (
    Run("mlp", healthy_mlp, 600),
    Run("sgd", healthy_sgd, 600),
    Run("tanh", healthy_tanh, 600),
    Run("cnn", healthy_cnn, 300),
    Run("gpt", healthy_gpt, 300),
    Run("lstm", healthy_lstm, 300),
    Run("likelihood", healthy_likelihood, 1000),
    Run("noisy", healthy_noisy, 1200),
    Run("interpolating", healthy_interpolating, 1500),
    Run("large_targets", healthy_large_targets, 600),
    Run("fine_tuning", healthy_fine_tuning, 800),
    Run("regression", healthy_regression, 800),
    Run("autoencoder", healthy_autoencoder, 600),
)


# --- sick ----------------------------------------------------------------------------------


def log_of_zero() -> Task:
    """A hand-written cross entropy whose softmax underflows; the rate is far too high."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=20.0)
    x, y = classes()

    def step(i: int) -> Tensor:
        pick = torch.randint(len(x), (32,))
        target = F.one_hot(y[pick], 4)
        return -(target * torch.log(torch.softmax(model(x[pick]), -1))).sum(-1).mean()

    return Task(model, optimizer, step)


def gradient_spike() -> Task:
    """Healthy but for one step, in which the gradients are multiplied by 1e8."""
    task = healthy_mlp()

    def spike(i: int) -> None:
        for parameter in task.model.parameters():
            if i == SPIKE_STEP and parameter.grad is not None:
                parameter.grad.mul_(1e8)

    task.before_update = spike
    return task


SPIKE_STEP = 50


def diverging() -> Task:
    """Least squares with a step beyond the stability limit: grows, but stays finite."""
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.2)
    x = torch.randn(128, 8)
    target = x @ torch.randn(8, 1)
    return Task(model, optimizer, lambda i: F.mse_loss(model(x), target))


def stuck_above_start() -> Task:
    """The clamp in front of the log keeps everything finite; the rate kills the network."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0, momentum=0.9)
    x, y = classes()

    def step(i: int) -> Tensor:
        pick = torch.randint(len(x), (32,))
        p = torch.softmax(model(x[pick]), -1).clamp(min=1e-30)
        return -(F.one_hot(y[pick], 4) * torch.log(p)).sum(-1).mean()

    return Task(model, optimizer, step)


def wide_initialisation() -> Task:
    """Eight layers with weights of standard deviation 0.5, under gradient descent."""
    model = mlp(depth=8, width=128)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5)
    return classify(model, torch.optim.SGD(model.parameters(), lr=1e-2), *classes())


def deep_sigmoid() -> Task:
    model = mlp(depth=12, activation=nn.Sigmoid)
    return classify(model, torch.optim.Adam(model.parameters(), lr=1e-3), *classes())


def negative_bias() -> Task:
    """Biases of -5: every rectifier is dead from the start."""
    model = mlp(depth=3)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.bias, -5.0)
    return classify(model, torch.optim.SGD(model.parameters(), lr=0.05), *classes())


def killed_by_rate() -> Task:
    """Rectifiers that die in the first updates, under Adam with a rate of 0.3."""
    model = mlp()
    return classify(model, torch.optim.Adam(model.parameters(), lr=0.3), *classes())


def swinging() -> Task:
    """A tanh network under Adam with a rate of 0.5."""
    model = mlp(activation=nn.Tanh)
    return classify(model, torch.optim.Adam(model.parameters(), lr=0.5), *classes())


def swinging_sgd() -> Task:
    """A tanh network under gradient descent with a rate of 10."""
    model = mlp(activation=nn.Tanh)
    return classify(model, torch.optim.SGD(model.parameters(), lr=10.0), *classes())


def tiny_rate() -> Task:
    model = mlp()
    return classify(model, torch.optim.SGD(model.parameters(), lr=1e-6), *classes())


def tiny_rate_adam() -> Task:
    model = mlp()
    return classify(model, torch.optim.Adam(model.parameters(), lr=1e-7), *classes())


def corrupt_batch() -> Task:
    """Healthy but for one batch whose inputs were not scaled, 255 times too large."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = classes()

    def step(i: int) -> Tensor:
        pick = torch.randint(len(x), (32,))
        return F.cross_entropy(model(x[pick] * (255 if i == CORRUPT_STEP else 1)), y[pick])

    return Task(model, optimizer, step)


CORRUPT_STEP = 120

SICK = {
    "RN201": (Run("log_of_zero", log_of_zero, 20),),
    "RN202": (
        Run("gradient_spike", gradient_spike, SPIKE_STEP + 1),
        Run("diverging", diverging, 40),
        Run("wide_initialisation", wide_initialisation, 2),
    ),
    "RN203": (Run("deep_sigmoid", deep_sigmoid, 60),),
    "RN204": (Run("negative_bias", negative_bias, 60), Run("killed", killed_by_rate, 160)),
    "RN205": (Run("swinging", swinging, 360), Run("swinging_sgd", swinging_sgd, 360)),
    "RN206": (Run("tiny_rate", tiny_rate, 560), Run("tiny_rate_adam", tiny_rate_adam, 560)),
    "RN207": (Run("corrupt_batch", corrupt_batch, CORRUPT_STEP + 1),),
    "RN208": (Run("stuck_above_start", stuck_above_start, 120),),
}
"""By code: runs that show the symptom."""
