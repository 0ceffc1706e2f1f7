"""Snapshots in memory and in files: the same bits, full disks, damage, and the interval."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ranum.errors import ArgumentError, RanumError, RanumWarning
from ranum.guards import Guard, Rollback, _interval, _places
from ranum.guards._file_memory import FileMemory
from ranum.guards._interval import Interval
from ranum.guards._memory import Memory, bit_sums
from ranum.guards.snapshot import Snapshots

TENSORS = {
    "float32": torch.randn(3, 5),
    "odd": torch.randn(7),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "bfloat16": torch.randn(5).bfloat16(),
    "bool": torch.tensor([True, False, True]),
    "int64": torch.arange(4),
    "complex": torch.randn(3, dtype=torch.complex64),
    "transposed": torch.randn(4, 6).t(),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "slice": torch.randn(4, 9)[:, 1:4],
    "row": torch.randn(3, 3)[1],
    "repeated": torch.randn(3, 1).expand(3, 4),
    "float8": torch.randn(5).to(torch.float8_e4m3fn),
}


@pytest.fixture(params=[Memory, lambda: Memory(on_host=True), FileMemory], ids=["ram", "host", "f"])
def memory(request):
    made = request.param()
    yield made
    made.close()


@pytest.mark.parametrize("turns", [1, 2])
def test_what_is_stored_comes_back(memory, turns):
    live = {name: tensor.clone() if name != "repeated" else tensor for name, tensor in
            TENSORS.items()}  # fmt: skip
    for _ in range(turns):
        memory.recycle()
        copies = {name: memory.store(tensor) for name, tensor in live.items()}
        memory.flush()
    assert memory.is_intact()
    targets = {name: torch.empty_like(tensor) for name, tensor in live.items()}
    targets["repeated"] = torch.empty(3, 1)
    memory.write_to([(targets[name], copied) for name, copied in copies.items()])
    for name, tensor in live.items():
        expected = tensor[:, :1] if name == "repeated" else tensor
        assert torch.equal(bytes_of(targets[name]), bytes_of(expected)), name
    assert memory.is_intact()


def bytes_of(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_names_what_is_not_finite(memory):
    fine, bad = torch.ones(3), torch.tensor([1.0, torch.inf])
    huge = torch.full((4,), 3e38)  # its sum overflows
    copies = [(str(number), memory.store(one)) for number, one in enumerate((fine, bad, huge))]
    memory.flush()
    assert memory.bad(copies) == ["1"]


@pytest.mark.parametrize("name", [name for name in TENSORS if name != "empty"])
def test_every_flipped_bit_changes_the_sum(name):
    tensor = TENSORS[name].contiguous()
    (before,) = bit_sums([tensor])
    raw = bytes_of(tensor)
    for position in range(raw.numel()):
        for bit in range(8 if name != "bool" else 1):
            flipped = raw.clone()
            flipped[position] ^= 1 << bit
            (after,) = bit_sums([flipped.view(tensor.dtype)])
            assert before != after


# --- training ------------------------------------------------------------------------------------


def train(place, steps=14, *, meddle=None, fault_at=None, **options):
    """A run that may be meddled with before a step; its state and its guard."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    options = {"snapshot_every": 5, "remedies": [Rollback(1.0)], **options}
    guard = Guard(model, optimizer, snapshot_to=place, also=[average], **options)
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(6, 4, generator=generator) for _ in range(steps)]
    for number, x in enumerate(guard.batches(data)):
        if meddle is not None:
            meddle(guard, number)
        with guard.step(x) as step:
            step.backward(lambda x=x: nn.functional.cross_entropy(model(x), torch.arange(6) % 3))
            if guard.current_step == fault_at:
                model[0].weight.grad[0, 0] = torch.nan
        average.update_parameters(model)
    state = [*model.state_dict().values(), *average.state_dict().values(), torch.get_rng_state()]
    state += [value for entries in optimizer.state.values() for value in entries.values()]
    return [tensor.clone() for tensor in state], guard


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("remedy", ["retry", "rollback"])
@pytest.mark.parametrize("place", ["device", "host", "disk", "folder", "auto"])
def test_going_back_gives_the_same_bits_from_everywhere(place, remedy, tmp_path):
    place = tmp_path if place == "folder" else place
    expected, _ = train("device")
    remedies = [Rollback(1.0)] if remedy == "rollback" else [remedy]
    found, guard = train(place, fault_at=8, strict=True, remedies=remedies)
    assert [(i.action, i.back_to) for i in guard.history.incidents] == [
        (remedy, 5 if remedy == "rollback" else None)
    ]
    assert same(found, expected)
    assert os.listdir(tmp_path) == []  # the files have no names


def test_an_average_that_is_not_named_is_left_behind():
    """What `also` is for: without it, the average has seen the steps twice."""
    expected, _ = train("device")
    found, _ = train("device", fault_at=8, meddle=lambda guard, _: guard.snapshots.also.clear())
    assert not same(found, expected)


@pytest.mark.parametrize("place", ["device", "disk"])
def test_a_damaged_snapshot_is_passed_over_and_told_once(place):
    expected, _ = train("device")

    def damage(guard, number):
        if number != 13 or guard.history.incidents:
            return
        memory = guard.snapshots._ring[0].memory
        if place == "device":
            memory._used[0].view(-1).view(torch.int32)[3] ^= 1 << 12
        else:
            memory._file.seek(40)
            byte = memory._file.read(1)[0]
            memory._file.seek(40)
            memory._file.write(bytes([byte ^ 4]))

    with pytest.warns(RanumWarning, match="that of step 10 has been damaged. An older") as told:
        found, guard = train(place, fault_at=13, meddle=damage)
    assert len(told) == 1
    assert [(i.action, i.back_to) for i in guard.history.incidents] == [("rollback", 5)]
    assert same(found, expected)


def test_a_damaged_snapshot_is_not_put_back():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snapshots = Snapshots(model, optimizer)
    snapshots.take(0)
    snapshots._first.memory._used[0][0, 0] += 1
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RanumError, match="snapshot of step 0 has been damaged"):
        snapshots.restore()
    assert same(list(model.state_dict().values()), list(before.values()))


FULL = """
import resource, sys, warnings
sys.path[:0] = {path!r}
from guards.test_snapshot_places import same, train
expected, _ = train("device")

def fill(guard, number):
    if number == 8:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    found, guard = train("disk", fault_at=13, meddle=fill)
print([(i.action, i.back_to) for i in guard.history.incidents])
print([str(w.message).partition(":")[0] for w in told])
print(same(found, expected), guard.snapshots.place)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_costs_the_new_snapshots_only():
    here = Path(__file__).parents[1]
    script = FULL.format(path=[str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    # Batches of two snapshots are kept, so the older one's come again too.
    assert done.stdout.splitlines() == [
        "[('rollback', 5)]",
        "['taking a snapshot failed']",
        "True disk",
    ]


class Full(FileMemory):
    """A disk that never has room."""

    def flush(self):
        raise OSError(28, "No space left on device")


def test_without_room_for_any_training_goes_on(monkeypatch):
    monkeypatch.setattr(_places, "FileMemory", Full)
    expected, _ = train("device")
    with pytest.warns(RanumWarning, match="taking a snapshot failed: OSError") as told:
        found, guard = train("disk")
    assert len(told) == 1
    assert guard.snapshots.steps == ()
    assert same(found, expected)


def test_auto_takes_the_next_place_where_one_is_full(monkeypatch):
    both = [("disk", Full), ("host", Memory)]
    monkeypatch.setattr("ranum.guards.snapshot.makers", lambda place, need: list(both))
    expected, _ = train("device")
    found, guard = train("auto", fault_at=8, strict=True)
    assert guard.snapshots.place == "host"
    assert same(found, expected)


# --- which place ---------------------------------------------------------------------------------

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("need", "device", "host", "disk", "names"),
    [
        ({CPU: 10}, 0, 100, 100, ["device", "disk"]),
        ({CPU: 60}, 0, 100, 1000, ["disk"]),
        ({CPU: 60}, 0, 100, 100, ["host"]),  # nowhere: the host, where it may fit all the same
        ({CUDA: 10}, 100, 100, 100, ["device", "host", "disk"]),
        ({CUDA: 30}, 100, 100, 100, ["host", "disk"]),
        ({CUDA: 60}, 100, 100, 1000, ["disk"]),
        ({CUDA: 20, CPU: 40}, 100, 100, 1000, ["device", "disk"]),
    ],
)
def test_the_place_is_chosen_by_what_is_free(monkeypatch, need, device, host, disk, names):
    monkeypatch.setattr(_places, "_free_on", lambda _: device)
    monkeypatch.setattr(_places, "available_memory", lambda: host)
    monkeypatch.setattr(_places.shutil, "disk_usage", lambda _: type("Usage", (), {"free": disk}))
    assert [name for name, _ in _places.makers("auto", need)] == names


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    alone = _places.available_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert _places.available_memory() < alone / 3


@pytest.mark.parametrize("place", ["nowhere", 3, None])
def test_a_place_that_is_none(place):
    with pytest.raises(ArgumentError, match="snapshot_to must be one of"):
        _places.checked_place(place)


# --- how often -----------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def interval_after(step, snapshot, **options):
    """The interval where a step and a snapshot take so many seconds."""
    clock = Clock()
    interval = Interval("auto", clock=clock, **options)

    def take():
        clock.now += snapshot

    for _ in range(_interval.TIMED):
        interval.time(take)
        for _ in range(5):
            interval.step()
            clock.now += step
    interval.time(take)
    return interval.steps


def test_snapshots_take_a_hundredth_of_the_time():
    assert interval_after(0.1, 0.05) == 50
    assert interval_after(0.1, 0.2) == 200
    assert interval_after(0.1, 0.0) == _interval.LEAST
    assert interval_after(0.1, 100.0) == _interval.MOST


def test_the_first_snapshot_is_not_timed():
    clock = Clock()
    interval = Interval("auto", clock=clock)
    interval.step()
    clock.now += 1
    interval.step()
    interval.time(lambda: None)
    assert interval.steps == _interval.AT_FIRST


def test_processes_take_the_largest_interval():
    asked = []

    def largest(value):
        asked.append(value)
        return 333

    assert interval_after(0.1, 0.2, largest=largest) == 333
    assert asked == [200] * (_interval.TIMED - 1)


def test_a_number_stays_one():
    interval = Interval(7, clock=lambda: pytest.fail("asked for the time"))
    interval.step()
    interval.time(lambda: None)
    assert interval.steps == 7


def test_a_run_with_auto_goes_back_exactly():
    expected, _ = train("device", 60, snapshot_every=10)
    found, guard = train("device", 60, snapshot_every="auto", fault_at=58, strict=True)
    assert guard.snapshot_every >= _interval.LEAST
    assert same(found, expected)
