"""Training programs that people write: silence for the careful spelling, the line for the other."""

from __future__ import annotations

import program_cases.control
import program_cases.generative
import program_cases.layers
import program_cases.similarity
import program_cases.vision  # noqa: F401 - they fill the table
import pytest
from program_cases.pairs import PAIRS

from ranum.analysis import analyze
from ranum.analysis.result import Analysis


def found(analysis: Analysis) -> set[tuple[str, int]]:
    assert analysis.is_complete, analysis
    assert all(defect.source.file.rpartition("/")[0].endswith("program_cases")
               for defect in analysis.defects), analysis  # fmt: skip
    return {(defect.code, defect.source.line) for defect in analysis.defects}


@pytest.mark.parametrize("weights", ["initial", "envelope"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_careful_spelling_is_quiet(name, weights):
    safe, _, batch = PAIRS[name].build()
    assert found(analyze(safe, *batch, weights=weights)) == set()


@pytest.mark.parametrize("name", PAIRS)
def test_the_other_spelling_is_blamed_at_its_line(name):
    _, wrong, batch = PAIRS[name].build()
    blamed = PAIRS[name].blamed()
    assert blamed
    assert found(analyze(wrong, *batch)) == blamed


def test_there_are_enough_of_them():
    assert len(PAIRS) >= 40
