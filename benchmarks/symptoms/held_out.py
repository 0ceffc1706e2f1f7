"""Kinds of runs that no threshold was chosen on: written when the rules were done.

What the rules say about these says more about what they will say about yours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.symptoms import task
from benchmarks.symptoms.broken import TOO_FAST, TOO_SLOW, weights
from benchmarks.symptoms.healthy import warmed
from benchmarks.symptoms.task import Case, Task, adam, fit, mlp, sgd

# --- healthy -------------------------------------------------------------------------------


def series_convolution() -> Task:
    """Which of four waves a noisy series is; GroupNorm and RMSprop."""
    model = nn.Sequential(
        nn.Conv1d(1, 16, 5, padding=2), nn.GroupNorm(4, 16), nn.SiLU(),
        nn.Conv1d(16, 16, 5, stride=2), nn.GroupNorm(4, 16), nn.SiLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    y = torch.randint(4, (512,))
    time = torch.arange(32) * (y[:, None] + 1) * 0.2 + 6.28 * torch.rand(512, 1)
    x = (torch.sin(time) + 0.3 * torch.randn(512, 32))[:, None]
    return fit(model, torch.optim.RMSprop(model.parameters(), lr=1e-3), (x, y))


class Skips(nn.Module):
    """A small U-net."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out = nn.Conv2d(9, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures `[N, 1, 8, 8]`."""
        h = F.relu(self.middle(F.relu(self.down(x))))
        return self.out(torch.cat([x, F.relu(self.up(h))], 1))


def u_net() -> Task:
    """Noise taken off pictures, by the absolute error."""
    model = Skips()
    x, _ = task.pictures()

    def step(i: int) -> Tensor:
        batch = x[torch.randint(len(x), (32,))]
        return F.l1_loss(model(batch + 0.5 * torch.randn_like(batch)), batch)

    return Task(model, adam(model, 2e-3), step)


def mixture_density() -> Task:
    """An inverse with several answers: three Gaussians."""
    model = mlp(1, 32, 2, 9, nn.Tanh)
    y = 2 * torch.rand(1024, 1) - 1
    x = y + 0.3 * torch.sin(6.28 * y) + 0.05 * torch.randn(1024, 1)

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        share, mean, spread = outputs.chunk(3, 1)
        inside = -0.5 * ((target - mean) / spread.exp()) ** 2 - spread
        return -torch.logsumexp(share.log_softmax(1) + inside, 1).mean()

    return fit(model, adam(model, 3e-3), (x, y), loss=loss, batch=64)


def wasserstein() -> Task:
    """A critic whose weights are clipped, and a generator every fifth step."""
    generator, critic = mlp(8, outputs=2), mlp(2, outputs=1)
    model = nn.ModuleList([generator, critic])
    critics = torch.optim.RMSprop(critic.parameters(), lr=1e-3)
    others = torch.optim.RMSprop(generator.parameters(), lr=1e-3)

    class Turns(torch.optim.RMSprop):
        turn = 0

        def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
            (others if self.turn % 5 == 4 else critics).step()
            self.turn += 1
            with torch.no_grad():
                for parameter in critic.parameters():
                    parameter.clamp_(-0.1, 0.1)

    def step(i: int) -> Tensor:
        fake = generator(torch.randn(64, 8))
        if i % 5 == 4:
            return -critic(fake).mean()
        angle = 6.28 * torch.rand(64, 1)
        real = torch.cat([angle.cos(), angle.sin()], 1)
        return critic(fake.detach()).mean() - critic(real).mean()

    return Task(model, Turns(model.parameters(), lr=1e-3), step)


def straight_through() -> Task:
    """A code book with the straight-through gradient."""
    encoder, decoder = mlp(64, 64, 1, 8), mlp(8, 64, 1, 64)
    book = nn.Embedding(16, 8)
    model = nn.ModuleDict({"encoder": encoder, "book": book, "decoder": decoder})
    x, _ = task.standardised()

    def step(i: int) -> Tensor:
        batch = x[torch.randint(len(x), (32,))]
        code = encoder(batch)
        nearest = book(torch.cdist(code, book.weight).argmin(1))
        passed = code + (nearest - code).detach()
        fit_of_book = F.mse_loss(nearest, code.detach()) + 0.25 * F.mse_loss(code, nearest.detach())
        return F.mse_loss(decoder(passed), batch) + fit_of_book

    return Task(model, adam(model, 2e-3), step)


def own_target() -> Task:
    """Two views, a predictor, and a target that is an average of the past (BYOL)."""
    online, predictor = mlp(outputs=16), mlp(16, 32, 1, 16)
    target = copy.deepcopy(online)
    model = nn.ModuleDict({"online": online, "predictor": predictor, "target": target})
    x, _ = task.standardised()
    trained = [*online.parameters(), *predictor.parameters()]

    def step(i: int) -> Tensor:
        with torch.no_grad():
            for old, new in zip(target.parameters(), online.parameters(), strict=True):
                old.lerp_(new, 0.02)
        batch = x[torch.randint(len(x), (64,))]
        one, two = (batch + 0.3 * torch.randn_like(batch) for _ in range(2))
        with torch.no_grad():
            wanted = target(two)
        return 2 - 2 * F.cosine_similarity(predictor(online(one)), wanted).mean()

    return Task(model, torch.optim.Adam(trained, lr=1e-3), step)


def triplets() -> Task:
    """Digits of a kind nearer than others, with a margin; many triplets cost nothing."""
    model = mlp(outputs=16)
    x, y = task.standardised()
    order = y.argsort()
    x, bounds = x[order], torch.searchsorted(y[order], torch.arange(11))

    def draw(label: Tensor) -> Tensor:
        low, high = bounds[label], bounds[label + 1]
        return x[(low + (high - low) * torch.rand(len(label))).long()]

    def step(i: int) -> Tensor:
        label = torch.randint(10, (32,))
        other = (label + torch.randint(1, 10, (32,))) % 10
        return F.triplet_margin_loss(model(draw(label)), model(draw(label)), model(draw(other)))

    return Task(model, adam(model, 1e-3), step)


def actor_critic() -> Task:
    """Policy, value and entropy in one loss."""
    body, actor, critic = mlp(8, 32, 1, 32, nn.Tanh), nn.Linear(32, 4), nn.Linear(32, 1)
    for head in (actor, critic):
        nn.init.zeros_(head.weight)
    model = nn.ModuleDict({"body": body, "actor": actor, "critic": critic})
    best = torch.randn(8, 4)

    def step(i: int) -> Tensor:
        x = torch.randn(32, 8)
        h = torch.tanh(body(x))
        choice = torch.distributions.Categorical(logits=actor(h))
        action = choice.sample()
        reward = (x @ best).gather(1, action[:, None])[:, 0]
        value = critic(h)[:, 0]
        gain = (reward - value).detach()
        surrogate = -(choice.log_prob(action) * gain).mean()
        return surrogate + 0.5 * F.mse_loss(value, reward) - 0.01 * choice.entropy().mean()

    return Task(model, adam(model, 3e-3), step)


def encoder_post_norm() -> Task:
    """Torch's own encoder layers, on digits as eight rows."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
    model = nn.ModuleDict(
        {
            "into": nn.Linear(8, 32),
            "encoder": nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            "head": nn.Linear(32, 10),
        }
    )
    x, y = task.standardised()
    rows, optimizer = x.view(-1, 8, 8), adam(model, 1e-3, 0.01)

    def step(i: int) -> Tensor:
        warmed(optimizer, 1e-3, 60, i)
        pick = torch.randint(len(rows), (32,))
        h = model["encoder"](model["into"](rows[pick]))
        return F.cross_entropy(model["head"](h.mean(1)), y[pick])

    return Task(model, optimizer, step)


def forecaster() -> Task:
    """A GRU that predicts the next value of a wave; gradients are clipped."""
    body, head = nn.GRU(1, 24, batch_first=True), nn.Linear(24, 1)
    model = nn.ModuleList([body, head])

    def clip(i: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)

    def step(i: int) -> Tensor:
        rate = 0.2 + 0.3 * torch.rand(32, 1)
        wave = torch.sin(torch.arange(25) * rate + 6.28 * torch.rand(32, 1))[..., None]
        return F.mse_loss(head(body(wave[:, :-1])[0]), wave[:, 1:])

    return Task(model, adam(model, 5e-3), step, before_update=clip)


class LowRank(nn.Module):
    """A frozen layer and a trained correction that starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.into = nn.Linear(base.in_features, rank, bias=False)
        self.out = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the base layer's output."""
        return self.base(x) + self.out(self.into(x))


def low_rank() -> Task:
    """Low-rank adaptation of a net trained on half of the classes."""
    x, y = task.standardised()
    model = mlp()
    run = fit(model, adam(model, 3e-3), (x[y < 6], y[y < 6]))
    for i in range(120):
        run.optimizer.zero_grad()
        run.step(i).backward()
        run.optimizer.step()
    adapted = nn.Sequential(
        *[LowRank(part) if isinstance(part, nn.Linear) else part for part in model]
    )
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    return fit(adapted, torch.optim.AdamW(trained, lr=3e-3), (x, y))


class Zeroed(nn.Module):
    """x + a f(x), with a starting at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.share = nn.Linear(width, width), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape, `[N, width]`."""
        return x + self.share * F.relu(self.layer(x))


def deep_from_zero() -> Task:
    """Twenty residual layers that start as the identity (ReZero)."""
    blocks = [Zeroed(48) for _ in range(20)]
    model = nn.Sequential(nn.Linear(64, 48), *blocks, nn.Linear(48, 10))
    return fit(model, adam(model, 2e-3), task.standardised())


def rare_class() -> Task:
    """One positive in fifty, in two classes: many batches have none."""
    x, _ = task.classes(2048)
    score = x @ torch.randn(16)
    y = (score > score.quantile(0.98)).long()
    model = mlp(16, 32, outputs=2)
    return fit(model, adam(model, 2e-3), (x, y))


def counts() -> Task:
    """Poisson regression."""
    x = torch.randn(512, 8)
    y = torch.poisson((0.5 * x @ torch.randn(8, 1)).clamp(max=4).exp())
    model = mlp(8, 32, 1, 1)
    return fit(model, adam(model, 2e-3), (x, y), loss=F.poisson_nll_loss)


class Sine(nn.Module):
    """sin(30 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return torch.sin(30 * x)


def coordinates() -> Task:
    """A picture as a function of the place (SIREN): always the same batch."""
    model = mlp(2, 64, 2, 1, Sine)
    nn.init.uniform_(model[0].weight, -0.5, 0.5)
    nn.init.uniform_(model[2].weight, -math.sqrt(6 / 64) / 30, math.sqrt(6 / 64) / 30)
    axis = torch.linspace(-1, 1, 16)
    x = torch.cartesian_prod(axis, axis)
    y = torch.sin(4 * x[:, :1]) * torch.cos(3 * x[:, 1:]) + (x[:, :1] > 0.3)
    everything = torch.arange(256)
    return fit(model, adam(model, 1e-3), (x, y), loss=F.mse_loss, order=lambda i: everything)


def logistic() -> Task:
    """No hidden layer, gradient descent."""
    model = nn.Linear(64, 10)
    return fit(model, sgd(model, 0.05), task.standardised())


def one_cycle() -> Task:
    """BatchNorm, batches of eight, a rate that rises to 0.02 and falls."""
    model = nn.Sequential(
        nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(),
        nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = adam(model, 1e-3, 0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=510)
    run = fit(model, optimizer, task.standardised(), batch=8)
    plain = run.step

    def step(i: int) -> Tensor:
        if i:
            scheduler.step()
        return plain(i)

    run.step = step
    return run


class Patches(nn.Module):
    """A small vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, 32, 2, stride=2)
        self.places = nn.Parameter(0.02 * torch.randn(16, 32))
        self.first = nn.Parameter(torch.zeros(1, 1, 32))
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, 0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures `[N, 1, 8, 8]`."""
        h = self.cut(x).flatten(2).transpose(1, 2) + self.places
        h = self.encoder(torch.cat([self.first.expand(len(x), 1, 32), h], 1))
        return self.head(self.norm(h[:, 0]))


def vision_transformer() -> Task:
    model = Patches()
    optimizer = adam(model, 2e-3, 0.05)
    run = fit(
        model,
        optimizer,
        task.pictures(),
        loss=lambda outputs, labels: F.cross_entropy(outputs, labels, label_smoothing=0.1),
    )
    plain = run.step

    def step(i: int) -> Tensor:
        warmed(optimizer, 2e-3, 50, i)
        return plain(i)

    run.step = step
    return run


def low_precision() -> Task:
    """bfloat16 autocast."""
    model = task.cnn(norm=True)
    run = fit(model, adam(model, 2e-3), task.pictures())
    plain = run.step

    def step(i: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return plain(i)

    run.step = step
    return run


def recommender() -> Task:
    """Factors of users and things from deviation 0.01; most rows are not in a batch."""
    users, things = nn.Embedding(200, 8), nn.Embedding(100, 8)
    model = nn.ModuleDict({"users": users, "things": things})
    for part in (users, things):
        nn.init.normal_(part.weight, std=0.01)
    truth = torch.randn(200, 4) @ torch.randn(4, 100)

    def step(i: int) -> Tensor:
        one, other = torch.randint(200, (256,)), torch.randint(100, (256,))
        return F.mse_loss((users(one) * things(other)).sum(1), truth[one, other])

    return Task(model, adam(model, 1e-2), step)


def distillation() -> Task:
    """A small net follows a trained one, which is part of the model."""
    x, y = task.standardised()
    teacher, student = mlp(width=64), mlp(width=24, depth=1)
    run = fit(teacher, adam(teacher, 3e-3), (x, y))
    for i in range(150):
        run.optimizer.zero_grad()
        run.step(i).backward()
        run.optimizer.step()
    teacher.requires_grad_(False)
    model = nn.ModuleDict({"teacher": teacher, "student": student})

    def step(i: int) -> Tensor:
        batch = x[torch.randint(len(x), (32,))]
        wanted = F.softmax(teacher(batch) / 2, -1)
        return 4 * F.kl_div(F.log_softmax(student(batch) / 2, -1), wanted, reduction="batchmean")

    return Task(model, torch.optim.Adam(student.parameters(), lr=3e-3), step)


def spare_head() -> Task:
    """A second task that comes in every fourth batch only."""
    body, one, two = mlp(64, 64, 1, 32), nn.Linear(32, 10), nn.Linear(32, 2)
    model = nn.ModuleDict({"body": body, "one": one, "two": two})
    x, y = task.standardised()

    def step(i: int) -> Tensor:
        pick = torch.randint(len(x), (32,))
        h = F.relu(body(x[pick]))
        if i % 4 == 3:
            return F.cross_entropy(two(h), y[pick] % 2)
        return F.cross_entropy(one(h), y[pick])

    return Task(model, adam(model, 1e-3), step)


# --- broken --------------------------------------------------------------------------------


def pictures_of_255() -> Task:
    model = task.cnn(norm=False)
    x, y = task.digits(255 / 16)
    return fit(model, sgd(model, 0.01, 0.9), (x.view(-1, 1, 8, 8), y))


def lstm_softmax() -> Task:
    body, head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)
    model = nn.ModuleList([body, head])
    x, y = task.standardised()
    rows = x.view(-1, 8, 8)

    def step(i: int) -> Tensor:
        pick = torch.randint(len(rows), (32,))
        return nn.CrossEntropyLoss()(head(body(rows[pick])[0][:, -1]).softmax(1), y[pick])

    return Task(model, adam(model, 5e-3), step)


def sigmoid_classes() -> Task:
    model = nn.Sequential(*mlp(), nn.Sigmoid())
    return fit(model, adam(model), task.standardised())


def rectified_regression() -> Task:
    """A rectifier at the end, and targets of both signs."""
    x, y = task.surface()
    model = nn.Sequential(*mlp(8, outputs=1), nn.ReLU())
    return fit(model, adam(model), (x, y), loss=F.mse_loss)


def masks_of_255() -> Task:
    """Masks of 0 and 255 for a binary cross entropy."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    x, _ = task.pictures()
    y = 255.0 * (x > 1)
    return fit(model, adam(model), (x, y), loss=F.binary_cross_entropy_with_logits)


def slow_elu() -> Task:
    model = mlp(8, outputs=1, activation=nn.ELU)
    return fit(model, adam(model, 3e-7), task.surface(), loss=F.mse_loss)


def fast_rmsprop() -> Task:
    model = mlp(8, outputs=1)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1.0)
    return fit(model, optimizer, task.surface(), loss=F.mse_loss)


def fast_lstm() -> Task:
    body, head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)
    model = nn.ModuleList([body, head])
    x, y = task.standardised()
    rows = x.view(-1, 8, 8)

    def step(i: int) -> Tensor:
        pick = torch.randint(len(rows), (32,))
        return F.cross_entropy(head(body(rows[pick])[0][:, -1]), y[pick])

    return Task(model, adam(model, 1.0), step)


def wide_convolutions() -> Task:
    """Kernels of deviation 1 in six layers."""
    layers: list[nn.Module] = []
    for place in range(6):
        layers += [nn.Conv2d(1 if place == 0 else 16, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    for weight in weights(model)[:-1]:
        nn.init.normal_(weight)
    return fit(model, adam(model), task.pictures())


def zero_layer() -> Task:
    """A hidden layer of zeros between rectifiers: nothing gets through, either way."""
    model = mlp()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    nn.init.zeros_(model[4].weight)
    return fit(model, sgd(model, 0.1), task.standardised())


def dead_relu6() -> Task:
    model = mlp(activation=nn.ReLU6)
    nn.init.constant_(model[2].bias, -8.0)
    return fit(model, adam(model), task.standardised())


def stuck_hardtanh() -> Task:
    model = mlp(activation=nn.Hardtanh)
    for weight in weights(model)[:-1]:
        nn.init.normal_(weight, std=10.0)
    return fit(model, sgd(model, 0.01), task.standardised())


def all_padding() -> Task:
    """A tokenizer that gives padding only."""
    model = task.GPT()

    def step(i: int) -> Tensor:
        x = torch.zeros(16, 16, dtype=torch.int64)
        return F.cross_entropy(model(x).flatten(0, 1), torch.randint(32, (256,)))

    return Task(model, adam(model, 1e-3), step)


class CutConvolutions(nn.Module):
    """Features that go through numpy on their way to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(288, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures `[N, 1, 8, 8]`."""
        return self.head(torch.from_numpy(self.features(x).detach().numpy()))


def through_numpy() -> Task:
    model = CutConvolutions()
    return fit(model, adam(model), task.pictures())


def momentum_zero() -> Task:
    """BatchNorm1d with momentum 0, on features of deviation 30."""
    model = nn.Sequential(
        nn.Linear(16, 32), nn.BatchNorm1d(32, momentum=0.0), nn.ReLU(), nn.Linear(32, 4)
    )
    x, y = task.classes()
    return fit(model, adam(model), (30 * x, y))


def overflowing_exponential() -> Task:
    """Exp of an output that is free to grow."""
    model = mlp(8, outputs=1)
    x, y = task.surface()

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss((20 * outputs).exp(), target.exp().exp())

    return fit(model, adam(model, 3e-2), (x, y), loss=loss)


def constant_column() -> Task:
    """Batches are standardised by themselves, and a column is often constant."""
    model = mlp(16, outputs=4)
    x, y = task.classes()
    x[:, 3] = (torch.rand(len(x)) < 0.02).float()

    def change(i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x - x.mean(0)) / x.std(0), y

    return fit(model, adam(model), (x, y), change=change)


def clipped_to_nothing() -> Task:
    """Gradients clipped to a norm of 1e-6."""
    model = mlp()
    run = fit(model, sgd(model, 0.1), task.standardised())
    run.before_update = lambda i: nn.utils.clip_grad_norm_(model.parameters(), 1e-6)
    return run


def loss_divided() -> Task:
    """The loss is divided by the number of examples twice, and by that of pixels."""
    model = mlp()

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels) / (1797 * 64)

    return fit(model, sgd(model, 0.05), task.standardised(), loss=loss)


def loss_summed() -> Task:
    """The sum over everything in place of the mean, at a rate for the mean."""
    model = mlp(outputs=64)
    x, _ = task.standardised()
    return fit(
        model,
        sgd(model, 0.05, 0.9),
        (x, x),
        loss=lambda outputs, target: F.mse_loss(outputs, target, reduction="sum"),
    )


def growing_rate() -> Task:
    """A schedule with the wrong sign: the rate grows by 5 % per step."""
    model = mlp(16, outputs=4)
    optimizer = sgd(model, 0.05)
    run = fit(model, optimizer, task.classes())

    def grow(i: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 1.05

    run.before_update = grow
    return run


def penalty_high() -> Task:
    """An L2 penalty of 10 in gradient descent."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=10.0)
    return fit(model, optimizer, task.standardised())


def shifted_labels() -> Task:
    """Each example has the label of the next one of a shuffled list."""
    x, y = task.standardised()
    mixed = torch.randperm(len(x))
    x, y = x[mixed], y[mixed].roll(1)
    model = mlp(width=16, depth=1)
    return fit(model, sgd(model, 0.02), (x, y))


def overfitting_lstm() -> Task:
    """Sixty digits, read row by row."""
    body, head = nn.LSTM(8, 64, batch_first=True), nn.Linear(64, 10)
    model = nn.ModuleList([body, head])
    x, y = task.standardised()
    rows = x.view(-1, 8, 8)

    def loss(pick: Tensor) -> Tensor:
        return F.cross_entropy(head(body(rows[pick])[0][:, -1]), y[pick])

    def validate() -> float:
        with torch.no_grad():
            return float(loss(torch.arange(1000, 1300)))

    optimizer = adam(model, 1e-2)
    return Task(model, optimizer, lambda i: loss(torch.randint(60, (32,))), validate=validate)


def biased_sigmoids() -> Task:
    """Eight sigmoid layers in front of a regression."""
    model = mlp(8, 32, 8, 1, nn.Sigmoid)
    return fit(model, sgd(model, 0.1), task.surface(), loss=F.mse_loss)


HEALTHY_HELD_OUT = (
    Case("series, GroupNorm, RMSprop", series_convolution, 300),
    Case("U-net, absolute error", u_net, 300),
    Case("mixture density", mixture_density, 600),
    Case("Wasserstein GAN, clipped", wasserstein, 600),
    Case("code book", straight_through, 500),
    Case("own target", own_target, 400),
    Case("triplets", triplets, 400),
    Case("actor and critic", actor_critic, 600),
    Case("encoder, post-norm", encoder_post_norm, 300),
    Case("GRU, clipped", forecaster, 300),
    Case("low-rank adaptation", low_rank, 400),
    Case("twenty layers from zero", deep_from_zero, 400),
    Case("rare class", rare_class, 600),
    Case("Poisson regression", counts, 600),
    Case("coordinates", coordinates, 400),
    Case("logistic regression", logistic, 600),
    Case("one cycle, batches of eight", one_cycle, 500),
    Case("vision transformer", vision_transformer, 300),
    Case("bfloat16", low_precision, 300),
    Case("recommender", recommender, 600),
    Case("distillation", distillation, 400),
    Case("a head for every fourth batch", spare_head, 400),
)
BROKEN_HELD_OUT = (
    Case("pictures of 255", pictures_of_255, 200, ("RN301",), 20, (*TOO_FAST, "RN203")),
    Case("softmax twice, LSTM", lstm_softmax, 100, ("RN303",), 20),
    Case("sigmoid before cross entropy", sigmoid_classes, 200, ("RN303",), 20),
    Case("rectified regression", rectified_regression, 200, ("RN302",), 20, ("RN204",)),
    Case("masks of 255", masks_of_255, 100, ("RN302",), 20, TOO_FAST),
    Case("rate low, regression", slow_elu, 560, TOO_SLOW, 80),
    Case("rate high, RMSprop", fast_rmsprop, 200, TOO_FAST, 100, ("RN203",)),
    Case("rate high, LSTM", fast_lstm, 200, TOO_FAST, 100),
    Case("wide convolutions", wide_convolutions, 150, ("RN211",), 10, TOO_FAST),
    Case("a layer of zeros", zero_layer, 200, ("RN211", "RN210"), 60, ("RN204", "RN203")),
    Case("dead ReLU6", dead_relu6, 200, ("RN204",), 80, ("RN203", "RN210", "RN211", "RN212")),
    Case("stuck hard tanh", stuck_hardtanh, 200, ("RN209", "RN211"), 60),
    Case("padding only", all_padding, 200, ("RN301",), 60, TOO_SLOW),
    Case("through numpy", through_numpy, 200, ("RN210",), 80),
    Case("BatchNorm, momentum 0", momentum_zero, 300, ("RN214",), 200, ("RN301",)),
    Case(
        "overflowing exponential", overflowing_exponential, 200, ("RN201", "RN202"), 150, TOO_FAST
    ),
    Case("constant column", constant_column, 60, ("RN301", "RN201"), 30, TOO_FAST),
    Case("clipped to nothing", clipped_to_nothing, 560, TOO_SLOW, 80),
    Case("loss divided", loss_divided, 560, TOO_SLOW, 80),
    Case("loss summed", loss_summed, 100, TOO_FAST, 60, ("RN207",)),
    Case("growing rate", growing_rate, 300, TOO_FAST, 250, ("RN206", "RN207")),
    Case("penalty high", penalty_high, 300, ("RN216", "RN206"), 60, ("RN203", "RN204", "RN213")),
    Case("labels shifted", shifted_labels, 900, ("RN206",), 850),
    Case("overfitting, LSTM", overfitting_lstm, 800, ("RN215",), 800),
    Case("eight sigmoids", biased_sigmoids, 200, ("RN203", "RN211"), 60),
)
