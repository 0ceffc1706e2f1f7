"""Every lowering computes what TensorFlow computes, gradients and corners included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import Tensor

from ranum.analysis.capture.tensorflow.lowerings import LOWERINGS
from ranum.analysis.capture.tensorflow.trace import traced
from ranum.analysis.capture.tensorflow.values import as_torch, to_array

from .operators import ROWS, Row, normal


def by_tensorflow(row: Row) -> tuple[list[Any], dict[str, Any], list[np.ndarray]]:
    """Results, gradients by operand, and the upstream gradients they are for."""
    operands = {name: tf.constant(value) for name, value in row.operands.items()}
    floats = [name for name, one in operands.items() if one.dtype.is_floating]
    with tf.GradientTape() as tape:
        tape.watch([operands[name] for name in floats])
        results = row.call(operands)
    upstream = [
        normal(*result.shape, seed=7).astype(result.dtype.as_numpy_dtype)
        for result in results
        if result.dtype.is_floating
    ]
    gradients: dict[str, Any] = {}
    if row.gradients and upstream and floats:
        found = tape.gradient(
            [result for result in results if result.dtype.is_floating],
            [operands[name] for name in floats],
            output_gradients=[tf.constant(one) for one in upstream],
        )
        for name, one in zip(floats, found, strict=True):
            zeros = tf.zeros_like(operands[name])
            gradients[name] = (zeros if one is None else tf.convert_to_tensor(one)).numpy()
    return [result.numpy() for result in results], gradients, upstream


def by_torch(row: Row, upstream: list[np.ndarray]) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    names = list(row.operands)
    operands = tuple(as_torch(row.operands[name]) for name in names)
    collected: list[Tensor] = []

    def finish(results: list[Tensor]) -> Tensor:
        collected[:] = results
        return torch.zeros(())

    program = traced(
        lambda *values: row.call(dict(zip(names, values, strict=True))),
        operands,
        tuple(names),
        root=None,
        finish=finish,
        backward=False,
        description=row.name,
    )
    for operand in operands:
        if operand.is_floating_point():
            operand.requires_grad_(True)
    program.step(*operands)
    floats = [one for one in collected if one.is_floating_point()]
    if upstream and any(one.requires_grad for one in floats):
        pairs = [
            (one, as_torch(seed))
            for one, seed in zip(floats, upstream, strict=True)
            if one.requires_grad
        ]
        torch.autograd.backward([one for one, _ in pairs], [seed for _, seed in pairs])
    return collected, {name: one.grad for name, one in zip(names, operands, strict=True)}


QUICK = frozenset(
    [
        "Atan2",
        "AvgPool",
        "Conv2DBackpropInput",
        "DivNoNan",
        "FusedBatchNormV3",
        "GatherV2",
        "Maximum",
        "Minimum",
        "MulNoNan",
        "Pow",
        "Prod",
        "Selu",
        "SoftmaxCrossEntropyWithLogits",
        "StridedSlice",
        "Xdivy",
        "Xlogy",
    ]
)
"""Operators that TensorFlow and torch differ in; the rest is slow (25 s)."""


def marked() -> list[Any]:
    seen: dict[str, int] = {}
    rows = []
    for row in ROWS:
        seen[row.name] = seen.get(row.name, 0) + 1
        is_quick = row.name in QUICK and seen[row.name] <= 4
        rows.append(pytest.param(row, marks=() if is_quick else pytest.mark.slow))
    return rows


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("row", marked(), ids=lambda row: row.label)
def test_same_results_and_gradients(row):
    assert row.name in LOWERINGS
    results, gradients, upstream = by_tensorflow(row)
    own, own_gradients = by_torch(row, upstream if row.gradients else [])
    assert len(own) == len(results)
    for expected, got in zip(results, own, strict=True):
        array = to_array(got, tf.bfloat16.as_numpy_dtype)
        assert array.dtype == expected.dtype
        np.testing.assert_allclose(
            array.astype(np.complex128 if got.is_complex() else np.float64),
            expected.astype(np.complex128 if got.is_complex() else np.float64),
            row.tolerance,
            row.tolerance,
        )
    for name, expected in gradients.items():
        got = own_gradients[name]
        array = np.zeros_like(expected) if got is None else got.numpy()
        np.testing.assert_allclose(array, expected, row.tolerance, row.tolerance, err_msg=name)


@pytest.mark.parametrize("name", ["Sqrt", "Rsqrt", "Reciprocal", "Log", "Tanh"])
def test_no_gradient_from_upstream_stays_none(name):
    row = Row(name, {"x": np.array([0, 0, 1, 4, -1, np.inf], "f")})
    upstream = [np.array([0, 1, 0, 1, 0, 0], "f")]
    x = tf.constant(row.operands["x"])
    with tf.GradientTape() as tape:
        tape.watch(x)
        (result,) = row.call({"x": x})
    expected = tape.gradient(result, x, output_gradients=tf.constant(upstream[0]))
    _, gradients = by_torch(row, upstream)
    np.testing.assert_allclose(gradients["x"], expected, row.tolerance, row.tolerance)


def test_a_wrong_lowering_is_noticed(monkeypatch):
    row = next(row for row in ROWS if row.name == "Maximum")
    monkeypatch.setitem(LOWERINGS, "Maximum", lambda call, x, y: torch.minimum(x, y))
    with pytest.raises(AssertionError):
        test_same_results_and_gradients(row)
