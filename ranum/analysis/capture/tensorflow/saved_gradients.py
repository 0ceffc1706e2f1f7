"""Gradients that `tf.custom_gradient` left in a SavedModel, as functions of its library.

TensorFlow saves them if asked to (`experimental_custom_gradients`): per type of gradient a
function of the upstream gradients of all results, with the tensors it captures after them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ranum.analysis.capture.tensorflow.function import CustomGradient, Function, Operation, Output
from ranum.analysis.capture.tensorflow.machine import Variable
from ranum.analysis.capture.tensorflow.program import Captured

_Held = Callable[[int], Captured]
"""The variable or constant that an object of the file holds, by its number."""


def with_saved_gradients(
    library: Mapping[str, Function], graph: Any, held: _Held
) -> dict[str, Function]:
    """The functions with the gradients that the file holds for their operations.

    Args:
        library: The functions of the file, by name.
        graph: The file's `MetaGraphDef`.
        held: Reads what an object holds.
    """
    saved = {
        one.registered_op_type: one.gradient_func
        for one in graph.graph_def.library.registered_gradients
        if one.gradient_func in library
    }
    found = dict(library)
    for name, function in library.items():
        operations = list(function.operations)
        for number, operation in enumerate(operations):
            gradient = saved.get(str(operation.attributes.get("_gradient_op_type")))
            if operation.has_unread_gradient and gradient is not None:
                operations[number] = _having(
                    operation, function, library[gradient], graph.object_graph_def, held
                )
        if operations != list(function.operations):
            found[name] = function.having(operations)
    return found


def _having(
    operation: Operation, function: Function, body: Function, objects: Any, held: _Held
) -> Operation:
    """The operation with a gradient; as it is where the file does not say enough of that."""
    signature = objects.concrete_functions[body.name]
    places = _places(signature.output_signature)
    passed = len(operation.inputs)
    if len(body.arguments) != passed + len(signature.bound_inputs):
        return operation
    if len(places) != len(body.results) or any(place >= passed for place in places):
        return operation
    captured: list[Any] = []
    read: list[Output] = []
    for number in signature.bound_inputs:
        if not 0 <= number < len(objects.nodes):
            return operation
        node = objects.nodes[number]
        if node.WhichOneof("kind") == "captured_tensor":
            output = _output(node.captured_tensor, function)
            if output is None:
                return operation
            captured.append(None)
            read.append(output)
        else:
            value = held(number)
            captured.append(Variable(value.name, value.value) if value.is_variable else value.value)
    return replace(
        operation,
        inputs=(*operation.inputs, *read),
        gradient=CustomGradient(body, tuple(captured), places, passed),
    )


def _places(signature: Any) -> tuple[int, ...]:
    """The operands that a gradient function returns a gradient for: those that are not None."""
    kind = signature.WhichOneof("kind")
    if kind not in ("list_value", "tuple_value"):
        return ()
    values = getattr(signature, kind).values
    return tuple(
        place for place, one in enumerate(values) if one.WhichOneof("kind") != "none_value"
    )


def _output(tensor: Any, function: Function) -> Output | None:
    """The result `operation:position` of the function, or None if it is another's."""
    name, _, position = tensor.name.partition(":")
    numbers = {one.name: number for number, one in enumerate(function.operations)}
    if tensor.concrete_function != function.name or name not in numbers:
        return None
    return (numbers[name], int(position)) if position.isdigit() else None
