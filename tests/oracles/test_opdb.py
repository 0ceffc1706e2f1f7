"""torch's operator database: every result lies in its interval."""

from __future__ import annotations

import pytest
import torch
from oracles.boxes import MODES
from oracles.opdb import Outcome, entries, judge, name_of

from ranum.analysis import propagate
from ranum.analysis.interval import Interval
from ranum.analysis.transfer.registry import Rule, rule_for

HALF_AND_DOUBLE = (torch.float16, torch.bfloat16, torch.float64)
COVERED = 530
"""Entries all of whose rules say something; more is better, fewer is a regression."""


def _some(number: int):
    """Two boxes a sample, different ones from sample to sample."""
    return MODES[number % len(MODES)], MODES[(number + 3) % len(MODES)]


def _complaints(outcomes: list[Outcome]) -> str:
    lines = [str(item) for outcome in outcomes for item in outcome.violations]
    lines += [line for outcome in outcomes for line in sorted(outcome.faults)]
    return "\n".join(lines[:40])


def test_a_sample_of_the_database():
    outcomes = [judge(op, samples=1, modes=_some) for op in entries()[::8]]
    assert not _complaints(outcomes), _complaints(outcomes)
    assert sum(outcome.status == "covered" for outcome in outcomes) > COVERED / 10


@pytest.mark.slow  # about eight minutes
@pytest.mark.timeout(3600)
def test_the_whole_database():
    dtypes = (torch.float32, *HALF_AND_DOUBLE)
    outcomes = [judge(op, dtypes=dtypes, samples=8, modes=_some) for op in entries()]
    assert not _complaints(outcomes), _complaints(outcomes)
    assert sum(outcome.status == "covered" for outcome in outcomes) >= COVERED


def _entry(name):
    return next(op for op in entries() if name_of(op) == name)


@pytest.mark.parametrize(
    ("entry", "op", "wrong"),
    [
        ("exp", "exp", lambda x: Interval.full(0, 1, x.shape, x.dtype)),
        ("log", "log", lambda x: Interval.full(-1e30, 1e30, x.shape, x.dtype)),
        (
            "nn.functional.softplus",
            "softplus_backward",
            lambda grad_output, x, **_: Interval.full(0, 1, x.shape, x.dtype),
        ),
    ],
)
def test_a_wrong_transfer_function_is_caught(monkeypatch, entry, op, wrong):
    rule = Rule(op, wrong, "all", "forward")
    monkeypatch.setattr(propagate, "rule_for", lambda name: rule if name == op else rule_for(name))
    assert op in {violation.op for violation in judge(_entry(entry), samples=3).violations}


def test_what_is_unknown_is_told_apart(monkeypatch):
    monkeypatch.setattr(
        propagate, "rule_for", lambda name: None if name == "tanh" else rule_for(name)
    )
    outcome = judge(_entry("tanh"), samples=2)
    assert outcome.unknown == {"tanh"}
    assert outcome.status == "partial"
    assert not outcome.violations
