"""What a sample holds besides norms: updates, inputs, loss functions, running statistics."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranum.errors import RanumWarning
from ranum.guards import Guard
from ranum.guards.readings import TorchReader
from ranum.guards.readings._modules import FIRST_SAMPLES
from ranum.guards.readings._updates import PART
from ranum.guards.types import LossReading, Reading


def train(model: nn.Module, steps: int, x: Tensor, rate: float = 0.1, every: int = 2):
    """Readings of some steps of gradient descent, and the weights before each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    reader = TorchReader(model, sample_every=every)
    readings, weights = [], []
    for step in range(steps):
        optimizer.zero_grad()
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
        with reader.watch(step):
            loss = model(x).square().mean()
        loss.backward()
        readings.append(reader.read(step=step, loss=loss, optimizer=optimizer))
        optimizer.step()
    return readings, weights


# --- updates -------------------------------------------------------------------------------


def test_updates_equal_a_plain_computation():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    readings, weights = train(model, 5, torch.randn(8, 6))
    assert readings[0].updates == {}
    assert readings[1].updates == {}
    for step in (2, 4):
        assert list(readings[step].updates) == ["0.weight", "2.weight"]  # no biases
        for name, ratio in readings[step].updates.items():
            before, after = weights[step - 2][name], weights[step - 1][name]
            size = max(before.norm().item(), math.sqrt(len(before) / 3))
            assert ratio == pytest.approx((after - before).norm().item() / size, 1e-4)


def test_updates_of_large_weights_are_estimated_from_a_part():
    model = nn.Linear(300, 200)
    assert model.weight.numel() > 10 * PART
    readings, weights = train(model, 3, torch.randn(64, 300))
    before, after = weights[0]["weight"], weights[1]["weight"]
    size = max(before.norm().item(), math.sqrt(200 / 3))
    exact = (after - before).norm().item() / size
    assert readings[2].updates["weight"] == pytest.approx(exact, rel=0.1)


def test_weights_that_stay_have_an_update_of_exactly_zero():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    readings, _ = train(model, 3, torch.randn(8, 6), rate=0.0)
    assert set(readings[2].updates.values()) == {0.0}
    model = nn.Linear(6, 5)
    nn.init.zeros_(model.weight)
    readings, weights = train(model, 3, torch.randn(8, 6))
    size = math.sqrt(5 / 3)  # of a weight that is initialised as usual
    expected = weights[1]["weight"].norm().item() / size
    assert readings[2].updates["weight"] == pytest.approx(expected)
    model.weight.requires_grad_(False)
    readings, _ = train(model, 3, torch.randn(8, 6))
    assert readings[2].updates == {}


def test_a_weight_that_cannot_be_compared_costs_only_the_comparison():
    class Strange(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model = nn.Sequential(Strange(6, 5), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = TorchReader(model, sample_every=1)
    readings = []
    for step in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, model[0].weight.shape[1])).sum().backward()
        if step == 1:
            model[0].weight = nn.Parameter(torch.randn(5, 6))
            reader._updates._copies["0.weight"] = (torch.zeros(2, 2), torch.zeros(7))
            with pytest.warns(RanumWarning, match="sizes of updates are not measured"):
                readings.append(reader.read(step=step, loss=1.0, optimizer=optimizer))
        else:
            readings.append(reader.read(step=step, loss=1.0, optimizer=optimizer))
    assert [reading.grad_norm is not None for reading in readings] == [True] * 3
    assert readings[2].updates == {}


def test_a_step_that_is_withheld_is_no_update():
    model = nn.Linear(6, 5)
    reader = TorchReader(model, sample_every=1)
    readings = []
    for step in range(4):
        model.zero_grad()
        model(torch.randn(4, 6)).sum().backward()
        readings.append(reader.read(step=step, loss=1.0))
        if step == 1:
            reader.forget_update()
            nn.init.constant_(model.weight, 1e6)  # as after going back
    assert [bool(reading.updates) for reading in readings] == [False, True, False, True]
    assert readings[3].updates == {"weight": 0.0}


def test_a_fault_of_a_guard_is_no_update():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.1), sample_every=1, strict=True)
    for i in range(6):
        with guard.step() as step:
            x = torch.randn(8, 6) * (math.nan if i == 3 else 1.0)
            step.backward(lambda x=x: model(x).square().mean())
    assert [incident.step for incident in guard.history.incidents] == [3]
    seen = [bool(reading.updates) for reading in guard.history.readings]
    assert seen == [False, True, True, True, False, True]


def test_nothing_is_kept_between_samples():
    model = nn.Linear(6, 5)
    reader = TorchReader(model, sample_every=10)
    for step in range(5):
        model.zero_grad()
        model(torch.randn(4, 6)).sum().backward()
        reader.read(step=step, loss=1.0)
    assert reader._updates._copies == {}
    assert reader._updates._changes.pairs


# --- inputs and outputs ----------------------------------------------------------------------


def sampled(model: nn.Module, *args, step: int = 0, reader: TorchReader | None = None) -> Reading:
    reader = reader or TorchReader(model)
    model.zero_grad()
    with reader.watch(step):
        out = model(*args)
    out.sum().backward()
    return reader.read(step=step, loss=None)


def test_the_first_modules_input():
    x = torch.randn(8, 6) * 3 + 1
    given = sampled(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), x).inputs
    assert given.where == "0"
    assert (given.lower, given.upper) == (x.min().item(), x.max().item())
    assert given.mean == pytest.approx(x.mean().item(), rel=1e-4)
    assert given.deviation == pytest.approx(x.std().item(), rel=1e-4)
    assert given.spread == pytest.approx((x.amax(0) - x.amin(0)).max().item())
    assert not given.is_normalized


@pytest.mark.parametrize(
    ("model", "x", "spread", "is_normalized"),
    [
        (nn.Linear(6, 5), torch.ones(1, 6), None, False),
        (nn.Linear(6, 5), torch.ones(4, 6), 0.0, False),
        (nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5)), torch.ones(4, 6), 0.0, True),
        (nn.Embedding(9, 5), torch.tensor([[1, 2], [1, 2]]), 0.0, False),
        (nn.Embedding(9, 5), torch.tensor([[1, 2], [1, 8]]), 6.0, False),
    ],
)
def test_inputs_of_every_kind(model, x, spread, is_normalized):
    given = sampled(model, x).inputs
    assert (given.spread, given.is_normalized) == (spread, is_normalized)


def test_a_bad_input_shows():
    x = torch.randn(8, 6)
    x[3, 2] = torch.nan
    assert math.isnan(sampled(nn.Linear(6, 5), x).inputs.lower)
    x[3, 2] = torch.inf
    assert sampled(nn.Linear(6, 5), x).inputs.upper == math.inf


def test_an_input_without_a_scale_is_left_alone():
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to_dense()

    model = nn.Sequential(First(), nn.Linear(6, 5))
    reading = sampled(model, torch.eye(6).to_sparse())
    assert reading.inputs is None
    assert list(reading.activations) == ["0", "1"]


def test_a_learned_input_is_none_of_the_data():
    class Query(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.ones(6))
            self.layer = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.query.expand(len(x), 6)) * x

    assert sampled(Query(), torch.randn(4, 1)).inputs is None


@pytest.mark.parametrize(
    ("module", "scale", "share"),
    [
        (nn.Tanh(), 100.0, 1.0),
        (nn.Tanh(), 0.1, 0.0),
        (nn.Sigmoid(), 100.0, 1.0),
        (nn.ReLU(), 100.0, None),
    ],
)
def test_saturated_share(module, scale, share):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), module)
    nn.init.eye_(model[0].weight)
    x = scale * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert sampled(model, x).activations["1"].saturated == share


def test_spread_is_measured_in_the_first_samples():
    model = nn.Sequential(nn.Linear(6, 5))
    reader, x = TorchReader(model), torch.randn(8, 6)
    spreads = [
        sampled(model, x, step=10 * i, reader=reader).activations["0"].spread
        for i in range(FIRST_SAMPLES + 1)
    ]
    out = model(x)
    assert spreads[0] == pytest.approx((out.amax(0) - out.amin(0)).max().item())
    assert [spread is None for spread in spreads] == [False] * FIRST_SAMPLES + [True]


def test_units_that_are_alike():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 1))
    nn.init.constant_(model[1].weight, 0.3)
    reading = sampled(model, torch.randn(8, 6))
    assert reading.alike == ("1.weight",)  # a single unit has no other to be like


# --- cut graphs ----------------------------------------------------------------------------


class Cut(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "detach":
            return self.head(self.body(x).detach())
        if self.how == "no_grad":
            with torch.no_grad():
                h = self.body(x)
            return self.head(h)
        if self.how == "unused":
            return self.head(x[:, :5])
        return self.head(self.body(x))


@pytest.mark.parametrize(
    ("how", "cut"),
    [("detach", ("body.weight", "body.bias")), ("no_grad", ()), ("unused", ()), ("", ())],
)
def test_parameters_that_a_cut_graph_leaves_out(how, cut):
    assert sampled(Cut(how), torch.randn(8, 6)).cut_off == cut


# --- BatchNorm -----------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 1.0, 1e-5, None])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_running_statistics_against_the_batch(momentum, mode):
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4, momentum=momentum))
    x = 5 * torch.randn(16, 1, 4, 4) + 3
    if mode == "eval":
        model[1].eval()
    sampled(model, x)
    mean, variance = model[1].running_mean.clone(), model[1].running_var.clone()
    x = 2 * torch.randn(16, 1, 4, 4)
    h = model[0](x)
    one = sampled(model, x).normalizations["1"]
    batch_variance, batch_mean = torch.var_mean(h, (0, 2, 3))
    expected = ((batch_mean - mean).abs() / (variance + 1e-5).sqrt()).median().item()
    assert one.shift == pytest.approx(expected, rel=1e-3)
    expected = ((batch_variance + 1e-5) / (variance + 1e-5)).median().item()
    assert one.ratio == pytest.approx(expected, rel=1e-3)
    assert one.count == 16 * 16
    assert one.momentum == (0.0 if mode == "eval" else 1e-3 if momentum is None else momentum)


def test_the_running_statistics_are_left_as_they_would_be():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    x = torch.randn(8, 6)
    sampled(model, x)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    plain(x)
    assert torch.equal(model[1].running_var, plain[1].running_var)


# --- loss functions ------------------------------------------------------------------------


def look(loss: Tensor) -> tuple[LossReading, ...]:
    reader = TorchReader(nn.Linear(1, 1))
    reader.look(0, loss)
    loss.backward()
    return reader.read(step=0, loss=loss).loss_terms


X = torch.randn(8, 5, requires_grad=True)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
SHARES = torch.rand(8, 5)


@pytest.mark.parametrize(
    ("loss", "kind", "activation"),
    [
        (lambda: F.cross_entropy(X, LABELS), "cross entropy", ""),
        (lambda: F.cross_entropy(X.softmax(-1), LABELS), "cross entropy", "softmax"),
        (lambda: 3 * F.cross_entropy(X.relu().view(8, 5), LABELS) / 7, "cross entropy", "relu"),
        (lambda: F.cross_entropy(X.softmax(-1), SHARES), "cross entropy", "softmax"),
        (
            lambda: F.cross_entropy(X.sigmoid(), LABELS, label_smoothing=0.1),
            "cross entropy",
            "sigmoid",
        ),
        (
            lambda: F.cross_entropy(
                X.softmax(1)[:, :, None].expand(8, 5, 2), LABELS[:, None].expand(8, 2)
            ),
            "cross entropy",
            "softmax",
        ),
        (lambda: F.nll_loss(X.log_softmax(-1), LABELS), "cross entropy", ""),
        (lambda: F.nll_loss(X.softmax(-1), LABELS), "negative log likelihood", "softmax"),
        (lambda: F.nll_loss(X, LABELS), "negative log likelihood", ""),
        (
            lambda: F.binary_cross_entropy_with_logits(X.sigmoid(), SHARES),
            "binary cross entropy with logits",
            "sigmoid",
        ),
        (lambda: F.binary_cross_entropy(X.sigmoid(), SHARES), "binary cross entropy", "sigmoid"),
        (lambda: F.mse_loss(X.tanh(), SHARES), "squared error", "tanh"),
        (lambda: F.mse_loss(SHARES, X.tanh()), "squared error", "tanh"),
        (lambda: F.huber_loss(X, SHARES), "Huber", ""),
    ],
)
def test_the_loss_function_and_what_is_before_it(loss, kind, activation):
    term = look(loss())[0]
    assert (term.kind, term.activation) == (kind, activation)


@pytest.mark.parametrize(
    "loss",
    [
        lambda: -torch.log(X.softmax(-1)).gather(1, LABELS[:, None]).mean(),
        lambda: (X - SHARES).square().mean(),
        X.sum,
    ],
)
def test_losses_by_hand_show_nothing(loss):
    assert look(loss()) == ()


def test_targets_as_the_loss_gets_them():
    labels = torch.tensor([3, 3, -100, 3, -100, 3, 3, 3])
    term = look(F.cross_entropy(X, labels))[0]
    assert (term.lower, term.upper, term.count, term.ignored) == (3.0, 3.0, 8, 0.25)
    assert term.peak is None
    target = torch.tensor([[2.0, 0.5, -0.5, 0.0, 1.0]])
    term = look(F.mse_loss(X[:1].sigmoid(), target))[0]
    assert (term.lower, term.upper) == (-0.5, 2.0)
    assert term.outside == pytest.approx(0.4)
    assert look(F.mse_loss(X[:1], target))[0].outside == 0.0
    assert look(F.binary_cross_entropy_with_logits(X[:1], target))[0].outside == pytest.approx(0.4)
    assert look(F.nll_loss(X, LABELS))[0].peak == pytest.approx(X.max().item())


def test_several_losses_of_a_step():
    loss = F.cross_entropy(X, LABELS) + F.mse_loss(X, SHARES) + 0.1 * F.cross_entropy(X, LABELS)
    assert sorted(term.kind for term in look(loss)) == [
        "cross entropy",
        "cross entropy",
        "squared error",
    ]


def test_a_large_graph_is_not_walked_to_its_end():
    h = X
    for _ in range(1000):
        h = h * 1.001
    assert look(h.sum()) == ()


def test_only_the_first_loss_of_a_sampled_step_counts():
    reader = TorchReader(nn.Linear(1, 1), sample_every=10)
    reader.look(0, F.cross_entropy(X, LABELS))
    reader.look(0, F.mse_loss(X, SHARES))
    assert [term.kind for term in reader.read(step=0, loss=1.0).loss_terms] == ["cross entropy"]
    reader.look(1, F.cross_entropy(X, LABELS))
    assert reader.read(step=1, loss=1.0).loss_terms == ()
    reader.look(10, "no loss")
    reader.look(20, torch.tensor(1.0))
    assert reader.read(step=20, loss=1.0).loss_terms == ()


# --- through the guard -----------------------------------------------------------------------


def test_a_plain_loop_shows_its_loss_and_validation():
    model = nn.Sequential(nn.Linear(6, 5), nn.Softmax(-1))
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.1), strict=True)
    for i in range(3):
        if i == 2:
            guard.validated(torch.tensor(0.5))
        with guard.step() as step:
            step.backward(lambda: F.cross_entropy(model(torch.randn(8, 6)), LABELS))
    assert "RN303" in {finding.code for finding in guard.history.findings}
    assert not guard.history.incidents
    assert [reading.validation_loss for reading in guard.history.readings] == [None, None, 0.5]
    with pytest.raises(ValueError, match="loss must be a number"):
        guard.validated("good")
