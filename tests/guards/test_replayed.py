"""Steps that are replays of a captured graph, which leave out what is bad by themselves.

CUDA captures such graphs; here a function stands in for one: it works on tensors that stay where
they are, and on nothing else.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ranum import ArgumentError, Guard
from ranum.guards import TrainingStopped

WARM = 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))


def batches(count: int, bad: dict[int, float] | None = None) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    made = [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(count)]
    for index, value in (bad or {}).items():
        made[index][0][2, 1] = value
    return made


class Graph:
    """Captures a training step on CUDA's terms, as far as a CPU can tell."""

    def __init__(self, model: nn.Module, optimizer, guard: Guard | None) -> None:
        self.x, self.y, self.loss = torch.zeros(16, 4), torch.zeros(16, 1), torch.zeros(())
        self.model, self.optimizer, self.guard = model, optimizer, guard
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        self.places = [(p, p.grad, p.grad.data_ptr()) for p in model.parameters()]
        kept = [value.clone() for value in self.everything()]
        self.replay()
        with torch.no_grad():  # to capture runs nothing; a stand-in has to put it back
            for value, before in zip(self.everything(), kept, strict=True):
                value.copy_(before)

    def everything(self) -> list[Tensor]:
        states = [v for p in self.model.parameters() for v in self.optimizer.state[p].values()]
        return [*self.model.state_dict().values(), *states]

    def replay(self) -> None:
        for p, gradient, place in self.places:
            assert p.grad is gradient
            assert gradient.data_ptr() == place
            gradient.zero_()
        loss = (self.model(self.x) - self.y).square().mean()
        loss.backward()
        self.loss.copy_(loss.detach())
        if self.guard is not None:
            self.guard.hold(self.loss)
        self.optimizer.step()


def train(data, *, held: bool = True, kept: bool = True, **options):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.02), fused=True)
    options = {"snapshot_every": 1000, "strict": True, **options}
    guard = Guard(model, optimizer, late=True, **options)
    for x, y in data[:WARM]:
        with guard.step((x, y)) as step:
            step.backward(lambda x=x, y=y: (model(x) - y).square().mean())
    graph = Graph(model, optimizer, guard if held else None)
    rest = data[WARM:]
    if not held:
        for x, y in rest:
            graph.x.copy_(x), graph.y.copy_(y)
            graph.replay()
        return guard, graph.everything()
    for x, y in guard.batches(rest) if kept else rest:
        again = lambda x=x, y=y: (model(x) - y).square().mean()  # noqa: E731
        with guard.replayed((x, y), loss=graph.loss, again=again):
            graph.x.copy_(x), graph.y.copy_(y)
            graph.replay()
    guard.settle()
    return guard, graph.everything()


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def test_a_healthy_run_is_that_of_the_graph_alone():
    data = batches(40)
    guard, guarded = train(data, snapshot_every=10)
    _, alone = train(data, held=False)
    assert same(guarded, alone)
    assert guard.history.incidents == []
    assert [reading.step for reading in guard.history.readings] == list(range(40))


@pytest.mark.parametrize("at", [4, 12, 20, 38, 39])
def test_a_bad_batch_leaves_no_trace(at):
    data = batches(40, {at: math.nan})
    guard, guarded = train(data)
    _, never = train(data[:at] + data[at + 1 :], held=False)
    (incident,) = guard.history.incidents
    assert (incident.step, incident.action) == (at, "skip")
    assert incident.culprit.cause == "data"
    assert same(guarded, never)


def test_two_bad_batches_in_a_row():
    data = batches(40, {12: math.nan, 13: math.inf})
    guard, guarded = train(data)
    _, never = train(data[:12] + data[14:], held=False)
    assert [one.step for one in guard.history.incidents] == [12, 13]
    assert same(guarded, never)


def test_a_gradient_that_explodes():
    data = batches(60)
    data[40] = (data[40][0], data[40][1] + 1e8)
    guard, guarded = train(data, remedies=["skip", "stop"])
    _, never = train(data[:40] + data[41:], held=False)
    (incident,) = guard.history.incidents
    assert (incident.step, incident.finding.code) == (40, "RN202")
    assert same(guarded, never)


def test_the_step_launched_meanwhile_is_left_out_too():
    data = batches(40, {12: math.nan})
    _, guarded = train(data, kept=False)
    _, never = train(data[:12] + data[14:], held=False)
    assert same(guarded, never)


def test_a_rollback_writes_to_the_tensors_of_the_graph():
    data = batches(60, {33: math.nan})
    guard, guarded = train(data, remedies=["rollback"], snapshot_every=10)
    (incident,) = guard.history.incidents
    assert (incident.step, incident.back_to) == (33, 24)
    assert all(bool(value.isfinite().all()) for value in guarded)
    assert guard.optimizers[0].param_groups[0]["lr"].item() == pytest.approx(0.01)


def test_a_run_that_cannot_go_on_is_stopped():
    with pytest.raises(TrainingStopped):
        train(batches(60, dict.fromkeys(range(20, 60), math.nan)))


def test_the_first_snapshot_of_a_graph_is_taken_at_once():
    guard, _ = train(batches(8))
    assert guard.snapshots.steps == (WARM + 1,)


def test_what_is_not_prepared_is_refused():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x, y = batches(1)[0]
    now, late = Guard(model, optimizer), Guard(model, optimizer, late=True)
    with pytest.raises(ArgumentError, match="hold is for a guard with late=True"):
        now.hold(torch.zeros(()))
    with pytest.raises(ArgumentError, match="call it after the backward pass"):
        late.hold(torch.zeros(()))
    loss = (model(x) - y).square().mean()
    loss.backward()
    with pytest.raises(ArgumentError, match="some steps of `step` before the capture"):
        late.hold(loss)
    with pytest.raises(ArgumentError, match="captured with hold"), late.replayed((x, y), loss=loss):
        pass
