"""What a guarded step reads from the device: one tensor, once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from ranum import Guard

READS = ("tolist", "item", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy")
"""Ways in which Python waits for a device."""


@pytest.fixture
def reads(monkeypatch) -> Counter:
    counted: Counter = Counter()

    def watched(name):
        usual = getattr(torch.Tensor, name)

        def read(self, *args, **kwargs):
            counted[name] += 1
            return usual(self, *args, **kwargs)

        return read

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, watched(name))
    return counted


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_reads_once(optimizer, fused, reads):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    run = Guard(
        model,
        optimizer(model.parameters(), lr=0.01, fused=fused),
        sample_every=7,
        snapshot_every=5,
        strict=True,
    )
    per_step = []
    for _ in range(15):
        x = torch.randn(6, 4)
        with run.step(x) as step:
            step.backward(lambda x=x: nn.functional.cross_entropy(model(x), torch.arange(6) % 3))
            reads.clear()  # what the loop itself reads is its own affair
        reads.pop("__index__", None)
        per_step.append(Counter(reads))
    looked_at = {0, 5, 10}  # a snapshot is looked at, before it counts
    for number, counted in enumerate(per_step):
        if number not in looked_at:
            assert counted["tolist"] == 1, (number, counted)
            # Adam without `fused` reads its own counters of steps; on a CPU that is no wait.
            assert sum(counted.values()) - counted["item"] == 1, (number, counted)
    assert run.history.incidents == []
