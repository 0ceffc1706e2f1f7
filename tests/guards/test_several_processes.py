"""Two processes that train one model decide alike, and go back alike."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

SCRIPT = """
import hashlib, json, sys
import torch
from torch import nn, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from ranum import Guard
from ranum.guards import Retry, Rollback

distributed.init_process_group("gloo")
rank = distributed.get_rank()


def train(fault, remedy, memory="some"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 3))
    replicated = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.8)
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(96, 4, generator=generator), torch.arange(96) % 3)
    loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data))
    guard = Guard(
        model,
        optimizer,
        schedulers=[scheduler],
        snapshot_every=5,
        strict=True,
        remedies=[Retry() if remedy == "retry" else Rollback(1.0)],
    )
    if memory == "none" and rank == 1:
        guard._position._log.memory = 0
    steps = 0
    for x, y in guard.batches(loader):
        with guard.step((x, y)) as step:
            if steps == 8 and rank == 1 and fault == "data":
                x = x * torch.nan
            step.backward(lambda x=x, y=y: nn.functional.cross_entropy(replicated(x), y))
            if steps == 8 and fault == "gradient":
                model[0].weight.grad[0, 0] = torch.nan
        steps += 1
        scheduler.step()
    state = [*model.state_dict().values(), torch.get_rng_state()]
    state += [v for s in optimizer.state.values() for v in s.values()]
    incidents = [[i.action, i.step, i.back_to, i.detail] for i in guard.history.incidents]
    return {
        "all": digest(state),
        "weights": digest(model.parameters()),
        "incidents": incidents,
        "steps": steps,
    }


def digest(tensors):
    data = b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(data).hexdigest()


runs = {name: train(*name.split()) for name in sys.argv[2:]}
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(runs, file)
distributed.destroy_process_group()
"""

RUNS = (
    "none rollback",
    "gradient retry",
    "gradient rollback",
    "data rollback",
    "gradient rollback none",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each of the two processes found, run by run."""
    folder = tmp_path_factory.mktemp("processes")
    script = folder / "train.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), *RUNS],
            env=environment | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], "".join(errors)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


pytestmark = [
    pytest.mark.slow,  # 8 s
    pytest.mark.skipif(sys.platform != "linux", reason="gloo over the loopback interface"),
]


@pytest.mark.parametrize("remedy", ["retry", "rollback"])
def test_both_go_back_and_end_like_a_run_without(found, remedy):
    for each in found:
        run, reference = each[f"gradient {remedy}"], each["none rollback"]
        assert run["all"] == reference["all"]
        assert run["incidents"][0][:2] == [remedy, 8]
    assert (
        found[0][f"gradient {remedy}"]["incidents"] == found[1][f"gradient {remedy}"]["incidents"]
    )


def test_bad_data_of_one_is_decided_by_both(found):
    first, second = (each["data rollback"] for each in found)
    assert first["weights"] == second["weights"]
    assert first["incidents"] == second["incidents"]
    assert first["incidents"][0][2] == 5  # both went back to the same snapshot


def test_neither_rewinds_where_one_cannot(found):
    first, second = (each["gradient rollback none"] for each in found)
    assert first["incidents"] == second["incidents"]
    assert "batches" not in first["incidents"][0][3]
    assert first["weights"] == second["weights"] != found[0]["none rollback"]["weights"]
    assert first["steps"] == second["steps"] == 12
