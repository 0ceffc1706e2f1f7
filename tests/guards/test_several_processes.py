"""Two processes that train one model decide alike, and end like a run without the fault."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from guard_runs.processes import in_two_processes
from torch import nn

from ranum.guards.incident_file import load_incident

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo over the loopback interface")

WAYS = ("ddp", "fsdp", "late")
BAD_BATCHES = tuple(f"{way} {fault} ladder" for way in WAYS for fault in ("left", "data"))
OTHERS = (
    "ddp none ladder",
    "ddp gradient retry",
    "ddp gradient rollback",
    "ddp data rollback",
    "ddp gradient rollback full",
    "ddp operator ladder",
    "fsdp none ladder",
    "fsdp shard retry",
    "fsdp shard rollback",
    "fsdp operator ladder",
    "fsdp shard rollback full",
)


FITS = (
    "ddp none ladder",
    "ddp left ladder",
    "ddp data ladder",
    "ddp gradient rollback",
    "ddp by_hand ladder",
    "ddp both_by_hand ladder",
    "ddp None ladder",
    "ddp share ladder",
    "ddp part ladder",
    "ddp None_and_bad ladder",
    "ddp none shuffled",
    "ddp resumed shuffled",
    "fsdp none ladder",
    "fsdp left ladder",
    "fsdp data ladder",
    "fsdp shard retry",
    "fsdp shard rollback",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def bad_batches(folder) -> list[dict]:
    """What each of the two processes found, run by run."""
    return in_two_processes("several.py", folder, *BAD_BATCHES)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    return in_two_processes("several.py", tmp_path_factory.mktemp("processes"), *OTHERS)


def both(found, name):
    """The run in both processes; what they decided is the same."""
    first, second = (each[name] for each in found)
    for key in ("weights", "incidents", "norms", "rates", "steps"):
        assert first[key] == second[key]
    return first, second


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_batch_of_one_is_left_out_by_both(bad_batches, way):
    runs = both(bad_batches, f"{way} data ladder")
    references = both(bad_batches, f"{way} left ladder")
    for run, reference in zip(runs, references, strict=True):
        assert run["all"] == reference["all"]
        ((action, step, _, detail, culprit),) = run["incidents"]
        assert (action, step) == ("skip", 8)
        assert detail == "left the batch out: NaN in batch[0] of process 1"
        assert culprit == "NaN in data 'batch[0] of process 1'"


def test_the_bad_step_is_one_file_with_all_of_the_weights(bad_batches, folder):
    """Of shards too; it is replayed in one process, on a model that is not sharded."""
    files = [list((folder / f"{way} data").glob("*")) for way in ("ddp", "fsdp")]
    assert [[file.name for file in each] for each in files] == [["step-8.pt"]] * 2
    replicated, sharded = (load_incident(file) for (file,) in files)
    assert sharded.model == replicated.model == "torch.nn.modules.container.Sequential"
    for name, tensor in replicated.parameters.items():
        torch.testing.assert_close(sharded.parameters[name], tensor)
    torch.testing.assert_close(sharded.batches, replicated.batches, equal_nan=True)
    model = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Dropout(0.1), nn.Linear(9, 3))

    def step(batch: Any) -> Any:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    culprit = sharded.replay(model, step)
    assert (culprit.cause, culprit.name) == ("data", "batch[0]")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("remedy", ["retry", "rollback"])
def test_both_go_back_and_end_like_a_run_without(found, way, remedy):
    fault = "gradient" if way == "ddp" else "shard"
    for run, reference in zip(
        both(found, f"{way} {fault} {remedy}"), both(found, f"{way} none ladder"), strict=True
    ):
        assert run["all"] == reference["all"]
        assert run["incidents"][0][:2] == [remedy, 8]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_an_operator_of_one_is_named_by_both(found, way):
    for run, reference in zip(
        both(found, f"{way} operator ladder"), both(found, f"{way} none ladder"), strict=True
    ):
        assert run["all"] == reference["all"]
        assert run["incidents"][0][:3] == ["rollback", 8, 5]
        assert "several.py" in run["incidents"][0][4]


@pytest.mark.slow
def test_bad_data_of_one_takes_both_back_without_their_batches(found):
    first, _ = both(found, "ddp data rollback")
    assert first["incidents"][0][2] == 5
    assert "batches" not in first["incidents"][0][3]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "fault"), [("ddp", "gradient"), ("fsdp", "shard")])
def test_neither_rewinds_where_one_cannot(found, way, fault):
    first, _ = both(found, f"{way} {fault} rollback full")
    reference, _ = both(found, f"{way} none ladder")
    assert "batches" not in first["incidents"][0][3]
    assert first["weights"] != reference["weights"]
    assert first["steps"] == 12


# --- under Lightning ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> list[dict]:
    pytest.importorskip("pytorch_lightning")
    return in_two_processes("fit_several.py", tmp_path_factory.mktemp("fits"), *FITS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "reference", "action"),
    [
        ("ddp data ladder", "ddp left ladder", "skip"),
        ("ddp gradient rollback", "ddp none ladder", "rollback"),
        ("fsdp data ladder", "fsdp left ladder", "skip"),
        ("fsdp shard retry", "fsdp none ladder", "retry"),
        ("fsdp shard rollback", "fsdp none ladder", "rollback"),
    ],
)
def test_a_fit_on_two_processes_ends_like_one_without(fitted, run, reference, action):
    for ran, other in zip(both(fitted, run), both(fitted, reference), strict=True):
        assert [incident[0] for incident in ran["incidents"]] == [action]
        assert ran["all"] == other["all"]
        assert ran["steps"] == other["steps"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "by_hand", "actions"),
    [
        ("ddp None ladder", "ddp by_hand ladder", []),
        ("ddp share ladder", "ddp by_hand ladder", ["skip part"]),
        ("ddp part ladder", "ddp both_by_hand ladder", ["skip part"]),
        ("ddp None_and_bad ladder", "ddp both_by_hand ladder", ["skip part"]),
    ],
)
def test_in_a_fit_a_step_is_one_on_what_is_left(fitted, run, by_hand, actions):
    for ran, other in zip(both(fitted, run), both(fitted, by_hand), strict=True):
        assert [incident[0] for incident in ran["incidents"]] == actions
        assert ran["all"] == other["all"]
        assert ran["steps"] == other["steps"]


@pytest.mark.slow
def test_a_fit_on_two_processes_goes_on_from_its_checkpoint(fitted):
    """Each with its own random numbers and its own order of the data."""
    for ran, other in zip(
        both(fitted, "ddp resumed shuffled"), both(fitted, "ddp none shuffled"), strict=True
    ):
        assert ran["all"] == other["all"]
        assert ran["steps"] == other["steps"]
