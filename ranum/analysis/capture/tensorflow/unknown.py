"""Operators without a lowering: TensorFlow computes them, the analysis lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ranum.analysis.capture.opaque import opaque
from ranum.analysis.capture.tensorflow import bridge
from ranum.analysis.capture.tensorflow.machine import Call
from ranum.analysis.capture.tensorflow.values import from_array, to_array
from ranum.errors import ArgumentError


def unknown(call: Call, *operands: Any) -> tuple[Any, ...]:
    """One opaque operator named after TensorFlow's, with TensorFlow's own gradient."""
    operation = call.operation
    if not all(isinstance(operand, Tensor) for operand in operands) or (
        bridge.operator(operation.type) is None
    ):
        raise ArgumentError(
            f"target holds the operator {operation.type} ({operation.name}), which works on "
            "strings, tables or other things that are no numbers; pass a function without it."
        )
    tf = bridge.tensorflow()

    def compute(*tensors: Tensor) -> list[Any]:
        return [from_array(result.numpy()) for result in _run(tensors)]

    def gradient(own: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Any]:
        operands = [_to_tensorflow(tensor) for tensor in own]
        with tf.GradientTape() as tape:
            tape.watch(operands)
            results = bridge.run_operator(operation.type, dict(operation.attributes), operands)
        exact = [number for number, one in enumerate(results) if one.dtype.is_floating]
        try:
            found = tape.gradient(
                [results[number] for number in exact],
                operands,
                output_gradients=[_to_tensorflow(upstream[number]) for number in exact],
            )
        except LookupError:  # TensorFlow has no gradient for it
            return [None] * len(operands)
        return [None if one is None else from_array(tf.convert_to_tensor(one)) for one in found]

    def _run(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        own = [_to_tensorflow(tensor) for tensor in tensors]
        return bridge.run_operator(operation.type, dict(operation.attributes), own)

    def _to_tensorflow(tensor: Tensor) -> Any:
        return tf.convert_to_tensor(to_array(tensor, tf.bfloat16.as_numpy_dtype))

    return opaque(f"tf.{operation.type}", compute, operands, gradient)
