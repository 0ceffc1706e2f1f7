"""The benchmark of symptoms: a silent judge scores nothing, a talkative one is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from benchmarks.symptoms import __main__ as benchmark
from benchmarks.symptoms.broken import BROKEN
from benchmarks.symptoms.healthy import HEALTHY
from benchmarks.symptoms.held_out import BROKEN_HELD_OUT, HEALTHY_HELD_OUT
from benchmarks.symptoms.judge import run
from benchmarks.symptoms.task import Case
from ranum.guards.symptoms import Symptom, VanishingGradient, Window
from ranum.guards.types import Finding

ALL_HEALTHY, ALL_BROKEN = (*HEALTHY, *HEALTHY_HELD_OUT), (*BROKEN, *BROKEN_HELD_OUT)
CASES = {case.name: case for case in (*ALL_HEALTHY, *ALL_BROKEN)}


@dataclass(frozen=True, slots=True)
class Talkative(Symptom):
    code: ClassVar[str] = "RN299"
    severity: ClassVar = "fault"

    def check(self, window: Window) -> Finding | None:
        return self.find(window, "Something.")


def test_there_are_enough_runs_and_names_are_their_own():
    assert len(CASES) == len(ALL_HEALTHY) + len(ALL_BROKEN)
    assert len(HEALTHY) >= 12
    assert len(BROKEN) >= 20
    assert all(case.is_healthy for case in ALL_HEALTHY)
    for case in ALL_BROKEN:
        assert 0 < case.within <= case.steps


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_case_trains(case):
    outcome = run(Case(case.name, case.build, 2), seed=0)
    assert outcome.checks == {"Ranum": 2}


def test_a_broken_run_is_named_by_the_right_symptom_only():
    case = CASES["deep sigmoid"]
    outcome = run(case, seed=0)
    assert outcome.named("Ranum") == 40
    assert outcome.is_in_time("Ranum")
    assert not outcome.others("Ranum")
    silent = run(case, seed=0, symptoms=())
    assert silent.named("Ranum") is None
    assert not silent.is_in_time("Ranum")
    wrong = run(case, seed=0, symptoms=[Talkative()])
    assert wrong.named("Ranum") is None
    assert [verdict.times for verdict in wrong.others("Ranum")] == [case.steps]
    late = Case(case.name, case.build, 60, case.expected, within=30)
    assert not run(late, seed=0, symptoms=[VanishingGradient()]).is_in_time("Ranum")


def test_peers_rules_are_asked_on_the_same_run():
    outcome = run(CASES["deep sigmoid"], seed=0, peers=True)
    plain = run(CASES["deep sigmoid"], seed=0)
    assert (outcome.first, outcome.last) == (plain.first, plain.last)
    said = {(v.judge, v.name) for v in outcome.verdicts if v.first == 0}
    assert ("AutoTrainer", "vanishing gradient") in said
    assert ("SageMaker", "VanishingGradient") in said
    assert ("TheDeepChecker", "vanishing gradient") in said
    assert outcome.named("Lightning") is None


def test_an_alarm_on_a_healthy_run_fails_the_benchmark(monkeypatch, capsys):
    name = "least squares, full batch"
    assert benchmark.main([name, "--seeds", "1"]) == 0
    assert "| Ranum | 0 of 1 | 0.0% of 600 |" in capsys.readouterr().out
    monkeypatch.setattr("benchmarks.symptoms.judge.default_symptoms", lambda: (Talkative(),))
    assert benchmark.main([name, "--seeds", "1"]) == 1
    assert "| Ranum | 1 of 1 | 100.0% of 600 |" in capsys.readouterr().out


def test_a_broken_run_that_is_not_named_fails_the_benchmark(monkeypatch, capsys):
    assert benchmark.main(["log of zero", "--seeds", "3-4"]) == 0
    assert "| Ranum | 0 of 0 | - of 0 | 2 of 2 | 2 | 0 |" in capsys.readouterr().out
    monkeypatch.setattr("benchmarks.symptoms.judge.default_symptoms", tuple)
    assert benchmark.main(["log of zero", "--seeds", "3-4"]) == 1


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["no such run"])
    assert "unknown cases ['no such run']" in capsys.readouterr().err
