"""The catalogue of defects, item by item: one spelling that fails and one that does not.

Forward defects, defects of the gradient alone, and losses of precision in the half types.
Torch itself is the judge: a failing spelling gives NaN or Inf at the point named beside it,
in its value or in its gradient, and the quiet one does not at any point tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis import analyze
from ranum.analysis.defects import CODES
from ranum.pages import explain

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
Step = Callable[[Tensor], Tensor]
UP = torch.linspace(0.2, 0.8, 6).reshape(2, 3)
NONE = torch.zeros(2, 3)
MASK = torch.tensor([[True, False, True], [False, False, True]])


@dataclass(frozen=True)
class Item:
    """One kind of defect.

    Attributes:
        code: The rule that finds it.
        op: The operator to blame.
        fails: A spelling that fails where all elements are `at`.
        quiet: One that cannot.
        limits: Range of the input.
        at: A number, or a tensor, where `fails` fails.
        dtype: Of the input.
        gradient: True if the value is finite there, and the gradient is not.
    """

    code: str
    op: str
    fails: Step
    quiet: Step
    limits: tuple[float, float] = (-200.0, 200.0)
    at: float | Tensor = 0.0
    dtype: torch.dtype = F32
    gradient: bool = False

    def point(self, at: float | Tensor) -> Tensor:
        return (NONE + at).to(self.dtype)


def normal(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


CATALOGUE: dict[str, Item] = {
    # --- forward ---
    "log": Item("RN101", "log", torch.log, lambda x: x.clamp(min=1e-6).log()),
    "log1p": Item("RN101", "log1p", torch.log1p, lambda x: x.relu().log1p(), at=-2.0),
    "log2": Item("RN101", "log2", torch.log2, lambda x: (x * x + 1e-6).log2()),
    "log10": Item("RN101", "log10", torch.log10, lambda x: (x.abs() + 1e-6).log10()),
    "sqrt": Item("RN102", "sqrt", torch.sqrt, lambda x: (x.relu() + 1e-8).sqrt(), at=-1.0),
    "rsqrt": Item("RN102", "rsqrt", lambda x: (x * x).rsqrt(), lambda x: (x * x + 1e-8).rsqrt()),
    "division": Item("RN103", "div", lambda x: 2.0 * x / x, lambda x: x / (x.abs() + 1)),
    "reciprocal": Item("RN103", "reciprocal", torch.reciprocal, lambda x: 1 / (1 + x * x)),
    "division by a difference": Item(
        "RN103", "div", lambda x: x / (x[:, :1] - x[:, 1:2]),
        lambda x: x / (x[:, :1] - x[:, 1:2]).abs().clamp(min=1e-3),
    ),
    "power of a negative base": Item(
        "RN105", "pow", lambda x: x**0.5, lambda x: (x.relu() + 1e-6) ** 0.5, at=-1.0
    ),
    "negative power of zero": Item(
        "RN105", "pow", lambda x: x.abs() ** -0.5, lambda x: (x.abs() + 0.1) ** -0.5
    ),
    "power of two tensors": Item(
        "RN105", "pow", lambda x: x**x, lambda x: x.abs().clamp(1, 9) ** x.clamp(-9, 9), at=-0.5
    ),
    "power that overflows": Item(
        "RN105", "pow", lambda x: x**18, lambda x: x**3, at=199.0
    ),
    "exp": Item("RN104", "exp", torch.exp, lambda x: x.clamp(max=20).exp(), at=150.0),
    "exp2": Item("RN104", "exp2", torch.exp2, lambda x: torch.exp2(-x.abs()), at=150.0),
    "expm1": Item("RN104", "expm1", torch.expm1, lambda x: torch.expm1(-x.abs()), at=150.0),
    "sinh": Item("RN104", "sinh", torch.sinh, lambda x: torch.sinh(x.tanh()), at=-150.0),
    "cosh": Item("RN104", "cosh", torch.cosh, lambda x: F.softplus(-2 * x) + x, at=150.0),
    "tan": Item("RN108", "tan", torch.tan, lambda x: x.clamp(-1.5, 1.5).tan(), at=math.pi / 2),
    "acos": Item("RN108", "acos", torch.acos, lambda x: x.clamp(-0.99, 0.99).acos(), at=1.1),
    "asin": Item("RN108", "asin", torch.asin, lambda x: x.clamp(-0.99, 0.99).asin(), at=-1.1),
    "acosh": Item("RN108", "acosh", torch.acosh, lambda x: (1.1 + x.abs()).acosh(), at=0.5),
    "atanh": Item("RN108", "atanh", torch.atanh, lambda x: x.clamp(-0.9, 0.9).atanh(), at=1.0),
    "erfinv": Item("RN108", "erfinv", torch.erfinv, lambda x: (0.9 * x.tanh()).erfinv(), at=1.0),
    "lgamma": Item("RN108", "lgamma", torch.lgamma, lambda x: (x.abs() + 1e-3).lgamma(), at=-2.0),
    "digamma": Item(
        "RN108", "digamma", torch.digamma, lambda x: (x.abs() + 1e-3).digamma(), at=-2.0
    ),
    "softmax over a fully masked row": Item(
        "RN110", "_softmax", lambda x: x.masked_fill(x < 0, -math.inf).softmax(-1),
        lambda x: x.masked_fill(MASK, -math.inf)[:, :2].softmax(-1)[1:], at=-1.0,
    ),
    "log_softmax over a fully masked row": Item(
        "RN110", "_log_softmax", lambda x: x.masked_fill(x < 0, -math.inf).log_softmax(-1),
        lambda x: x.masked_fill(x < 0, -1e9).log_softmax(-1), at=-1.0,
    ),
    "mean of nothing": Item(
        "RN109", "mean", lambda x: x[x > 1].mean(),
        lambda x: x[x > 1].sum() / (x > 1).sum().clamp(min=1), at=-1.0,
    ),
    "mean over an empty mask": Item(
        "RN103", "div", lambda x: (x * (x > 1)).sum() / (x > 1).sum(),
        lambda x: (x * (x > 1)).sum() / ((x > 1).sum() + 1e-6), at=-1.0,
    ),
    "loss over nothing": Item(
        "RN109", "mse_loss", lambda x: F.mse_loss(x[x > 1], x[x > 1] ** 2),
        lambda x: F.mse_loss(x[x > 1], x[x > 1] ** 2, reduction="sum"), at=-1.0,
    ),
    "cross entropy of ignored targets": Item(
        "RN109", "nll_loss_forward",
        lambda x: F.cross_entropy(x, torch.tensor([-100, -100])),
        lambda x: F.cross_entropy(x, torch.tensor([-100, 1])),
    ),
    "unbiased variance of one sample": Item(
        "RN109", "var", lambda x: x[:1].var(0), lambda x: x[:1].var(0, unbiased=False)
    ),
    "unbiased std of one sample": Item(
        "RN109", "std", lambda x: x[:1].std(0), lambda x: (x.var(0) + 1e-6).sqrt()
    ),
    "inf - inf": Item(
        "RN111", "sub",
        lambda x: x.masked_fill(x < 0, -math.inf) - x.masked_fill(x < -1, -math.inf),
        lambda x: x.masked_fill(x < 0, -1e9) - x.masked_fill(x < -1, -1e9), at=-2.0,
    ),
    "0 * inf": Item(
        "RN111", "mul", lambda x: (x > 0).float() * -math.inf + x,
        lambda x: torch.where(x > 0, -1e9, 0.0) + x, at=-1.0,
    ),
    "sum that overflows": Item(
        "RN107", "sum", lambda x: (x.half() * 100).sum().float(), lambda x: (x * 100).sum(),
        at=199.0,
    ),
    "product that overflows": Item(
        "RN107", "mul", lambda x: x.exp() * x.cosh(), lambda x: x.exp() * x.sigmoid(),
        limits=(-80.0, 80.0), at=79.0,
    ),
    "matmul that overflows": Item(
        "RN107", "mm", lambda x: (x.half() @ x.half().T).float(), lambda x: x @ x.T, at=199.0,
    ),
    "cumprod that overflows": Item(
        "RN107", "cumprod", lambda x: x.expand(2, 3).repeat(1, 8).cumprod(-1),
        lambda x: x.tanh().repeat(1, 8).cumprod(-1), at=199.0,
    ),
    "prod that overflows": Item(
        "RN107", "prod", lambda x: x.repeat(1, 8).prod(-1), lambda x: x.sigmoid().prod(-1),
        at=199.0,
    ),
    # --- gradient only ---
    "gradient of sqrt": Item(
        "RN106", "sqrt", lambda x: (x * x).sqrt(), lambda x: (x * x + 1e-8).sqrt(), gradient=True
    ),
    "gradient of a norm by hand": Item(
        "RN106", "sqrt", lambda x: (x**2).sum(-1).sqrt(), lambda x: x.norm(dim=-1), gradient=True
    ),
    "gradient of a power below 1": Item(
        "RN106", "pow", lambda x: x.abs() ** 0.3, lambda x: (x.abs() + 1e-4) ** 0.3, gradient=True
    ),
    "gradient of acos at its end": Item(
        "RN106", "acos", lambda x: x.clamp(-1, 1).acos(), lambda x: x.clamp(-0.99, 0.99).acos(),
        at=1.0, gradient=True,
    ),
    "gradient of asin at its end": Item(
        "RN106", "asin", lambda x: x.clamp(-1, 1).asin(), lambda x: x.clamp(-0.99, 0.99).asin(),
        at=1.0, gradient=True,
    ),
    "gradient of the untaken branch": Item(
        "RN106", "log", lambda x: torch.where(x > 0, x.log(), 0.0),
        lambda x: torch.where(x > 0, torch.where(x > 0, x, 1.0).log(), 0.0), gradient=True,
    ),
    "gradient of the root of a variance": Item(
        "RN106", "sqrt", lambda x: x.var(-1).sqrt(), lambda x: x.std(-1), at=0.5, gradient=True
    ),
    "gradient of a sign trick": Item(
        "RN106", "sqrt", lambda x: x.sign() * x.abs().sqrt(),
        lambda x: x.sign() * ((x.abs() + 1e-6).sqrt() - 1e-3), gradient=True,
    ),
    # --- half types ---
    "eps of 1e-8 in float16": Item(
        "RN103", "div", lambda x: x / (x.abs() + 1e-8), lambda x: x / (x.abs() + 1e-4), dtype=F16
    ),
    "exp above 11.09 in float16": Item(
        "RN104", "exp", torch.exp, lambda x: x.clamp(max=11).exp(), (-20.0, 20.0), 12.0, F16
    ),
    "sum of squares in float16": Item(
        "RN107", "mul", lambda x: (x * x).sum(), lambda x: (x.float() * x.float()).sum(),
        (-300.0, 300.0), 299.0, F16,
    ),
    "mask of -1e9 in float16": Item(
        "RN107", "mul", lambda x: x + (x > 0).to(x.dtype) * -1e9,
        lambda x: x + (x > 0).to(x.dtype) * -1e4, (-9.0, 9.0), 1.0, F16,
    ),
    "exp in bfloat16": Item(
        "RN104", "exp", torch.exp, lambda x: x.clamp(max=80).exp(), at=100.0, dtype=BF16
    ),
    "log(1 - sigmoid) in bfloat16": Item(
        "RN101", "log", lambda x: (1 - x.sigmoid()).log(), lambda x: F.logsigmoid(-x),
        (-20.0, 20.0), 10.0, BF16,
    ),
    # --- cancellation that ends in a defect ---
    "root of E[x^2] - E[x]^2": Item(
        "RN102", "sqrt", lambda x: ((x * x).mean(-1) - x.mean(-1) ** 2).sqrt(),
        lambda x: (x.var(-1, unbiased=False) + 1e-8).sqrt(),
        at=1.7,
    ),
    "log of 1 - sigmoid": Item(
        "RN101", "log", lambda x: (1 - x.sigmoid()).log(), lambda x: F.logsigmoid(-x), at=30.0
    ),
    "softplus by hand": Item(
        "RN104", "exp", lambda x: (1 + x.exp()).log(), F.softplus, at=100.0
    ),
    "logsumexp by hand": Item(
        "RN104", "exp", lambda x: x.exp().sum(-1).log(), lambda x: x.logsumexp(-1), at=100.0
    ),
    "cross entropy of probabilities": Item(
        "RN101", "log", lambda x: -x.softmax(-1).log()[:, 0], lambda x: -x.log_softmax(-1)[:, 0],
        at=torch.tensor([-150.0, 0.0, 0.0]),
    ),
}  # fmt: skip


def values(step: Step, point: Tensor) -> tuple[bool, bool]:
    """Whether value and gradient are finite at a point."""
    x = point.clone().requires_grad_()
    result = step(x).float()
    result.mean().backward()
    return bool(result.isfinite().all()), bool(x.grad.isfinite().all())


def found(item: Item, step: Step) -> set[tuple[str, str]]:
    x = (UP * min(1.0, item.limits[1])).to(item.dtype).requires_grad_()
    analysis = analyze(lambda x: step(x).float().mean(), x, inputs={"x": item.limits})
    assert analysis.is_complete, analysis
    return {(defect.code, defect.op) for defect in analysis.defects}


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_what_fails_is_found(name):
    item = CATALOGUE[name]
    assert (item.code, item.op) in found(item, item.fails)


@pytest.mark.parametrize("name", CATALOGUE)
def test_what_cannot_fail_is_quiet(name):
    item = CATALOGUE[name]
    assert found(item, item.quiet) == set()


@pytest.mark.parametrize("name", [n for n in CATALOGUE if n != "tan"])  # no float is a pole
@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_torch_agrees(name):
    item = CATALOGUE[name]
    forward, backward = values(item.fails, item.point(item.at))
    assert (forward, backward) == (True, False) if item.gradient else not forward
    low, high = item.limits
    for at in (item.at, low, high, low / 2, 0.0, 0.5, 1.0, -1.0, torch.tensor([low, 0.0, high])):
        assert values(item.quiet, item.point(at).clamp(low, high)) == (True, True), at


def test_torch_shows_every_rule_at_work():
    assert {item.code for item in CATALOGUE.values()} == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_every_rule_has_a_page(code):
    page = explain(code)
    for heading in ("What it finds", "Why it matters", "Known misses", "Remedies", "Example",
                    "References"):  # fmt: skip
        assert heading in page, f"{code} has no {heading!r}"
