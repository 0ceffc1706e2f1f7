"""ONNX's own node tests: equal results by our lowerings, and sound intervals."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest

onnx = pytest.importorskip("onnx")

from onnx_cases import oracle  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

LEAST_EQUAL = 1_800
"""Tests that must be lowered with equal results, of 1,884."""

SAMPLE = 12
"""Every twelfth test is in the quick run."""


@pytest.fixture(scope="module")
def names() -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(oracle.cases())


def judged(names: list[str]) -> list[oracle.Outcome]:
    return [oracle.judge(oracle.cases()[name]) for name in names]


def violations(outcomes: list[oracle.Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.violations[0] for outcome in outcomes if outcome.violations}


def test_a_sample_of_the_node_tests(names: list[str]) -> None:
    outcomes = judged(names[::SAMPLE])
    status = Counter(outcome.status for outcome in outcomes)
    assert status["failed"] == 0, [o.detail for o in outcomes if o.status == "failed"]
    assert status["equal"] >= 0.95 * len(outcomes), status
    assert violations(outcomes) == {}
    assert sum(outcome.checks for outcome in outcomes) > 1_000


@pytest.mark.slow  # 90 s
@pytest.mark.timeout(1800)
def test_all_node_tests(names: list[str]) -> None:
    outcomes = judged(names)
    status = Counter(outcome.status for outcome in outcomes)
    assert status["failed"] == 0
    assert status["equal"] >= LEAST_EQUAL, status
    assert violations(outcomes) == {}


def test_a_wrong_lowering_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from ranum.analysis.capture.onnx import registry

    entry = registry._TABLE["", "Sin"][-1]
    wrong = registry.Lowering(
        op="Sin",
        domain="",
        since=1,
        function=lambda x: x.cos(),
        attributes=frozenset(),
        takes_call=False,
        least=1,
        most=1,
    )
    monkeypatch.setitem(registry._TABLE, ("", "Sin"), [wrong])
    assert oracle.judge(oracle.cases()["test_sin"]).status == "different"
    monkeypatch.setitem(registry._TABLE, ("", "Sin"), [entry])
    assert oracle.judge(oracle.cases()["test_sin"]).status == "equal"


def test_an_unsound_interval_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from ranum.analysis.interval import Interval
    from ranum.analysis.transfer import registry

    rule = registry._RULES["exp"]

    def narrow(x: Interval) -> Interval:
        middle = (rule.function(x).low + rule.function(x).high) / 2
        return Interval.full(middle, middle, x.shape, x.dtype)

    broken = registry.Rule("exp", narrow, rule.domain, rule.phase)
    monkeypatch.setitem(registry._RULES, "exp", broken)
    assert not oracle.judge(oracle.cases()["test_exp"]).is_sound


def test_a_test_that_needs_another_evaluator_does_not_count() -> None:
    assert oracle.judge(oracle.cases()["test_string_concat"]).status == "unknown"
