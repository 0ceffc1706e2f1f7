"""New rules speak of what happens: for each program a failing input is found and run again."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ranum.analysis import analyze
from ranum.analysis.confirm import confirm

torch.manual_seed(0)
X = torch.rand(4, 6) * 0.5 + 0.25

# name -> (step, range of x, code, outcome)
PROGRAMS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float], str, str]] = {
    "acos": (torch.acos, (-2, 2), "RN108", "NaN"),
    "asin": (torch.asin, (-2, 2), "RN108", "NaN"),
    "acosh": (lambda x: torch.acosh(x + 1), (-1, 1), "RN108", "NaN"),
    "atanh": (lambda x: torch.atanh(torch.tanh(x)), (-20, 20), "RN108", "Inf"),
    "erfinv": (torch.erfinv, (-2, 2), "RN108", "NaN"),
    "logit": (torch.logit, (-1, 2), "RN101", "NaN"),
    "xlogy": (lambda x: torch.xlogy(1.0, x), (0, 1), "RN101", "-Inf"),
    "remainder": (lambda x: torch.remainder(1.0, x), (0, 1), "RN103", "NaN"),
    "0 * inf": (lambda x: (x.round() * -math.inf).sigmoid(), (0, 1), "RN111", "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_failing_input_is_found(name):
    step, limits, code, outcome = PROGRAMS[name]
    (defect,) = analyze(lambda x: step(x).mean(), X, inputs={"x": limits}).defects
    assert defect.code == code
    witness = confirm(defect, seconds=10.0)
    assert witness is not None
    assert outcome in witness.outcome
