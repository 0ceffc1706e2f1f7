"""Models that ask for more than any machine has are refused before it is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import helper
from onnx_cases.models import model, value

from ranum.analysis import analyze
from ranum.analysis.capture.onnx import budget
from ranum.errors import ArgumentError

X = np.ones((2, 3), np.float32)


def refused(target: Any, message: str, *inputs: Any) -> None:
    with pytest.raises(ArgumentError, match=message):
        analyze(target, *inputs)


HUGE = 1 << 36
SIDE = 1 << 20
IMAGE, ONE = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 1, 1), np.float32)
TALL, WIDE = np.ones((1 << 15, 1), np.float32), np.ones((1, 1 << 15), np.float32)
LINE, ZEROS = np.ones(1 << 19, np.float32), np.zeros(1 << 15, np.int64)

COSTLY: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "a fill": ("ConstantOfShape", {"s": [HUGE]}, {}),
    "Expand": ("Expand", {"x": ONE, "s": [HUGE, 1, 1]}, {}),
    "Tile": ("Tile", {"x": TALL, "s": [HUGE, 1]}, {}),
    "Range": ("Range", {"a": 0.0, "b": 1e12, "c": 1.0}, {}),
    "OneHot": ("OneHot", {"i": [0, 1], "s": [HUGE], "v": np.float32([0, 1])}, {}),
    "RandomUniform": ("RandomUniform", {}, {"shape": [HUGE]}),
    "RandomNormal": ("RandomNormal", {}, {"shape": [HUGE]}),
    "HannWindow": ("HannWindow", {"s": HUGE}, {}),
    "MelWeightMatrix": (
        "MelWeightMatrix", {"a": SIDE, "b": 2 * SIDE, "c": 8000, "d": 0.0, "e": 4000.0}, {}
    ),
    "Pad": ("Pad", {"x": LINE, "s": [HUGE, HUGE]}, {}),
    "Pad, reflected": ("Pad", {"x": LINE, "s": [HUGE, HUGE]}, {"mode": "reflect"}),
    "Pad, wrapped": ("Pad", {"x": LINE, "s": [HUGE, HUGE]}, {"mode": "wrap"}),
    "CenterCropPad": ("CenterCropPad", {"x": LINE, "s": [HUGE]}, {}),
    "Resize to a size": ("Resize", {"x": IMAGE, "": 0, " ": 0, "s": [1, 1, SIDE, SIDE]}, {}),
    "Resize by a scale": ("Resize", {"x": IMAGE, "": 0, "s": np.float32([1, 1, 1e9, 1e9])}, {}),
    "AffineGrid": ("AffineGrid", {"x": np.ones((1, 2, 3), "f"), "s": [1, 1, SIDE, SIDE]}, {}),
    "Col2Im": ("Col2Im", {"x": np.ones((1, 1, 1), "f"), "s": [SIDE, SIDE], "b": [1, 1]}, {}),
    "RoiAlign": (
        "RoiAlign", {"x": IMAGE, "r": np.ones((1, 4), "f"), "b": [0]},
        {"output_height": SIDE, "output_width": SIDE},
    ),
    "RoiAlign, sampled": (
        "RoiAlign", {"x": IMAGE, "r": np.ones((1, 4), "f"), "b": [0]}, {"sampling_ratio": 1 << 30}
    ),
    "MaxUnpool": (
        "MaxUnpool", {"x": ONE, "i": np.zeros((1, 1, 1, 1), np.int64), "s": [1, 1, SIDE, SIDE]},
        {"kernel_shape": [2, 2]},
    ),
    "Conv": ("Conv", {"x": IMAGE, "w": ONE}, {"pads": [SIDE] * 4}),
    "MaxPool": ("MaxPool", {"x": IMAGE}, {"pads": [SIDE] * 4, "kernel_shape": [2 * SIDE] * 2}),
    "AveragePool": (
        "AveragePool", {"x": IMAGE},
        {"pads": [SIDE] * 4, "kernel_shape": [2, 2], "count_include_pad": 1},
    ),
    "LpPool": ("LpPool", {"x": IMAGE}, {"pads": [SIDE] * 4, "kernel_shape": [2, 2]}),
    "ConvTranspose by strides": ("ConvTranspose", {"x": IMAGE, "w": ONE}, {"strides": [SIDE] * 2}),
    "ConvTranspose to a size": (
        "ConvTranspose", {"x": IMAGE, "w": ONE}, {"output_shape": [SIDE, SIDE]}
    ),
    "Sum": ("Sum", {"x": TALL, "y": WIDE}, {}),
    "MatMul": ("MatMul", {"x": TALL, "y": WIDE}, {}),
    "Gemm": ("Gemm", {"x": TALL, "y": WIDE}, {}),
    "Einsum": ("Einsum", {"x": LINE, "y": LINE}, {"equation": "i,j->ij"}),
    "Gather": ("Gather", {"x": WIDE, "i": ZEROS}, {}),
    "GatherND": ("GatherND", {"x": WIDE, "i": ZEROS[:, None]}, {}),
    "DFT": ("DFT", {"x": np.ones((1, 4, 1), "f"), "s": HUGE}, {}),
    "STFT": ("STFT", {"x": LINE[None, :, None], "i": 1, "": 0, "s": 1 << 14}, {}),
    "Concat": ("Concat", {"x": LINE}, {"axis": 0}),
}  # fmt: skip


@pytest.mark.parametrize("name", COSTLY)
def test_large_results_are_refused_before_they_are_made(name: str) -> None:
    op, constants, attributes = COSTLY[name]
    kept = {key: np.asarray(one) for key, one in constants.items() if key.strip()}
    kept = {key: one.astype("f") if one.dtype == np.float64 else one for key, one in kept.items()}
    operands = [key.strip() for key in constants] * (1024 if op == "Concat" else 1)
    node = helper.make_node(op, operands, ["out"], **attributes)
    target = model([node], [value("unused", [2, 3])], [value("out", None)], kept)
    refused(target, "is not made: sizes|would carry out more than", X)


def test_many_tensors_that_are_allowed_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 GiB is free, it seems; 60 times 64 MiB are too much of it."""
    if budget.free_bytes() is None:
        pytest.skip("the memory of a process cannot be read here")
    monkeypatch.setattr(budget, "free_bytes", lambda: 1 << 30)
    names = [f"c{number}" for number in range(60)]
    nodes = [helper.make_node("ConstantOfShape", ["s"], [name]) for name in names]
    target = model(
        [*nodes, helper.make_node("Sum", names, ["y"])],
        [value("x", [2, 3])],
        [value("y", None)],
        {"s": np.asarray([1 << 24])},
    )
    refused(target, r"holds .* GiB when it comes to node .*1\.0 GiB were free", X)
