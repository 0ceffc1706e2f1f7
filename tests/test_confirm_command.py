"""`ranum confirm`: what it prints, what it writes, and its exit code."""

import runpy
import sys

import pytest

from ranum import cli

USER = """
import torch
from torch import nn


class Logistic(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x, y):
        h = torch.sigmoid(self.linear(x))
        return -(y * torch.log(h) + (1 - y) * torch.log(1 - h)).mean()


class Healthy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x):
        return self.linear(x).square().mean()


def with_inputs():
    torch.manual_seed(0)
    return Logistic(), torch.rand(8, 4), torch.tensor([[0.0], [1.0]] * 4)
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    name = f"user_{tmp_path.name.replace('-', '_')}"
    path = tmp_path / f"{name}.py"
    path.write_text(USER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield path
    sys.modules.pop(name, None)


def test_a_training_run_is_found_and_written(user, tmp_path, capsys):
    out = tmp_path / "proofs"
    options = "--training --optimizer SGD,lr=0.5 --range x=0:40 --weights anything --seconds 20"
    code = cli.main(["confirm", f"{user}:with_inputs", *options.split(), "--save", str(out)])
    printed = capsys.readouterr().out
    assert code == cli.FOUND
    assert "certain in training" in printed
    assert "your next run" in printed
    scripts = list(out.glob("train_*.py"))
    assert scripts
    for script in scripts:
        assert f"wrote {script}" in printed
        assert runpy.run_path(str(script))["main"]() == 1


def test_without_training_weights_are_enough(user, capsys):
    code = cli.main(["confirm", f"{user}:with_inputs", "--weights", "anything", "--seconds", "5"])
    assert code == cli.FOUND
    assert "certain" in capsys.readouterr().out


def test_nothing_to_confirm(user, capsys):
    assert cli.main(["confirm", f"{user}:Healthy", "--input", "8,4"]) == cli.OK
    assert "nothing to confirm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "SGD,lr=0.1"], "give both"),
        (["--training"], "optimizer must be given"),
        (["--training", "--optimizer", "Sgd,lr=0.1"], "torch.optim"),
        (["--training", "--optimizer", "SGD,speed=0.1"], "speed"),
    ],
)
def test_what_cannot_be_done_is_said(user, capsys, options, message):
    assert cli.main(["confirm", f"{user}:with_inputs", "--weights", "anything", *options]) == 2
    assert message in capsys.readouterr().err


def test_settings_that_cannot_be_read(user, capsys):
    with pytest.raises(SystemExit):
        cli.main(["confirm", f"{user}:with_inputs", "--training", "--optimizer", "SGD,fast"])
    assert "SGD,lr=0.1" in capsys.readouterr().err
