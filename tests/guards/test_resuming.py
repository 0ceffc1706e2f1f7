"""The loop of docs/resuming.md, word for word: broken off anywhere, it ends with the same bits."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ranum import Guard

PAGE = Path(__file__).parents[2] / "docs" / "resuming.md"
CODE = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]


class BrokenOff(Exception):
    """Stands for SIGKILL, which `benchmarks.faults.killed` sends."""


def train(path, at=-1):
    """Runs the page's code; in the step of that number the loop is broken off."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.8)
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(80, 4, generator=generator), torch.arange(80) % 3)
    loader = DataLoader(data, batch_size=4, shuffle=True)
    calls = [0]

    def loss_fn(out, y):
        calls[0] += 1
        if calls[0] - 1 == at:
            raise BrokenOff
        return nn.functional.cross_entropy(out, y)

    code = CODE.replace("done % 100", "done % 4")
    names = {
        "Guard": Guard, "torch": torch, "os": os, "model": model, "optimizer": optimizer,
        "scheduler": scheduler, "loader": loader, "loss_fn": loss_fn, "path": path,
    }  # fmt: skip
    exec(compile(textwrap.dedent(code), str(PAGE), "exec"), names)
    state = [*model.state_dict().values(), torch.get_rng_state()]
    state += [value for entries in optimizer.state.values() for value in entries.values()]
    return state, [group["lr"] for group in optimizer.param_groups], names["guard"]


@pytest.mark.parametrize("at", [2, 4, 13, 19])
def test_a_loop_that_was_broken_off_ends_with_the_same_bits(tmp_path, at):
    expected, rates, _ = train(tmp_path / "without.pt")
    with pytest.raises(BrokenOff):
        train(tmp_path / "last.pt", at)
    found, again, guard = train(tmp_path / "last.pt")
    assert all(map(torch.equal, found, expected))
    assert again == rates
    assert guard.current_step == 20
