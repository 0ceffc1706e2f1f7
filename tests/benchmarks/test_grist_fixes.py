"""Cures of GRIST's cases: they count only where the patched program is without the defect."""

from __future__ import annotations

from dataclasses import replace

import pytest

import ranum
from benchmarks.grist import fixes
from benchmarks.grist.case import load
from ranum.repair.clipping import Clip, Clips
from ranum.repair.patch import clip_edit

TORCH = load("torch")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("5", "torch.sqrt(torch.softmax(logits, 1) + 1e-12)"),
        ("12", "log: clamp(min=1.2e-38)"),
        ("22", "F.softplus(a)"),
        ("23", "torch.log_softmax(self.z, 1)"),
        ("26", "torch.nn.functional.logsigmoid(x @ self.weight + self.bias); "),
    ],
)
def test_the_defect_is_cured_in_the_source(name, words):
    found = fixes.cure(TORCH[name], 0)
    assert found.problem == ""
    assert found.words.startswith(words)
    assert found.cured[0] == found.cured[1]
    assert found.diff.startswith("--- a/")


def test_the_defect_is_cured_on_the_graph():
    pytest.importorskip("tensorflow")
    found = fixes.cure(load("tensorflow")["2b"], 0)
    assert found.problem == ""
    assert "clamp(" in found.words
    assert found.diff == ""


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
