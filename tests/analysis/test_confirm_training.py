"""Training data that drive ordinary training into a defect."""

import importlib
import runpy
import subprocess
import sys

import pytest
import torch
from torch import nn

import ranum
from ranum.analysis.confirm.training.data import slots
from ranum.analysis.confirm.training.rows import view
from ranum.errors import ArgumentError

USER = '''
import torch
from torch import nn


class Logistic(nn.Module):
    """A unit that is trained to say yes."""

    def __init__(self, features=4):
        super().__init__()
        self.features = features
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x, y):
        h = torch.sigmoid(self.linear(x))
        return -(y * torch.log(h) + (1 - y) * torch.log(1 - h)).mean()
'''


class Logistic(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x, y):
        h = torch.sigmoid(self.linear(x))
        return -(y * torch.log(h) + (1 - y) * torch.log(1 - h)).mean()


def example():
    torch.manual_seed(0)
    return 10 * torch.rand(8, 4), torch.tensor([[0.0], [1.0]] * 4)


def defects(model, *inputs, **ranges):
    analysis = ranum.analyze(model, *inputs, inputs=ranges or {"x": (0, 10)}, weights="anything")
    assert analysis.defects
    return analysis.defects


def defect_of(model, text="1 - h"):
    return next(d for d in defects(model, *example()) if text in (d.source.expression or ""))


def trained(model, run, optimizer):
    """Losses of an ordinary loop over the data that were found."""
    x, y = example()
    losses = []
    for number in run.order:
        batch = run.batches[number]
        loss = model(batch.get("x", x), batch.get("y", y))
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {"lr": 1.0}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.Adam, {"lr": 0.5}),
        (torch.optim.RMSprop, {"lr": 0.5}),
    ],
)
def test_an_ordinary_loop_on_the_data_fails_at_the_last_step(kind, settings):
    model = Logistic()
    run = ranum.confirm_training(defect_of(model), kind(model.parameters(), **settings), seconds=20)

    assert run is not None
    assert kind.__name__ in run.optimizer
    losses = trained(model, run, kind(model.parameters(), **settings))
    assert all(torch.tensor(losses[:-1]).isfinite())
    assert not torch.tensor(losses[-1]).isfinite()


def test_the_data_lie_in_their_ranges_and_labels_stay_labels():
    model = Logistic()
    run = ranum.confirm_training(defect_of(model), lambda p: torch.optim.SGD(p, lr=1.0), seconds=20)

    for batch in run.batches:
        assert set(batch) <= {"x", "y"}
        if "x" in batch:
            assert batch["x"].shape == (8, 4)
            assert 0 <= batch["x"].min() <= batch["x"].max() <= 10
        if "y" in batch:
            assert ((batch["y"] == 0) | (batch["y"] == 1)).all()


def test_a_run_is_no_longer_than_it_may_be():
    model = Logistic()
    make = lambda p: torch.optim.SGD(p, lr=1e-3)  # noqa: E731
    few = ranum.confirm_training(defect_of(model), make, steps=1, seconds=1.0)
    assert few is None
    many = ranum.confirm_training(
        defect_of(model), lambda p: torch.optim.SGD(p, lr=1.0), steps=1, seconds=20
    )
    assert many.steps == 1


def test_one_hot_rows_stay_one_hot():
    class Softmax(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 3))

        def forward(self, x, y):
            return -(y * torch.log(torch.softmax(x @ self.weight, 1))).sum(1).mean()

    y = nn.functional.one_hot(torch.arange(6) % 3, 3).float()
    (defect,) = defects(Softmax(), torch.rand(6, 4), y, x=(0, 9), y=(0, 1))
    run = ranum.confirm_training(defect, lambda p: torch.optim.SGD(p, lr=1.0), seconds=20)

    assert run is not None
    for batch in run.batches:
        if "y" in batch:
            assert (batch["y"].sum(1) == 1).all()
            assert (batch["y"].max(1).values == 1).all()


def test_the_users_things_are_left_as_they_are():
    model = Logistic()
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    x, y = example()
    model(x, y).backward()
    optimizer.step()
    defect = defect_of(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = {
        key: [value.clone() for value in optimizer.state[p].values()]
        for key, p in model.named_parameters()
    }
    gradients = [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()

    assert ranum.confirm_training(defect, optimizer, seconds=20) is not None
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    for key, p in model.named_parameters():
        for before, after in zip(state[key], optimizer.state[p].values(), strict=True):
            assert torch.equal(before, after)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


def test_the_same_seed_finds_the_same_run():
    runs = [
        ranum.confirm_training(
            defect_of(Logistic()), lambda p: torch.optim.SGD(p, lr=1.0), seconds=20, seed=3
        )
        for _ in range(2)
    ]
    assert runs[0].order == runs[1].order
    for first, second in zip(runs[0].batches, runs[1].batches, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


class Frozen(nn.Module):
    """The operand depends on a weight whose gradient is 0 for all data."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return (x @ self.weight).square().mean() + 0 * torch.log(self.scale).detach()


def test_where_training_cannot_get_the_defect_stays_as_it_was():
    analysis = ranum.analyze(Frozen(), torch.rand(8, 4), inputs={"x": (0, 1)})
    (defect,) = analysis.defects
    optimizer = torch.optim.SGD(Frozen().parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match="holds none of them"):
        ranum.confirm_training(defect, optimizer)
    make = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    assert ranum.confirm_training(defect, make, seconds=1.0) is None

    (found,) = ranum.confirm_all(analysis, seconds=2, training=1.0, optimizer=make).defects
    assert found.proof == "certain for some weights"
    assert found.effort.steps > 0
    assert "matched" in str(found.effort)


class Wavy(nn.Module):
    """Its operand is at least 0.5, which intervals cannot know."""

    def forward(self, x, kind):
        return (torch.log(2.0 + 3 * torch.sin(x) * torch.cos(x)) * kind).sum()


class Scores(nn.Module):
    """A logarithm whose operand is that of a row, or of all rows together."""

    def __init__(self, *, together):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.together = together

    def forward(self, x):
        z = x @ self.weight
        return torch.log(9.0 - (z.sum() if self.together else z)).mean()


@pytest.mark.parametrize(("together", "repeats"), [(False, 8), (True, 1)])
def test_one_row_is_asked_only_where_it_tells_as_much_as_the_batch(together, repeats):
    (defect,) = defects(Scores(together=together), torch.rand(8, 4), x=(0, 2))
    context = defect.context
    seen = view(context, slots(context), (defect.operand,), ())
    assert seen.repeats == repeats
    point = {one.name: one.recorded for one in seen.slots}
    assert {x.shape for x in seen.whole(point).values()} == {(8, 4)}


def test_effort_of_a_search_without_result_is_told():
    analysis = ranum.analyze(Wavy(), torch.rand(8), torch.arange(8) % 3, inputs={"x": (0, 9)})
    (found,) = ranum.confirm_all(analysis, seconds=0.5).defects
    assert found.proof == "possible, not shown"
    assert found.effort.runs > 0
    assert found.effort.tried[0] == "the recorded step"
    assert "random points" in found.effort.tried[-1]
    assert any("kind" in limit for limit in found.effort.limits)
    assert "not shown" in found.prospect


def test_inputs_alone_are_a_run_without_a_step():
    class Logarithm(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return (self.scale * torch.log(x)).sum()

    (defect,) = defects(Logarithm(), torch.rand(3) + 0.5, x=(0, 2))
    run = ranum.confirm_training(defect, lambda p: torch.optim.SGD(p, lr=0.1))
    assert run.steps == 0
    assert run.order == (0,)
    assert run.outcome == "-Inf"


def test_a_gradient_that_fails_while_the_loss_stays_finite():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return torch.sqrt((self.scale * x).square().sum())

    found = defects(Norm(), torch.rand(3) + 0.5, x=(-1, 1))
    defect = next(each for each in found if each.gradient_only)
    run = ranum.confirm_training(defect, lambda p: torch.optim.SGD(p, lr=0.1), seconds=20)
    assert run.outcome == "gradient not finite"
    assert run.loss == 0


def test_a_model_that_drops_at_random_fails_from_the_seed():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))

        def forward(self, x, y):
            p = torch.softmax(self.net(x), 1)
            return -torch.log(p).gather(1, y[:, None]).mean()

    x, y = 10 * torch.rand(8, 4), torch.arange(8) % 3
    model = Dropped()
    defect = next(
        each
        for each in ranum.analyze(model, x, y, inputs={"x": (0, 10)}, weights="anything").defects
        if each.op == "log"
    )
    run = ranum.confirm_training(defect, lambda p: torch.optim.SGD(p, lr=0.1), seconds=30, seed=5)
    assert run is not None
    for batch in run.batches:
        assert "y" not in batch or (0 <= batch["y"].min() <= batch["y"].max() <= 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(run.seed)
    finite = []
    for number in run.order:
        batch = run.batches[number]
        optimizer.zero_grad()
        model(batch.get("x", x), batch.get("y", y)).backward()
        finite.append(all(bool(p.grad.isfinite().all()) for p in model.parameters()))
        optimizer.step()
    assert finite == [True] * run.steps + [False]


def test_parameters_that_are_data_may_begin_anywhere():
    class Image(nn.Module):
        def __init__(self):
            super().__init__()
            self.image = nn.Parameter(torch.ones(3))

        def forward(self):
            return torch.log(self.image).sum()

    (defect,) = ranum.analyze(Image(), weights="anything").defects
    make = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731
    run = ranum.confirm_training(defect, make, free=["image"])
    assert run.steps == 0
    assert bool((run.start["image"] <= 0).any())
    with pytest.raises(ArgumentError, match="picture"):
        ranum.confirm_training(defect, make, free=["picture"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": 3}, "optimizer must be"),
        ({"optimizer": lambda p: None}, "must return a torch optimizer"),
        ({}, "optimizer must be given"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=1.0), "seconds": 0}, "seconds"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=1.0), "steps": -1}, "steps"),
    ],
)
def test_arguments_that_break_their_rule(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        ranum.confirm_training(defect_of(Logistic()), **arguments)


@pytest.fixture
def user(tmp_path, monkeypatch):
    (tmp_path / "user_net.py").write_text(USER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("user_net")
    sys.modules.pop("user_net", None)


def test_the_script_fails_and_passes_once_the_program_is_cured(user, tmp_path, monkeypatch, capsys):
    model = user.Logistic()
    run = ranum.confirm_training(
        defect_of(model), torch.optim.SGD(model.parameters(), lr=1.0), seconds=20
    )
    path = run.save_script(tmp_path / "train_into_nan.py")
    text = path.read_text(encoding="utf-8")
    assert "torch.optim.SGD" in text
    assert "ranum" not in text.replace("Found by Ranum", "")
    failing = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, check=False
    )
    assert failing.returncode == 1
    assert f"FAILED after {run.steps} steps" in failing.stdout

    def cured(self, x, y):
        z = self.linear(x)
        return -(y * nn.functional.logsigmoid(z) + (1 - y) * nn.functional.logsigmoid(-z)).mean()

    monkeypatch.setattr(user.Logistic, "forward", cured)
    assert runpy.run_path(str(path))["main"]() == 0
    assert "finite in all" in capsys.readouterr().out


def test_a_script_that_would_not_fail_is_not_written(user, tmp_path, monkeypatch):
    model = user.Logistic()
    run = ranum.confirm_training(
        defect_of(model), torch.optim.SGD(model.parameters(), lr=1.0), seconds=20
    )

    def safe(self, x, y):
        return (self.linear(x) - y).square().mean() * 1e-6

    monkeypatch.setattr(user.Logistic, "forward", safe)
    with pytest.raises(ArgumentError, match="finite in all"):
        run.save_script(tmp_path / "train.py")
    assert not (tmp_path / "train.py").exists()
    assert not (tmp_path / "train.pt").exists()


def test_the_data_are_saved_for_a_careful_load(tmp_path):
    run = ranum.confirm_training(
        defect_of(Logistic()), lambda p: torch.optim.SGD(p, lr=1.0), seconds=20
    )
    held = torch.load(run.save(tmp_path / "data.pt"), weights_only=True)
    assert held["order"] == list(run.order)
    assert all(set(batch) == {"x", "y"} for batch in held["batches"])
    assert "SGD" in held["optimizer"]
    with pytest.raises(ArgumentError, match=r"\.pt"):
        run.save(tmp_path / "data.bin")


def test_plain_data_and_words():
    analysis = ranum.analyze(Logistic(), *example(), inputs={"x": (0, 10)}, weights="anything")
    make = lambda p: torch.optim.SGD(p, lr=1.0)  # noqa: E731
    proved = ranum.confirm_all(analysis, seconds=5, optimizer=make, training=20.0)
    found = next(d for d in proved.defects if "1 - h" in (d.source.expression or ""))
    assert found.proof == "certain in training"
    assert found.severity == "certain"
    assert f"in {found.training.steps} step" in found.prospect
    plain = found.to_dict()
    assert plain["proof"] == found.proof
    assert plain["training"]["steps"] == found.training.steps
    assert plain["effort"]["steps"] > 0
    assert "certain in training" in str(found)
