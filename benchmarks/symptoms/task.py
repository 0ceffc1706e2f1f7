"""What a run is: a model, its optimizer, and how one step's loss is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def nothing(_: int) -> None:
    """What a step does besides, by default."""


@dataclass(slots=True)
class Seen:
    """What a step trained on, as far as the task shows it; for rules that ask for it.

    Attributes:
        inputs: What the model was given, `[N, ...]`.
        outputs: What it gave, `[N, ...]`.
        labels: What the loss compared with.
        classes: Number of classes; 0 where there are none.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    labels: Tensor | None = None
    classes: int = 0

    @property
    def accuracy(self) -> float | None:
        """Share of examples whose largest output is their label's; None without classes."""
        if not self.classes or self.outputs is None or self.labels is None:
            return None
        return float((self.outputs.argmax(-1) == self.labels).float().mean())


@dataclass(slots=True)
class Task:
    """A run that is ready to go.

    Attributes:
        model: Holds all that is trained.
        optimizer: Steps it.
        step: The loss of step i, forward pass included.
        before_update: Called between backward and the optimizer.
        validate: The loss on data that is not trained on; None if there is none.
        clears: Gradients are cleared before each step.
        scale: What the loss is multiplied by for backward (float16), and gradients divided by.
        seen: What the last step trained on.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[int], Tensor]
    before_update: Callable[[int], None] = nothing
    validate: Callable[[], float] | None = None
    clears: bool = True
    scale: float = 1.0
    seen: Seen = field(default_factory=Seen)


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of run.

    Attributes:
        name: Of the case.
        build: Makes a task from torch's random state.
        steps: How long to train.
        expected: Codes that name what is wrong, the first one best; none for a healthy run.
        within: The step by which one of them should have been named.
        also: Codes that are true of the run as well, as its consequences; not counted either way.
    """

    name: str
    build: Callable[[], Task]
    steps: int
    expected: tuple[str, ...] = ()
    within: int = 0
    also: tuple[str, ...] = ()

    @property
    def is_healthy(self) -> bool:
        """True if nothing should be said about it."""
        return not self.expected


# --- data ----------------------------------------------------------------------------------


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    return bunch.data.astype("float32"), bunch.target.astype("int64")


def digits(scale: float = 1 / 16) -> tuple[Tensor, Tensor]:
    """1797 handwritten digits `[N, 64]`, in [0, 1] by default, and their labels."""
    x, y = _digits()
    return torch.from_numpy(x) * scale, torch.from_numpy(y)


def standardised() -> tuple[Tensor, Tensor]:
    """Digits with mean 0 and variance 1 over all pixels."""
    x, y = digits()
    return (x - x.mean()) / x.std(), y


def pictures() -> tuple[Tensor, Tensor]:
    """Standardised digits as `[N, 1, 8, 8]`."""
    x, y = standardised()
    return x.view(-1, 1, 8, 8), y


def classes(n: int = 512, features: int = 16, k: int = 4) -> tuple[Tensor, Tensor]:
    """Gaussian inputs `[N, features]` and the classes a random two-layer teacher gives them."""
    x = torch.randn(n, features)
    teacher = torch.tanh(x @ torch.randn(features, 32)) @ torch.randn(32, k)
    return x, teacher.argmax(1)


def surface(n: int = 512, features: int = 8) -> tuple[Tensor, Tensor]:
    """A smooth function of Gaussian inputs: `[N, features]`, `[N, 1]`."""
    x = torch.randn(n, features)
    y = torch.sin(x @ torch.randn(features, 1)) + 0.5 * x @ torch.randn(features, 1)
    return x, y + 0.05 * torch.randn(n, 1)


# --- models --------------------------------------------------------------------------------


def mlp(
    inputs: int = 64,
    width: int = 64,
    depth: int = 2,
    outputs: int = 10,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers with an activation after each but the last."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(inputs if i == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def cnn(*, norm: bool, momentum: float | None = 0.1) -> nn.Sequential:
    """Two convolutions and a linear layer for `[N, 1, 8, 8]`."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)]
        if norm:
            layers.append(nn.BatchNorm2d(outputs, momentum=momentum))
        return [*layers, nn.ReLU()]

    return nn.Sequential(
        *block(1, 8, 1), *block(8, 16, 2), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip


class Residual(nn.Module):
    """x + f(x), with BatchNorm before each convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Same shape, `[N, C, H, W]`."""
        return x + self.body(x)


class GPT(nn.Module):
    """Two pre-norm blocks with causal attention."""

    def __init__(self, vocabulary: int = 32, width: int = 32, length: int = 32) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, T, vocabulary]` of the next tokens."""
        n, t = x.shape
        h = self.tokens(x) + self.positions(torch.arange(t))
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm1"](h)).view(n, t, 3, 2, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + block["out"](mixed.transpose(1, 2).reshape(n, t, -1))
            h = h + block["down"](F.gelu(block["up"](block["norm2"](h))))
        return self.head(self.norm(h))


# --- tasks ---------------------------------------------------------------------------------


def adam(model: nn.Module, rate: float = 1e-3, decay: float = 0.0) -> torch.optim.Optimizer:
    """Adam, with decoupled weight decay."""
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)


def sgd(model: nn.Module, rate: float, momentum: float = 0.0) -> torch.optim.Optimizer:
    """Gradient descent."""
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor],
    *,
    loss: Loss = F.cross_entropy,
    batch: int = 32,
    held_out: tuple[Tensor, Tensor] | None = None,
    change: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    order: Callable[[int], Tensor] | None = None,
) -> Task:
    """Training on random batches.

    Args:
        model: Is given the batch's inputs.
        optimizer: Of the model.
        data: Inputs and labels.
        loss: Of outputs and labels.
        batch: Examples in a batch.
        held_out: Inputs and labels to validate on.
        change: What is done to the inputs and labels of step i.
        order: Positions of the examples of step i; random by default.
    """
    x, y = data
    seen = Seen(classes=int(y.max()) + 1 if y.dtype == torch.int64 and y.ndim == 1 else 0)

    def step(i: int) -> Tensor:
        pick = torch.randint(len(x), (batch,)) if order is None else order(i)
        inputs, labels = x[pick], y[pick]
        if change is not None:
            inputs, labels = change(i, inputs, labels)
        outputs = model(inputs)
        seen.inputs, seen.outputs, seen.labels = inputs, outputs.detach(), labels
        return loss(outputs, labels)

    def validate() -> float:
        assert held_out is not None
        model.eval()
        with torch.no_grad():
            value = float(loss(model(held_out[0]), held_out[1]))
        model.train()
        return value

    return Task(model, optimizer, step, validate=validate if held_out else None, seen=seen)
