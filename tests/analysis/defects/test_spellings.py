"""Spellings of the same formula: those that are safe stay quiet, those that are not are named.

The input lies in [-100, 100]; with weights, in the training envelope.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranum.analysis import analyze

torch.manual_seed(0)
X = torch.randn(8, 16)
IMAGE = torch.randn(4, 3, 6, 6)
TARGET = torch.arange(8) % 16
ONE_HOT = F.one_hot(TARGET, 16).float()
CAUSAL = torch.ones(16, 16).triu(1).bool()
SOME = torch.arange(16) % 3 == 0
EVERY = torch.ones(16).bool()
TABLE = nn.Parameter(torch.randn(16, 4))


def layer_norm_by_hand(x: Tensor) -> Tensor:
    c = x - x.mean(-1, keepdim=True)
    return c * torch.rsqrt((c * c).mean(-1, keepdim=True) + 1e-5)


def layer_norm_with_var(x: Tensor) -> Tensor:
    variance = x.var(-1, keepdim=True, unbiased=False)
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(variance + 1e-5)


def batch_norm_by_hand(x: Tensor) -> Tensor:
    mean, variance = x.mean(0), x.var(0, unbiased=False)
    return (x - mean) / torch.sqrt(variance + 1e-5)


def rms_norm_by_hand(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def shifted_softmax(x: Tensor) -> Tensor:
    e = torch.exp(x - x.max(-1, keepdim=True).values)
    return e / e.sum(-1, keepdim=True)


def logsumexp_by_hand(x: Tensor) -> Tensor:
    m = x.amax(-1, keepdim=True)
    return m + torch.log(torch.exp(x - m).sum(-1, keepdim=True))


def gelu_by_hand(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softplus_by_hand(x: Tensor) -> Tensor:
    return torch.maximum(x, torch.zeros_like(x)) + torch.log1p(torch.exp(-x.abs()))


def bce_with_logits_by_hand(x: Tensor) -> Tensor:
    return x.clamp(min=0) - x * ONE_HOT + torch.log1p(torch.exp(-x.abs()))


def double_where_log(x: Tensor) -> Tensor:
    good = x > 0.1
    return torch.where(good, torch.log(torch.where(good, x, 1.0)), 0.0)


def double_where_division(x: Tensor) -> Tensor:
    good = x != 0
    return torch.where(good, 1 / torch.where(good, x, 1.0), 0.0)


def masked_mean(x: Tensor) -> Tensor:
    mask = (x > 1).float()
    return (x * mask).sum() / mask.sum().clamp(min=1)


SAFE: dict[str, Callable[[Tensor], Tensor]] = {
    "layer norm": lambda x: F.layer_norm(x, (16,)),
    "batch norm in training": lambda x: F.batch_norm(x, None, None, training=True),
    "group norm": lambda x: F.group_norm(x.reshape(8, 4, 4), 2),
    "instance norm": lambda x: F.instance_norm(x.reshape(2, 4, 16)),
    "layer norm by hand, centred": layer_norm_by_hand,
    "layer norm by hand, var": layer_norm_with_var,
    "batch norm by hand": batch_norm_by_hand,
    "rms norm": lambda x: F.rms_norm(x, (16,), eps=1e-6),
    "rms norm by hand": rms_norm_by_hand,
    "unit vector, root plus eps inside": lambda x: (
        x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-8)
    ),
    "unit vector, norm plus eps": lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-6),
    "x / sqrt(x^2 + eps)": lambda x: x / torch.sqrt(x * x + 1e-6),
    "x / max(norm, eps)": lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12),
    "x / (1 + |x|)": lambda x: x / (1 + x.abs()),
    "x / (1 + |x|), in place": lambda x: x / x.abs().add_(1),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "cosine similarity": lambda x: F.cosine_similarity(x, x.roll(1, 0), dim=-1),
    "softmax": lambda x: torch.softmax(x, -1),
    "softmax by hand, shifted": shifted_softmax,
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "cross entropy": lambda x: F.cross_entropy(x, TARGET),
    "cross entropy with label smoothing": lambda x: F.cross_entropy(x, TARGET, label_smoothing=0.1),
    "log_softmax by hand": lambda x: x - logsumexp_by_hand(x),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "logsumexp by hand": logsumexp_by_hand,
    "masked softmax, some unmasked": lambda x: torch.softmax(x.masked_fill(SOME, -math.inf), -1),
    "causal softmax": lambda x: torch.softmax(
        (x.unsqueeze(-1) * x.unsqueeze(-2)).masked_fill(CAUSAL, -math.inf), -1
    ),
    "masked by the least number": lambda x: torch.softmax(
        x + SOME.float() * torch.finfo(x.dtype).min, -1
    ),
    "gelu": F.gelu,
    "gelu by hand": gelu_by_hand,
    "silu by hand": lambda x: x * torch.sigmoid(x),
    "swish by division": lambda x: x / (1 + torch.exp(-x.clamp(-50, 50))),
    "embedding": lambda x: F.embedding(TARGET, TABLE) * x[:, :4],
    "softplus": F.softplus,
    "softplus by hand": softplus_by_hand,
    "softplus by logaddexp": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "logsigmoid": F.logsigmoid,
    "logsigmoid by hand": lambda x: x.clamp(max=0) - torch.log1p(torch.exp(-x.abs())),
    "sigmoid": torch.sigmoid,
    "sigmoid by halves": lambda x: torch.where(
        x >= 0, 1 / (1 + torch.exp(-x.abs())), torch.exp(-x.abs()) / (1 + torch.exp(-x.abs()))
    ),
    "tanh by hand": lambda x: (
        torch.sign(x) * (1 - torch.exp(-2 * x.abs())) / (1 + torch.exp(-2 * x.abs()))
    ),
    "xlogy": lambda x: torch.xlogy(ONE_HOT, torch.sigmoid(x) + 1e-6),
    "bce of a clamped sigmoid": lambda x: F.binary_cross_entropy(torch.sigmoid(x), ONE_HOT),
    "bce by hand with eps": lambda x: (
        -(
            ONE_HOT * torch.log(torch.sigmoid(x) + 1e-6)
            + (1 - ONE_HOT) * torch.log(torch.sigmoid(-x) + 1e-6)
        )
    ),
    "bce with logits": lambda x: F.binary_cross_entropy_with_logits(x, ONE_HOT),
    "bce with logits by hand": bce_with_logits_by_hand,
    "clamp before log": lambda x: torch.log(x.clamp(min=1e-6)),
    "log of a bounded softmax": lambda x: torch.log(torch.softmax(x, -1).clamp(1e-7, 1.0)),
    "where-guards on both sides of a log": double_where_log,
    "where-guards on both sides of a division": double_where_division,
    "mean over a mask of at least one": masked_mean,
    "std with eps": lambda x: torch.sqrt(x.var(0) + 1e-6),
    "shifted exponential": lambda x: torch.exp(x - x.max()),
    "bounded variance of a vae": lambda x: torch.exp(x.clamp(-10, 10)),
    "huber by hand": lambda x: torch.sqrt(1 + x * x) - 1,
    "gradient clipping by hand": lambda x: x * (1.0 / (x.norm() + 1e-6)).clamp(max=1.0),
}

# name -> (step, codes, operators to blame)
DEFECTIVE: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "root of E[x^2] - E[x]^2": (
        lambda x: torch.sqrt((x * x).mean(-1) - x.mean(-1) ** 2), "RN102", "sqrt"
    ),
    "root of E[x^2] - E[x]^2 + eps": (
        lambda x: torch.rsqrt((x * x).mean(-1) - x.mean(-1) ** 2 + 1e-8), "RN102", "rsqrt"
    ),
    "division by std without eps": (
        lambda x: (x - x.mean(0)) / x.std(0), "RN103", "div"
    ),
    "division by norm without eps": (
        lambda x: x / x.norm(dim=-1, keepdim=True), "RN103", "div"
    ),
    "softmax by hand, not shifted": (
        lambda x: (2 * x).exp() / (2 * x).exp().sum(-1, keepdim=True), "RN104 RN103", "exp div"
    ),
    "logsumexp by hand, not shifted": (
        lambda x: torch.log(torch.exp(2 * x).sum(-1)), "RN104 RN101", "exp log"
    ),
    "softplus by hand, not shifted": (lambda x: torch.log(1 + torch.exp(x)), "RN104", "exp"),
    "sigmoid by hand, whose gradient is 0 * inf": (
        lambda x: 1 / (1 + torch.exp(-x)), "RN104", "exp"
    ),
    "log of softmax": (lambda x: torch.log(torch.softmax(2 * x, -1)), "RN101", "log"),
    "log of sigmoid": (lambda x: torch.log(torch.sigmoid(2 * x)), "RN101", "log"),
    "log of 1 - sigmoid": (lambda x: torch.log(1 - torch.sigmoid(x)), "RN101", "log"),
    "softmax of a fully masked row": (
        lambda x: torch.softmax(x.masked_fill(EVERY, -math.inf), -1), "RN110", "_softmax"
    ),
    "kl of a vae": (lambda x: -0.5 * (1 + x - x.exp()), "RN104", "exp"),
    "where-guard behind a log only": (
        lambda x: torch.where(x > 0.1, torch.log(x), 0.0), "RN106", "log"
    ),
    "where-guard behind a division only": (
        lambda x: torch.where(x != 0, 1 / x, 0.0), "RN103", "reciprocal"
    ),
    "mean over a mask": (
        lambda x: (x * (x > 1)).sum() / (x > 1).sum(), "RN103", "div"
    ),
    "atanh": (lambda x: torch.atanh(torch.tanh(x)), "RN108", "atanh"),
    "acos of a cosine": (
        lambda x: torch.acos(F.cosine_similarity(x, x.roll(1, 0), dim=-1)), "RN108", "acos"
    ),
}  # fmt: skip


def defects(step: Callable[[Tensor], Tensor]) -> set[tuple[str, str]]:
    x = X.clone().requires_grad_()
    analysis = analyze(lambda x: step(x).mean(), x, inputs={"x": (-100.0, 100.0)})
    assert any(node.phase == "backward" for node in analysis.graph.nodes)
    assert analysis.is_complete, analysis
    return {(defect.code, defect.op) for defect in analysis.defects}


@pytest.mark.parametrize("name", SAFE)
def test_a_safe_spelling_stays_quiet(name):
    assert defects(SAFE[name]) == set()


@pytest.mark.parametrize("name", DEFECTIVE)
def test_a_defective_spelling_is_named_at_its_operator(name):
    step, code, op = DEFECTIVE[name]
    assert defects(step) == set(zip(code.split(), op.split(), strict=True))


INFERENCE = {
    "sigmoid by hand": lambda x: 1 / (1 + torch.exp(-x)),
    "swish by hand": lambda x: x / (1 + torch.exp(-x)),
    "tanh of an exponential": lambda x: torch.tanh(torch.exp(x)),
    "clamped exponential": lambda x: torch.exp(x).clamp(max=10.0),
}


@pytest.mark.parametrize("name", INFERENCE)
def test_an_infinity_that_vanishes_is_harmless_where_nothing_is_differentiated(name):
    def step(x: Tensor) -> Tensor:
        return INFERENCE[name](x).mean()

    limits = {"x": (-100.0, 100.0)}
    assert analyze(step, X, inputs=limits, backward=False).defects == ()
    trained = analyze(step, X.clone().requires_grad_(), inputs=limits)
    assert [defect.op for defect in trained.defects] == ["exp"]


def test_an_infinity_that_is_read_elsewhere_as_well_is_reported():
    def step(x: Tensor) -> Tensor:
        e = torch.exp(x)
        return (1 / (1 + e) + e).mean()

    analysis = analyze(step, X, inputs={"x": (-100.0, 100.0)}, backward=False)
    assert [defect.op for defect in analysis.defects] == ["exp"]
