"""Steps that the device leaves out by itself: the host learns of them one step later."""

from __future__ import annotations

import inspect
import math
import textwrap
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from ranum import ArgumentError, Guard
from ranum.guards import TrainingStopped
from ranum.guards._content import frozen
from ranum.guards.readings.torch import Measurement

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, fused=True),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1)
    )


def batches(count: int, bad: dict[int, float] | None = None) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    made = [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(count)]
    for index, value in (bad or {}).items():
        made[index][0][2, 1] = value
    return made


def everything(model: nn.Module, optimizer, scheduler=None) -> list[Tensor]:
    states = [
        value
        for p in model.parameters()
        for value in optimizer.state[p].values()
        if isinstance(value, Tensor)
    ]
    rate = [torch.tensor(group["lr"]) for group in optimizer.param_groups]
    last = [] if scheduler is None else [torch.tensor(scheduler.last_epoch)]
    return [*model.state_dict().values(), *states, *rate, *last, torch.get_rng_state()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def train(data, *, name: str = "adam", late: bool = True, kept: bool = True, **options):
    """A run with a scheduler; returns the guard and everything that it has trained."""
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    options = {"sample_every": 7, "snapshot_every": 1000, "strict": True, **options}
    guard = Guard(model, optimizer, schedulers=[scheduler], late=late, **options)
    torch.manual_seed(2)
    for x, y in guard.batches(data) if kept else data:
        with guard.step((x, y)) as step:
            step.backward(lambda x=x, y=y: loss_of(model, x, y))
        if step.decision.proceed:
            scheduler.step()
    if not kept:
        guard.settle()
    return guard, everything(model, optimizer, scheduler)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_healthy_run_is_the_same_with_and_without(name):
    data = batches(30)
    _, late = train(data, name=name)
    guard, now = train(data, name=name, late=False)
    assert same(late, now)
    assert guard.history.incidents == []


def test_readings_are_those_of_a_guard_that_waits():
    data = batches(30)
    late, _ = train(data)
    now, _ = train(data, late=False)
    assert late.history.readings == now.history.readings


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("at", [4, 7, 13, 14, 28, 29])
def test_a_batch_that_is_left_out_leaves_no_trace(name, at):
    data = batches(30, {at: math.nan})
    guard, late = train(data, name=name)
    _, never = train(data[:at] + data[at + 1 :], name=name)
    (incident,) = guard.history.incidents
    assert (incident.step, incident.action) == (at, "skip")
    assert incident.culprit.cause == "data"
    assert same(late, never)
    steps = [reading.step for reading in guard.history.readings]
    assert steps == list(range(30))


def test_the_weights_never_see_the_bad_step():
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    guard = Guard(model, optimizer, late=True, snapshot_every=1000, strict=True)
    data, seen = batches(12, {6: math.inf}), []
    for number, (x, y) in enumerate(data):
        before = [p.detach().clone() for p in model.parameters()]
        with guard.step((x, y)) as step:
            step.backward(lambda x=x, y=y: loss_of(model, x, y))
        stayed = all(map(torch.equal, before, model.parameters()))
        seen.append((number, stayed, step.decision.proceed, len(guard.history.incidents)))
    assert seen[5] == (5, False, True, 0)
    assert seen[6] == (6, True, True, 0)  # left out by the device; nobody knows yet
    assert seen[7] == (7, True, False, 1)  # known, and this batch, which is not kept, goes too
    assert seen[8] == (8, False, True, 1)


@pytest.mark.parametrize("bad", [(9, 10), (9, 11), (3, 4), (28, 29), (0, 1)])
def test_several_bad_batches(bad):
    data = batches(30, dict.fromkeys(bad, math.nan))
    guard, late = train(data)
    good = [one for number, one in enumerate(data) if number not in bad]
    _, never = train(good)
    assert [one.step for one in guard.history.incidents] == list(bad)
    assert same(late, never)


def test_too_many_in_a_row_end_the_run():
    with pytest.raises(TrainingStopped):
        train(batches(40, dict.fromkeys(range(10, 40), math.nan)))


def test_without_kept_batches_the_next_one_is_lost_too():
    data = batches(20, {9: math.nan})
    guard, late = train(data, kept=False)
    _, never = train(data[:9] + data[11:], kept=False)
    assert [one.step for one in guard.history.incidents] == [9]
    assert len(guard.history.readings) == 19
    assert same(late[:-1], never[:-1])  # all but the random numbers of what was fetched


def test_a_gradient_that_explodes_is_left_out_on_the_device():
    data = batches(40)
    data[30] = (data[30][0], data[30][1] + 1e7)
    guard, late = train(data, remedies=["skip", "stop"])
    _, never = train(data[:30] + data[31:])
    (incident,) = guard.history.incidents
    assert (incident.step, incident.finding.code) == (30, "RN202")
    assert same(late, never)


def test_a_fault_of_the_operator_goes_back_and_on():
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 8)
            self.shift = nn.Parameter(torch.tensor(0.2))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).mean(1, keepdim=True) + torch.sqrt(self.shift)

    torch.manual_seed(0)
    model = Root()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=True)
    guard = Guard(model, optimizer, late=True, snapshot_every=5, strict=True)
    generator = torch.Generator().manual_seed(3)
    data = [(torch.randn(8, 4, generator=generator), torch.full((8, 1), -1.0)) for _ in range(60)]

    def run() -> None:
        for x, y in guard.batches(data):
            with guard.step((x, y)) as step:
                step.backward(lambda x=x, y=y: loss_of(model, x, y))

    with pytest.raises(TrainingStopped):  # the data wants a negative shift, each time
        run()
    first = guard.history.incidents[0]
    assert first.action == "rollback"
    assert first.culprit.op == "sqrt"
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_snapshots_and_rollbacks_are_those_of_a_guard_that_waits():
    data = batches(40, {23: math.nan})
    options = {"snapshot_every": 10, "remedies": ["rollback"]}
    late, after_late = train(data, **options)
    now, after_now = train(data, late=False, **options)
    for guard in (late, now):
        (incident,) = guard.history.incidents
        assert (incident.step, incident.back_to, incident.action) == (23, 20, "rollback")
    assert len(after_late) == len(after_now)


def test_a_step_is_run_again_after_a_fault_that_does_not_come_again():
    data = batches(30)
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    guard = Guard(model, optimizer, late=True, snapshot_every=1000, strict=True)
    flips = [13]

    def hook(gradient: Tensor) -> Tensor:
        if flips and guard.current_step == flips[0]:
            flips.clear()
            return gradient * math.nan
        return gradient

    model[0].weight.register_hook(hook)
    torch.manual_seed(2)
    for x, y in guard.batches(data):
        with guard.step((x, y)) as step:
            step.backward(lambda x=x, y=y: loss_of(model, x, y))
    (incident,) = guard.history.incidents
    assert (incident.step, incident.action) == (13, "retry")
    late = everything(model, optimizer)
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    torch.manual_seed(2)
    for x, y in data:
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()
    assert same(late, everything(model, optimizer))


def test_a_rule_of_the_host_alone_goes_back_behind_the_step_that_was_taken():
    from dataclasses import dataclass

    from ranum.guards.symptoms import Symptom, default_symptoms

    @dataclass(frozen=True, slots=True)
    class Low(Symptom):
        """The loss is lower than 20 steps can make it."""

        code = "RN202"
        severity = "fault"

        def check(self, window):
            return self.find(window, "too low") if window.latest.step == 17 else None

    data = batches(30)
    guard, _ = train(data, symptoms=[*default_symptoms(), Low()], snapshot_every=10)
    incident = guard.history.incidents[0]
    assert (incident.step, incident.action, incident.back_to) == (17, "rollback", 10)


def test_nothing_but_the_step_before_is_read(monkeypatch):
    reads: Counter = Counter()
    allowed = []
    for name in ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        usual = getattr(torch.Tensor, name)

        def read(self, *args, usual=usual, name=name, **kwargs):
            reads["late" if allowed else name] += 1
            return usual(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, read)
    usual_arrived = Measurement.arrived

    def arrived(self):
        allowed.append(True)
        try:
            return usual_arrived(self)
        finally:
            allowed.clear()

    monkeypatch.setattr(Measurement, "arrived", arrived)
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    guard = Guard(model, optimizer, late=True, sample_every=7, snapshot_every=20, strict=True)
    per_step = []
    for x, y in batches(50):
        with guard.step((x, y)) as step:
            step.backward(lambda x=x, y=y: loss_of(model, x, y))
            reads.clear()
        per_step.append(dict(reads))
    # Around a snapshot the guard waits: it must not be one of a state that may be bad.
    waits = [n for n, counted in enumerate(per_step) if set(counted) - {"late"}]
    assert waits == [0, 19, 20, 39, 40]
    assert all(counted.get("late", 0) <= 1 for counted in per_step)


def test_parameters_that_join_are_waited_for_once(monkeypatch):
    usual = torch.empty_like
    unwritten = lambda *args, **kwargs: usual(*args, **kwargs).fill_(math.nan)  # noqa: E731
    monkeypatch.setattr(torch, "empty_like", unwritten)
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 1)})
    optimizer = OPTIMIZERS["sgd"]([{"params": part.parameters()} for part in model.values()])
    guard = Guard(model, optimizer, late=True, snapshot_every=1000, strict=True)
    for number, (x, y) in enumerate(batches(30, {15: math.nan})):

        def loss(x: Tensor = x, y: Tensor = y, joined: bool = number >= 15) -> Tensor:
            # The first step of `second` is a bad one: its momentum does not exist yet.
            h = model["first"](x)
            return ((model["second"](h) if joined else h) - y).square().mean()

        with guard.step((x, y)) as step:
            step.backward(loss)
    guard.settle()
    assert [one.step for one in guard.history.incidents] == [15]
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    momentum = optimizer.state[model["second"].weight]["momentum_buffer"]
    assert bool(momentum.isfinite().all())


def test_settle_tells_of_the_last_step():
    model = network()
    guard = Guard(model, OPTIMIZERS["adam"](model.parameters()), late=True, strict=True)
    for x, y in batches(5, {4: math.nan}):
        with guard.step((x, y)) as step:
            step.backward(lambda x=x, y=y: loss_of(model, x, y))
    assert guard.history.incidents == []
    assert guard.settle().incident.step == 4
    assert guard.settle() is None


def test_two_optimizers_of_one_step():
    torch.manual_seed(0)
    one, two = nn.Linear(4, 4), nn.Linear(4, 1)
    optimizers = [OPTIMIZERS["adam"](part.parameters()) for part in (one, two)]
    guard = Guard(
        nn.ModuleList([one, two]), optimizers, late=True, snapshot_every=1000, strict=True
    )
    for number, (x, y) in enumerate(batches(20)):
        guard.begin((x, y))
        for turn, optimizer in enumerate(optimizers):
            optimizer.zero_grad()
            loss = (two(one(x)) - y).square().mean()
            loss = loss * math.nan if (number, turn) == (12, 0) else loss
            loss.backward()
            before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
            if guard.decide(loss).proceed:
                optimizer.step()
            after = optimizer.param_groups[0]["params"]
            assert all(map(torch.equal, before, after)) == (number == 12), (number, turn)
        guard.end()
    guard.settle()
    assert len(guard.history.incidents) == 1


def test_of_micro_batches_only_the_bad_one_is_left_out():
    def run(late: bool) -> tuple[Guard, list[Tensor]]:
        model = network()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        guard = Guard(model, optimizer, late=late, snapshot_every=1000, strict=True)
        data = batches(40, {23: math.nan})
        torch.manual_seed(2)
        for pair in guard.batches(list(zip(data[::2], data[1::2], strict=True))):
            with guard.step(pair) as step:
                for x, y in pair:
                    step.backward(lambda x, y: loss_of(model, x, y) / 2, x, y)
        return guard, everything(model, optimizer)

    guard, late = run(True)
    _, now = run(False)
    (incident,) = guard.history.incidents
    assert (incident.step, incident.action) == (11, "skip part")
    assert same(late[:-1], now[:-1])


AT_THE_TOP = """
for x, y in guard.batches(data):
    with guard.step((x, y)) as step:
        step.backward(lambda: loss_of(model, x, y))
"""


@pytest.mark.parametrize("where", ["in a function", "in a module"])
def test_a_lambda_is_run_again_with_the_batch_of_its_own_step(where):
    data = batches(30, {13: math.nan})
    data[20] = (data[20][0], data[20][1] * math.nan)
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    guard = Guard(model, optimizer, late=True, snapshot_every=1000, strict=True)
    if where == "in a module":
        exec(AT_THE_TOP, {"guard": guard, "data": data, "model": model, "loss_of": loss_of})
    else:
        for x, y in guard.batches(data):
            with guard.step((x, y)) as step:
                step.backward(lambda: loss_of(model, x, y))  # noqa: B023 - as people write it
    found = [(one.step, one.action, one.culprit.name) for one in guard.history.incidents]
    assert found == [(13, "skip", "batch[0]"), (20, "skip", "batch[1]")]


def test_a_frozen_function_keeps_what_is_around_it():
    def make(value):
        later = value
        inner = lambda: (later, [helper() for _ in range(2)], MISSING)  # noqa: E731, F821
        kept = frozen(inner)
        later = "another"
        return kept, inner

    scope = {"helper": lambda: 1, "MISSING": 2, "frozen": frozen}
    source = textwrap.dedent(inspect.getsource(make))
    exec(source, scope)
    kept, inner = scope["make"]("first")
    scope["MISSING"] = 3
    assert kept() == ("first", [1, 1], 2)
    assert inner() == ("another", [1, 1], 3)
    assert frozen(math.sqrt) is math.sqrt
    assert frozen(None) is None


def test_after_a_step_the_optimizer_is_the_loops_own():
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    guard = Guard(model, optimizer, late=True, strict=True)
    for x, y in batches(6, {5: math.nan}):
        with guard.step((x, y)) as step:
            step.backward(lambda x=x, y=y: loss_of(model, x, y))
    assert not hasattr(optimizer, "found_inf")
    guard.begin()
    loss_of(model, *batches(1)[0]).backward()
    guard.decide(torch.tensor(1.0))
    guard.abandon()
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scaler": torch.amp.GradScaler("cpu")}, "scaler"),
        ({"vote": True}, "vote"),
        ({"backward": Tensor.backward}, "backward"),
    ],
)
def test_what_cannot_be_late(options, told):
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    with pytest.raises(ArgumentError, match=f"late must be False with .*{told}"):
        Guard(model, optimizer, late=True, **options)


def test_an_optimizer_that_cannot_leave_out_a_step():
    model = network()
    for make in (torch.optim.Adam, torch.optim.RMSprop):
        with pytest.raises(ArgumentError, match=r"fused=True; got (Adam|RMSprop)"):
            Guard(model, make(model.parameters()), late=True)
