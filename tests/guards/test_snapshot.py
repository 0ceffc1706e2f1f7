"""Snapshots: bit-exact ways back, steady memory, refusals that change nothing."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ranum.errors import ArgumentError, RanumError
from ranum.guards._buffers import SMALL_BUFFER
from ranum.guards.snapshot import Snapshots


def network():
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


BATCHES = [
    (torch.randn(5, 6, generator=torch.Generator().manual_seed(i)), torch.arange(5) % 3)
    for i in range(12)
]


def train(model, optimizer, scheduler, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def everything(model, optimizer, scheduler=None):
    """All state as comparable data."""
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": np.random.get_state()[1],
        }
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw with a tensor rate": lambda p: torch.optim.AdamW(
        p, lr=torch.tensor(0.01), foreach=False
    ),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adafactor": torch.optim.Adafactor,
}
SCHEDULERS = {
    "none": lambda o: None,
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=4),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        milestones=[4],
    ),
}


@pytest.mark.parametrize(
    ("optimizer_name", "scheduler_name"),
    [(name, "cosine") for name in OPTIMIZERS] + [("adamw", name) for name in SCHEDULERS],
)
@pytest.mark.parametrize("first", [0, 4], ids=["from the start", "from within"])
def test_rollback_and_same_batches_equal_an_uninterrupted_run(
    optimizer_name, scheduler_name, first
):
    model = network()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    if optimizer_name == "adamw with a tensor rate":
        scheduler_name = "none"
    scheduler = SCHEDULERS[scheduler_name](optimizer)
    schedulers = [] if scheduler is None else [scheduler]
    snapshots = Snapshots(model, optimizer, schedulers=schedulers)
    train(model, optimizer, scheduler, BATCHES[:first])
    snapshots.take(first)
    then = everything(model, optimizer, scheduler)
    train(model, optimizer, scheduler, BATCHES[first:])
    end = everything(model, optimizer, scheduler)
    assert not same(then, end)

    poison(model, optimizer)
    random.random()
    np.random.rand()
    assert snapshots.restore() == first
    assert same(everything(model, optimizer, scheduler), then)
    train(model, optimizer, scheduler, BATCHES[first:])
    assert same(everything(model, optimizer, scheduler), end)


def poison(model, optimizer):
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(torch.nan if tensor.is_floating_point() else 7)
        for entries in optimizer.state.values():
            for value in entries.values():
                if isinstance(value, torch.Tensor):
                    value.fill_(torch.nan)
        for group in optimizer.param_groups:
            group["lr"] = 1e9 if isinstance(group["lr"], float) else group["lr"].fill_(1e9)


def test_ring_and_first():
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snapshots = Snapshots(model, optimizer, keep=2)
    assert (snapshots.steps, snapshots.latest_step) == ((), None)
    for step in range(0, 50, 10):
        nn.init.constant_(model.weight, step)
        snapshots.take(step)
    assert snapshots.steps == (40, 30, 0)
    assert snapshots.restore(0) == 40
    assert snapshots.restore(1) == 30
    assert model.weight.item() == 30
    assert snapshots.steps == (30, 0)  # what came after is gone
    snapshots.take(60)
    assert snapshots.steps == (60, 30, 0)
    snapshots.drop_latest()
    assert snapshots.steps == (30, 0)
    assert snapshots.restore(9) == 0
    assert model.weight.item() == 0
    snapshots.drop_latest()
    assert snapshots.steps == (0,)  # the first stays
    snapshots.clear()
    with pytest.raises(RanumError, match="no snapshot"):
        snapshots.restore()


def test_restores_the_same_tensors():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, None, BATCHES[:2])
    snapshots = Snapshots(model, optimizer)
    snapshots.take(2)

    def addresses():
        state = [v for e in optimizer.state.values() for v in e.values()]
        return [t.data_ptr() for t in (*model.parameters(), *model.buffers(), *state)]

    before = addresses()
    train(model, optimizer, None, BATCHES[2:4])
    snapshots.restore()
    assert addresses() == before


def test_steady_state_allocates_nothing():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    snapshots = Snapshots(model, optimizer, keep=2)
    train(model, optimizer, None, BATCHES[:1])
    for step in range(3):
        snapshots.take(step)
    size = snapshots.nbytes
    state = [v for e in optimizer.state.values() for v in e.values()]
    one = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), *state))
    assert size == 3 * one  # `keep` copies and the first
    memory = [t for s in snapshots._all() for t in s.memory._used]
    for step in range(3, 8):
        snapshots.take(step)
    again = [t for s in snapshots._all() for t in s.memory._used]
    assert {id(t) for t in memory} == {id(t) for t in again}
    assert snapshots.nbytes == size


def test_memory_follows_the_optimizer():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    snapshots = Snapshots(model, optimizer, keep=1)
    snapshots.take(0)
    snapshots.take(1)
    small = snapshots.nbytes
    train(model, optimizer, None, BATCHES[:1])
    snapshots.take(2)
    assert snapshots.nbytes > small
    snapshots.restore(1)
    assert not optimizer.state  # entries that came after the snapshot are gone


def test_shared_parameters():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(9, 1))
    model[1].weight = model[0].weight
    model[2].weight = nn.Parameter(model[0].weight.detach().view(1, 9))  # same memory
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snapshots = Snapshots(model, optimizer)
    then = model[0].weight.detach().clone()
    snapshots.take(0)
    nn.init.zeros_(model[0].weight)
    snapshots.restore()
    assert torch.equal(model[1].weight, then)
    assert torch.equal(model[2].weight, then.view(1, 9))
    assert model[2].weight.data_ptr() == model[0].weight.data_ptr()


class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.register_buffer("expanded", torch.zeros(1).expand(4))
        self.register_buffer("average", torch.zeros(1))
        self.register_buffer("later", None)
        self.register_buffer("table", torch.zeros(SMALL_BUFFER + 1))

    def forward(self, x):
        self.hidden += 1
        self.average = 0.9 * self.average + x.mean()  # a new tensor under the old name
        self.later = x
        if x.sum() > 0:
            self.table += 1
        return self.weight * x


@pytest.mark.parametrize("how", ["snapshot", "buffers"])
def test_all_kinds_of_buffers(how):
    model = Buffers()
    snapshots = Snapshots(model, torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.ones(3)
    model(x)
    average, later = model.average.clone(), model.later
    for _ in range(2):
        snapshots.take(0) if how == "snapshot" else snapshots.take_buffers()
    model(x * 2)
    model.expanded[0] = 5.0
    snapshots.restore() if how == "snapshot" else snapshots.restore_buffers()
    assert model.hidden.tolist() == [1.0, 1.0]
    assert model.expanded.tolist() == [0.0] * 4
    assert torch.equal(model.average, average)
    assert model.later is later
    assert x.tolist() == [1.0, 1.0, 1.0]  # never written to
    assert model.table[0] == 1


def test_large_buffers_are_copied_when_they_change():
    model = Buffers()
    snapshots = Snapshots(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for value in (1.0, 2.0, 2.0):
        model.table.fill_(value)
        snapshots.take_buffers()
        model.table.fill_(9.0)
        snapshots.restore_buffers()
        assert model.table[0] == value


def test_buffers_bring_random_numbers_back():
    model = Buffers()
    snapshots = Snapshots(model, torch.optim.SGD(model.parameters(), lr=0.1))
    snapshots.restore_buffers()  # nothing taken: nothing happens
    snapshots.take_buffers()
    first = torch.rand(3)
    snapshots.restore_buffers()
    assert torch.equal(torch.rand(3), first)


def test_batchnorm_statistics_before_a_bad_batch():
    model = nn.BatchNorm1d(3)
    model(torch.randn(4, 3))
    snapshots = Snapshots(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(2):
        then = {name: value.clone() for name, value in model.state_dict().items()}
        snapshots.take_buffers()
        model(torch.full((4, 3), torch.nan))
        assert model.running_mean.isnan().all()
        snapshots.restore_buffers()
        assert same(dict(model.state_dict()), then)
        model(torch.randn(4, 3))


def test_odd_optimizer_state():
    class Odd(torch.optim.SGD):
        def step(self):
            super().step()
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    state.setdefault("log", []).append(p.detach().clone())
                    state["of"] = p
                    state["count"] = state.get("count", 0) + 1
            self.state["global"] = {"names": {"a"}}
            self.state["plain"] = [1, 2]

    model = nn.Linear(2, 2)
    optimizer = Odd(model.parameters(), lr=0.1)
    snapshots = Snapshots(model, optimizer)
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        snapshots.take(1)
    optimizer.state["plain"].append(3)
    optimizer.step()
    for _ in range(2):  # a snapshot can be used again
        snapshots.restore()
        state = optimizer.state[model.weight]
        assert [len(state["log"]), state["count"]] == [2, 2]
        assert state["of"] is model.weight
        assert optimizer.state["plain"] == [1, 2]
        state["log"].clear()


def test_parameters_outside_the_model():
    model, extra = nn.Linear(1, 1), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([*model.parameters(), extra], lr=0.1)
    snapshots = Snapshots(model, optimizer)
    snapshots.take(0)
    with torch.no_grad():
        extra.fill_(5.0)
    snapshots.restore()
    assert extra.item() == 1.0


def test_scaler_goes_back():
    model = nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    snapshots = Snapshots(model, torch.optim.SGD(model.parameters(), lr=0.1), scaler=scaler)
    scaler.scale(torch.ones(1))
    snapshots.take(0)
    scaler.update(new_scale=1.0)
    snapshots.restore()
    assert scaler.get_scale() == 4.0


# --- refusals -----------------------------------------------------------------------------------


def replace_module(model, optimizer, snapshots):
    model[0] = nn.Linear(6, 8)


def add_module(model, optimizer, snapshots):
    model.append(nn.Linear(3, 3))


def resize(model, optimizer, snapshots):
    model[0].bias.data = torch.zeros(9)


def add_group(model, optimizer, snapshots):
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})


def regroup(model, optimizer, snapshots):
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][:1]


def drop_scheduler(model, optimizer, snapshots):
    snapshots.schedulers.clear()


@pytest.mark.parametrize(
    ("surgery", "message"),
    [
        (
            replace_module,
            r"'0.weight'\) since the snapshot of step 7, which cannot be gone back to",
        ),
        (add_module, "'5.weight'"),
        (resize, "replaced or added .'0.bias'."),
        (add_group, "'optimizer 0, group 1, 0'"),
        (regroup, "the parameter groups of an optimizer changed"),
        (drop_scheduler, "the list of schedulers changed"),
    ],
)
def test_surgery_is_refused(surgery, message):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    snapshots = Snapshots(model, optimizer, schedulers=[scheduler])
    snapshots.take(7)
    surgery(model, optimizer, snapshots)
    nn.init.constant_(model[4].bias, 3.0)
    with pytest.raises(RanumError, match=message):
        snapshots.restore()
    assert model[4].bias.tolist() == [3.0, 3.0, 3.0]  # nothing was changed


def test_lazy_parameters():
    model = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d(affine=False))
    snapshots = Snapshots(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert not snapshots.is_ready
    snapshots.take_buffers()
    with pytest.raises(RanumError, match="lazy"):
        snapshots.take(0)
    model(torch.ones(2, 3))
    assert snapshots.is_ready
    snapshots.take(0)
    snapshots.take_buffers()
    snapshots.restore_buffers()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "model must be a torch.nn.Module; got int"),
        ({"optimizers": 3}, "optimizer must be a torch.optim.Optimizer or a list"),
        ({"optimizers": [3]}, "got int"),
        ({"keep": 0}, "keep must be a positive integer; got 0"),
        ({"keep": True}, "keep must be a positive integer; got True"),
        ({"schedulers": [3]}, "must have state_dict and load_state_dict; got int"),
        ({"scaler": 3}, "must have state_dict and load_state_dict; got int"),
    ],
)
def test_arguments(arguments, message):
    model = nn.Linear(1, 1)
    given = {"model": model, "optimizers": torch.optim.SGD(model.parameters(), lr=0.1)} | arguments
    with pytest.raises(ArgumentError, match=message):
        Snapshots(given.pop("model"), given.pop("optimizers"), **given)


def test_depth_must_not_be_negative():
    model = nn.Linear(1, 1)
    snapshots = Snapshots(model, torch.optim.SGD(model.parameters(), lr=0.1))
    snapshots.take(0)
    with pytest.raises(ArgumentError, match="depth"):
        snapshots.restore(-1)
    assert repr(snapshots) == "Snapshots(Linear, keep=2, steps=(0,))"


def test_what_is_not_finite_in_a_snapshot_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    optimizer = torch.optim.Adam(model.parameters())
    snapshots = Snapshots(model, optimizer)
    snapshots.take(0)
    assert snapshots.bad_in_latest() == []  # the mask was there from the start
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
        model[1].running_var[1] = torch.inf
        optimizer.state[model[1].bias]["exp_avg"][0] = torch.nan
        model[0].bias.fill_(3e30)  # the sum of its squares overflows; it is finite
    snapshots.take(1)
    assert sorted(snapshots.bad_in_latest()) == [
        "0.weight",
        "buffer 2 (running_var)",
        "exp_avg of 1.bias",
    ]
