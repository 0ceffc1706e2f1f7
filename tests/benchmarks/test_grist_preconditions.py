"""GRIST's cases cured by ranges: they count only where the whole program is analysed again."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

import ranum
from benchmarks.grist import preconditions
from benchmarks.grist.case import load
from benchmarks.grist.preconditions import geometric, outcomes, summary

TORCH = load("torch")


def options(**changed):
    chosen = {
        "where": preconditions.PLACES,
        "ranges": "documented",
        "compare": False,
        "seconds": 20.0,
        "descent_seconds": 5.0,
    }
    return argparse.Namespace(**(chosen | changed))


def test_a_case_at_each_place():
    weights, inputs, both = outcomes(TORCH["47"], 0, options())
    assert (weights.verdict, inputs.verdict, both.verdict) == ("found", "impossible", "found")
    assert inputs.how == "fails anyway"
    assert len(weights.widths) == 2
    assert 0 < geometric(weights.widths) < 0.5
    assert both.widths[-1] == 1.0


def test_it_keeps_more_than_the_plain_descents_from_the_same_ranges():
    chosen = options(ranges="ranum", compare=True, where=("inputs",))
    (found,) = outcomes(TORCH["38"], 0, chosen)
    assert found.verdict == "found"
    assert found.others["descent"][0] is None  # the softmax underflows: the bounds are flat
    signed, _ = found.others["signed"]
    assert geometric(found.widths) > geometric(signed) > 0.3
    assert "1 of 1 found" in summary([found], "inputs")


def test_a_cure_that_does_not_verify_does_not_count(monkeypatch):
    def wide(*args, **kwargs):
        found = search(*args, **kwargs)
        kept = tuple(replace(one, lower=one.lower, upper=1e9, edit=None) for one in found.kept)
        return replace(found, kept=kept)

    search = preconditions.loosest_ranges
    monkeypatch.setattr(preconditions, "loosest_ranges", wide)
    (found,) = outcomes(TORCH["47"], 0, options(where=("weights",)))
    assert found.verdict.startswith("not verified")
    assert "0 of 1 found" in summary([found], "weights")


def test_a_graph_of_tensorflow_is_analysed_again_for_the_ranges():
    pytest.importorskip("tensorflow")
    (found,) = outcomes(load("tensorflow")["40"], 0, options(where=("weights",)))
    assert found.verdict == "found"
    assert found.ranges.startswith("weight [")


def test_inputs_of_tensorflow_are_clipped_in_its_own_words():
    pytest.importorskip("tensorflow")
    case = load("tensorflow")["3"]
    analysis = preconditions._as_ranum(case.build(0))
    found = ranum.fix(analysis, "inputs")
    assert "+        x = tf.clip_by_value(x, " in found.diff()
    assert found.verify().remaining == ()
    assert found.verify().problem == ""
