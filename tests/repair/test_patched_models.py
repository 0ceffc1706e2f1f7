"""Patched models are compiled once more, pickled, copied, saved, and trained by two processes."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

import ranum

MODEL = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        p = torch.softmax(self.layer(x), -1)
        return -torch.log(p).mean()
"""
X = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
NAME = "patched_model_of_the_tests"


def imported(path: str) -> nn.Module:
    spec = importlib.util.spec_from_file_location(NAME, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    return module.Net()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    yield imported(str(path))
    sys.modules.pop(NAME, None)


def cures_of(model: nn.Module, *, rewrite: bool):
    cures = ranum.fix(ranum.analyze(model, X, weights="anything"), rewrite=rewrite)
    assert ("log_softmax" in cures.diff()) is rewrite
    return cures


def far(model: nn.Module) -> nn.Module:
    """The same with a bias that makes the softmax underflow."""
    with torch.no_grad():
        model.layer.bias.copy_(torch.tensor([500.0, 0.0, 0.0]))
    return model


@pytest.mark.parametrize("rewrite", [True, False])
def test_a_compiled_model_is_compiled_once_more(model, rewrite):
    compiled = 0

    def backend(graph, inputs):
        nonlocal compiled
        compiled += 1
        return graph.forward

    cures = cures_of(model, rewrite=rewrite)
    far(model)
    run = torch.compile(model, backend=backend)
    assert not run(X).isfinite()
    assert compiled == 1
    with cures.apply():
        assert [bool(run(X).isfinite()) for _ in range(3)] == [True] * 3
        assert compiled == 2
    assert [bool(run(X).isfinite()) for _ in range(3)] == [False] * 3
    assert compiled == 3


@pytest.mark.parametrize("rewrite", [True, False])
def test_a_patched_model_is_pickled_copied_and_saved_as_ever(model, rewrite):
    cures = cures_of(far(model), rewrite=rewrite)
    before = pickle.dumps(model)
    keys = list(model.state_dict())
    with cures.apply():
        assert pickle.dumps(model) == before
        assert list(model.state_dict()) == keys
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        others = [
            pickle.loads(before),
            copy.deepcopy(model),
            torch.load(buffer, weights_only=False),
        ]
        assert all(bool(other(X).isfinite()) for other in others)
    assert not any(bool(other(X).isfinite()) for other in others)


def _rank(rank: int, path: str, store: str, rewrite: bool, out: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    try:
        model = imported(path)
        wrapped = nn.parallel.DistributedDataParallel(model)
        with cures_of(model, rewrite=rewrite).apply():
            far(model)
            optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
            for _ in range(2):
                optimizer.zero_grad()
                wrapped(X + rank).backward()
                optimizer.step()
        found: dict[str, Tensor] = {k: v.clone() for k, v in model.state_dict().items()}
        torch.save(found, f"{out}{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow  # about 20 s: two processes
@pytest.mark.parametrize("rewrite", [True, False])
def test_two_processes_train_a_patched_model_alike(tmp_path, rewrite):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    out = tmp_path / "state"
    mp.spawn(_rank, (str(path), str(tmp_path / "store"), rewrite, str(out)), nprocs=2)
    first, second = (torch.load(f"{out}{rank}.pt") for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name])
        assert bool(value.isfinite().all())
    # A rewriting keeps the gradient where a clip loses it.
    moved = not torch.equal(first["layer.bias"], torch.tensor([500.0, 0.0, 0.0]))
    assert moved is rewrite
    assert Path(path).read_text() == MODEL
