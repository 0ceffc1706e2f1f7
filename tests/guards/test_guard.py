"""The guard in plain loops and through the adapters' calls, from fault to recovery."""

from __future__ import annotations

import copy
import json
import math
import runpy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ranum.errors import ArgumentError, RanumWarning
from ranum.guards import base as base_module
from ranum.guards import health
from ranum.guards import torch_guard as guard_module
from ranum.guards.guard import Decision, Guard, Step, TrainingStopped
from ranum.guards.recovery import Outcome, Retry, Rollback, Skip, Stop
from ranum.guards.snapshot import Snapshots
from ranum.guards.symptoms import NonFinite, Symptom
from ranum.guards.types import History, Reading


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def batch(number, value=0.0):
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(5, 6, generator=generator)
    x[0, 0] += value
    return x, torch.arange(5) % 3


def loss_of(model, x, y):
    return F.cross_entropy(model(x), y)


class Run:
    """A model with its optimizer, guard and scheduler."""

    def __init__(self, optimizer=torch.optim.AdamW, lr=0.01, **options):
        self.model = network()
        self.optimizer = optimizer(self.model.parameters(), lr=lr)
        options = {"strict": True, "symptoms": [NonFinite()]} | options
        self.guard = Guard(self.model, self.optimizer, **options)

    def step(self, x, y):
        with self.guard.step((x, y)) as step:
            step.backward(lambda: loss_of(self.model, x, y))
        return step.decision

    def state(self):
        return copy.deepcopy([self.model.state_dict(), self.optimizer.state_dict()])

    @property
    def lr(self):
        return self.optimizer.param_groups[0]["lr"]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# --- a healthy run ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_healthy_run_is_not_changed(optimizer):
    run = Run(optimizer, snapshot_every=3, sample_every=2, symptoms=None)
    decisions = [run.step(*batch(i)) for i in range(20)]
    assert all(decision.proceed and decision.incident is None for decision in decisions)

    model = network()
    plain = optimizer(model.parameters(), lr=0.01)
    for i in range(20):
        plain.zero_grad()
        loss_of(model, *batch(i)).backward()
        plain.step()
    assert same(run.state(), [model.state_dict(), plain.state_dict()])
    assert [reading.step for reading in run.guard.history.readings] == list(range(20))
    assert run.guard.current_step == 20
    assert len(run.guard.snapshots.steps) == 3


# --- faults in every place ----------------------------------------------------------------------


def inject_data(run, x, y):
    x[0, 0] = torch.nan
    return run.step(x, y)


def inject_loss(run, x, y):
    with run.guard.step((x, y)) as step:
        step.backward(lambda: loss_of(run.model, x, y) * torch.log(x.sum() * 0))
    return step.decision


def inject_gradient(run, x, y):
    with run.guard.step((x, y)) as step:
        step.backward(lambda: loss_of(run.model, x, y) + torch.sqrt(run.model[0].weight * 0).sum())
    return step.decision


def inject_gradient_later(run, x, y):
    with run.guard.step((x, y)) as step:
        step.backward(lambda: loss_of(run.model, x, y))
        run.model[0].weight.grad[0, 0] = torch.nan
    return step.decision


def inject_weights(run, x, y):
    with torch.no_grad():
        run.model[4].bias[0] = torch.nan
    return run.step(x, y)


def inject_buffers(run, x, y):
    run.model[1].eval()
    run.model[1].running_mean[0] = torch.nan
    decision = run.step(x, y)
    run.model[1].train()
    return decision


FAULTS = [
    (inject_data, "skip", "data", "batch[0]"),
    (inject_loss, "rollback", "operator", ""),
    (inject_gradient, "rollback", "operator", ""),
    (inject_gradient_later, "skip", None, ""),
    (inject_weights, "rollback", "weights", "4.bias"),
    (inject_buffers, "rollback", "weights", "1.running_mean"),
]


@pytest.mark.parametrize(("inject", "action", "cause", "name"), FAULTS)
def test_fault_is_found_and_recovered_from(inject, action, cause, name):
    run = Run(snapshot_every=5)
    for i in range(8):
        run.step(*batch(i))
    before = run.state()
    decision = inject(run, *batch(8))
    assert not decision.proceed
    incident = decision.incident
    assert (incident.action, incident.step) == (action, 8)
    assert incident.finding.code == "RN201"
    assert (incident.culprit and incident.culprit.cause) == cause
    assert (incident.culprit.name if cause else "") == name
    assert incident.back_to == (5 if action == "rollback" else None)
    assert all(p.grad is None for p in run.model.parameters())
    if action == "skip":
        assert same(run.state(), before)
    assert run.guard.history.incidents == [incident]
    for i in range(9, 13):
        assert run.step(*batch(i)).proceed
    assert all(value.isfinite().all() for value in run.model.state_dict().values())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_skip_leaves_everything_as_if_the_batch_had_never_come(optimizer):
    with_it, without = Run(optimizer), Run(optimizer)
    for run, numbers in ((with_it, [0, 1, "bad", 2, 3]), (without, [0, 1, 2, 3])):
        torch.manual_seed(7)
        for number in numbers:
            run.step(*(batch(9, torch.nan) if number == "bad" else batch(number)))
    assert [i.action for i in with_it.guard.history.incidents] == ["skip"]
    assert same(with_it.state(), without.state())


def test_rollback_is_exact():
    options = {"remedies": [Rollback(learning_rate_factor=1.0)], "snapshot_every": 5}
    broken, clean = Run(**options), Run(**options)
    torch.manual_seed(7)
    for i in range(12):
        clean.step(*batch(i))
    torch.manual_seed(7)
    for i in range(8):
        broken.step(*batch(i))
    decision = broken.step(*batch(8, torch.nan))
    assert decision.incident.back_to == 5
    for i in range(5, 12):
        broken.step(*batch(i))
    assert same(broken.state(), clean.state())


def test_culprit_of_the_step():
    run = Run()
    x, y = batch(0)

    def loss():
        p = torch.softmax(run.model(x) * 1e4, -1)
        return -torch.log(p)[:, 0].mean()

    with run.guard.step((x, y)) as step:
        step.backward(loss)
    culprit = step.decision.incident.culprit
    assert (culprit.op, culprit.outcome, culprit.phase) == ("log", "-Inf", "forward")
    assert culprit.source.expression == "torch.log(p)"
    assert culprit.operands[0].lower == 0


def test_loss_as_a_tensor_cannot_be_replayed_but_data_is_seen():
    for value, cause in ((torch.nan, "data"), (0.0, None)):
        run = Run()
        x, y = batch(0, value)
        with run.guard.step((x, y)) as step:
            loss = step.backward(loss_of(run.model, x, y) * torch.log(x[0, 0] * 0))
        assert isinstance(loss, torch.Tensor)
        culprit = step.decision.incident.culprit
        assert (culprit and culprit.cause) == cause


def test_accumulation():
    run, plain = Run(torch.optim.SGD), Run(torch.optim.SGD)
    parts = [batch(0), batch(1, torch.nan), batch(2)]
    torch.manual_seed(3)
    with run.guard.step(parts) as step:
        for x, y in parts:
            step.backward(lambda x, y: loss_of(run.model, x, y) / 3, x, y)
    incident = step.decision.incident
    assert (incident.culprit.cause, incident.culprit.name) == ("data", "batch[1][0]")
    assert (incident.action, step.decision.proceed) == ("skip part", True)
    torch.manual_seed(3)
    with plain.guard.step() as step:  # as if the step had had two parts from the start
        for x, y in (parts[0], parts[2]):
            step.backward(lambda x, y: loss_of(plain.model, x, y) / 2, x, y)
    torch.testing.assert_close(run.state(), plain.state(), rtol=1e-6, atol=1e-7)


def test_accumulation_of_nothing_but_bad_parts():
    run, plain = Run(torch.optim.SGD), Run(torch.optim.SGD)
    parts = [batch(0, torch.nan), batch(1, torch.nan)]
    with run.guard.step(parts) as step:
        for x, y in parts:
            step.backward(lambda x, y: loss_of(run.model, x, y) / 2, x, y)
    assert (step.decision.incident.action, step.decision.proceed) == ("skip", False)
    assert same(run.state(), plain.state())

    with run.guard.step() as step:
        for i in (3, 4):
            step.backward(lambda x, y: loss_of(run.model, x, y) / 2, *batch(i))
    assert step.decision.proceed
    assert not same(run.state(), plain.state())


# --- the ladder ---------------------------------------------------------------------------------


def test_ladder_goes_deeper_then_stops():
    run = Run(remedies=[Skip(), Rollback(0.5, limit=3)], snapshot_every=6)
    for i in range(13):
        run.step(*batch(i))
    assert run.guard.snapshots.steps == (12, 6, 0)
    incidents = [inject_loss(run, *batch(i)).incident for i in range(3)]
    assert [incident.back_to for incident in incidents] == [12, 6, 0]
    assert run.lr == pytest.approx(0.01 / 8)  # cuts last although the snapshots are older
    with pytest.raises(TrainingStopped, match="no remedy is left") as stopped:
        inject_loss(run, *batch(3))
    assert stopped.value.incident.action == "stop"
    assert [i.action for i in run.guard.history.incidents] == ["rollback"] * 3 + ["stop"]


def test_cuts_before_a_snapshot_are_not_made_twice():
    run = Run(remedies=[Rollback(0.5, patience=5)], snapshot_every=6)
    inject_loss(run, *batch(0))
    assert run.lr == 0.005
    for i in range(20):
        run.step(*batch(i))
    assert run.guard.snapshots.latest_step > 1
    inject_loss(run, *batch(0))
    assert run.lr == 0.0025


def test_stop_leaves_good_weights():
    run = Run(remedies=["stop"])
    run.step(*batch(0))
    with pytest.raises(TrainingStopped):
        inject_weights(run, *batch(1))
    assert all(p.isfinite().all() for p in run.model.parameters())


def test_own_remedy_and_restart():
    class Restart:
        name = "repair"

        def apply(self, fault, guard):
            assert fault.culprit.op == "log"
            return Outcome(action="repair", detail="found one", restart=True)

    run = Run(remedies=[Restart()])
    decision = inject_loss(run, *batch(0))
    assert (decision.restart, decision.stop, decision.incident.action) == (True, False, "repair")


SCHEDULERS = [
    lambda o: torch.optim.lr_scheduler.StepLR(o, 100),
    lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.01, total_steps=50),
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50),
    lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.001, 0.01, cycle_momentum=False),
    lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=4),
            torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
        ],
        milestones=[4],
    ),
]


@pytest.mark.parametrize("make", SCHEDULERS)
def test_learning_rate_cut_lasts_under_schedulers(make):
    def rates(cut):
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scheduler = make(optimizer)
        guard = Guard(model, optimizer, schedulers=[scheduler], strict=True)
        seen = []
        for i in range(12):
            optimizer.step()
            scheduler.step()
            if i == 2:
                guard.scale_learning_rates(cut)
            if i >= 2:
                seen.append(optimizer.param_groups[0]["lr"])
        return seen

    assert rates(0.5) == pytest.approx([rate / 2 for rate in rates(1.0)])


def test_learning_rate_as_a_tensor():
    rate = torch.tensor(0.01)
    run = Run(lr=rate)
    run.guard.scale_learning_rates(0.5)
    assert run.lr is rate
    assert rate.item() == pytest.approx(0.005)
    with pytest.raises(ArgumentError, match="factor must be positive; got 0"):
        run.guard.scale_learning_rates(0)


# --- snapshots ----------------------------------------------------------------------------------


def test_snapshot_counts_only_after_a_good_step():
    run = Run(remedies=[Rollback(patience=1)], snapshot_every=6)
    for i in range(6):
        run.step(*batch(i))
    decision = inject_loss(run, *batch(6))  # the snapshot of step 6 was just taken
    assert decision.incident.back_to == 0
    assert run.guard.snapshots.steps == (0,)


def test_no_snapshot_while_the_loss_is_far_above_its_best(monkeypatch):
    run = Run(torch.optim.SGD, snapshot_every=5, symptoms=[])
    for i in range(30):
        run.step(*batch(i % 3))
    latest = run.guard.snapshots.latest_step
    assert latest >= 25
    with torch.no_grad():
        run.model[4].weight.mul_(300)
    run.optimizer.param_groups[0]["lr"] = 0.0
    for i in range(30):
        run.step(*batch(i % 3))
    assert run.guard.snapshots.latest_step - latest <= 5
    monkeypatch.setattr(health, "NEW_NORMAL", 25)
    for i in range(10):
        run.step(*batch(i % 3))
    assert run.guard.snapshots.latest_step > 55  # accepted: it has been like this for long


def test_surgery_makes_snapshots_unusable_but_not_the_run():
    run = Run(remedies=[Rollback(), Stop()], strict=False)
    run.step(*batch(0))
    run.model[4] = nn.Linear(8, 3)
    run.optimizer.param_groups[0]["params"] = list(run.model.parameters())
    with pytest.warns(RanumWarning, match="'4.weight'"), pytest.raises(TrainingStopped):
        inject_loss(run, *batch(1))
    assert run.guard.snapshots.steps == ()
    assert run.step(*batch(2)).proceed
    assert run.guard.snapshots.steps == (2,)


# --- adapters -----------------------------------------------------------------------------------


def test_adapter_calls():
    run = Run()
    guard, model = run.guard, run.model

    def replay():
        loss = loss_of(model, x, y)
        loss.backward()
        return loss

    for number, value in enumerate([0.0, torch.nan, 0.0]):
        x, y = batch(number, value)
        run.optimizer.zero_grad()
        guard.begin((x, y), replay)
        loss = replay()
        decision = guard.decide(loss, epoch=3)
        assert isinstance(decision, Decision)
        assert decision.proceed is not math.isnan(value)
        assert decision.reading.epoch == 3
        run.optimizer.step()  # an adapter may not be able to hold it back: nothing may move
        guard.end()
    assert guard.history.incidents[0].culprit.name == "batch[0]"
    assert all(p.isfinite().all() for p in model.parameters())


def test_micro_batches_of_an_adapter():
    run = Run(torch.optim.SGD)
    before = run.state()
    for number, value in enumerate([0.0, torch.nan, 0.0]):
        x, y = batch(number, value)

        def replay(x=x, y=y):
            loss = loss_of(run.model, x, y)
            loss.backward()
            return loss

        run.guard.begin((x, y), replay)
        loss = replay()
        if number == 2:
            decision = run.guard.decide(loss)
        run.guard.end()
    assert decision.incident.culprit.name == "batch[1][0]"
    assert decision.proceed
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.model.parameters())
    weights = [name for name, _ in run.model.named_parameters()]
    assert all(same(run.state()[0][name], before[0][name]) for name in weights)


def test_decide_without_begin_and_twice():
    run = Run()
    assert run.guard.decide(1.0).proceed
    run.guard.begin()
    assert run.guard.decide(1.0).proceed
    assert not run.guard.decide(torch.nan).proceed
    run.guard.begin()  # without end
    assert run.guard.decide(None).proceed
    run.guard.end()
    assert [reading.step for reading in run.guard.history.readings] == [0, 1, 2, 3]


def test_exception_in_the_body_goes_on_and_leaves_the_guard_usable():
    run = Run()
    with pytest.raises(ValueError, match="mine"), run.guard.step():
        raise ValueError("mine")
    assert run.guard.current_step == 0
    assert run.step(*batch(0)).proceed


def test_several_optimizers():
    model = network()
    optimizers = [
        torch.optim.SGD(model[:2].parameters(), lr=0.1),
        torch.optim.Adam(model[4].parameters(), lr=0.1),
    ]
    guard = Guard(model, optimizers, strict=True)
    weights = [model[0].weight, model[4].weight]
    before = [weight.detach().clone() for weight in weights]
    with guard.step(batch(0)) as step:
        step.backward(loss_of, model, *batch(0))
    assert step.decision.proceed
    assert not any(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


# --- gradient scaling ---------------------------------------------------------------------------


def test_scaler_may_look_for_its_scale():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    run = Run(torch.optim.SGD, scaler=scaler)
    before = copy.deepcopy(run.optimizer.state_dict())
    first = copy.deepcopy(list(run.model.parameters()))
    x, y = batch(0, 50.0)
    with run.guard.step() as step:
        step.backward(lambda: loss_of(run.model, x, y) * 100)
    assert step.decision.proceed
    assert scaler.get_scale() == 2.0**126
    assert same(list(run.model.parameters()), first)
    assert same(run.optimizer.state_dict(), before)
    assert run.guard.history.incidents == []


def test_scaler_and_a_bad_batch():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    run = Run(torch.optim.SGD, scaler=scaler)
    for value in (0.0, torch.nan, 0.0):
        run.step(*batch(0, value))
    assert scaler.get_scale() == 8.0
    assert [i.action for i in run.guard.history.incidents] == ["skip"]
    assert all(p.isfinite().all() for p in run.model.parameters())


# --- faults of our own --------------------------------------------------------------------------


def fail(*args, **kwargs):
    raise OSError("inside")


BROKEN = [
    ("taking snapshots", lambda m: m.setattr(guard_module.LoaderPosition, "keep_from", fail)),
    ("the guard", lambda m: m.setattr(guard_module.TorchReader, "measure", fail)),
    ("the guard", lambda m: m.setattr(guard_module.TorchReader, "watch", fail)),
    ("the culprit search", lambda m: m.setattr(guard_module, "find_culprit", fail)),
]


@pytest.mark.parametrize(("part", "breakage"), BROKEN)
def test_a_fault_inside_is_reported_once_and_training_goes_on(part, breakage, monkeypatch):
    breakage(monkeypatch)
    run = Run(strict=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(4):
            run.step(*batch(i, torch.nan if i == 2 and part == "the culprit search" else 0.0))
    assert [str(w.message) for w in caught if part in str(w.message)] == [
        f"{part} failed: OSError: inside. It is switched off; training goes on."
    ]
    assert len(caught) == 1
    assert run.guard.history.internal_faults == [f"{part} failed: OSError: inside"]
    assert all(p.isfinite().all() for p in run.model.parameters())


@pytest.mark.parametrize("is_repeatable", [False, True])
def test_a_huge_gradient_that_does_not_come_again_is_retried(is_repeatable):
    """A flipped bit makes numbers that are finite, and gone when the step is run again."""

    def trained(at):
        run = Run(remedies=[Retry(), Skip()], symptoms=None)
        weight = next(run.model.parameters())
        spoiled = []

        def spoil(gradient):
            now = run.guard.current_step == at
            if now and (is_repeatable or not spoiled):
                spoiled.append(True)
                return gradient * 1e20
            return gradient

        weight.register_hook(spoil)
        for x, y in run.guard.batches([batch(i) for i in range(12)]):
            with run.guard.step((x, y)) as step:
                step.backward(lambda x=x, y=y: F.cross_entropy(run.model(x), y))
        return list(run.model.state_dict().values()), run.guard.history.incidents

    state, incidents = trained(at=9)
    assert [i.action for i in incidents] == ["skip" if is_repeatable else "retry"]
    assert same(state, trained(at=-1)[0]) is not is_repeatable
    if not is_repeatable:
        assert incidents[0].detail == "the step had ordinary gradients when it was run again"


def with_statistics(spoil, steps=30, **options):
    """A run over kept batches; `spoil(step, norm)` may change BatchNorm's statistics."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5)
    model = nn.Sequential(nn.Linear(6, 5), norm, nn.ReLU(), nn.Linear(5, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    options = {"remedies": [Rollback(1.0)], "snapshot_every": 5} | options
    guard = Guard(model, optimizer, strict=True, **options)
    for given, y in guard.batches([batch(i) for i in range(steps)]):
        x = spoil(guard.current_step, norm, given)
        with guard.step((x, y)) as step:
            step.backward(lambda x=x, y=y: F.cross_entropy(model(x), y))
    return [*model.state_dict().values()], guard.history


@pytest.mark.parametrize("factor", [2.0**126, 2.0**64, 2.0**32])
def test_a_bit_flipped_in_a_running_variance_is_undone(factor):
    def flip(step, norm, x):
        if step == 17:
            norm.running_var[2] *= factor
        return x

    with_statistics(flip, remedies=["stop"], steps=17)
    state, history = with_statistics(flip)
    expected, _ = with_statistics(lambda step, norm, x: x)
    (incident,) = history.incidents
    assert (incident.action, incident.step, incident.back_to) == ("rollback", 17, 15)
    assert "running_var) has grown" in incident.finding.message
    assert "times what was there in weights" in str(incident.culprit)
    assert same(state, expected)


def test_a_jump_that_the_batches_explain_is_accepted():
    """A column that is a fill value now and then: the run is that of one without the check."""

    def fill(step, norm, x):
        hit = torch.equal(x, batch(17)[0])
        return x + 1e6 * torch.eye(len(x))[:, :1] if hit else x

    state, history = with_statistics(fill)
    expected, plain = with_statistics(fill, symptoms=[])
    assert [i.action for i in history.incidents] == ["rollback"]
    assert plain.incidents == []
    assert same(state, expected)


def test_first_batches_and_smaller_jumps_are_ordinary():
    def unscaled(step, norm, x):
        return x * (255 if step == 17 else 1) * 1e6  # 1e12 times the variance of 1 at first

    _, history = with_statistics(unscaled)
    assert history.incidents == []


def test_own_gradients_say_nothing_about_those_of_all_processes(monkeypatch):
    """As under Lightning, where a replay does not go through the replicas."""
    run = Run(remedies=[Retry(), Skip()], symptoms=None)
    own = (("is_shared", lambda: True), ("agree", lambda answer: answer), ("rank", lambda: 0))
    for name, value in own:
        monkeypatch.setattr(guard_module.processes, name, value)
    monkeypatch.setattr(guard_module.processes, "gathered", lambda value: [value])
    run.guard._reduce = lambda answer: answer
    weight = next(run.model.parameters())
    handle = weight.register_hook(lambda g: g * 1e20 if run.guard.current_step == 9 else g)
    for x, y in run.guard.batches([batch(i) for i in range(12)]):
        with run.guard.step((x, y)) as step:
            step.backward(lambda x=x, y=y: F.cross_entropy(run.model(x), y))
            if run.guard.current_step == 9:
                handle.remove()
    assert [i.action for i in run.guard.history.incidents] == ["skip"]


def test_the_older_fsdp_is_refused():
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = nn.Sequential(nn.Linear(2, 2))
    wrapped = FullyShardedDataParallel.__new__(FullyShardedDataParallel)  # needs an accelerator
    nn.Module.__init__(wrapped)
    model.append(wrapped)
    with pytest.raises(ArgumentError, match=r"model must not be wrapped .* Use fully_shard"):
        Guard(model, torch.optim.SGD(model[0].parameters(), lr=0.1))


def test_a_snapshot_that_cannot_be_taken_leaves_the_older_ones(monkeypatch):
    run = Run(strict=False, snapshot_every=6, remedies=[Rollback(1.0)])
    run.step(*batch(0))
    monkeypatch.setattr(Snapshots, "take", fail)
    for i in range(1, 6):
        run.step(*batch(i))
    with pytest.warns(RanumWarning, match="taking a snapshot failed"):
        run.step(*batch(6))
    for i in range(7, 10):
        run.step(*batch(i))
    run.step(*batch(10, torch.nan))
    assert [(i.action, i.back_to) for i in run.guard.history.incidents] == [("rollback", 0)]
    assert all(b.isfinite().all() for b in run.model.buffers())


@pytest.mark.parametrize(("part", "breakage"), BROKEN)
def test_strict_raises(part, breakage, monkeypatch):
    breakage(monkeypatch)
    run = Run()
    with pytest.raises(OSError, match="inside"):
        run.step(*batch(0, torch.nan))


def test_failing_remedy_and_symptom_are_in_the_history():
    class Broken(NonFinite):
        def check(self, window):
            raise OSError("rule")

    class Remedy:
        name = "broken"
        apply = staticmethod(fail)

    run = Run(strict=False, symptoms=[Broken(), NonFinite()], remedies=[Remedy(), Skip()])
    with pytest.warns(RanumWarning) as caught:
        run.step(*batch(0, torch.nan))
    assert len(caught) == len(run.guard.history.internal_faults) == 2
    assert run.guard.history.incidents[0].action == "skip"


def test_callers_own_exceptions_go_through():
    run = Run(on_incident=fail, strict=False)
    with pytest.raises(OSError, match="inside"):
        run.step(*batch(0, torch.nan))


def test_callbacks_are_told():
    findings, incidents = [], []
    run = Run(on_finding=findings.append, on_incident=incidents.append)
    run.step(*batch(0, torch.nan))
    assert [finding.code for finding in findings] == ["RN201"]
    assert incidents == list(run.guard.history.incidents)
    assert run.guard.history.findings == findings


# --- history and state --------------------------------------------------------------------------


def test_state_dict_survives_json():
    run = Run(remedies=["skip", "rollback"])
    run.step(*batch(0))
    run.step(*batch(1, torch.nan))
    inject_loss(run, *batch(2))
    state = run.guard.state_dict()
    text = json.dumps(state, allow_nan=False)

    other = Run(remedies=["rollback"])
    other.guard.load_state_dict(json.loads(text))
    assert other.guard.history.incidents == run.guard.history.incidents
    assert other.guard.history.findings == run.guard.history.findings
    assert other.guard.current_step == 3
    assert other.guard.state_dict()["remedies"] == [
        ["rollback", {"recent": [2], "was_rewound": False, "cuts": 1}]
    ]
    assert other.step(*batch(3)).proceed
    with pytest.raises(ArgumentError, match="version 1; got 2"):
        other.guard.load_state_dict({**state, "version": 2})


def test_history_goes_on_after_a_restart():
    run = Run()
    run.step(*batch(0))
    run.step(*batch(1, torch.nan))
    other = Run(history=run.guard.history)
    other.step(*batch(2))
    assert [reading.step for reading in other.guard.history.readings] == [0, 1, 2]
    assert len(other.guard.history.incidents) == 1
    assert len(run.guard.history.readings) == 2
    assert Run(history=History()).guard.current_step == 0


def test_history_is_bounded(monkeypatch):
    monkeypatch.setattr(base_module, "READINGS_KEPT", 8)
    run = Run()
    for i in range(30):
        run.step(*batch(i))
    steps = [reading.step for reading in run.guard.history.readings]
    assert len(steps) <= 9
    assert steps[0] == 0
    assert steps[-4:] == [26, 27, 28, 29]


def test_close_leaves_nothing_behind():
    run = Run(sample_every=1)
    run.guard.begin()
    run.guard.close()
    assert not any(module._forward_hooks for module in run.model.modules())
    assert run.guard.snapshots.steps == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshot_every": 0}, "snapshot_every must be a positive integer or 'auto'; got 0"),
        ({"snapshot_every": 2.5}, "snapshot_every must be a positive integer or 'auto'; got 2.5"),
        ({"snapshot_every": "often"}, "snapshot_every must be a positive integer or 'auto'; got"),
        ({"snapshot_to": "nowhere"}, "snapshot_to must be one of .* or a folder that exists; got"),
        ({"also": [3]}, "also must have state_dict and load_state_dict; got int"),
        ({"sample_every": 0}, "sample_every must be a positive integer or 'auto'; got 0"),
        ({"keep": 0}, "keep must be a positive integer; got 0"),
        ({"on_finding": 3}, "on_finding must be callable or None; got 3"),
        ({"on_incident": "x"}, "on_incident must be callable or None; got 'x'"),
        ({"remedies": ["leap"]}, "remedies must be objects or among"),
        ({"symptoms": [3]}, "symptoms must be Symptom instances; got 3"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ArgumentError, match=message):
        Run(**options)


def test_step_arguments():
    run = Run()
    for given, message in (
        ((torch.ones(1, requires_grad=True).sum(), 3), "args must be empty"),
        ((lambda: 3,), "loss must be a tensor; got int"),
    ):
        with pytest.raises(ArgumentError, match=message), run.guard.step() as step:
            step.backward(*given)
    assert isinstance(step, Step)
    model = nn.Linear(1, 1)
    guard = Guard(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ArgumentError, match="LBFGS"), guard.step():
        pass


def test_repr():
    assert repr(Run().guard) == "Guard(Sequential, step=0, incidents=0, snapshots=())"


def test_example(capsys):
    path = Path(__file__).parents[2] / "examples" / "plain_loop.py"
    example = runpy.run_path(str(path))
    assert example["error"](example["train"]()) < 0.2
    told = capsys.readouterr().out
    assert "`torch.log(spread)`" in told
    assert "rollback: went back to step 0; learning rate x 0.5" in told
    assert "skip: left the batch out: NaN in batch[1]" in told


def test_a_fault_of_the_run_does_not_end_it_when_no_remedy_is_left():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    guard = Guard(model, optimizer, remedies=[], strict=True)
    x = torch.randn(8, 3)
    for i in range(200):
        with guard.step(x) as step:
            step.backward(lambda scale=1.0 if i < 20 else 100.0: scale * (model(x) ** 2 + 1).mean())
    assert [incident.action for incident in guard.history.incidents] == ["go on"]
    assert guard.history.incidents[0].finding.code == "RN208"
    assert guard.current_step == 200


# --- gradients clipped, rates lowered for a while, warnings acted on ----------------------------


def spiking():
    """Batches of which two have a loss far too large, as of outliers."""
    return [(*batch(i), 1e9 if i in (18, 20) else 1.0) for i in range(30)]


def plain_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def test_exploding_gradients_that_come_again_are_clipped_and_the_batch_is_kept():
    model = plain_network()
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.01), strict=True)
    for x, y, scale in guard.batches(spiking()):
        with guard.step((x, y)) as step:
            step.backward(lambda x=x, y=y, scale=scale: loss_of(model, x, y) * scale)
    first, second = guard.history.incidents
    assert (first.action, first.step) == ("skip", 18)
    assert (second.action, second.step) == ("clip_gradients", 20)
    assert second.detail.endswith("for 200 steps; the batch comes again")
    level = float(second.detail.split("norm ")[1].split(" ")[0])
    norms = [reading.grad_norm for reading in guard.history.readings]
    assert len(norms) == 31
    assert norms[20] == norms[21] > 1e6

    other = plain_network()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.01)
    for number, (x, y, scale) in enumerate(spiking()):
        if number == 18:
            continue
        optimizer.zero_grad()
        (loss_of(other, x, y) * scale).backward()
        if number >= 20:
            nn.utils.clip_grad_norm_(other.parameters(), level)
        optimizer.step()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_limit_on_gradients_is_what_torch_clips_to():
    ours, theirs = Run(torch.optim.SGD), network()
    plain = torch.optim.SGD(theirs.parameters(), lr=0.01)
    torch.manual_seed(3)
    numbers = torch.get_rng_state()
    ours.guard.limit_gradients(0.05, steps=5)
    for i in range(8):
        ours.step(*batch(i))
    torch.set_rng_state(numbers)
    for i in range(8):
        plain.zero_grad()
        loss_of(theirs, *batch(i)).backward()
        if i < 5:
            assert nn.utils.clip_grad_norm_(theirs.parameters(), 0.05) > 0.05
        plain.step()
    for a, b in zip(ours.model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": 0, "steps": 1}, "norm must be positive and finite; got 0"),
        ({"norm": 1.0, "steps": 0}, "steps must be a positive integer; got 0"),
    ],
)
def test_limits_are_checked(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Run().guard.limit_gradients(**arguments)


def test_a_learning_rate_comes_back_up_also_after_a_rollback():
    run = Run(lr=0.08, snapshot_every=4, remedies=["rollback"])
    for i in range(8):
        run.step(*batch(i))
    run.guard.scale_learning_rates(0.25, steps=6)  # at step 8, until step 14
    assert run.lr == pytest.approx(0.02)
    for i in range(8, 13):
        run.step(*batch(i))
    inject_weights(run, *batch(13))  # back to a snapshot from before or after the cut
    assert run.guard.history.incidents[-1].back_to is not None
    assert run.lr == pytest.approx(0.02)
    run.step(*batch(14))
    assert run.lr == pytest.approx(0.08)
    for i in range(15, 20):
        run.step(*batch(i))
    assert run.lr == pytest.approx(0.08)


def test_a_rate_that_will_come_back_is_in_the_guards_state():
    run = Run(lr=0.08)
    run.guard.scale_learning_rates(0.5, steps=3)
    run.guard.limit_gradients(7.0, steps=9)
    other = Run(lr=0.04)
    other.guard.load_state_dict(json.loads(json.dumps(run.guard.state_dict())))
    for i in range(5):
        other.step(*batch(i))
    assert other.lr == pytest.approx(0.08)
    assert other.guard.state_dict()["limit"] == [7.0, 9]


@dataclass(frozen=True, slots=True)
class Third(Symptom):
    """A warning at the third step; for this test."""

    code: ClassVar[str] = "RN206"
    severity: ClassVar[str] = "warning"

    def check(self, window):
        return self.find(window, "three") if window.latest.step == 3 else None


class Answer:
    name = "answer"

    def __init__(self, outcome):
        self.outcome = outcome
        self.faults = []

    def apply(self, fault, guard):
        self.faults.append(fault)
        return self.outcome


@pytest.mark.parametrize("named", ["RN206", "SlowConvergence"])
def test_remedies_act_on_the_warnings_that_were_named(named):
    answer = Answer(Outcome(action="answer", detail="restarts", restart=True))
    run = Run(symptoms=[Third()], remedies=[answer], act_on=[named])
    decisions = [run.step(*batch(i)) for i in range(5)]
    assert [decision.restart for decision in decisions] == [False, False, False, True, False]
    assert not decisions[3].proceed
    assert run.guard.history.incidents[0].finding.severity == "warning"
    assert answer.faults[0].is_of_run


def test_a_warning_that_no_remedy_fits_changes_nothing():
    answer = Answer(None)
    run = Run(symptoms=[Third()], remedies=[answer, "skip", "rollback", "stop"], act_on=["RN206"])
    quiet, other = Run(symptoms=[Third()]), None
    for i in range(5):
        torch.manual_seed(i)
        assert run.step(*batch(i)).proceed
        torch.manual_seed(i)
        other = quiet.step(*batch(i))
    assert len(answer.faults) == 1
    assert not run.guard.history.incidents
    assert other.proceed
    assert same(run.state(), quiet.state())


def test_unknown_symptoms_to_act_on_are_refused():
    with pytest.raises(
        ArgumentError, match=r"act_on must hold .*NonFinite \(RN201\).*; got \[.RN999.\]"
    ):
        Run(act_on=["RN999"])
    with pytest.raises(ArgumentError, match="got 'RN206'"):
        Run(act_on="RN206")


def test_a_decision_says_whether_the_batch_is_left_out():
    assert Run(remedies=["skip"]).step(*batch(0, torch.nan)).leaves_out
    run = Run(remedies=["rollback"])
    run.step(*batch(0))
    decision = run.step(*batch(1, torch.nan))
    assert not decision.proceed
    assert not decision.leaves_out
    assert not run.step(*batch(2)).leaves_out


# --- damage at rest -----------------------------------------------------------------------------


def damage_weight(run):
    with torch.no_grad():
        run.model[0].weight[0, 0] = torch.inf


def damage_buffer(run):
    run.model[1].running_var[0] = torch.nan


def damage_moment(run):
    run.optimizer.state[run.model[0].weight]["exp_avg"][0, 0] = torch.nan


@pytest.mark.parametrize("harm", [damage_weight, damage_buffer, damage_moment])
def test_damage_at_rest_is_found_before_the_state_is_saved(harm):
    told = []
    run = Run(snapshot_every=2, remedies=["rollback"], on_incident=told.append)
    for i in range(12):
        run.step(*batch(i))
    assert run.guard.check_at_rest() is None
    harm(run)
    decision = run.guard.check_at_rest(epoch=3)
    assert decision.incident is told[0]
    assert decision.incident.culprit.cause == "weights"
    assert decision.incident.epoch == 3
    assert 8 <= decision.incident.back_to < 12
    assert run.guard.check_at_rest() is None
    assert run.step(*batch(12)).proceed


def test_without_a_snapshot_damage_at_rest_is_told_only():
    run = Run()
    damage_weight(run)
    incident = run.guard.check_at_rest().incident
    assert incident.action == "go on"
    assert incident.back_to is None


def test_a_mask_of_infinities_is_no_damage():
    run = Run()
    run.model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    run.step(*batch(0))
    assert run.guard.check_at_rest() is None


# --- when a snapshot is worth taking ------------------------------------------------------------


def after(losses):
    """The health of a run with these losses."""
    seen = health.Health()
    for step, loss in enumerate(losses):
        seen.see(Reading(step=step, loss=loss, grad_norm=1.0))
    return seen.is_good


@pytest.mark.parametrize(
    ("losses", "is_good"),
    [
        ([2.3, 2.2, 2.1, 2.0, 1.9, 1.8], True),
        ([2.3] * 4, False),  # not settled yet
        ([2.3, 5e3] + [5e3, 1e4] * 30, False),  # blew up at once, and swings
        ([2.3, 2.2, 2.0, 2.1] + [500.0, 9.0] * 30, False),  # blew up later
        ([0.01, -0.5, 0.4, -0.3, 0.5, 0.45] * 9, True),  # around zero from the start
        ([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], True),
    ],
)
def test_a_state_is_good_if_its_loss_is_near_the_first_or_below(losses, is_good):
    assert after(losses) is is_good
