"""Rules in float16, bfloat16 and float32, on both sides of the limit of each type."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis import analyze

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
X = torch.rand(4, 6) * 0.5 + 0.25

# name -> (step in its own dtype, code, range of x that is safe, one that is not, by dtype)
Range = tuple[float, float]
Limits = dict[torch.dtype, tuple[Range, Range]]
LIMITS: dict[str, tuple[Callable[[Tensor], Tensor], str, Limits]] = {
    "exp": (torch.exp, "RN104", {
        F16: ((-5, 11.0), (-5, 11.2)), BF16: ((-5, 88.0), (-5, 89.5)),
        F32: ((-5, 88.7), (-5, 88.8)), F64: ((-5, 709), (-5, 710)),
    }),
    "log of softmax": (lambda x: torch.log(torch.softmax(x, -1)), "RN101", {
        F16: ((-3, 3), (-9, 9)), BF16: ((-35, 35), (-60, 60)), F32: ((-40, 40), (-60, 60)),
    }),
    "log(1 - sigmoid)": (lambda x: torch.log(1 - torch.sigmoid(x)), "RN101", {
        F16: ((-5, 5), (-5, 9)), BF16: ((-3, 3), (-3, 7)), F32: ((-5, 14), (-5, 17)),
    }),
    "sum of squares": (lambda x: (x * x).sum(), "RN107", {
        F16: ((-40, 40), (-100, 100)), BF16: ((-100, 100), (0, 0)), F32: ((-100, 100), (0, 0)),
    }),
    "reciprocal with an eps of 1e-8": (lambda x: 1 / (x * x + 1e-8), "RN103", {
        F16: ((0.01, 1), (0, 1)), BF16: ((0, 1), (0, 0)), F32: ((0, 1), (0, 0)),
    }),
    "atanh of tanh": (lambda x: torch.atanh(torch.tanh(x)), "RN108", {
        F16: ((-3, 3), (-6, 6)), BF16: ((-2, 2), (-6, 6)), F32: ((-7, 7), (-10, 10)),
    }),
    "power": (lambda x: x**3.0, "RN105", {
        F16: ((0, 39), (0, 42)), BF16: ((0, 200), (0, 0)), F32: ((0, 200), (0, 0)),
    }),
}  # fmt: skip

ROWS = [
    (name, dtype, *ranges)
    for name, (_, _, by_dtype) in LIMITS.items()
    for dtype, ranges in by_dtype.items()
]


def codes(name: str, dtype: torch.dtype, limits: Range) -> set[str]:
    step = LIMITS[name][0]
    recorded = X.clamp(*limits).to(dtype)
    analysis = analyze(lambda x: step(x).amax(), recorded, inputs={"x": limits}, backward=False)
    assert analysis.is_complete
    return {defect.code for defect in analysis.defects}


@pytest.mark.parametrize(("name", "dtype", "safe", "unsafe"), ROWS)
def test_each_type_has_its_own_limit(name, dtype, safe, unsafe):
    assert codes(name, dtype, safe) == set()
    if unsafe != (0, 0):  # none of ordinary size in this type
        assert codes(name, dtype, unsafe) == {LIMITS[name][1]}


@pytest.mark.parametrize(("name", "dtype", "safe", "unsafe"), ROWS)
def test_torch_agrees_about_both_sides(name, dtype, safe, unsafe):
    step = LIMITS[name][0]

    def results(limits: Range) -> Tensor:
        ends = torch.tensor([limits, limits[::-1]], dtype=torch.float64).to(dtype)
        grid = torch.linspace(*limits, 64, dtype=torch.float64).to(dtype).reshape(8, 8)
        return torch.cat([step(ends).flatten(), step(grid).flatten()])

    assert results(safe).isfinite().all()
    if unsafe != (0, 0):
        assert not results(unsafe).isfinite().all()


def test_a_mask_of_minus_1e9_overflows_float16_only():
    def step(x: Tensor) -> Tensor:
        return torch.softmax(x + (x > 0.5).to(x.dtype) * -1e9, -1).float().mean()

    found = {
        dtype: [d.op for d in analyze(step, X.to(dtype), inputs={"x": (0, 1)}).defects]
        for dtype in (F16, BF16, F32)
    }
    assert found == {F16: ["mul"], BF16: [], F32: []}


def test_log_softmax_is_quiet_in_every_type():
    for dtype in (F16, BF16, F32):
        step = lambda x: F.log_softmax(x, -1).float().mean()  # noqa: E731
        assert analyze(step, X.to(dtype), inputs={"x": (-200, 200)}).defects == ()


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_the_gradient_of_softplus_is_computed_in_float32(dtype):
    x = torch.linspace(-60, 60, 1001).to(dtype).requires_grad_()
    F.softplus(x).float().sum().backward()
    assert x.grad.isfinite().all()
    analysis = analyze(lambda x: F.softplus(x).float().mean(), x, inputs={"x": (-60, 60)})
    assert analysis.defects == ()
