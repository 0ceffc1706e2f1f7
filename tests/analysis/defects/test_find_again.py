"""Objections to merged bounds: which of them stand, and what is walked again for that."""

import pytest
import torch

from ranum.analysis import analyze
from ranum.analysis.defects import find

SCALE = torch.tensor([1.0, 100.0])
"""A constant with two very different columns: merged, it is [1, 100] everywhere."""


def falls(x):
    return torch.log(x * SCALE - torch.tensor([0.5, 50.0])).sum()  # 0.5 and 50 at least


def stands(x):
    return torch.log(x * SCALE - torch.tensor([1.5, 50.0])).sum()  # -0.5 in the first column


@pytest.fixture
def walks(monkeypatch):
    """Numbers of nodes of every walk."""
    sizes = []
    run = find._Search.run
    monkeypatch.setattr(
        find._Search, "run", lambda self, steps: sizes.append(len(steps)) or run(self, steps)
    )
    return sizes


def _analysis(step):
    return analyze(step, torch.ones(3, 2), inputs={"x": (1.0, 1.25)}, backward=False)


def test_an_objection_that_falls_has_everything_walked_again(walks):
    analysis = _analysis(falls)
    assert analysis.defects == ()
    whole = len(analysis.graph.nodes)
    assert (walks[0], walks[-1]) == (whole, whole)
    assert walks[1] < whole
    assert analysis.bounds["loss"].is_finite


def test_an_objection_that_stands_has_only_its_cone_walked_again(walks):
    analysis = _analysis(stands)
    (defect,) = analysis.defects
    assert (defect.code, defect.op, defect.reach) == ("RN101", "log", "initial")
    assert (defect.bounds.low, defect.bounds.high) == (-0.5, 75.0)  # merged: [-49, 123.5]
    whole = len(analysis.graph.nodes)
    assert walks[0] == whole
    assert max(walks[1:]) < whole
