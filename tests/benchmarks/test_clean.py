"""The clean control set: quiet where it should be, and able to say when something is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.clean.case import Case, Workload
from benchmarks.clean.judge import judge
from benchmarks.clean.table import CASES

TINY = [name for name, case in CASES.items() if not case.real]
QUICK = ("CNN with BatchNorm", "LSTM", "U-Net")
NEEDS_NOTHING = ("nn.Transformer", "GRU", "Elman net", "MLP", "autoencoder", "GAN")


def broken() -> Workload:
    """The logarithm of a softmax, and weights large enough for it to underflow."""

    def loss(model, batch):
        return -torch.log(torch.softmax(model(batch["x"]), -1))[:, 0].mean()

    layer = nn.Linear(4, 3)
    nn.init.uniform_(layer.weight, -20, 20)
    return Workload(layer, {"x": torch.rand(5, 4)}, loss)


@pytest.mark.parametrize("name", QUICK)
def test_a_healthy_architecture_is_quiet(name):
    row = judge(CASES[name])
    assert row.is_clean, row
    assert not any(found.alarms or found.unknown for found in row.findings.values())


def test_a_stock_architecture_is_quiet():
    pytest.importorskip("transformers")
    row = judge(CASES["Llama"], dtypes=("float32",))
    assert row.is_clean, row
    assert not any(found.alarms or found.unknown for found in row.findings.values())


def test_an_alarm_without_a_witness_is_not_clean():
    row = judge(Case("broken", broken), dtypes=("float32",), seconds=0)
    assert not row.is_clean
    assert [alarm.key[0] for alarm in row.findings["float32", "envelope"].alarms] == ["RN101"]


def test_a_witness_explains_an_alarm_at_every_level():
    row = judge(Case("broken", broken), dtypes=("float32",), seconds=20)
    (alarm,) = row.findings["float32", "envelope"].alarms
    assert alarm.witness
    assert row.is_clean


@pytest.mark.slow  # four minutes in all
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for name in TINY if name not in QUICK])
def test_every_tiny_architecture_is_explained(name):
    if name not in NEEDS_NOTHING:
        pytest.importorskip("transformers")
    row = judge(CASES[name])
    assert row.is_clean, row
