"""Estimates of a node's work, against torch's own count; models that ask for too much."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("onnx")

from onnx import helper
from onnx_cases.models import model, value

from ranum.analysis import analyze
from ranum.analysis.capture.onnx import budget
from ranum.analysis.capture.onnx.work import ELEMENT_WORK, elements_of, work_of
from ranum.errors import ArgumentError

A, B = torch.randn(3, 1, 4, 5), torch.randn(2, 5, 6)
IMAGE, KERNEL, GROUPED = torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 3), torch.randn(6, 2, 3, 3)
TURNED = torch.randn(4, 6, 3, 3)
Q, K = torch.randn(2, 3, 7, 4), torch.randn(2, 3, 9, 4)

CASES: dict[str, tuple[str, list[Any], dict[str, Any], Callable[[], Any]]] = {
    "matrices": ("MatMul", [A, B], {}, lambda: A @ B),
    "gemm": ("Gemm", [A[0, 0], B[0]], {}, lambda: A[0, 0] @ B[0]),
    "gemm, both turned": (
        "Gemm", [A[0, 0].T, B[0].T], {"transA": 1, "transB": 1}, lambda: A[0, 0] @ B[0]
    ),
    "convolution": (
        "Conv", [IMAGE, KERNEL], {"strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 2]},
        lambda: F.conv2d(IMAGE, KERNEL, None, (2, 1), (1, 0), (1, 2)),
    ),
    "convolution in groups": (
        "Conv", [IMAGE, GROUPED], {"group": 2, "auto_pad": "SAME_UPPER"},
        lambda: F.conv2d(IMAGE, GROUPED, padding=1, groups=2),
    ),
    "transposed": (
        "ConvTranspose", [IMAGE, TURNED], {"strides": [2, 2]},
        lambda: F.conv_transpose2d(IMAGE, TURNED, stride=2),
    ),
    "einsum": (
        "Einsum", [A, B], {"equation": "...ij, bjk -> b...ik"},
        lambda: torch.einsum("...ij,bjk->b...ik", A, B),
    ),
    "attention": (
        "Attention", [Q, K, K], {}, lambda: Q @ K.mT @ K
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_estimates_are_torchs_own_count(name: str) -> None:
    op, inputs, attributes, run = CASES[name]
    with FlopCounterMode(display=False) as counter:
        run()
    expected = counter.get_total_flops() / 2
    found = work_of(op, inputs, attributes) - ELEMENT_WORK * elements_of(inputs)
    assert expected > 0
    assert expected <= found <= 1.5 * expected


def test_products_with_vectors() -> None:
    matrix, vector = torch.zeros(2, 6, 5), torch.zeros(5)
    assert work_of("MatMul", [matrix, vector], {}) == ELEMENT_WORK * 65 + 60
    assert work_of("MatMul", [vector, vector], {}) == ELEMENT_WORK * 10 + 5


def test_operands_that_do_not_fit_are_left_to_the_lowering() -> None:
    assert work_of("MatMul", [A, 3], {}) == ELEMENT_WORK * A.numel()
    assert work_of("Conv", [A, None], {}) == ELEMENT_WORK * A.numel()
    assert work_of("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "strides": [0, 0]}) > 0


def expanded(name: str, shape: list[int]) -> tuple[Any, dict[str, Any]]:
    return helper.make_node("Expand", ["x", f"{name}_shape"], [name]), {
        f"{name}_shape": np.array(shape)
    }


def test_one_node_that_would_run_for_hours() -> None:
    first, shape = expanded("image", [1, 1, 4096, 4096])
    second, other = expanded("kernel", [1, 1, 2048, 2048])
    node = helper.make_node("Conv", ["image", "kernel"], ["y"], name="blur")
    proto = model(
        [first, second, node], [value("x", [1, 1, 1, 1])], [value("y", None)], shape | other
    )
    with pytest.raises(ArgumentError, match=r"more than 2e\+13 multiplications.*'blur'"):
        analyze(proto)


@pytest.mark.parametrize(("count", "passes"), [(9, True), (11, False)])
def test_many_nodes_are_added_up(monkeypatch: pytest.MonkeyPatch, count: int, passes: bool) -> None:
    monkeypatch.setattr(budget, "WORK_LIMIT", 10 * (64**3 + 3 * ELEMENT_WORK * 64**2))
    names = ["x", *[f"h{number}" for number in range(count)]]
    nodes = [
        helper.make_node("MatMul", [before, "w"], [after]) for before, after in pairwise(names)
    ]
    weight = {"w": np.eye(64, dtype="f")}
    proto = model(nodes, [value("x", [64, 64])], [value(names[-1], None)], weight)
    if passes:
        assert analyze(proto).is_complete
    else:
        with pytest.raises(ArgumentError, match=r"Give it smaller inputs \(`sizes=`\)"):
            analyze(proto)
