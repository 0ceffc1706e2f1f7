"""The benchmark of injected faults: it recovers, and it notices where nothing does."""

from __future__ import annotations

import math

import pytest

from benchmarks.faults import __main__ as faults
from benchmarks.faults import training
from ranum.guards import Decision

PROCEED = Decision(proceed=True)
pytestmark = pytest.mark.filterwarnings("ignore:Ranum")


@pytest.mark.parametrize("kind", faults.KINDS)
def test_a_run_ends_with_the_references_bits(kind):
    outcome = faults.run(kind, "plain", 21, math.nan)
    assert outcome.actions
    assert outcome.is_same
    assert not outcome.is_lost
    assert outcome.problem == ""


@pytest.mark.parametrize("kind", ["data", "weight", "moment"])
def test_a_loss_is_noticed(kind, monkeypatch):
    monkeypatch.setattr(training.Guard, "decide", lambda *args, **kwargs: PROCEED)
    outcome = faults.run(kind, "plain", 21, math.nan)
    assert outcome.is_lost
    assert not outcome.is_same
    assert outcome.delay is None


def test_another_end_is_noticed(monkeypatch):
    monkeypatch.setattr(training, "remedies", lambda: [training.Rollback(0.5)])
    outcome = faults.run("gradient", "plain", 21, math.inf)
    assert outcome.actions == ("rollback",)
    assert not outcome.is_same
    assert not outcome.is_lost
