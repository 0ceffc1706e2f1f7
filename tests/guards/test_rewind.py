"""After a rollback the same batches come again, and what follows is as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ranum import Guard
from ranum.errors import RanumWarning
from ranum.guards import Retry, Rollback, Skip
from ranum.guards.rewind import BatchLog, LoaderPosition, free_memory


class Noisy(Dataset):
    """Samples with noise from every generator a data set may use."""

    def __len__(self):
        return 48

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(4)
        return index / 48 + 0.1 * noise.float(), torch.tensor(index % 3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        )

    def forward(self, x):
        return self.body(x + 0.01 * torch.randn_like(x))


def run(fault_at=None, *, workers=0, memory=None, mutate=False, epochs=2, remedy=None):
    """Trains two epochs of 12 steps; a gradient turns NaN once. The end state, and the guard."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.7)
    loader = DataLoader(
        Noisy(),
        batch_size=4,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    guard = Guard(
        model,
        optimizer,
        schedulers=[scheduler],
        snapshot_every=7,
        remedies=[remedy or Rollback(learning_rate_factor=1.0)],
        strict=True,
    )
    if memory is not None:
        guard._position._log = BatchLog(memory)
    seen, steps = [], 0
    for epoch in range(epochs):
        for x, y in guard.batches(loader):
            with guard.step((x, y), epoch=epoch) as step:
                loss = step.backward(lambda x=x, y=y: nn.functional.cross_entropy(model(x), y))
                if steps == fault_at:
                    model.body[0].weight.grad[0, 0] = torch.nan
                if mutate:
                    x.add_(1.0)
            steps += 1
            seen.append(float(loss.detach()))
            scheduler.step()
    state = [t.clone() for t in (*model.parameters(), *model.buffers())]
    state += [v.clone() for s in optimizer.state.values() for v in s.values()]
    state += [torch.get_rng_state(), torch.tensor([random.random(), np.random.rand()])]
    state += [torch.tensor(scheduler.last_epoch)]
    return state, guard, seen


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault_at", [3, 11, 12, 19])
def test_a_run_with_one_fault_ends_like_one_without(fault_at, workers):
    reference, _, before = run(workers=workers)
    state, guard, seen = run(fault_at, workers=workers)
    (incident,) = guard.history.incidents
    assert incident.step == fault_at
    assert "and its batches" in incident.detail
    assert same(state, reference)
    assert len(seen) == len(before) + fault_at - incident.back_to + 1


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault_at", [0, 11, 12, 19])
def test_a_retry_costs_one_step_and_ends_like_a_run_without(fault_at, workers):
    reference, _, before = run(workers=workers)
    state, guard, seen = run(fault_at, workers=workers, remedy=Retry())
    (incident,) = guard.history.incidents
    assert incident.action == "retry"
    assert same(state, reference)
    assert seen == [*before[: fault_at + 1], *before[fault_at:]]


def test_the_data_goes_on_where_a_step_has_written_to_its_batch():
    state, guard, _ = run(9, mutate=True)
    (incident,) = guard.history.incidents
    assert incident.detail == "went back to step 7"
    assert not same(state, run(mutate=True)[0])


def test_little_memory_takes_more_snapshots_and_still_rewinds():
    size = 4 * 4 * 4 + 4 * 8
    state, guard, _ = run(19, memory=6 * size)
    (incident,) = guard.history.incidents
    assert incident.back_to in (16, 17, 18, 19)
    assert same(state, run()[0])


def test_no_memory_lets_the_data_go_on():
    _, guard, seen = run(9, memory=0)
    (incident,) = guard.history.incidents
    assert incident.detail == f"went back to step {incident.back_to}"
    assert len(seen) == 24


def test_a_second_fault_in_a_row_does_not_meet_its_batch_again():
    log = []

    def batches():
        for number in range(30):
            log.append(number)
            yield torch.full((4, 4), float(number == 9) * 1e30 + 1), torch.zeros(4).long()

    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    guard = Guard(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        snapshot_every=5,
        remedies=[Rollback(limit=3)],
        strict=True,
    )
    for x, y in guard.batches(batches()):
        with guard.step((x, y)) as step:
            step.backward(lambda x=x, y=y: (model(x) ** 2).mean() + y.sum())
    assert [incident.detail for incident in guard.history.incidents] == [
        "went back to step 5 and its batches; learning rate x 0.5 for 1000 steps",
        "went back to step 0; learning rate x 0.5 for 2000 steps",
    ]
    assert log == list(range(30))


class Whole(dict):
    """A batch that is taken to pieces by its step."""


@pytest.mark.parametrize("kind", [dict, Whole, list])
def test_what_a_step_takes_out_of_its_batch_is_there_again(kind):
    log = BatchLog(1 << 20)
    pairs = [("x", torch.ones(2)), ("y", torch.zeros(2))]
    batch = kind(pairs)
    out = log.hand_out(lambda: batch)
    out.pop() if kind is list else out.pop("y")
    assert log.can_go_back(0)
    log.go_back(0)
    again = log.hand_out(lambda: pytest.fail("fetched"))
    assert len(again) == 2
    again.clear()
    log.go_back(0)
    assert len(log.hand_out(lambda: None)) == 2


def test_memory_is_bounded():
    log = BatchLog(1000)
    for number in range(100):
        log.hand_out(lambda number=number: torch.full((50,), float(number)))
        assert log._nbytes <= 1000
    assert log.is_nearly_full
    assert log.can_go_back(95)
    assert not log.can_go_back(94)
    assert not log.can_go_back(101)
    log.keep_from(99)
    assert not log.can_go_back(98)
    log.clear()
    assert not log.is_nearly_full
    assert free_memory() >= 1 << 28


def test_a_batch_left_out_the_first_time_is_trained_on_the_second():
    """A rollback behind a skip: what dropout draws in the step that was left out counts again."""

    def trained(faults=()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        remedies = [Skip(), Rollback(1.0)]
        guard = Guard(model, optimizer, snapshot_every=4, strict=True, remedies=remedies)
        generator = torch.Generator().manual_seed(1)
        for x in guard.batches([torch.randn(6, 4, generator=generator) for _ in range(12)]):
            number = guard.current_step
            with guard.step(x) as step:
                loss = step.backward(model(x).square().sum())
                assert loss is not None
                if number in faults:
                    model[0].weight.grad[0, 0] = torch.nan
        actions = [incident.action for incident in guard.history.incidents]
        return [*model.state_dict().values(), torch.get_rng_state()], actions

    expected, _ = trained()
    found, actions = trained(faults=(8, 9))
    assert actions == ["skip", "rollback"]
    assert all(map(torch.equal, found, expected))


# --- workers that are killed --------------------------------------------------------------------


class Numbers(Dataset):
    """Random numbers of a worker's own; the one that comes to `fatal` kills itself once."""

    def __init__(self, folder, fatal=-1, times=1):
        self.folder, self.fatal, self.times = folder, fatal, times

    def __len__(self):
        return 12

    def __getitem__(self, index):
        deaths = len(list(self.folder.iterdir()))
        if index == self.fatal and deaths < self.times:
            (self.folder / str(deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor([index, torch.rand(()).item()])


def one_pass(folder, fatal=-1, times=1, **options):
    torch.manual_seed(3)
    folder.mkdir(exist_ok=True)
    loader = DataLoader(Numbers(folder, fatal, times), num_workers=2, shuffle=True, **options)
    batches = list(LoaderPosition().iterate(loader))
    return [*torch.cat(batches).flatten().tolist(), torch.rand(()).item()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize(
    "options",
    [{}, {"persistent_workers": True}, {"generator": torch.Generator()}],
    ids=["plain", "persistent", "generator"],
)
@pytest.mark.parametrize("fatal", [0, 5])
def test_a_killed_worker_costs_no_batch(tmp_path, fatal, options):
    if "generator" in options:
        options["generator"].manual_seed(0)
    expected = one_pass(tmp_path / "without", **options)
    if "generator" in options:
        options["generator"].manual_seed(0)
    with pytest.warns(RanumWarning, match="worker of the loader has been killed") as told:
        assert one_pass(tmp_path / "with", fatal, **options) == expected
    assert len(told) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.filterwarnings("ignore::ranum.errors.RanumWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_workers_that_are_killed_again_and_again_end_the_pass(tmp_path):
    with pytest.raises((RuntimeError, EOFError, OSError)):
        one_pass(tmp_path / "with", 5, times=9)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.filterwarnings("ignore::ranum.errors.RanumWarning")
def test_torch_does_not_tell_of_a_dead_worker_in_the_middle_of_a_step(tmp_path):
    """Its signal handler would raise wherever the program is; the loader tells when it is asked."""
    loader = DataLoader(Numbers(tmp_path), num_workers=1)
    batches = LoaderPosition().iterate(loader)
    next(batches)
    worker = max(multiprocessing.active_children(), key=lambda one: one.pid)
    worker.kill()
    worker.join()
    time.sleep(0.1)  # a step, in which the signal comes
    assert len(list(batches)) == 11


class Unreadable(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise ConnectionResetError("of the data set")


def test_what_a_data_set_raises_in_a_worker_goes_through():
    batches = LoaderPosition().iterate(DataLoader(Unreadable(), num_workers=1))
    with pytest.raises(ConnectionResetError, match="of the data set"):
        next(batches)


def test_what_a_data_set_raises_goes_through():
    def broken():
        yield 1
        raise RuntimeError("of the data set")

    batches = LoaderPosition().iterate(broken())
    assert next(batches) == 1
    with pytest.raises(RuntimeError, match="of the data set"):
        next(batches)
