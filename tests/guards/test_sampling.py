"""How often every layer is looked at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ranum import ArgumentError, Guard
from ranum.guards._sampling import FIRST, Sampling


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(plain: float, sample: float, *, noise: int = 0, **options) -> Sampling:
    """The first steps of a run whose steps take so many seconds."""
    clock = Clock()
    sampling = Sampling("auto", clock=clock, **options)
    for number in range(FIRST + 1):
        sampling.step(number)
        clock.now += plain + sample * (number % sampling.steps == 0)
        clock.now += 50 * plain if noise and number % noise == 0 else 0
    return sampling


@pytest.mark.parametrize(
    ("plain", "sample", "steps"),
    [(0.010, 0.002, 20), (0.010, 0.0, 10), (0.001, 0.0005, 50), (0.0001, 0.01, 1000)],
)
def test_samples_take_a_hundredth_of_the_time_after_the_first_steps(plain, sample, steps):
    sampling = run(plain, sample)
    assert sampling.steps == pytest.approx(steps, abs=1)
    share = sample / sampling.steps / plain
    assert share <= 0.0101 or sampling.steps == 1000


def test_a_few_slow_steps_do_not_count():
    assert run(0.010, 0.002, noise=13).steps == pytest.approx(20, abs=1)


def test_the_first_steps_are_sampled_often_and_then_nothing_is_timed_any_more():
    clock = Clock()
    sampling = Sampling("auto", clock=clock)
    for number in range(FIRST):
        sampling.step(number)
        clock.now += 1 + 10 * (number % 10 == 0)
        assert sampling.steps == 10
    sampling.step(FIRST)
    assert sampling.steps == 1000
    sampling._clock = lambda: pytest.fail("asked for the time")
    sampling.step(FIRST + 1)


def test_all_processes_take_the_largest():
    asked = []

    def largest(value: float) -> float:
        asked.append(value)
        return 123.0

    assert run(0.01, 0.002, largest=largest).steps == 123
    assert len(asked) == 1


def test_a_number_is_taken_as_it_is():
    sampling = Sampling(7, clock=lambda: pytest.fail("asked for the time"))
    for number in range(20):
        sampling.step(number)
    assert sampling.steps == 7


@pytest.mark.parametrize("every", [0, -1, True, 2.5, "often", None])
def test_nonsense_is_refused(every):
    with pytest.raises(ArgumentError, match="sample_every must be a positive integer or 'auto'"):
        Sampling(every)


def test_a_guard_samples_as_often_as_was_chosen(monkeypatch):
    monkeypatch.setattr("ranum.guards._sampling.FIRST", 30)
    monkeypatch.setattr(Sampling, "_chosen", lambda _: 17)
    model = nn.Linear(3, 1)
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.01), strict=True)
    for _ in range(100):
        x = torch.randn(4, 3)
        with guard.step(x) as step:
            step.backward(lambda x=x: model(x).square().mean())
    sampled = [one.step for one in guard.history.readings if one.is_sampled]
    assert sampled == [0, 10, 20, 34, 51, 68, 85]
