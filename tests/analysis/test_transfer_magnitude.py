"""Complex numbers, of which the size is bounded."""

from __future__ import annotations

import pytest
import torch
from oracles.boxes import MODES
from oracles.opdb import entries, judge, name_of

import ranum
from ranum.analysis.transfer.magnitude import RULES

ENTRIES = ("fft.fft2", "fft.irfft", "complex")


def _entry(name):
    return next(op for op in entries() if name_of(op) == name)


@pytest.mark.parametrize("name", ENTRIES)
def test_torchs_results_are_no_larger(name):
    outcome = judge(_entry(name), samples=1, modes=lambda number: MODES[:5])
    assert outcome.status == "covered", (outcome.violations, outcome.unknown, outcome.silent)


def test_a_bound_that_is_too_small_is_caught(monkeypatch):
    monkeypatch.setitem(RULES, "_fft_r2c", lambda out, x, **_: (-float(x), float(x)))
    violations = judge(_entry("fft.rfft"), samples=2, modes=lambda number: MODES[:3]).violations
    assert "_fft_r2c" in {violation.op for violation in violations}


def test_mixing_tokens_by_fourier_transforms_is_bounded():
    def step(tokens):
        mixed = torch.fft.fft(torch.fft.fft(tokens, dim=-1), dim=-2).real
        return torch.nn.functional.layer_norm(mixed + tokens, (8,)).square().mean()

    analysis = ranum.analyze(step, torch.linspace(-1, 1, 32).view(4, 8).requires_grad_())
    assert analysis.is_complete
    assert not analysis.defects


def test_a_log_spectrum_without_eps_is_found():
    wave = torch.linspace(-1, 1, 16).requires_grad_()
    defects = ranum.analyze(lambda x: torch.fft.rfft(x).abs().log().sum(), wave).defects
    assert [defect.code for defect in defects] == ["RN101"]
    safe = ranum.analyze(lambda x: (torch.fft.rfft(x).abs() + 1e-3).log().sum(), wave)
    assert not safe.defects
    assert {unknown.op for unknown in safe.unknowns} == {"sgn"}


def test_a_quotient_of_complex_numbers_is_unknown():
    wave = torch.linspace(1, 2, 16).requires_grad_()
    analysis = ranum.analyze(lambda x: (1 / torch.fft.rfft(x)).abs().sum(), wave)
    assert not analysis.is_complete
