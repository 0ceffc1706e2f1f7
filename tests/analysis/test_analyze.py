from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranum.analysis import analyze
from ranum.analysis.transfer import registry
from ranum.errors import ArgumentError, CaptureError

X = torch.rand(4, 3)


def test_inputs_get_the_range_of_the_batch_and_a_margin():
    def step(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum()

    one_hot = torch.tensor([[0.0, 1.0]])
    analysis = analyze(step, torch.tensor([[0.0, 2.0]]), one_hot)
    assert (analysis.ranges["x"].low, analysis.ranges["x"].high) == pytest.approx((0.0, 2.0))
    assert (analysis.ranges["y"].low, analysis.ranges["y"].high) == (0.0, 1.0)
    analysis = analyze(step, torch.tensor([[0.0, 0.5]]), one_hot)
    assert (analysis.ranges["x"].low, analysis.ranges["x"].high) == pytest.approx((-0.05, 0.55))


def test_ranges_by_name_and_by_pattern():
    def step(batch: dict) -> Tensor:
        return batch["image"].sum()

    analysis = analyze(step, {"image": X}, inputs={"batch[[]'image'*": (-3, 4)})
    assert (analysis.ranges["batch['image']"].low, analysis.bounds["loss"].high > 47) == (-3, True)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"inputs": {"z": (0, 1)}}, r"inputs\['z'\] matches no name; known names: x"),
        ({"inputs": {"x": (1, 0)}}, r"inputs\['x'\] must have lower <= upper"),
        ({"inputs": {"x": (0, float("nan"))}}, "without NaN"),
        ({"inputs": {"x": 3}}, r"must be a pair \(lower, upper\); got 3"),
        ({"weights": "all"}, "weights must be 'initial', 'envelope'"),
        ({"weights": -1.0}, "weights must be a positive finite number; got -1.0"),
        ({"loss": 3}, "loss must be callable"),
    ],
)
def test_bad_arguments_are_named(keywords, message):
    model = nn.Linear(3, 1)

    def step(x: Tensor) -> Tensor:
        return model(x).sum()

    with pytest.raises(ArgumentError, match=message):
        analyze(step, X, **keywords)


def test_a_target_of_the_wrong_kind():
    with pytest.raises(
        ArgumentError,
        match="target must be a module, a compiled Keras model, a function that returns a loss",
    ):
        analyze(3, X)


def test_a_step_that_raises_is_named_with_its_place():
    def step(x: Tensor) -> Tensor:
        return x @ torch.zeros(7, 7)

    with pytest.raises(CaptureError, match=r"RuntimeError at .*test_analyze.py:\d+ `x @ torch"):
        analyze(step, X)


def test_a_model_without_parameters_and_one_without_a_loss():
    assert analyze(nn.Softmax(-1), X).defects == ()
    assert analyze(lambda x: None, X).bounds == {}


def test_a_loss_that_is_a_dict_or_an_object():
    model = nn.Linear(3, 3)
    assert "loss" in analyze(lambda x: {"loss": model(x).mean(), "n": 3}, X).bounds


def test_an_unknown_operator_is_reported_and_unbounded(monkeypatch):
    monkeypatch.delitem(registry._RULES, "tanh")
    analysis = analyze(lambda x: torch.tanh(x).sum(), X)
    assert not analysis.is_complete
    assert [unknown.op for unknown in analysis.unknowns] == ["tanh"]
    assert "incomplete" in str(analysis)
    assert analysis.defects == ()


def test_a_transfer_function_that_fails_costs_precision_only(monkeypatch):
    rule = registry._RULES["tanh"]

    def broken(x):
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(
        registry._RULES, "tanh", registry.Rule("tanh", broken, rule.domain, rule.phase)
    )
    analysis = analyze(lambda x: torch.tanh(x).sum(), X)
    assert not analysis.is_complete
    assert any("transfer function of tanh failed" in note for note in analysis.notes)


def test_integers_and_random_numbers():
    table = nn.Embedding(10, 4)

    def step(ids: Tensor) -> Tensor:
        noise = torch.randn(3, 4)
        return F.cross_entropy(table(ids) + noise, torch.tensor([0, 1, 2]))

    analysis = analyze(step, torch.tensor([1, 5, 9]))
    assert analysis.is_complete, analysis
    assert analysis.defects == ()


def test_results_are_plain_data():
    model = nn.Linear(3, 2)
    step = lambda x: torch.log(torch.softmax(model(x), -1)).mean()  # noqa: E731
    analysis = analyze(step, X, weights=100.0, confirm=True)
    text = json.dumps(analysis.to_dict())
    assert "RN101" in text


def test_save_chooses_the_form_by_suffix(tmp_path):
    analysis = analyze(lambda x: torch.log(x).mean(), X, inputs={"x": (0.0, 1.0)})
    assert (
        json.loads(analysis.save(tmp_path / "a.json").read_text())["defects"][0]["code"] == "RN101"
    )
    assert "RN101" in analysis.save(tmp_path / "a.html").read_text()
    with pytest.raises(ArgumentError, match=r"path must end in .html or .json; got .*a.txt"):
        analysis.save(tmp_path / "a.txt")


def test_a_lightning_module_is_analysed_without_a_trainer():
    pl = pytest.importorskip("pytorch_lightning")

    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = -(y * torch.log(torch.softmax(self.layer(x), -1))).sum(-1).mean()
            self.log("loss", loss, prog_bar=True)
            return {"loss": loss}

    analysis = analyze(Lit(), (X, torch.eye(2)[[0, 1, 0, 1]]), weights=100.0)
    assert [defect.code for defect in analysis.defects] == ["RN101"]
    assert {"batch[0]", "batch[1]"} <= set(analysis.ranges)


def test_manual_optimization_moves_no_weight():
    pl = pytest.importorskip("pytorch_lightning")

    class Manual(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.layer = nn.Linear(3, 1)

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            loss = torch.sqrt((self.layer(batch) ** 2).sum())
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    module = Manual()
    before = module.layer.weight.clone()
    analysis = analyze(module, X)
    assert torch.equal(before, module.layer.weight)
    assert [defect.code for defect in analysis.defects] == ["RN106"]


def test_two_optimizers():
    pl = pytest.importorskip("pytorch_lightning")

    class Gan(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.make, self.judge = nn.Linear(3, 3), nn.Linear(3, 1)

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            self.manual_backward(-torch.log(torch.sigmoid(self.judge(self.make(batch)))).mean())
            first.step()
            second.zero_grad()

        def configure_optimizers(self):
            parts = (self.make, self.judge)
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts], []

    analysis = analyze(Gan(), X, weights=100.0)
    assert [defect.code for defect in analysis.defects] == ["RN101"]


def test_analysis_leaves_no_trace_in_what_modules_hold():
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)
            self.average = [torch.zeros(3)]
            self.generator = torch.Generator().manual_seed(1)

        def forward(self, x):
            self.average[0].add_(x.mean(0).detach())
            noise = torch.randn(3, generator=self.generator)
            with torch.no_grad():
                self.layer.weight.clamp_(-0.01, 0.01)
            return self.layer(x + noise).mean()

    model = Holder()
    weight, state = model.layer.weight.clone(), model.generator.get_state()
    analyze(model, X)
    assert torch.equal(model.layer.weight, weight)
    assert torch.equal(model.average[0], torch.zeros(3))
    assert torch.equal(model.generator.get_state(), state)


def test_analysis_imports_no_optional_package():
    code = (
        "import sys, ranum, torch; ranum.analyze(lambda x: x.log().sum(), torch.rand(3));"
        "bad = {'pytorch_lightning', 'lightning', 'optuna', 'tensorboard', 'jinja2', 'rich'};"
        "sys.exit(sorted(bad & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
