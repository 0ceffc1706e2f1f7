"""Runs a program once, in its own framework, and says which operators failed.

An operator has failed if it gave NaN or infinity for finite operands. This is arithmetic that
happened, not analysis: PyTorch's by the recorder's extremes, TensorFlow's by fetching every
tensor of the traced function, with subnormal numbers flushed as TensorFlow does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.grist.case import Built, Case, Set
from ranum.source import source_lines

Extremes = tuple[float, float]

_TENSORFLOW = {
    "RealDiv": "div",
    "AddV2": "add",
    "BiasAdd": "add",
    "MatMul": "mm",
    "Max": "amax",
    "Min": "amin",
}
"""Canonical names where lower case does not give them."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One operator as it ran.

    Attributes:
        op: Canonical name.
        text: Its source line.
        operands: Extremes of each floating-point operand.
        result: Extremes of the result; NaN if it holds one.
    """

    op: str
    text: str
    operands: tuple[Extremes, ...]
    result: Extremes

    @property
    def has_failed(self) -> bool:
        """NaN or infinity came out of finite operands."""
        return not _finite(self.result) and all(_finite(operand) for operand in self.operands)

    @property
    def is_ordinary(self) -> bool:
        """No operand exceeds 256 in size."""
        return all(max(-low, high) <= 256 for low, high in self.operands)


def _finite(extremes: Extremes) -> bool:
    return all(math.isfinite(end) for end in extremes)


Watcher = Callable[[Mapping[str, Any]], list[Ran]]


def watcher(case: Case, built: Built) -> Watcher:
    """Runs a program on inputs, with the weights it has then: the operators in order."""
    return _torch(built) if case.framework == "torch" else _tensorflow(built)


def apply(built: Built, settings: Mapping[str, Set]) -> Built:
    """The program with weights (in place) and inputs as the settings say.

    A name may carry an index: "scores[0]".
    """
    inputs = dict(built.inputs)
    for label, setting in settings.items():
        name, _, index = label.partition("[")
        place = (int(index[:-1]),) if index else ()
        place = (*place, ..., 0) if setting.first else (*place, ...)
        if name in inputs:
            inputs[name] = _changed(inputs[name], place, setting.value)
            continue
        weight = built.weights[name]
        if isinstance(weight, torch.Tensor):
            weight.data = _changed(weight.data, place, setting.value)
        else:
            weight.assign(_changed(weight, place, setting.value))
    return Built(built.target, inputs, built.ranges, built.weights, built.weight_ranges)


def _changed(tensor: Any, place: tuple[Any, ...], value: float) -> Any:
    if isinstance(tensor, torch.Tensor):
        changed = tensor.clone()
        changed[place] = value
        return changed
    array = tensor.numpy().copy()
    array[place] = value
    return array


def gradients(case: Case, built: Built) -> tuple[float, bool]:
    """The loss, and whether every gradient of a weight is finite."""
    inputs = list(built.inputs.values())
    if case.framework == "torch":
        found = built.target(*inputs)
        torch_gradients = torch.autograd.grad(found, list(built.weights.values()))
        return float(found.detach()), all(bool(one.isfinite().all()) for one in torch_gradients)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        found = _loss(built.target(*inputs))
    taken = tape.gradient(found, list(built.weights.values()))
    finite = [bool(tf.reduce_all(tf.math.is_finite(one))) for one in taken if one is not None]
    return float(found), all(finite)


def _loss(output: Any) -> Any:
    return output["loss"] if isinstance(output, dict) else output


def _torch(built: Built) -> Watcher:
    from ranum.analysis.capture.torch import module_program

    def run(inputs: Mapping[str, Any]) -> list[Ran]:
        program = module_program(built.target, tuple(inputs.values()), backward=False)
        graph = program.capture(observe=True)
        found = []
        for node in graph.nodes:
            operands = [graph.values[number] for number in node.operands]
            result = graph.values[node.outputs[0]] if node.outputs[0] is not None else None
            if result is None or result.observed is None:
                continue
            floats = [value for value in operands if value.dtype.is_floating_point]
            ends = tuple(map(_of_value, floats))
            found.append(Ran(node.op, node.source.expression, ends, _of_value(result)))
        return found

    return run


def _of_value(value: Any) -> Extremes:
    ends = value.observed if value.observed is not None else torch.aminmax(value.data)
    return float(ends[0]), float(ends[1])


def _tensorflow(built: Built) -> Watcher:
    import tensorflow as tf

    signature = [tf.TensorSpec(one.shape, one.dtype) for one in built.inputs.values()]
    wrapped = tf.compat.v1.wrap_function(built.target, signature)
    operations = [
        operation
        for operation in wrapped.graph.get_operations()
        if operation.outputs
        and operation.outputs[0].dtype.is_floating
        and 0 not in operation.outputs[0].shape
        and operation.type not in ("Placeholder", "Const", "ReadVariableOp")
    ]
    tensors = {
        tensor.name: tensor
        for operation in operations
        for tensor in (*operation.inputs, operation.outputs[0])
        if tensor.dtype.is_floating and 0 not in tensor.shape
    }
    with wrapped.graph.as_default():
        ends = [tf.stack([_least(tf, one), -_least(tf, -one)]) for one in tensors.values()]
        table = tf.stack([tf.cast(pair, tf.float64) for pair in ends])
    fetched = wrapped.prune(wrapped.inputs[: len(signature)], table)
    lines = [_line(operation) for operation in operations]

    def run(inputs: Mapping[str, Any]) -> list[Ran]:
        rows = fetched(*map(tf.constant, inputs.values())).numpy()
        extremes = {
            name: (float(low), float(high)) for name, (low, high) in zip(tensors, rows, strict=True)
        }
        return [
            Ran(
                _TENSORFLOW.get(operation.type, operation.type.lower()),
                line,
                tuple(extremes[one.name] for one in operation.inputs if one.name in extremes),
                extremes[operation.outputs[0].name],
            )
            for operation, line in zip(operations, lines, strict=True)
        ]

    return run


def _least(tf: Any, tensor: Any) -> Any:
    """The smallest element; NaN if there is one."""
    return tf.reduce_min(tensor) + 0 * tf.reduce_sum(
        tf.where(tf.math.is_nan(tensor), tensor, tf.zeros_like(tensor))
    )


def _line(operation: Any) -> str:
    for frame in reversed(list(operation.traceback)):
        if "in_tensorflow" in frame.filename:
            return " ".join(source_lines(frame.filename, frame.lineno, frame.lineno)).strip()
    return ""
