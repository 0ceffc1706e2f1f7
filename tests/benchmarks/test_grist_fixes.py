"""Cures of GRIST's cases: they count only where the patched program is without the defect."""

from __future__ import annotations

from dataclasses import replace

import pytest

import ranum
from benchmarks.grist import developers, fixes
from benchmarks.grist.case import load
from ranum.repair.clipping import Clip, Clips
from ranum.repair.patch import clip_edit

TORCH = load("torch")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("5", "torch.sqrt(torch.softmax(logits, 1) + 1e-12)"),
        ("12", "torch.log_softmax(self.output(F.dropout("),
        ("22", "F.softplus(a)"),
        ("23", "torch.log_softmax(self.z, 1)"),
        ("26", "torch.nn.functional.binary_cross_entropy_with_logits(x @ self.weight + self"),
    ],
)
def test_the_defect_is_cured_in_the_source(name, words):
    found = fixes.cure(TORCH[name], 0)
    assert found.problem == ""
    assert found.words.startswith(words)
    assert found.cured[0] == found.cured[1]
    assert found.diff.startswith("--- a/")


def test_the_source_of_a_graph_is_edited():
    pytest.importorskip("tensorflow")
    found = fixes.cure(load("tensorflow")["2b"], 0)
    assert found.problem == ""
    assert found.words == "log: clamp(min=1.2e-38)"
    assert "+        hit = y * tf.nn.log_softmax(x @ weight + bias)" in found.diff
    assert "+        rest = (1 - y) * tf.math.log(tf.maximum(1 - p, 1.2e-38))" in found.diff


def test_the_developers_fix_is_measured_like_ours():
    ours, theirs = developers.compare(TORCH["12"])
    assert (ours.problem, theirs.problem) == ("", "")
    assert ours.alive > theirs.alive  # log(p + eps) has no gradient where p is 0
    assert developers.verdict(ours, theirs) == "better"
    assert developers.verdict(theirs, ours) == "worse"


def test_a_verdict_follows_from_the_numbers():
    good = developers.Quality("", 6, 0.0)
    assert developers.verdict(good, good) == "equal"
    assert developers.verdict(good, replace(good, change=1e-6)) == "equal"
    assert developers.verdict(replace(good, change=0.1), good) == "worse"
    assert developers.verdict(replace(good, alive=2), replace(good, change=0.1)) == "worse"
    assert (
        developers.verdict(replace(good, problem="still there"), replace(good, alive=1)) == "worse"
    )


def test_a_fix_that_does_not_fit_the_program_is_an_error(monkeypatch):
    fix = replace(developers.FIXES["12"], edits={"torch.log(nothing)": "0"})
    monkeypatch.setitem(developers.FIXES, "12", fix)
    with pytest.raises(LookupError, match="stands near"):
        developers.compare(TORCH["12"])


def test_a_clamp_that_cures_nothing_does_not_count(monkeypatch, capsys):
    def useless(analysis):
        clips = [
            Clip(defect=one, lower=-9.0, edit=clip_edit(one.source, one.op, lower=-9.0))
            for one in analysis.defects
        ]
        return Clips(tuple(clips), analysis)

    monkeypatch.setattr(ranum, "fix", useless)
    assert fixes.cure(TORCH["23"], 0).problem == "it is still there"
    monkeypatch.setattr(fixes, "load", lambda framework: TORCH)
    monkeypatch.setattr("sys.argv", ["fixes", "23"])
    assert fixes.main() == 1
    assert "0 of 1 cured at the operator" in capsys.readouterr().out


def test_a_defect_that_is_not_reported_is_not_cured():
    case = replace(TORCH["23"], flaws=(replace(TORCH["23"].flaws[0], text="never"),))
    assert fixes.cure(case, 0).problem == "not reported"
