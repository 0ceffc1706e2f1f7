"""A graph that TensorFlow traced as functions of plain data, with its own gradients."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from ranum.analysis.capture.tensorflow import bridge
from ranum.analysis.capture.tensorflow.function import (
    CustomGradient,
    Function,
    library_function,
    main_function,
)
from ranum.analysis.capture.tensorflow.machine import Variable
from ranum.analysis.capture.tensorflow.places import Places
from ranum.analysis.capture.tensorflow.program import Captured
from ranum.analysis.capture.tensorflow.values import from_array


def captured_value(
    outer: Any, concrete: Any, paths: dict[int, str], trained: set[int] | None
) -> Captured:
    """What a function closes over: a variable by its resource, or a tensor with its values."""
    for variable in concrete.graph.variables:
        if variable.handle is outer:
            is_trained = variable.trainable if trained is None else id(variable) in trained
            name = paths.get(id(variable), variable.name.partition(":")[0])
            return Captured(name, from_array(variable.numpy()), is_trained=is_trained)
    if outer.dtype.name in ("resource", "variant"):
        return Captured(outer.name if hasattr(outer, "_name") else "resource", None)
    return Captured("constant", from_array(outer.numpy()), is_variable=False)


def graph_functions(
    graph: Any,
    owners: dict[tuple[int, str], str],
    label: str,
    known: Collection[str] = (),
    *,
    gradients: bool = True,
) -> tuple[Function, dict[str, Function]]:
    """The main function of a traced graph, and those it calls that are not known yet.

    Custom gradients inside of a custom gradient matter to second derivatives only, and a linear
    operation's may be the operation itself, without end: `gradients` is False there.
    """
    message = graph.as_graph_def()
    places = Places(graph, owners, label)
    main = main_function(
        message.node,
        [tensor.op.name for tensor in graph.inputs],
        [tensor.name for tensor in graph.outputs],
        places,
    )
    library = {
        definition.signature.name: library_function(definition, places, bridge.operator)
        for definition in message.library.function
        if definition.signature.name not in known
    }
    if not gradients:
        return main, library
    forward = list(library.items())
    main = _with_gradients(main, graph, owners, label, library)
    for name, function in forward:
        own = bridge.function_graph(graph, name)
        if own is not None:
            library[name] = _with_gradients(function, own, owners, label, library)
    return main, library


def _with_gradients(
    function: Function,
    graph: Any,
    owners: dict[tuple[int, str], str],
    label: str,
    library: dict[str, Function],
) -> Function:
    """The function with the gradients that `tf.custom_gradient` gave its operations."""
    by_name = {operation.name: operation for operation in graph.get_operations()}
    numbers = {operation.name: number for number, operation in enumerate(function.operations)}
    numbers |= {
        tensor.op.name: number
        for tensor, number in zip(graph.inputs, function.arguments, strict=False)
    }
    inner = {id(outer): tensor for outer, tensor in graph.captures}
    operations = list(function.operations)
    for number, operation in enumerate(operations):
        if operation.type != "IdentityN" or operation.name not in by_name:
            continue
        traced_gradient = bridge.custom_gradient(by_name[operation.name])
        if traced_gradient is None:
            continue
        concrete, places = traced_gradient
        reads = [inner.get(id(outer), outer) for outer, _ in concrete.graph.captures]
        if not all(bridge.is_eager(one) or one.op.name in numbers for one in reads):
            continue
        body, called_functions = graph_functions(
            concrete.graph, owners, label, library, gradients=False
        )
        library.update(called_functions)
        captured, read = [], []
        for tensor in reads:
            if bridge.is_eager(tensor):
                captured.append(_value(tensor, concrete))
            else:
                captured.append(None)
                read.append((numbers[tensor.op.name], tensor.value_index))
        passed = len(operation.inputs)
        operations[number] = replace(
            operation,
            inputs=(*operation.inputs, *read),
            gradient=CustomGradient(body, tuple(captured), tuple(places), passed),
        )
    changed = any(one.gradient is not None for one in operations)
    return function.having(operations) if changed else function


def _value(outer: Any, concrete: Any) -> Any:
    """What a gradient reads and its forward function does not: a variable or a constant."""
    found = captured_value(outer, concrete, {}, None)
    return Variable(found.name, found.value) if found.is_variable else found.value
