"""Programs that torch's own kernels keep safe, and those no bound is known for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import ranum

X, Y = torch.linspace(-2, 2, 12).view(4, 3), torch.linspace(3, -1, 12).view(4, 3)

QUIET = {
    "cdist": lambda a, b: torch.cdist(a, b).sum(),
    "cdist of many rows": lambda a, b: torch.cdist(a.repeat(9, 1), b.repeat(9, 1)).sum(),
    "cdist, p = 3": lambda a, b: torch.cdist(a, b, p=3).sum(),
    "pdist": lambda a, b: F.pdist(a).sum(),
    "singular values": lambda a, b: torch.linalg.svdvals(a).sum(),
    "spectral norm": lambda a, b: torch.linalg.matrix_norm(a * b, 2),
    "QR": lambda a, b: torch.linalg.qr(a)[0].sum(),
    "eigenvalues": lambda a, b: torch.linalg.eigvalsh(a.T @ a).sum(),
    "matrix exponential": lambda a, b: torch.matrix_exp(a[:3] / 4).sum(),
    "channel shuffle": lambda a, b: F.channel_shuffle(a.view(1, 4, 3, 1), 2).sum(),
    "a scalar selected": lambda a, b: a.sum().index_select(0, torch.tensor([0])).sum(),
    "sinc": lambda a, b: torch.sinc(a).sum(),
    "largest per slot": lambda a, b: _per_slot(a, "amax"),
    "smallest per slot, at most x": lambda a, b: _per_slot(a, "amin", include_self=False),
    "index_reduce": lambda a, b: b.index_reduce(0, torch.tensor([0, 1, 1, 3]), a, "amax").sum(),
    "variances on the diagonal of cov": lambda a, b: torch.cov(a).diagonal().add(0.1).sqrt().sum(),
}
LOUD = {
    "hypot at (0, 0)": (lambda a, b: torch.hypot(a, b).sum(), {("RN106", "hypot")}),
    "xlogy at (0, 0)": (lambda a, b: torch.xlogy(a, b.square()).sum(), {("RN101", "xlogy")}),
    "a constant in corrcoef": (
        lambda a, b: torch.corrcoef(a).sum(),
        {("RN106", "sqrt"), ("RN103", "div")},
    ),
    "eigenvectors of equal values": (
        lambda a, b: torch.linalg.eigh(a.T @ a)[1].sum(),
        {("RN106", "_linalg_eigh")},
    ),
}
REMEDIED = {
    "hypot away from 0": lambda a, b: torch.hypot(a, b.abs() + 1e-3).sum(),
    "xlogy above 0": lambda a, b: torch.xlogy(a, b.square() + 1e-3).sum(),
}


def _per_slot(a, reduce, **options):
    index = torch.tensor([[0, 0, 2], [1, 0, 2], [0, 1, 2], [2, 2, 1]])
    return torch.zeros(4, 3).scatter_reduce(0, index, a, reduce, **options).sum()


def _analysis(program):
    return ranum.analyze(program, X.clone().requires_grad_(), Y.clone().requires_grad_())


@pytest.mark.filterwarnings("ignore:index_reduce")  # torch calls it beta
@pytest.mark.parametrize("program", QUIET.values(), ids=QUIET.keys())
def test_torch_keeps_it_finite(program):
    analysis = _analysis(program)
    assert not analysis.defects


@pytest.mark.parametrize("program", REMEDIED.values(), ids=REMEDIED.keys())
def test_the_remedy_is_quiet(program):
    assert not _analysis(program).defects


@pytest.mark.parametrize(("program", "expected"), LOUD.values(), ids=LOUD.keys())
def test_a_gradient_that_is_lost_is_found(program, expected):
    assert {(defect.code, defect.op) for defect in _analysis(program).defects} == expected


def test_an_operator_without_a_bound_makes_the_report_incomplete_and_raises_no_alarm():
    analysis = _analysis(lambda a, b: torch.linalg.inv(a.T @ a + torch.eye(3)).sum())
    assert not analysis.defects
    assert not analysis.is_complete
    assert "linalg_inv_ex" in {unknown.op for unknown in analysis.unknowns}


def test_a_result_written_into_a_narrower_tensor_is_rounded_to_it():
    def step(a, b):
        total = a.bfloat16()
        total += b  # float32
        return total.float().sum()

    analysis = _analysis(step)
    assert analysis.is_complete
    assert not analysis.defects
    assert not [note for note in analysis.notes if "failed" in note]
