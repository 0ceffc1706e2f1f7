"""The score on GRIST's cases and the truth it is measured by: both can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.grist import __main__ as command
from benchmarks.grist.case import Flaw, Set, load
from benchmarks.grist.score import analyze, score
from benchmarks.grist.truth import proof, search

TORCH = load("torch")
QUICK = ["4", "5", "13", "26", "32"]


def scored(case, flaws=None):
    return score(case, analyze(case, case.build(0)), flaws)


def test_there_are_79_cases_with_formula_training_and_target():
    pytest.importorskip("tensorflow")
    cases = load()
    frameworks = [case.framework for case in cases.values()]
    assert (frameworks.count("torch"), frameworks.count("tensorflow")) == (22, 57)
    for case in cases.values():
        assert case.formula
        assert case.targets
        assert len(case.formula.splitlines()) == 1


@pytest.mark.parametrize("name", QUICK)
def test_every_flaw_is_reported_and_nothing_else(name):
    assert scored(TORCH[name]).is_perfect


@pytest.mark.parametrize("name", ["2b", "16b", "35b", "36a"])
def test_tensorflow_flaws_are_reported_and_nothing_else(name):
    pytest.importorskip("tensorflow")
    assert scored(load("tensorflow")[name]).is_perfect


def test_28a_is_quiet_in_its_range_and_found_beyond():
    pytest.importorskip("tensorflow")
    case = load("tensorflow")["28a"]
    assert scored(case).is_perfect
    assert not scored(case).found
    assert "it is found" in command.beyond(case, 0)


def test_a_wrong_truth_fails():
    case = TORCH["26"]
    one, *rest = case.flaws
    missing = scored(case, rest)
    assert [line for line in missing.false if "torch.log(h)" in line]
    extra = scored(case, [*case.flaws, Flaw("log", "torch.log(2 - h)", "never")])
    assert [flaw.text for flaw in extra.missed] == ["torch.log(2 - h)"]
    other = scored(case, [replace(one, op="exp"), *rest])
    assert other.missed
    assert other.false
    assert not missing.is_perfect
    assert not extra.is_perfect


@pytest.mark.parametrize(("flaws", "code"), [(TORCH["4"].flaws, 0), ((), 1)])
def test_the_command_fails_on_a_false_alarm(monkeypatch, capsys, flaws, code):
    case = replace(TORCH["4"], flaws=flaws)
    monkeypatch.setattr(command, "load", lambda framework: {"4": case})
    monkeypatch.setattr("sys.argv", ["grist", "4"])
    assert command.main() == code
    assert ("false alarm: RN101" in capsys.readouterr().out) == bool(code)


@pytest.mark.parametrize("name", QUICK)
def test_every_flaw_has_a_witness(name):
    for flaw in TORCH[name].flaws:
        assert proof(TORCH[name], flaw) == ""


def test_a_witness_that_does_no_harm_is_no_proof():
    case = TORCH["26"]
    tame = replace(case.flaws[0], witness={"bias": Set(1)})
    assert "it gave" in proof(case, tame)
    assert "leaves" in proof(case, replace(tame, witness={"bias": Set(-300)}))
    assert "leaves" in proof(case, replace(tame, witness={"x": Set(-200)}))
    assert proof(case, replace(tame, text="torch.log(z)")) == "no such operator ran"
    sure = replace(TORCH["5"].flaws[0], witness={})
    assert "finite" in proof(TORCH["5"], sure)


def test_the_search_finds_what_the_table_lacks():
    case = TORCH["26"]
    assert search(case, 20) == []
    found = search(replace(case, flaws=case.flaws[:1]), 20)
    assert len(found) >= 1
    assert all("torch.log(1 - h)" in line for line in found)


@pytest.mark.slow  # ten minutes or so
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_all_cases(framework):
    pytest.importorskip("tensorflow")
    found = [command.scored(case, 0) for case in load(framework).values()]
    wrong = {one.case.name: command.problems(one) for one in found if not one.is_perfect}
    assert wrong == {}


@pytest.mark.slow  # tens of minutes
@pytest.mark.timeout(3600)
def test_every_flaw_of_every_case_has_a_witness():
    pytest.importorskip("tensorflow")
    wrong = {
        f"{name} {flaw.op} {flaw.text}": problem
        for name, case in load().items()
        for flaw in case.flaws + case.beyond
        if (problem := proof(case, flaw))
    }
    assert wrong == {}
