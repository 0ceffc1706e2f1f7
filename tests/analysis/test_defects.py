"""Every defect rule: a program that has the defect, and one that must stay quiet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranum.analysis import analyze
from ranum.analysis.defects import CODES, DefectRule, defect_rule
from ranum.errors import ArgumentError

torch.manual_seed(0)
X = torch.randn(4, 6)
Y = torch.tensor([0, 1, 2, 3])
WIDE = {"x": (-200.0, 200.0)}
WEIGHT = nn.Parameter(torch.randn(6, 6) * 0.1)
GAIN = nn.Parameter(torch.ones(6, 1))
EYE = torch.eye(4, 6)
CAUSAL = torch.ones(4, 4).triu(1).bool()
ADDED = torch.zeros(4, 4).masked_fill(CAUSAL, -math.inf)
LARGE = torch.ones(400, 400).triu(1).bool()


def softmax_by_hand(x: Tensor) -> Tensor:
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Program:
    step: Callable[[Tensor], Tensor]
    inputs: dict = field(default_factory=lambda: dict(WIDE))


def one_hot() -> Tensor:
    return F.one_hot(Y, 6).float()


def normalise_by_hand(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)


BROKEN = {
    "RN101 log of softmax": Program(
        lambda x: -(one_hot() * torch.log(torch.softmax(x @ WEIGHT, -1))).sum(-1).mean()
    ),
    "RN101 log of sigmoid": Program(lambda x: -torch.sigmoid(x).log().mean()),
    "RN101 log1p": Program(lambda x: torch.log1p(x).mean()),
    "RN101 log2": Program(lambda x: torch.log2(x * x).mean()),
    "RN102 sqrt": Program(lambda x: torch.sqrt((x * x).mean() - x.mean() ** 2)),
    "RN102 rsqrt": Program(lambda x: torch.rsqrt((x * x).sum()).mean()),
    "RN103 norm": Program(lambda x: (x / x.norm(dim=-1, keepdim=True)).sum()),
    "RN103 empty mask": Program(lambda x: (x * (x > 1)).sum() / (x > 1).sum()),
    "RN103 weight norm of 0": Program(
        lambda x: (x @ torch._weight_norm_interface(WEIGHT, GAIN)[0]).sum()
    ),
    "RN103 reciprocal": Program(lambda x: torch.reciprocal(x).sum()),
    "RN104 exp": Program(lambda x: torch.exp(x).sum()),
    "RN104 softmax by hand": Program(lambda x: (x.exp() / x.exp().sum(-1, keepdim=True)).mean()),
    "RN105 negative base": Program(lambda x: (x**0.5).sum()),
    "RN105 zero base": Program(lambda x: ((x * x) ** -1.5).sum()),
    "RN106 sqrt at 0": Program(lambda x: torch.sqrt(((x @ WEIGHT) ** 2).sum(-1)).sum()),
    "RN106 fractional power": Program(lambda x: ((x @ WEIGHT).abs() ** 0.5).sum()),
    "RN101 xlogy": Program(lambda x: torch.xlogy(one_hot(), torch.sigmoid(x)).mean()),
    "RN101 logit": Program(lambda x: torch.logit(torch.sigmoid(x)).mean()),
    "RN101 logit, eps below the resolution": Program(
        lambda x: torch.logit(torch.sigmoid(x), eps=1e-9).mean()
    ),
    "RN103 remainder": Program(lambda x: torch.remainder(1.0, x).mean()),
    "RN103 fmod": Program(lambda x: torch.fmod(x, x.round()).mean()),
    "RN108 acos": Program(lambda x: torch.acos(x / 100).mean()),
    "RN108 asin by rounding": Program(lambda x: torch.asin(F.normalize(x, dim=-1)).mean()),
    "RN108 acosh": Program(lambda x: torch.acosh(x).mean()),
    "RN108 atanh": Program(lambda x: torch.atanh(torch.tanh(x)).mean()),
    "RN108 erfinv": Program(lambda x: torch.erfinv(torch.tanh(x)).mean()),
    "RN108 tan": Program(lambda x: torch.tan(x).mean()),
    "RN109 mean over a mask": Program(lambda x: x[x > 1].mean()),
    "RN109 loss over a mask": Program(lambda x: F.mse_loss(x[x > 1], 2 * x[x > 1])),
    "RN109 mean of nothing": Program(lambda x: x[:0].mean()),
    "RN110 mask that depends on the input": Program(
        lambda x: torch.softmax((x @ WEIGHT).masked_fill(x > 0, -math.inf), -1).mean()
    ),
    "RN110 row without any": Program(
        lambda x: torch.log_softmax(
            torch.where(torch.arange(4)[:, None] < 3, x @ WEIGHT, -math.inf), -1
        ).mean()
    ),
    "RN110 logsumexp": Program(
        lambda x: torch.logsumexp((x @ WEIGHT).masked_fill(x > 0, -math.inf), -1).sigmoid().mean()
    ),
    "RN111 0 * inf": Program(lambda x: (x + (x > 0).float() * -math.inf).softmax(-1).mean()),
    "RN111 0 * inf in a constant": Program(
        lambda x: (x + (1 - EYE) * -math.inf).softmax(-1).mean()
    ),
    "RN111 inf - inf": Program(
        lambda x: (x.masked_fill(x > 0, -math.inf) - x.masked_fill(x > 1, -math.inf)).mean()
    ),
    "RN111 p log p": Program(
        lambda x: (
            torch.softmax(x.masked_fill(EYE > 0, -math.inf), -1)
            * torch.log_softmax(x.masked_fill(EYE > 0, -math.inf), -1)
        ).sum()
    ),
    "RN107 half precision square": Program(
        lambda x: ((x @ WEIGHT).half() * 1000).pow(1).sum(), {"x": (-2000.0, 2000.0)}
    ),
}

HEALTHY = {
    "RN101 log_softmax": Program(lambda x: F.cross_entropy(x @ WEIGHT, Y)),
    "RN101 clamp": Program(lambda x: torch.softmax(x, -1).clamp(min=1e-30).log().mean()),
    "RN101 eps": Program(lambda x: torch.log(torch.sigmoid(x) + 1e-8).mean()),
    "RN101 log1p of exp by the library": Program(lambda x: F.softplus(x).mean()),
    "RN102 eps inside": Program(lambda x: torch.sqrt((x * x).mean() + 1e-8)),
    "RN102 batch norm by hand": Program(lambda x: normalise_by_hand(x).sum()),
    "RN103 normalize": Program(lambda x: F.normalize(x, dim=-1).sum()),
    "RN103 weight norm of weights away from 0": Program(
        lambda x: (x @ torch._weight_norm_interface(WEIGHT.abs() + 0.1, GAIN)[0]).sum()
    ),
    "RN103 norm plus eps": Program(lambda x: (x / (x.norm(dim=-1, keepdim=True) + 1e-6)).sum()),
    "RN103 count of at least 1": Program(
        lambda x: (x * (x > 1)).sum() / (x > 1).sum().clamp(min=1)
    ),
    "RN103 softmax by hand, shifted": Program(
        lambda x: (
            (x - x.amax(-1, keepdim=True)).exp()
            / (x - x.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)
        ).mean()
    ),
    "RN104 shifted": Program(lambda x: torch.exp(x - x.max()).sum()),
    "RN104 logsumexp by hand": Program(
        lambda x: (
            (x - x.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True).log()
            + x.amax(-1, keepdim=True)
        ).mean()
    ),
    "RN104 bounded": Program(lambda x: torch.exp(torch.tanh(x)).sum()),
    "RN105 positive base": Program(lambda x: ((x * x + 1e-4) ** 0.5).sum()),
    "RN105 square": Program(lambda x: (x**2).sum()),
    "RN106 sqrt with eps": Program(lambda x: torch.sqrt(((x @ WEIGHT) ** 2).sum(-1) + 1e-8).sum()),
    "RN101 xlogy of a clamped probability": Program(
        lambda x: torch.xlogy(one_hot(), torch.sigmoid(x).clamp(min=1e-6)).mean()
    ),
    "RN101 logit with eps": Program(lambda x: torch.logit(torch.sigmoid(x), eps=1e-6).mean()),
    "RN103 remainder of a constant": Program(lambda x: torch.remainder(x, 3.0).mean()),
    "RN108 atan2": Program(lambda x: torch.atan2(x, x.abs() + 1).mean()),
    "RN108 clamped": Program(lambda x: torch.atanh(torch.tanh(x).clamp(-0.999, 0.999)).mean()),
    "RN108 tan between two poles": Program(lambda x: torch.tan(torch.tanh(x)).mean()),
    "RN109 sum over a count of at least 1": Program(
        lambda x: x[x > 1].sum() / max(int((x > 1).sum()), 1)
    ),
    "RN109 mask of integers, as recorded": Program(lambda x: x[Y > 1].mean()),
    "RN109 mask that always holds somewhere": Program(lambda x: x[x > -300].mean()),
    "RN109 biased variance of one": Program(lambda x: x[:1].var(0, unbiased=False).sum()),
    "RN110 causal": Program(
        lambda x: torch.softmax((x @ WEIGHT)[:, :4].masked_fill(CAUSAL, -math.inf), -1).mean()
    ),
    "RN110 added mask": Program(
        lambda x: torch.log_softmax((x @ WEIGHT)[:, :4] / 3 + ADDED, -1)[:, 0].mean()
    ),
    "RN110 large causal mask": Program(
        lambda x: torch.softmax(
            (x[:1, :1] * LARGE.float()).masked_fill(LARGE, -math.inf), -1
        ).mean()
    ),
    "RN110 large causal mask, by hand": Program(
        lambda x: softmax_by_hand((x[:1, :1] * LARGE.float()).masked_fill(LARGE, -math.inf)).mean()
    ),
    "RN110 least number": Program(
        lambda x: torch.softmax(
            (x @ WEIGHT).masked_fill(x > 0, torch.finfo(torch.float32).min), -1
        ).mean()
    ),
    "RN110 attention with nothing to attend to": Program(
        lambda x: F.scaled_dot_product_attention(
            x[None], x[None], x[None], attn_mask=x[:, :4] > 0
        ).mean()
    ),
    "RN111 masked_fill": Program(
        lambda x: (x.masked_fill(EYE > 0, -math.inf) * 2 + 1).softmax(-1).mean()
    ),
    "RN111 entropy, masked again": Program(
        lambda x: torch.where(EYE > 0, 0.0, torch.softmax(x.masked_fill(EYE > 0, -1e9), -1)).sum()
    ),
    "RN107 layer norm": Program(lambda x: F.layer_norm(x @ WEIGHT, (6,)).sum()),
}


def codes(program: Program) -> set[str]:
    analysis = analyze(program.step, X, inputs=program.inputs)
    assert analysis.is_complete, analysis
    return {defect.code for defect in analysis.defects}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_program_is_named(name):
    assert name.split()[0] in codes(BROKEN[name])


@pytest.mark.parametrize("name", HEALTHY)
def test_a_safe_spelling_stays_quiet(name):
    assert codes(HEALTHY[name]) == set()


def test_every_rule_has_a_broken_and_a_healthy_program():
    assert set(CODES) == {name.split()[0] for name in BROKEN}
    assert set(CODES) == {name.split()[0] for name in HEALTHY}


@pytest.mark.parametrize("code", CODES)
def test_every_rule_has_a_page(code):
    page = CODES[code].__doc__
    for heading in ("What it finds", "Why it matters", "Known misses", "Remedies", "Example"):
        assert heading in page, f"{code} has no {heading!r}"


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("spread", [torch.var, torch.std])
def test_an_unbiased_variance_of_one_sample_is_named(spread):
    assert codes(Program(lambda x: spread(x[:1], 0).sum())) == {"RN109"}


def test_a_code_cannot_be_taken_twice():
    class Again(DefectRule):
        """A page."""

        code = "RN101"
        ops = frozenset()

        def check(self, node, arguments, result):
            return None

    with pytest.raises(ArgumentError, match="RN101 is taken by LogDomain"):
        defect_rule(Again)


def test_one_defect_is_reported_once_where_it_starts():
    def step(x: Tensor) -> Tensor:
        p = torch.softmax(x, -1)
        return (torch.log(p) * 2 + 1).sum()

    analysis = analyze(step, X, inputs=WIDE)
    assert [(d.code, d.op) for d in analysis.defects] == [("RN101", "log")]


def test_a_second_defect_behind_the_first_is_still_seen():
    def step(x: Tensor) -> Tensor:
        y = torch.log(torch.softmax(x, -1))
        return torch.sqrt(y + 50).sum()

    analysis = analyze(step, X, inputs=WIDE)
    assert [d.code for d in analysis.defects] == ["RN101", "RN102"]


def test_a_defect_names_expression_bounds_outcome_and_consequence():
    def step(x: Tensor) -> Tensor:
        return -(one_hot() * torch.log(torch.softmax(x, -1))).sum(-1).mean()

    (defect,) = analyze(step, X, inputs=WIDE).defects
    assert defect.source.expression == "torch.log(torch.softmax(x, -1))"
    assert defect.source.file == __file__
    assert (defect.bounds.low, defect.bounds.high) == (0.0, pytest.approx(1.0))
    assert defect.outcome == "-Inf at 0"
    assert "NaN in `one_hot() * torch.log(torch.softmax(x, -1))`" in defect.consequence
    assert defect.severity == "possible"


def test_an_exponential_is_large_for_ordinary_operands():
    layer = nn.Linear(6, 6)

    def step(x: Tensor, highest: float) -> Tensor:
        scale = torch.exp(layer(x).clamp(-87, highest))
        return (1 - layer(x).square() - scale).sum(-1).mean()

    (defect,) = analyze(lambda x: step(x, 87), X, weights="anything").defects
    assert (defect.code, defect.op) == ("RN107", "sum")
    assert analyze(lambda x: step(x, 80), X, weights="anything").defects == ()


def test_a_quotient_that_grew_is_no_infinity_put_there_on_purpose():
    layer = nn.Linear(6, 6)

    def step(x: Tensor) -> Tensor:
        return torch.tanh(layer(layer(x).relu() / 0.5)).mean()

    assert analyze(step, X, weights="anything").defects == ()


def test_gradients_of_extremes_and_of_large_logits_are_finite():
    layer = nn.Linear(6, 6)

    def step(x: Tensor) -> Tensor:
        z = layer(layer(layer(x)))
        return z.amax(1).sum() - z.amin() + F.log_softmax(1e9 * z, 1).exp().mean()

    assert analyze(step, X, weights="anything").defects == ()


def test_overflow_is_judged_for_operands_of_ordinary_size():
    def grown(x: Tensor) -> Tensor:
        return ((x * 1e15) * (x * 1e15)).sum()  # x reaches 1e9 here

    def narrow(x: Tensor) -> Tensor:
        return (x.half() * x.half() * x.half()).sum()

    assert analyze(grown, X, inputs={"x": (-1e9, 1e9)}).defects == ()
    assert [d.code for d in analyze(narrow, X, inputs={"x": (-200, 200)}).defects] == ["RN107"]


def test_weights_as_they_are_and_weights_in_training():
    model = nn.Linear(6, 6)

    def step(x: Tensor) -> Tensor:
        return torch.log(torch.softmax(model(x), -1)).mean()

    assert analyze(step, X, weights="initial").defects == ()
    assert [d.code for d in analyze(step, X, weights="envelope").defects] == ["RN101"]
    assert analyze(step, X, weights={"weight": (-0.1, 0.1), "bias": (0, 0)}).defects == ()


MODELS = {
    "mlp": lambda: (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), X),
    "cnn with batch norm": lambda: (
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(36, 3),
        ),
        torch.rand(4, 1, 8, 8),
    ),
    "lstm": lambda: (First(nn.LSTM(6, 5, batch_first=True)), torch.randn(4, 7, 6)),
    "gru": lambda: (First(nn.GRU(6, 5, batch_first=True)), torch.randn(4, 7, 6)),
    "transformer": lambda: (
        nn.TransformerEncoderLayer(6, 2, 12, batch_first=True),
        torch.randn(4, 5, 6),
    ),
    "causal attention": lambda: (Causal(), torch.randn(4, 5, 6)),
    "gpt": lambda: (nn.Sequential(*(Block(0.0) for _ in range(8))), torch.randn(2, 6, 8)),
    "gpt with dropout": lambda: (nn.Sequential(Block(0.1), Block(0.1)), torch.randn(2, 6, 8)),
    "tanh, gelu, silu, elu": lambda: (
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.GELU(), nn.SiLU(), nn.ELU(), nn.Softplus()),
        X,
    ),
}


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (
            part.view(n, t, 2, d // 2).transpose(1, 2)
            for part in self.qkv(self.before(x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, d))
        return x + self.mlp(self.after(x))


class First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / 6**0.5
        mask = torch.ones(5, 5).tril() == 0
        return torch.softmax(scores.masked_fill(mask, float("-inf")), -1) @ v


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weights", ["initial", "envelope"])
def test_a_stock_model_raises_no_alarm_and_contains_what_happened(name, weights):
    torch.manual_seed(0)
    model, x = MODELS[name]()

    def loss(output: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, -2), torch.zeros(output[..., 0].numel()).long())

    analysis = analyze(model.train(), x, loss=loss, weights=weights, observe=True)
    assert analysis.is_complete, analysis
    assert analysis.defects == (), analysis
    if weights == "initial":
        assert analysis.bounds["loss"].is_finite
    graph = analysis.graph
    for value in graph.values.values():
        if value.observed is not None and not value.is_gradient:
            interval = analysis.intervals[value.index]
            low, high = (float(end) for end in value.observed)
            assert interval.low <= low, (value, interval)
            assert high <= interval.high, (value, interval)


@pytest.mark.parametrize("width", [64, 128])
def test_attention_of_wide_heads_raises_no_alarm(width):
    """Logits of ordinary operands reach 5e5; the rounding of those is no infinite gradient."""
    mixed = torch.nn.Linear(2 * width, 6 * width)
    norm = torch.nn.LayerNorm(2 * width)

    def step(x):
        query, key, value = mixed(norm(x)).view(2, 16, 3, 2, width).permute(2, 0, 3, 1, 4)
        attended = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True
        )
        return attended.square().mean()

    assert analyze(step, torch.randn(2, 16, 2 * width)).defects == ()
