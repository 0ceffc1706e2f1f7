"""Every rule of advice: spellings it speaks up about, and spellings it leaves alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis import analyze
from ranum.analysis.defects import CODES as DEFECTS
from ranum.analysis.graph import Node
from ranum.analysis.precision import CODES, AdviceRule, advice_rule
from ranum.analysis.precision.rewrite import operand_text, spelled
from ranum.errors import ArgumentError
from ranum.pages import explain
from ranum.source import Source

torch.manual_seed(0)
X = torch.rand(4, 6) * 0.8 + 0.1
SMALL, WIDE, UNIT = (-0.5, 0.5), (-200.0, 200.0), (0.0, 1.0)

# name -> (step, range of x, what the rewriting must contain)
LOSING: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float], str]] = {
    "RN112 1 + 1e-10": (lambda x: -torch.log(1.0000000001 - x), UNIT, "1e-6"),
    "RN112 clamp below 1": (lambda x: torch.log(1 - x.clamp(1e-8, 1 - 1e-8)), UNIT, "1e-6"),
    "RN112 clamp below 1, bfloat16": (
        lambda x: torch.log(1.5 - x.bfloat16().clamp(1e-3, 0.999)), UNIT, "1e-2"
    ),
    "RN112 lost in all values": (
        lambda x: torch.log(x.exp() + 1e-12 - x.exp() * 0.5), UNIT, "added last"
    ),
    "RN113 eps in float16": (lambda x: 1 / (x.half().abs() + 1e-8), UNIT, "0.0001"),
    "RN113 clamp in float16": (lambda x: torch.log(x.half().clamp(min=1e-9)), UNIT, "0.0001"),
    "RN114 log(1 + x)": (lambda x: torch.log(1 + x), SMALL, "torch.log1p(x)"),
    "RN114 log(x + 1)": (lambda x: torch.log(x * x + 1.0), SMALL, "torch.log1p(x * x)"),
    "RN114 log(1 - x)": (lambda x: torch.log(1 - x), SMALL, "torch.log1p(-x)"),
    "RN114 log of sigmoid": (lambda x: torch.log(torch.sigmoid(x)), SMALL, "F.logsigmoid(x)"),
    "RN114 log of 1 - sigmoid": (
        lambda x: torch.log(1 - torch.sigmoid(x)), SMALL, "F.logsigmoid(-x)"
    ),
    "RN114 log of softmax": (lambda x: torch.softmax(x, -1).log(), SMALL, "torch.log_softmax"),
    "RN114 softplus": (lambda x: torch.log(1 + x.exp()), SMALL, "F.softplus(x)"),
    "RN114 logsumexp": (lambda x: x.exp().sum(-1).log(), (-50.0, 50.0), "torch.logsumexp"),
    "RN114 bce": (
        lambda x: F.binary_cross_entropy(torch.sigmoid(x), torch.ones(4, 6)), SMALL, "with_logits"
    ),
    "RN115 exp(x) - 1": (lambda x: torch.exp(x) - 1, SMALL, "torch.expm1(x)"),
    "RN115 1 - cos(x)": (lambda x: 1 - torch.cos(x), SMALL, "torch.sin(x / 2) ** 2"),
    "RN115 E[x^2] - E[x]^2": (
        lambda x: (x * x).mean(-1) - x.mean(-1) ** 2, WIDE, "x.var(-1, unbiased=False)"
    ),
    "RN115 the same, with square": (
        lambda x: x.pow(2).mean(0, keepdim=True) - x.mean(0, keepdim=True).square(), WIDE, "x.var"
    ),
}  # fmt: skip

KEEPING: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float]]] = {
    "RN112 1 + 1e-6": (lambda x: -torch.log(1.000001 - x), UNIT),
    "RN112 an eps next to small values": (lambda x: torch.log(x * x + 1e-12), UNIT),
    "RN112 an eps that is lost but guards nothing": (lambda x: torch.log(x.exp() + 1e-12), UNIT),
    "RN112 plain 1": (lambda x: (1.0 - x).clamp(0.0, 1.0), UNIT),
    "RN112 half sums take the number in float32": (lambda x: (x.half() + 1.0001).float(), UNIT),
    "RN113 eps in float32": (lambda x: 1 / (x.abs() + 1e-8), UNIT),
    "RN113 eps in bfloat16": (lambda x: 1 / (x.bfloat16().abs() + 1e-8), UNIT),
    "RN113 eps that float16 holds": (lambda x: 1 / (x.half().abs() + 1e-4), UNIT),
    "RN113 adding nothing": (lambda x: x.half() + 0.0, UNIT),
    "RN114 log1p": (torch.log1p, SMALL),
    "RN114 1 + x far from 1": (lambda x: torch.log(1 + x), (5.0, 10.0)),
    "RN114 log_softmax": (lambda x: torch.log_softmax(x, -1), WIDE),
    "RN114 logsumexp, shifted by hand": (
        lambda x: (x - x.amax(-1, keepdim=True)).exp().sum(-1).log(), WIDE
    ),
    "RN114 softplus": (F.softplus, WIDE),
    "RN114 bce with logits": (
        lambda x: F.binary_cross_entropy_with_logits(x, torch.ones(4, 6)), WIDE
    ),
    "RN114 log of something else": (lambda x: torch.log(x + 2), SMALL),
    "RN115 expm1": (torch.expm1, SMALL),
    "RN115 a gate": (lambda x: (1 - torch.sigmoid(x)) * x, SMALL),
    "RN115 exp(x) - 1 far from 0": (lambda x: torch.exp(x) - 1, (2.0, 5.0)),
    "RN115 1 - cos(x) far from 0": (lambda x: 1 - torch.cos(x), (1.0, 2.0)),
    "RN115 variance of centred data": (
        lambda x: (x - x.mean(-1, keepdim=True)).pow(2).mean(), WIDE
    ),
    "RN115 a difference of other means": (lambda x: (x * x).mean(-1) - x.mean() ** 2, WIDE),
}  # fmt: skip


def look(step: Callable[[Tensor], Tensor], limits: tuple[float, float]):
    return analyze(lambda x: step(x).float().mean(), X, inputs={"x": limits})


def said(analysis) -> list[tuple[str, str]]:
    """Codes and rewritings, those that became the remedy of a defect included."""
    found = [(advice.code, advice.rewrite) for advice in analysis.advice]
    return found + [("remedy", defect.remedy) for defect in analysis.defects]


@pytest.mark.parametrize("name", LOSING)
def test_a_spelling_that_loses_precision_is_named_with_its_rewriting(name):
    step, limits, rewrite = LOSING[name]
    spoken = said(look(step, limits))
    code = name.split()[0]
    assert any(rewrite in text for found, text in spoken if found in (code, "remedy")), spoken


@pytest.mark.parametrize("name", KEEPING)
def test_a_spelling_that_keeps_it_is_left_alone(name):
    step, limits = KEEPING[name]
    assert look(step, limits).advice == ()


def test_every_rule_speaks_and_keeps_quiet():
    assert {name.split()[0] for name in LOSING} == set(CODES)
    assert {name.split()[0] for name in KEEPING} == set(CODES)


@pytest.mark.parametrize(
    ("step", "better", "x"),
    [
        (lambda x: torch.log(1 + x), torch.log1p, 1e-8),
        (lambda x: torch.log(1 - x), lambda x: torch.log1p(-x), 1e-8),
        (lambda x: torch.log(torch.sigmoid(x)), F.logsigmoid, 17.0),
        (lambda x: torch.log(1 - torch.sigmoid(x)), lambda x: F.logsigmoid(-x), 17.0),
        (lambda x: torch.log(1 + torch.exp(x)), F.softplus, -18.0),
        (lambda x: torch.exp(x) - 1, torch.expm1, 1e-8),
        (lambda x: 1 - torch.cos(x), lambda x: 2 * torch.sin(x / 2) ** 2, 1e-4),
    ],
)
def test_the_rewriting_keeps_the_digits_that_the_spelling_loses(step, better, x):
    value = torch.tensor(x)
    exact = better(value.double())
    assert (step(value) - exact).abs() > 1e-2 * exact.abs()
    assert (better(value) - exact).abs() < 1e-6 * exact.abs()


def test_advice_is_no_defect_and_is_told_apart():
    analysis = look(lambda x: torch.log(1 + x), SMALL)
    assert analysis.defects == ()
    (advice,) = analysis.advice
    assert (advice.code, advice.op) == ("RN114", "log")
    assert advice.source.file == __file__
    assert "0 possible numerical defects" in str(analysis)
    assert "advice RN114" in str(analysis)
    assert analysis.to_dict()["advice"][0]["rewrite"] == advice.rewrite


def test_what_is_a_defect_gets_the_rewriting_as_its_remedy():
    analysis = look(lambda x: torch.log(torch.softmax(x, -1)), WIDE)
    (defect,) = analysis.defects
    assert analysis.advice == ()
    better = "torch.log_softmax(x, -1) instead of torch.log(torch.softmax(x, -1))"
    assert defect.remedy == f"write {better}"


def test_advice_is_given_once_for_each_expression():
    def step(x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.log(1 + x.abs())
        return x

    assert len(look(step, SMALL).advice) == 1


@pytest.mark.parametrize("code", CODES)
def test_every_rule_has_a_page(code):
    page = explain(code)
    for heading in ("What it finds", "Why it matters", "Known misses", "Remedies", "Example",
                    "References"):  # fmt: skip
        assert heading in page, f"{code} has no {heading!r}"


def test_a_code_is_shared_with_no_other_rule():
    assert not set(CODES) & set(DEFECTS)

    class Again(AdviceRule):
        """A page."""

        code = "RN101"
        ops = frozenset()

        def look(self, around, node):
            return None

    with pytest.raises(ArgumentError, match="RN101 is taken"):
        advice_rule(Again)


def by_names(logits: Tensor, gap: Tensor) -> Tensor:
    """The pieces on lines of their own, as in most programs."""
    scale = torch.exp(0.5 * logits)
    p = logits.sigmoid()
    shares = F.softmax(logits + gap, dim=1)
    first = torch.log(1 + scale) + torch.log(1 - p)
    return first + shares.log() + (1 + gap[:, :1]).log()


def test_a_rewriting_uses_the_writers_own_words():
    analysis = analyze(lambda x: by_names(3 * x, x).mean(), X, inputs={"x": SMALL})
    assert [advice.rewrite for advice in analysis.advice] == [
        "F.softplus(0.5 * logits) instead of torch.log(1 + scale)",
        "F.logsigmoid(-logits) instead of torch.log(1 - p)",
        "torch.log_softmax(logits + gap, 1) instead of shares.log()",
        "torch.log1p(gap[:, :1]) instead of (1 + gap[:, :1]).log()",
    ]


@pytest.mark.parametrize(
    ("op", "line", "operand", "better"),
    [
        ("sigmoid", "torch.sigmoid(a + b)", "a + b", "F.logsigmoid(a + b)"),
        ("sigmoid", "(a + b).sigmoid()", "a + b", "F.logsigmoid(a + b)"),
        ("sigmoid", "self.activation(x)", "x", "F.logsigmoid(x)"),
        ("sigmoid", "net(images)", "x", "F.logsigmoid(x)"),
        ("sigmoid", "tf.sigmoid(h)", "h", "tf.math.log_sigmoid(h)"),
        ("sigmoid", "p = keras.ops.sigmoid(h) * y", "h", "ops.log_sigmoid(h)"),
        ("sigmoid", "return ops.sigmoid(a) * ops.sigmoid(b)", "x", "ops.log_sigmoid(x)"),
        ("sigmoid", "torch.sigmoid(" + "very_long * " * 20 + "h)", "x", "F.logsigmoid(x)"),
        ("sigmoid", "torch.sigmoid(a", "x", "F.logsigmoid(x)"),
        ("sigmoid", "", "x", "F.logsigmoid(x)"),
        ("add", "1 + rate", "rate", "F.logsigmoid(rate)"),
    ],
)
def test_operands_are_quoted_only_where_they_are_sure(op, line, operand, better):
    source = Source("step.py", 1, 1, -1, -1, lines=(line,))
    node = Node(index=0, op=op, target=None, arguments={}, outputs=(1,), source=source)
    assert operand_text(node) == operand
    assert spelled(node, "logsigmoid", operand) == better
