"""A faulty step as a file: read back without running code, run again to the same operator."""

from __future__ import annotations

import pickle
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from ranum import Guard
from ranum.cli import main
from ranum.errors import ArgumentError, RanumWarning
from ranum.guards import load_incident
from ranum.guards.incident_file import save_incident
from ranum.guards.types import Finding

SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        return self.out(self.drop(self.norm(x)))


def loss(model, batch):
    return torch.log(model(batch["x"]).sum() - batch["shift"]).mean()


def both():
    torch.manual_seed(9)  # other weights than those of the run
    return Net(), loss


def alone():
    return nn.Linear(2, 2)
"""


@pytest.fixture
def program(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(SOURCE)
    return file


def fail(program, folder):
    """A run that fails in step 3, and its guard."""
    scope = {"__name__": "program"}
    exec(compile(program.read_text(), str(program), "exec"), scope)
    torch.manual_seed(0)
    model = scope["Net"]()
    guard = Guard(
        model,
        torch.optim.SGD(model.parameters(), lr=1e-3),
        incident_dir=folder,
        remedies=["skip", "stop"],
        strict=True,
    )
    for number in range(6):
        shift = torch.tensor(1e3 if number == 3 else -1e3)
        batch = {"x": torch.randn(8, 4), "shift": shift}
        weights = [p.detach().clone() for p in model.parameters()]
        try:
            with guard.step(batch) as step:
                step.backward(lambda batch=batch: scope["loss"](model, batch))
        except Exception:
            break
    return guard, weights, batch


def test_a_faulty_step_is_saved_and_fails_again(program, tmp_path, capsys):
    guard, weights, batch = fail(program, tmp_path / "incidents")
    (incident,) = guard.history.incidents
    path = tmp_path / "incidents" / "step-3.pt"
    assert incident.file == str(path)
    data = torch.load(path, weights_only=True)
    assert all(map(torch.equal, data["parameters"].values(), weights))
    assert torch.equal(data["batches"][0]["x"], batch["x"])

    assert main(["replay", str(path)]) == 0
    text = capsys.readouterr().out
    assert "step 3, epoch 0: The loss is" in text
    assert "NaN from log at" in text
    assert "batch['shift'] in [1000, 1000]" in text

    assert main(["replay", str(path), f"{program}:both"]) == 1
    again = capsys.readouterr().out.splitlines()[-1]
    assert again.startswith("run again: NaN from log at ")
    assert str(incident.culprit.operands[0]) in again  # the same numbers: weights, dropout, batch


def test_a_mended_program_is_finite(program, tmp_path, capsys):
    guard, _, _ = fail(program, tmp_path / "incidents")
    program.write_text(SOURCE.replace("torch.log(", "torch.log(1e4 + "))
    assert main(["replay", guard.history.incidents[0].file, f"{program}:both"]) == 0
    assert "run again: finite" in capsys.readouterr().out


def test_the_model_is_put_back(program, tmp_path):
    guard, _, _ = fail(program, tmp_path / "incidents")
    saved = load_incident(guard.history.incidents[0].file)
    scope = {}
    exec(SOURCE, scope)
    torch.manual_seed(5)
    model = scope["Net"]()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    numbers = torch.get_rng_state()
    assert saved.replay(model, lambda batch: scope["loss"](model, batch)).op == "log"
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(numbers, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_another_model_is_refused(program, tmp_path, capsys):
    guard, _, _ = fail(program, tmp_path / "incidents")
    path = guard.history.incidents[0].file
    assert main(["replay", path, f"{program}:alone"]) == 2
    assert "program.Net: its weight 'norm.weight' has the shape (4,); got none" in (
        capsys.readouterr().err
    )


Pair = namedtuple("Pair", ["a", "b"])


@dataclass
class Record:
    x: torch.Tensor
    note: str


class Odd:
    """Nothing that a file of plain data can hold."""


def save(path, batches):
    finding = Finding(code="RN201", symptom="NonFinite", step=1, severity="fault", message="x")
    model = nn.Linear(2, 2)
    return save_incident(
        path, model=model, batches=batches, finding=finding, culprit=None, step=1, epoch=0
    )


def test_batches_of_all_kinds(tmp_path):
    x = torch.ones(2)
    batch = [Pair(x, 1), Record(x, "r"), (np.arange(3), None), {"odd": Odd(), 3: 1.5}]
    saved = load_incident(save(tmp_path / "a" / "b.pt", [batch]))
    (held,) = saved.batches
    assert torch.equal(held[0]["a"], x)
    assert held[1]["note"] == "r"
    assert torch.equal(held[2][0], torch.arange(3))
    assert held[3] == {"odd": None, 3: 1.5}
    assert saved.left_out == ["batch[0][3]['odd'], a Odd"]


def test_what_is_no_incident_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="there is none at"):
        load_incident(tmp_path / "none.pt")
    bad = tmp_path / "bad.pt"
    bad.write_bytes(pickle.dumps(Odd()))
    with pytest.raises(ArgumentError, match=r"bad\.pt' cannot be read"):
        load_incident(bad)
    torch.save({"format": "ranum incident", "version": 2}, bad)
    with pytest.raises(ArgumentError, match="is of 2"):
        load_incident(bad)


def test_a_full_disk_ends_nothing(program, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ranum.guards.incident_file.torch.save", full)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, incident_dir=tmp_path / "incidents", remedies=["skip"])

    def train():
        for value in (1.0, torch.nan, 1.0):
            x = torch.full((4, 2), value)
            with guard.step(x) as step:
                step.backward(lambda x=x: model(x).mean())

    with pytest.warns(RanumWarning, match="incident files failed: OSError"):
        train()
    assert [incident.action for incident in guard.history.incidents] == ["skip"]
    assert list((tmp_path / "incidents").iterdir()) == []


def test_only_so_many_are_written(tmp_path):
    model = nn.Linear(2, 1)
    guard = Guard(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        incident_dir=tmp_path,
        remedies=["skip"],
        strict=True,
    )
    for number in range(30):
        x = torch.full((4, 2), torch.nan if number % 2 else 1.0)
        with guard.step(x) as step:
            step.backward(lambda x=x: model(x).mean())
    assert len(guard.history.incidents) == 15
    assert len(list(tmp_path.iterdir())) == 8
