"""The culprit search: the right operator, line and module; no trace; nobody blamed wrongly."""

from __future__ import annotations

import random
import warnings
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ranum.errors import RanumWarning
from ranum.guards.culprit import find_culprit, look, named_tensors


class Layer(nn.Module):
    """A module whose forward is one expression over its parameter and its input."""

    def __init__(self, expression, start):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))
        self.expression = expression

    def forward(self, x):
        return self.expression(self.weight * x)


def culprit_of(expression, start, x=None, **options):
    layer = Layer(expression, start)
    model = nn.Sequential(nn.Identity(), layer)
    x = torch.ones(len(start)) if x is None else x

    def run():
        loss = model(x).sum()
        if loss.requires_grad:
            loss.backward()
        return loss

    return find_culprit(run, model=model, batch=x, **options)


# expression, weights, operator, outcome, operand it must name
FORWARD = {
    "log of zero": (lambda w: torch.log(w) + 0, [1.0, 0.0], "log", "-Inf"),
    "log of negative": (lambda w: torch.log(w) + 0, [1.0, -1.0], "log", "NaN"),
    "sqrt of negative": (lambda w: torch.sqrt(w) + 0, [4.0, -1.0], "sqrt", "NaN"),
    "division by zero": (lambda w: 1 / w, [2.0, 0.0], "reciprocal", "Inf"),
    "zero by zero": (lambda w: w / w, [2.0, 0.0], "div", "NaN"),
    "exp overflow": (lambda w: torch.exp(w) + 0, [1.0, 89.0], "exp", "Inf"),
    "then softmax by hand": (
        lambda w: torch.exp(w) / torch.exp(w).sum(),
        [1.0, 99.0],
        "exp",
        "Inf",
    ),
    "pow": (lambda w: w**0.5, [1.0, -1.0], "pow", "NaN"),
    "acos": (lambda w: torch.acos(w) + 0, [0.5, 1.5], "acos", "NaN"),
    "in place": (lambda w: (w + 0).log_(), [1.0, 0.0], "log", "-Inf"),
    "through a view": (lambda w: torch.log(w)[None].T.reshape(-1) * 2, [1.0, 0.0], "log", "-Inf"),
    "half precision": (lambda w: w.half() * 2, [1.0, 7e4], "cast", "Inf"),
    "everything masked": (
        lambda w: w.masked_fill(w > 0, -torch.inf).softmax(0),
        [1.0, 2.0],
        "_softmax",
        "NaN",
    ),
    "mask times zero": (lambda w: w.masked_fill(w > 1, -torch.inf) * 0, [1.0, 2.0], "mul", "NaN"),
    "through a Python number": (lambda w: w * torch.log(w).min().item(), [1.0, 0.0], "log", "-Inf"),
}


@pytest.mark.parametrize("case", FORWARD)
def test_forward_operator_is_named(case):
    expression, start, op, outcome = FORWARD[case]
    culprit = culprit_of(expression, start)
    assert (culprit.op, culprit.outcome, culprit.cause) == (op, outcome, "operator")
    assert culprit.phase == "forward"
    assert culprit.source.module == "1"
    assert culprit.source.file == __file__
    assert culprit.source.line == expression.__code__.co_firstlineno or case == "everything masked"
    assert culprit.output.nan + culprit.output.inf > 0
    assert culprit.operands


def test_expression_and_operands():
    def forward(w):
        p = torch.softmax(w, 0)
        return -(torch.tensor([0.0, 1.0]) * torch.log(p))

    culprit = culprit_of(forward, [200.0, 0.0])
    assert culprit.source.expression == "torch.log(p)"
    assert [operand.name for operand in culprit.operands] == ["x"]
    assert (culprit.operands[0].lower, culprit.operands[0].upper) == (0.0, 1.0)
    assert culprit.output.inf == 1
    assert str(culprit).startswith("-Inf from log at")


def test_operands_have_schema_names():
    culprit = culprit_of(lambda w: torch.addcdiv(w, w, w - w), [1.0, 2.0])
    assert [operand.name for operand in culprit.operands] == ["x", "tensor1", "tensor2"]
    assert culprit.operands[2].upper == 0


BACKWARD = {
    "sqrt at 0": (lambda w: torch.sqrt(w) + 0, [1.0, 0.0], "sqrt", "Inf"),
    "norm at 0": (lambda w: torch.sqrt((w**2).sum()), [0.0, 0.0], "sqrt", "Inf"),
    "where": (lambda w: torch.where(w > 0, torch.log(w), w), [1.0, 0.0], "log", "Inf"),
    "where with sqrt": (
        lambda w: torch.where(w > 0, torch.sqrt(w), torch.zeros_like(w)),
        [1.0, 0.0],
        "sqrt",
        "NaN",
    ),
    "pow below one": (lambda w: w**0.5, [1.0, 0.0], "pow", "Inf"),
    "acos at 1": (lambda w: torch.acos(w) + 0, [0.5, 1.0], "acos", "Inf"),
}


@pytest.mark.parametrize("case", [name for name in BACKWARD if name != "where"])
def test_backward_operator_is_named(case):
    expression, start, op, outcome = BACKWARD[case]
    culprit = culprit_of(expression, start)
    assert (culprit.op, culprit.phase, culprit.cause) == (op, "backward", "operator")
    assert culprit.outcome == outcome
    first = expression.__code__.co_firstlineno
    assert culprit.source.line in (first, first + 1)
    assert culprit.source.module == "1"
    assert culprit.operands[0].name == "x"  # the forward operator's own
    assert culprit.operands[0].lower == start[1] or culprit.operands[0].upper == start[1]


def test_untaken_branch_with_bad_forward_value():
    # log gives -inf, where drops it; its gradient is 0 / 0.
    culprit = culprit_of(*BACKWARD["where"][:2])
    assert culprit.op == "log"
    assert culprit.phase == "backward"
    assert culprit.outcome == "NaN"


def test_saved_forward_result_is_to_blame():
    # exp overflows, where drops it, but exp's gradient is grad * inf.
    culprit = culprit_of(lambda w: torch.where(w < 50, torch.exp(w), w), [1.0, 99.0])
    assert (culprit.op, culprit.phase, culprit.outcome) == ("exp", "forward", "Inf")


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient / (gradient - gradient)


def test_custom_function():
    culprit = culprit_of(BadBackward.apply, [1.0])
    assert (culprit.op, culprit.phase) == ("div", "backward")
    assert culprit.source.expression == "gradient / (gradient - gradient)"


def test_gradient_of_gradient():
    weight = nn.Parameter(torch.tensor([0.0, 1.0]))
    model = nn.ParameterList([weight])

    def run():
        (slope,) = torch.autograd.grad((weight**1.5).sum(), weight, create_graph=True)
        loss = slope.sum()
        loss.backward()
        return loss

    culprit = find_culprit(run, model=model)
    assert (culprit.op, culprit.phase, culprit.outcome) == ("pow", "backward", "Inf")
    assert culprit.source.expression == "weight**1.5"


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    from torch.utils.checkpoint import checkpoint

    def inner(w):
        y = w * 2
        return torch.sqrt(y)

    culprit = culprit_of(lambda w: checkpoint(inner, w, use_reentrant=reentrant), [0.0, 1.0])
    assert (culprit.op, culprit.phase) == ("sqrt", "backward")
    assert culprit.source.expression == "torch.sqrt(y)"


# --- who is not to blame ----------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.project = nn.Linear(4, 4)
        self.mask = mask
        self.register_buffer("causal", torch.full((3, 3), -torch.inf).triu(1))

    def forward(self, x):
        query = self.project(x)
        scores = query @ x.transpose(-2, -1)
        return self.mask(self, scores).softmax(-1) @ x


MASKS = {
    "masked_fill": lambda m, s: s.masked_fill(m.causal < 0, -torch.inf),
    "masked_fill_": lambda m, s: s.masked_fill_(m.causal < 0, -torch.inf),
    "buffer": lambda m, s: s + m.causal,
    "where": lambda m, s: torch.where(m.causal < 0, -torch.inf, s),
    "constant": lambda m, s: torch.where(m.causal < 0, torch.tensor(-torch.inf), s),
    "full": lambda m, s: s + torch.full((3, 3), -torch.inf).triu(1),
    "log of a mask": lambda m, s: s + torch.log((m.causal == 0).float()),
    "index": lambda m, s: s.index_put((m.causal.expand_as(s) < 0,), torch.tensor(-torch.inf)),
    "fused": lambda m, s: s + torch.zeros(3, 3).masked_fill_(m.causal < 0, -torch.inf),
}


@pytest.mark.parametrize("case", MASKS)
def test_mask_is_not_to_blame(case):
    model = Attention(MASKS[case])
    x = torch.randn(2, 3, 4)

    def run(fail):
        y = model(x).mean()
        loss = torch.log(y - y) if fail else y
        loss.backward()
        return loss

    assert find_culprit(lambda: run(False), model=model, batch=x) is None
    culprit = find_culprit(lambda: run(True), model=model, batch=x)
    assert (culprit.op, culprit.cause, culprit.source.expression) == (
        "log",
        "operator",
        "torch.log(y - y)",
    )


def test_mask_that_reaches_the_loss_is_named():
    culprit = culprit_of(lambda w: w.masked_fill(w > 1, -torch.inf), [1.0, 2.0])
    assert (culprit.op, culprit.outcome) == ("masked_fill", "-Inf")


def test_fully_masked_row_of_a_buffer():
    model = Attention(MASKS["buffer"])
    model.causal.fill_(-torch.inf)
    x = torch.randn(2, 3, 4)
    culprit = find_culprit(lambda: model(x).mean(), model=model, batch=x)
    assert (culprit.op, culprit.cause) == ("_softmax", "operator")


def test_side_branch_is_not_to_blame():
    def forward(w):
        torch.log(w - w)  # thrown away
        return torch.sqrt(-w)

    assert culprit_of(forward, [1.0]).op == "sqrt"


def test_cured_value_is_not_to_blame():
    def forward(w):
        return torch.nan_to_num(torch.log(w.detach() - w.detach())).clamp(-1, 1) + torch.sqrt(-w)

    assert culprit_of(forward, [1.0]).op == "sqrt"


def test_uninitialised_memory_is_not_to_blame():
    def forward(w):
        scratch = torch.empty(2)
        scratch.fill_(torch.nan)
        scratch.zero_()
        scratch += w
        out = torch.empty_like(w)
        torch.mul(w, 2.0, out=out) if not w.requires_grad else out.copy_(w)
        return scratch + torch.log(w)

    assert culprit_of(forward, [1.0, 0.0]).op == "log"


def test_finite_step_has_no_culprit():
    assert culprit_of(torch.exp, [1.0, 2.0]) is None


# --- data and weights -------------------------------------------------------------------------

Point = namedtuple("Point", "x y")


@dataclass
class Sample:
    image: torch.Tensor
    label: int = 0


BATCHES = {
    "batch": lambda bad: bad,
    "batch[1]": lambda bad: (torch.ones(2), bad),
    "batch['image']": lambda bad: {"label": torch.tensor(1), "image": bad},
    "batch[0]['a'][1]": lambda bad: [{"a": [None, bad]}],
    "batch.y": lambda bad: Point(torch.ones(2), bad),
    "batch.image": Sample,
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_data_is_named(name, value):
    bad = torch.tensor([1.0, value])
    model = nn.Linear(2, 1)
    culprit = find_culprit(lambda: model(bad).sum(), model=model, batch=BATCHES[name](bad))
    assert (culprit.cause, culprit.name) == ("data", name)
    assert culprit.outcome == ("Inf" if value == torch.inf else "NaN")
    assert culprit.source.expression == "model(bad)"
    assert name in str(culprit)


def test_data_in_another_place_of_the_same_batch_is_not_to_blame():
    bad, good = torch.tensor([torch.nan]), torch.zeros(1)
    model = nn.Linear(1, 1)
    culprit = find_culprit(
        lambda: torch.log(good * model(good)).sum(), model=model, batch=[bad, good]
    )
    assert culprit.cause == "operator"


def test_hidden_data():
    bad = torch.tensor([1.0, torch.nan])
    model = nn.Linear(2, 1)
    culprit = find_culprit(lambda: model(bad).sum(), model=model, batch=None)
    assert (culprit.cause, culprit.name) == ("data", "argument mat1")


def test_data_through_the_gradient_alone():
    def run():
        loss = torch.where(bad.isnan(), 0.0, bad * weight).sum()
        loss.backward()
        return loss

    bad, weight = torch.tensor([1.0, torch.nan]), nn.Parameter(torch.ones(2))
    culprit = find_culprit(run, model=nn.ParameterList([weight]), batch=bad)
    assert (culprit.cause, culprit.name) == ("data", "batch")


def test_weights_are_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.inf
    x = torch.zeros(3, 2)
    culprit = find_culprit(lambda: model(x).sum(), model=model, batch=x)
    assert (culprit.cause, culprit.name, culprit.op) == ("weights", "1.weight", "addmm")


def test_buffers_are_named():
    model = nn.BatchNorm1d(2).eval()
    model.running_mean.fill_(torch.nan)
    x = torch.ones(3, 2)
    culprit = find_culprit(lambda: model(x).sum(), model=model, batch=x)
    assert (culprit.cause, culprit.name) == ("weights", "running_mean")


def test_without_replay_data_and_weights_are_seen():
    model = nn.Linear(1, 1)
    assert find_culprit(None, model=model, batch=torch.ones(1)) is None
    assert find_culprit(None, model=model, batch=torch.tensor([torch.nan])).name == "batch"
    nn.init.constant_(model.bias, torch.nan)
    assert find_culprit(None, model=model, batch=torch.ones(1)).name == "bias"


# --- no trace -----------------------------------------------------------------------------------


class Eventful(nn.Module):
    """Changes everything a forward pass can change."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout()
        self.count = 0
        self.seen = []
        self.total = torch.zeros(1)

    def forward(self, x):
        self.count += 1
        self.seen.append(float(x.sum()))
        self.total += 1
        self.extra = random.random() + np.random.rand()
        self.dropout.eval()
        return self.dropout(self.norm(self.linear(x)))


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(fails):
    model = Eventful()
    x = torch.randn(4, 3)
    model(x).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad for p in model.parameters()]
    values = [gradient.clone() for gradient in gradients]
    model.dropout.train()

    def state():
        return (
            model.count,
            list(model.seen),
            float(model.total),
            model.dropout.training,
            model.extra,
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        )

    def run():
        loss = torch.log(model(x).sum() * 0)
        loss.backward()
        if fails:
            raise ValueError("late")
        return loss

    then = state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RanumWarning)
        culprit = find_culprit(run, model=model, batch=x)
    assert (culprit is None) is fails
    assert state() == then
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients, values, strict=True))


def test_failing_replay_is_a_warning():
    def run():
        raise ValueError("no more data")

    model = nn.Linear(1, 1)
    with pytest.warns(RanumWarning, match="ValueError: no more data"):
        assert find_culprit(run, model=model) is None
    with pytest.raises(ValueError, match="no more data"):
        find_culprit(run, model=model, strict=True)


def test_replay_under_no_grad():
    with torch.no_grad():
        culprit = culprit_of(torch.sqrt, [0.0])
    assert culprit.phase == "backward"


# --- looking ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_look(dtype):
    seen = look("t", torch.tensor([1.0, -2.0, torch.nan, torch.inf, -torch.inf], dtype=dtype))
    assert (seen.lower, seen.upper, seen.nan, seen.inf, seen.size) == (-2.0, 1.0, 1, 2, 5)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.empty(0), (None, None, 0, 0, 0)),
        (torch.tensor([torch.nan]), (None, None, 1, 0, 1)),
        (torch.tensor([3, 1]), (1.0, 3.0, 0, 0, 2)),
        (torch.tensor([1 + 2j]), (1.0, 2.0, 0, 0, 2)),
        (torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn), (1.0, 2.0, 0, 0, 2)),
        (torch.tensor([[0.0, 5.0]]).to_sparse(), (5.0, 5.0, 0, 0, 1)),
    ],
)
def test_look_at_odd_tensors(tensor, expected):
    seen = look("t", tensor)
    assert (seen.lower, seen.upper, seen.nan, seen.inf, seen.size) == expected


def test_named_tensors_ends():
    endless: list = []
    endless.append(endless)
    assert list(named_tensors(endless, "batch")) == []
    assert list(named_tensors("text", "batch")) == []


def test_mixed_precision():
    model = nn.Linear(4, 4)
    x = torch.full((2, 4), 1e3)
    with torch.no_grad():
        model.weight.fill_(1e3)

    def run():
        with torch.autocast("cpu", torch.float16):
            loss = F.softmax(model(x), -1).exp().sum()
        loss.backward()
        return loss

    culprit = find_culprit(run, model=model, batch=x)
    assert (culprit.op, culprit.outcome) == ("addmm", "Inf")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_model():
    model = nn.Sequential(nn.Identity(), Layer(lambda w: torch.sqrt(w) + 0, [0.0, 1.0]))
    compiled = torch.compile(model, backend="eager")
    x = torch.ones(2)
    compiled(x).sum().backward()

    def run():
        loss = compiled(x).sum()
        loss.backward()
        return loss

    culprit = find_culprit(run, model=compiled, batch=x)
    assert (culprit.op, culprit.phase) == ("sqrt", "backward")
    assert culprit.source.expression == "torch.sqrt(w)"
