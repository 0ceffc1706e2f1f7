"""The benchmarks of damage, of two processes and of killed ones: they count what goes wrong too."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.faults import damage, killed, processes, training

pytestmark = [
    pytest.mark.filterwarnings("ignore::ranum.errors.RanumWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files; gloo"),
]


@pytest.fixture(scope="module")
def reference():
    return damage.train(training.batches(), None)[0]


@pytest.mark.parametrize(
    "kind", [f"exponent bit, {place}" for place in damage.PLACES[:3]] + list(damage.OTHERS)
)
def test_a_run_ends_with_the_references_bits(kind, reference):
    result = damage.run(kind, 21, damage.EXPONENT, 0.4, reference)
    assert result.seen
    assert result.same
    assert not result.lost


def test_what_nobody_sees_is_counted(reference, monkeypatch):
    monkeypatch.setattr("ranum.guards.base.default_symptoms", lambda *args: ())
    result = damage.run("exponent bit, weight", 21, damage.EXPONENT, 0.4, reference)
    assert not result.seen
    assert not result.same


def test_a_bit_is_flipped_once_and_back():
    tensor = torch.ones(3)
    damage.flip(tensor, 31, 0.5)
    assert tensor.tolist() == [1, -1, 1]
    damage.flip(tensor, 31, 0.5)
    assert tensor.tolist() == [1, 1, 1]


@pytest.mark.slow
def test_two_processes_end_with_the_references_bits():
    faults = [
        "DDP:gradient after:nan:17:1",
        "FSDP2:gradient after:inf:17:0",
        "FSDP2:weight:-inf:17:1",
    ]
    plain, sharded, *ends = processes.both(
        ["DDP:none:nan:0:0", "FSDP2:none:nan:0:0", *faults], processes.SECONDS
    )
    for run, found in zip(faults, ends, strict=True):
        result = processes._result(run, found, plain if run.startswith("DDP") else sharded)
        assert result.same, run
        assert result.seen
    assert processes._result(faults[0], None, plain).lost
    assert not processes._result(faults[1], ends[1], plain).same


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork, where threads are about
def test_a_killed_run_that_is_resumed_ends_with_the_references_bits(tmp_path):
    reference = killed._reference(lambda folder: killed.plain(folder, killed.Killer("", 0), None))
    for phase in ("backward", "saving"):
        result = killed.killed("plain", phase, 17, 9, reference)
        assert result.same, phase
        assert result.seen
    other = [tensor + 1 for tensor in reference]
    assert not killed.killed("plain", "forward", 17, None, other).same
