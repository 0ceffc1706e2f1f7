"""Runs in which one thing is wrong, and the codes that name it.

What counts as the right name is what a person would call the cause, and what follows from it by
necessity where that is a symptom of its own (a rate far too high swings, diverges or kills units;
nothing gets through dead units to the layers before).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.symptoms import task
from benchmarks.symptoms.healthy import gpt
from benchmarks.symptoms.task import Case, Task, adam, fit, mlp, sgd

TOO_FAST = ("RN213", "RN202", "RN205", "RN208", "RN204", "RN201")
TOO_SLOW = ("RN212", "RN206")


def weights(model: nn.Module) -> list[nn.Parameter]:
    """Matrices and kernels."""
    return [parameter for parameter in model.parameters() if parameter.ndim > 1]


def biases(model: nn.Module) -> list[nn.Parameter]:
    """Vectors."""
    return [parameter for parameter in model.parameters() if parameter.ndim == 1]


# --- rates ---------------------------------------------------------------------------------


def rate_high_momentum() -> Task:
    model = mlp()
    return fit(model, sgd(model, 3.0, 0.9), task.standardised())


def rate_high_adam() -> Task:
    """Adam at 0.3: the rectifiers die."""
    model = mlp()
    return fit(model, adam(model, 0.3), task.standardised())


def rate_high_tanh() -> Task:
    model = mlp(16, outputs=4, activation=nn.Tanh)
    return fit(model, adam(model, 0.5), task.classes())


def rate_high_tanh_sgd() -> Task:
    model = mlp(16, outputs=4, activation=nn.Tanh)
    return fit(model, sgd(model, 10.0), task.classes())


def rate_high_gpt() -> Task:
    return gpt(rate=0.3, warm_up=1)


def rate_high_regression() -> Task:
    """Least squares beyond 2 / (largest curvature)."""
    model = nn.Linear(8, 1)
    x = torch.randn(128, 8)
    y = x @ torch.randn(8, 1)
    everything = torch.arange(128)
    return fit(model, sgd(model, 1.2), (x, y), loss=F.mse_loss, order=lambda i: everything)


def raw_units_sgd() -> Task:
    """Targets of thousands under gradient descent at a rate for targets of one."""
    x = torch.randn(512, 8)
    model = mlp(8, depth=1, outputs=1)
    y = 3000 + 1000 * x @ torch.randn(8, 1)
    return fit(model, sgd(model, 0.05), (x, y), loss=F.mse_loss)


def clamped() -> Task:
    """A clamp in front of the log keeps everything finite; the rate kills the net."""
    model = mlp(16, outputs=4)

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        p = torch.softmax(outputs, -1).clamp(min=1e-30)
        return -torch.log(p).gather(1, labels[:, None]).mean()

    return fit(model, sgd(model, 30.0, 0.9), task.classes(), loss=loss)


def rate_low_adam() -> Task:
    model = mlp()
    return fit(model, adam(model, 1e-7), task.standardised())


def rate_low_sgd() -> Task:
    model = mlp()
    return fit(model, sgd(model, 1e-6), task.standardised())


def rate_low_cnn() -> Task:
    model = task.cnn(norm=True)
    return fit(model, adam(model, 1e-8), task.pictures())


def rate_rather_low() -> Task:
    """Gradient descent at a hundredth of what it takes."""
    model = mlp()
    return fit(model, sgd(model, 3e-5), task.standardised())


def rate_zero() -> Task:
    """A schedule that is at zero from the start."""
    model = mlp()
    return fit(model, adam(model, 0.0), task.standardised())


def not_cleared() -> Task:
    """Gradients are never cleared: each step takes the sum of all so far."""
    model = mlp(16, outputs=4, activation=nn.Tanh)
    run = fit(model, sgd(model, 0.1), task.classes())
    run.clears = False
    return run


def decay_high() -> Task:
    """Decoupled weight decay of 30: weights shrink to nothing."""
    model = mlp()
    return fit(model, adam(model, 3e-3, 30.0), task.standardised())


# --- initialisation ------------------------------------------------------------------------


def wide() -> Task:
    """Eight layers with weights of deviation 0.5."""
    model = mlp(16, 128, 8, 4)
    for weight in weights(model):
        nn.init.normal_(weight, std=0.5)
    return fit(model, sgd(model, 1e-2), task.classes())


def wide_adam() -> Task:
    """The same under Adam, which does not feel the gradient's scale."""
    model = mlp(16, 128, 8, 4)
    for weight in weights(model):
        nn.init.normal_(weight, std=0.5)
    return fit(model, adam(model, 1e-3), task.classes())


def narrow() -> Task:
    """Eight layers with weights of deviation 0.003."""
    model = mlp(depth=8)
    for weight in weights(model):
        nn.init.normal_(weight, std=0.003)
    return fit(model, sgd(model, 0.05), task.standardised())


def zeros() -> Task:
    model = mlp()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return fit(model, sgd(model, 0.05), task.standardised())


def constant() -> Task:
    """Weights all alike and biases zero: so the units of a layer stay alike."""
    model = mlp()
    for weight in weights(model):
        nn.init.constant_(weight, 0.02)
    for bias in biases(model):
        nn.init.zeros_(bias)
    return fit(model, adam(model, 1e-3), task.standardised())


def negative_bias() -> Task:
    model = mlp(depth=3)
    for bias in biases(model)[:-1]:
        nn.init.constant_(bias, -5.0)
    return fit(model, sgd(model, 0.05), task.standardised())


def negative_bias_cnn() -> Task:
    model = task.cnn(norm=False)
    for bias in biases(model)[:-1]:
        nn.init.constant_(bias, -20.0)
    return fit(model, adam(model, 1e-3), task.pictures())


# --- activations ---------------------------------------------------------------------------


def deep_sigmoid() -> Task:
    model = mlp(depth=12, activation=nn.Sigmoid)
    return fit(model, adam(model, 1e-3), task.standardised())


def deep_tanh_narrow() -> Task:
    """Twelve tanh layers at a tenth of Xavier's deviation."""
    model = mlp(depth=12, activation=nn.Tanh)
    for weight in weights(model):
        nn.init.normal_(weight, std=0.0125)
    return fit(model, sgd(model, 0.05), task.standardised())


def saturated_tanh() -> Task:
    """Weights of deviation 3 in front of tanh."""
    model = mlp(depth=3, activation=nn.Tanh)
    for weight in weights(model)[:-1]:
        nn.init.normal_(weight, std=3.0)
    return fit(model, sgd(model, 0.01), task.standardised())


def saturated_sigmoid() -> Task:
    """Pixels of 0 to 255 into a sigmoid layer with weights of deviation 0.5."""
    model = mlp(depth=2, activation=nn.Sigmoid)
    nn.init.normal_(model[0].weight, std=0.5)
    return fit(model, sgd(model, 0.01), task.digits(255 / 16))


# --- output and loss -----------------------------------------------------------------------


def with_output(activation: nn.Module) -> nn.Sequential:
    """An MLP with something after its last layer."""
    return nn.Sequential(*mlp(), activation)


def softmax_twice() -> Task:
    model = with_output(nn.Softmax(-1))
    return fit(model, adam(model), task.standardised())


def softmax_twice_gpt() -> Task:
    """The softmax is in the step, not in the model."""
    model = task.GPT()
    data = torch.randint(32, (64, 17))

    def step(i: int) -> Tensor:
        x = data[torch.randint(64, (16,))]
        p = torch.softmax(model(x[:, :-1]), -1)
        return F.cross_entropy(p.flatten(0, 1), x[:, 1:].flatten())

    return Task(model, adam(model), step)


def sigmoid_twice() -> Task:
    model = nn.Sequential(*mlp(16, outputs=6), nn.Sigmoid())
    x, _ = task.classes(1024)
    y = (x @ torch.randn(16, 6) > 0.0).float()
    return fit(model, adam(model), (x, y), loss=F.binary_cross_entropy_with_logits)


def likelihood_of_probabilities() -> Task:
    """nll_loss is given probabilities, not their logarithms."""
    model = with_output(nn.Softmax(-1))
    return fit(model, adam(model), task.standardised(), loss=F.nll_loss)


def likelihood_of_logits() -> Task:
    """nll_loss is given logits: it has no lower end."""
    model = mlp()
    return fit(model, adam(model), task.standardised(), loss=F.nll_loss)


def rectified_logits() -> Task:
    model = with_output(nn.ReLU())
    return fit(model, adam(model), task.standardised())


# --- labels --------------------------------------------------------------------------------


def binary_labels_of_one_and_two() -> Task:
    model = mlp(16, outputs=1)
    x, _ = task.classes()
    y = 1.0 + (x @ torch.randn(16, 1) > 0).float()
    return fit(model, adam(model), (x, y), loss=F.binary_cross_entropy_with_logits)


def pixels_beyond_the_sigmoid() -> Task:
    """An autoencoder with a sigmoid at its end, on pixels of 0 to 16."""
    model = nn.Sequential(*mlp(depth=1, outputs=64), nn.Sigmoid())
    x, _ = task.digits(1.0)
    return fit(model, adam(model), (x, x), loss=F.mse_loss)


def targets_beyond_tanh() -> Task:
    model = nn.Sequential(*mlp(8, outputs=1), nn.Tanh())
    x, y = task.surface()
    return fit(model, adam(model), (x, 5 * y), loss=F.mse_loss)


def all_ignored() -> Task:
    """From step 60 on, every label is the one to be ignored: the mean of nothing."""
    model = mlp()

    def change(i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.full_like(y, -100) if i >= 60 else y

    return fit(model, adam(model), task.standardised(), change=change)


def shuffled_labels() -> Task:
    """The labels of each batch belong to other examples of it."""
    model = mlp(width=32)

    def change(i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, y[torch.randperm(len(y))]

    return fit(model, adam(model), task.standardised(), change=change)


def sorted_by_class() -> Task:
    """Batches of one class, class after class, twelve each."""
    model = mlp()
    x, y = task.standardised()
    places = [torch.nonzero(y == label)[:, 0] for label in range(10)]

    def order(i: int) -> Tensor:
        where = places[i // 12 % 10]
        return where[torch.randint(len(where), (32,))]

    return fit(model, sgd(model, 0.1), (x, y), order=order)


# --- inputs --------------------------------------------------------------------------------


def unscaled() -> Task:
    """Pixels of 0 to 255."""
    model = mlp()
    return fit(model, adam(model), task.digits(255 / 16))


def unscaled_sgd() -> Task:
    model = mlp()
    return fit(model, sgd(model, 0.05), task.digits(255 / 16))


def constant_input() -> Task:
    """A loader that returns the first example again and again, with everybody's labels."""
    model = mlp()

    def change(i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x[:1].expand_as(x), y

    return fit(model, adam(model), task.standardised(), change=change)


def blank_pictures() -> Task:
    """A loader that returns zeros."""
    model = task.cnn(norm=True)

    def change(i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x), y

    return fit(model, adam(model), task.pictures(), change=change)


def missing_values() -> Task:
    """A feature that is NaN in one row of a hundred."""
    model = mlp(16, outputs=4)
    x, y = task.classes()
    x[::100, 3] = torch.nan
    return fit(model, adam(model), (x, y))


def infinite_value() -> Task:
    """One row with a ratio whose denominator was zero."""
    model = mlp(16, outputs=4)
    x, y = task.classes()
    x[5, 3] = torch.inf
    return fit(model, adam(model), (x, y))


def corrupt_batch() -> Task:
    """Healthy but for the batch of step 120, whose pixels are those of 0 to 255, not of 0 to 1."""
    model = mlp()

    def change(i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (255 * (1 - x) if i == 120 else x), y

    return fit(model, adam(model), task.digits(), change=change)


# --- BatchNorm -----------------------------------------------------------------------------


def last_batch_only() -> Task:
    """BatchNorm with momentum 1 and batches of four: its statistics are those of the last four."""
    model = nn.Sequential(
        nn.Linear(64, 64), nn.BatchNorm1d(64, momentum=1.0), nn.ReLU(),
        nn.Linear(64, 64), nn.BatchNorm1d(64, momentum=1.0), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    return fit(model, adam(model), task.standardised(), batch=4)


def never_updated() -> Task:
    """BatchNorm with momentum 1e-5 on pictures of 0 to 16: its statistics stay at 0 and 1."""
    model = task.cnn(norm=True, momentum=1e-5)
    x, y = task.digits(1.0)
    return fit(model, adam(model), (x.view(-1, 1, 8, 8), y))


def frozen_statistics() -> Task:
    """BatchNorm in evaluation mode from the start, on pictures of 0 to 16."""
    model = task.cnn(norm=True)
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x, y = task.digits(1.0)
    return fit(model, adam(model), (x.view(-1, 1, 8, 8), y))


def poisoned_statistics() -> Task:
    """One batch, at step 100, is ten thousand times too large; momentum 0.01 remembers it."""
    model = task.cnn(norm=True, momentum=0.01)

    def change(i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (1e4 * x if i == 100 else x), y

    return fit(model, adam(model), task.pictures(), change=change)


# --- wiring --------------------------------------------------------------------------------


class Detached(nn.Module):
    """A body whose output is cut from the graph on its way to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(depth=1, outputs=32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `[N, 64]`."""
        return self.head(torch.relu(self.body(x)).detach())


def detached() -> Task:
    model = Detached()
    return fit(model, adam(model), task.standardised())


def another_models_optimizer() -> Task:
    """The optimizer was made before the model was replaced."""
    model = mlp()
    return fit(model, adam(mlp(), 1e-3), task.standardised())


# --- numbers -------------------------------------------------------------------------------


def exploding_rnn() -> Task:
    """A rectified recurrence of gain 2.5 over 40 steps."""
    body, head = nn.RNN(4, 32, batch_first=True, nonlinearity="relu"), nn.Linear(32, 4)
    nn.init.orthogonal_(body.weight_hh_l0, gain=2.5)
    model = nn.ModuleList([body, head])

    def step(i: int) -> Tensor:
        first = torch.randint(4, (32,))
        x = torch.cat([F.one_hot(first, 4)[:, None].float(), 0.1 * torch.randn(32, 39, 4)], 1)
        return F.cross_entropy(head(body(x)[0][:, -1]), first)

    return Task(model, sgd(model, 1e-2), step)


def half_overflow() -> Task:
    """A square in float16: beyond 256 it is infinite."""
    model = mlp(16, outputs=4)
    x, y = task.classes()

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        penalty = (400 * outputs.half()).square().mean().float()
        return F.cross_entropy(outputs, labels) + 1e-6 * penalty

    return fit(model, adam(model), (x, y), loss=loss)


def log_of_zero() -> Task:
    """A hand-written cross entropy whose softmax underflows; the rate is too high."""
    model = mlp(16, outputs=4)

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return -torch.log(torch.softmax(outputs, -1)).gather(1, labels[:, None]).mean()

    return fit(model, sgd(model, 20.0), task.classes(), loss=loss)


def gradient_spike() -> Task:
    """Healthy but for the gradients of step 50, which are multiplied by 1e8."""
    model = mlp()
    run = fit(model, adam(model, 3e-3), task.standardised())

    def spike(i: int) -> None:
        for parameter in model.parameters():
            if i == 50 and parameter.grad is not None:
                parameter.grad.mul_(1e8)

    run.before_update = spike
    return run


# --- overfitting ---------------------------------------------------------------------------


def overfitting() -> Task:
    """Forty examples, and a net that can learn them by heart."""
    x, y = task.standardised()
    model = mlp(width=256)
    held_out = (x[1000:1400], y[1000:1400])
    return fit(model, adam(model, 3e-3), (x[:40], y[:40]), held_out=held_out)


def overfitting_noise() -> Task:
    """A third of the labels wrong."""
    x, y = task.standardised()
    y = torch.where(torch.rand(len(y)) < 0.33, torch.randint(10, y.shape), y)
    model = mlp(width=256)
    held_out = (x[1000:1400], y[1000:1400])
    return fit(model, adam(model, 3e-3), (x[:400], y[:400]), held_out=held_out)


def overfitting_regression() -> Task:
    """Thirty points with noise."""
    x, y = task.surface()
    y = y + 0.5 * torch.randn_like(y)
    model = mlp(8, 256, outputs=1)
    data, held_out = (x[:30], y[:30]), (x[100:], y[100:])
    return fit(model, adam(model, 3e-3), data, loss=F.mse_loss, held_out=held_out)


BROKEN = (
    Case("rate high, momentum", rate_high_momentum, 200, TOO_FAST, 100),
    Case("rate high, Adam", rate_high_adam, 200, TOO_FAST, 100, ("RN203",)),
    Case("rate high, tanh", rate_high_tanh, 400, (*TOO_FAST, "RN209"), 100),
    Case("rate high, tanh, SGD", rate_high_tanh_sgd, 400, (*TOO_FAST, "RN209"), 100),
    Case("rate high, GPT", rate_high_gpt, 150, TOO_FAST, 100),
    Case("rate high, least squares", rate_high_regression, 60, TOO_FAST, 40),
    Case("raw units, SGD", raw_units_sgd, 100, TOO_FAST, 60),
    Case("clamped log", clamped, 150, TOO_FAST, 130),
    Case("rate low, Adam", rate_low_adam, 560, TOO_SLOW, 80),
    Case("rate low, SGD", rate_low_sgd, 560, TOO_SLOW, 80),
    Case("rate low, CNN", rate_low_cnn, 200, TOO_SLOW, 80),
    Case("rate rather low", rate_rather_low, 620, TOO_SLOW, 600),
    Case("rate zero", rate_zero, 200, ("RN210", "RN212"), 80, ("RN206",)),
    Case("gradients not cleared", not_cleared, 400, (*TOO_FAST, "RN209"), 300),
    Case("decay high", decay_high, 620, ("RN216", "RN206"), 60),
    Case("wide initialisation, SGD", wide, 60, ("RN211",), 10, (*TOO_FAST, "RN206")),
    Case("wide initialisation, Adam", wide_adam, 200, ("RN211",), 10, TOO_FAST),
    Case("narrow initialisation", narrow, 200, ("RN211", "RN203"), 60, ("RN210", "RN212")),
    Case("zero initialisation", zeros, 200, ("RN211", "RN210"), 60, ("RN204", "RN212")),
    Case("constant initialisation", constant, 200, ("RN211",), 60),
    Case("negative bias", negative_bias, 150, ("RN204",), 80, ("RN210", "RN212", "RN211")),
    Case("negative bias, CNN", negative_bias_cnn, 150, ("RN204",), 80, ("RN210", "RN212", "RN211")),
    Case("deep sigmoid", deep_sigmoid, 150, ("RN203",), 60, ("RN211",)),
    Case("deep narrow tanh", deep_tanh_narrow, 150, ("RN203", "RN211"), 60, ("RN212",)),
    Case("saturated tanh", saturated_tanh, 200, ("RN209", "RN211"), 60),
    Case("saturated sigmoid", saturated_sigmoid, 200, ("RN209", "RN301"), 60),
    Case("softmax twice", softmax_twice, 200, ("RN303",), 20),
    Case("softmax twice, GPT", softmax_twice_gpt, 60, ("RN303",), 20),
    Case("sigmoid twice", sigmoid_twice, 200, ("RN303",), 20),
    Case("likelihood of probabilities", likelihood_of_probabilities, 200, ("RN303",), 20),
    Case("likelihood of logits", likelihood_of_logits, 200, ("RN303",), 20, TOO_FAST),
    Case("rectified logits", rectified_logits, 200, ("RN303",), 20, ("RN204",)),
    Case("binary labels 1 and 2", binary_labels_of_one_and_two, 200, ("RN302",), 20, TOO_FAST),
    Case("pixels beyond the sigmoid", pixels_beyond_the_sigmoid, 200, ("RN302",), 20, ("RN209",)),
    Case("targets beyond tanh", targets_beyond_tanh, 200, ("RN302",), 20, ("RN209",)),
    Case("all labels ignored", all_ignored, 100, ("RN302", "RN201"), 61),
    Case("labels shuffled", shuffled_labels, 900, ("RN206", "RN210"), 850),
    Case("sorted by class", sorted_by_class, 300, ("RN302", "RN207"), 60, TOO_FAST),
    Case("pixels of 255", unscaled, 200, ("RN301",), 20, TOO_FAST),
    Case("pixels of 255, SGD", unscaled_sgd, 200, ("RN301",), 20, (*TOO_FAST, "RN203")),
    Case("constant input", constant_input, 200, ("RN301",), 60, TOO_SLOW),
    Case(
        "blank pictures",
        blank_pictures,
        200,
        ("RN301",),
        60,
        (*TOO_SLOW, "RN214", "RN211", "RN203", "RN204"),
    ),
    Case("missing values", missing_values, 60, ("RN301", "RN201"), 30, TOO_FAST),
    Case("infinite value", infinite_value, 200, ("RN301", "RN201"), 150, TOO_FAST),
    Case("corrupt batch", corrupt_batch, 160, ("RN207", "RN301"), 120, TOO_FAST),
    Case("BatchNorm, momentum 1", last_batch_only, 300, ("RN214",), 200),
    Case("BatchNorm, never updated", never_updated, 300, ("RN214",), 200),
    Case("BatchNorm, frozen", frozen_statistics, 300, ("RN214",), 200),
    Case(
        "BatchNorm, poisoned",
        poisoned_statistics,
        200,
        ("RN214",),
        200,
        ("RN207", "RN202", "RN301"),
    ),
    Case("detached body", detached, 200, ("RN210",), 80),
    Case("another model's optimizer", another_models_optimizer, 200, ("RN210", "RN212"), 80),
    Case("exploding RNN", exploding_rnn, 100, ("RN202", "RN211"), 40, TOO_FAST),
    Case("float16 overflow", half_overflow, 60, ("RN201",), 30),
    Case("log of zero", log_of_zero, 60, ("RN201",), 30, TOO_FAST),
    Case("gradient spike", gradient_spike, 60, ("RN202",), 50, TOO_FAST),
    Case("overfitting, 40 examples", overfitting, 600, ("RN215",), 600),
    Case("overfitting, wrong labels", overfitting_noise, 800, ("RN215",), 800),
    Case("overfitting, regression", overfitting_regression, 800, ("RN215",), 800),
)
