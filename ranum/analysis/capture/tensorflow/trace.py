"""Functions of TensorFlow tensors, traced into a graph: nothing of them is run."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ranum.analysis.capture.program import Program
from ranum.analysis.capture.tensorflow import bridge
from ranum.analysis.capture.tensorflow.function import (
    CustomGradient,
    Function,
    library_function,
    main_function,
)
from ranum.analysis.capture.tensorflow.machine import Variable
from ranum.analysis.capture.tensorflow.origin import TensorFlowOrigin
from ranum.analysis.capture.tensorflow.program import Captured, make_program, one_loss
from ranum.analysis.capture.tensorflow.values import as_torch, from_array, to_array
from ranum.errors import ArgumentError
from ranum.source import UNKNOWN, Source, is_user_file, source_lines, traceback_source

_OWN_FILE = os.path.abspath(__file__)


def function_program(
    function: Callable[..., Any], arguments: tuple[Any, ...], *, backward: bool = True
) -> Program:
    """A program that runs a function of TensorFlow tensors: a loss, or a whole training step.

    The loss is what the function takes the gradient of with respect to variables; if nothing,
    what it returns.

    Args:
        function: A `tf.function` or a plain function.
        arguments: What it is called with: tensors, arrays, and plain Python values.
        backward: Whether the backward pass belongs to the step.
    """
    python = getattr(function, "python_function", function)
    fed = tuple(tree_map(as_torch, one) for one in arguments)
    return traced(
        bridge.graph_python(function),
        fed,
        _names(python, len(arguments)),
        root=None,
        finish=None,
        backward=backward,
        description=getattr(python, "__name__", type(function).__name__),
    )


def _names(function: Callable[..., Any], count: int) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(one.name for one in parameters if one.kind in kinds)[:count]


def as_constant(leaf: Any) -> Any:
    """A leaf of the batch as a TensorFlow tensor."""
    tf = bridge.tensorflow()
    if not isinstance(leaf, Tensor):
        return leaf
    return tf.constant(to_array(leaf, tf.bfloat16.as_numpy_dtype))


def called(name: str, call: Callable[[], Any]) -> Any:
    """What `call` returns.

    Raises:
        ArgumentError: If it raises; the message names the target and the user's line.
    """
    try:
        return call()
    except ArgumentError:
        raise
    except Exception as error:
        place = traceback_source(error.__traceback__)
        where = f" at {place}" if place.is_known else ""
        raise ArgumentError(
            f"example_inputs must fit {name}; calling it raised {type(error).__name__}{where}: "
            f"{error}"
        ) from error


def traced(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    names: tuple[str, ...],
    *,
    root: Any,
    finish: Callable[[Any], Tensor] | None,
    backward: bool,
    description: str,
) -> Program:
    """Traces a function on the leaves of its arguments that are tensors.

    Args:
        function: Takes `arguments` as TensorFlow's tensors.
        arguments: The example batch, of torch tensors.
        names: Names of the arguments.
        root: The Keras model that stands for the whole and names its variables, or None.
        finish: Makes the loss of what the function returns; without it, the loss is what the
            function differentiates or returns.
        backward: Whether the backward pass belongs to the step.
        description: What is analysed, for messages.

    Raises:
        ArgumentError: If the function raises, or has no loss.
    """
    tf = bridge.tensorflow()
    leaves, structure = tree_flatten(arguments)
    fed = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    returned: list[Any] = []
    differentiated: list[Any] = []

    def flat(*tensors: Any) -> Any:
        filled = list(leaves)
        for place, tensor in zip(fed, tensors, strict=True):
            filled[place] = tensor
        differentiated.clear()
        output = function(*tree_unflatten(filled, structure))
        graph = tf.compat.v1.get_default_graph()
        losses = [one for one in differentiated if one.graph is graph] if finish is None else []
        chosen = output["loss"] if isinstance(output, dict) and "loss" in output else output
        found, shape = tree_flatten(chosen)
        found = [one for one in found if tf.is_tensor(one)]
        if not losses and not found:
            raise ArgumentError(
                f"target must return a loss, a TensorFlow tensor; it returned {output!r}."
            )
        returned[:] = [shape, len(losses)]
        return [*losses, *found]

    owners: dict[tuple[int, str], str] = {}
    specifications = [
        tf.TensorSpec(leaves[place].shape, _dtype(leaves[place]), name=f"input_{number}")
        for number, place in enumerate(fed)
    ]
    with ExitStack() as stack:
        stack.enter_context(bridge.losses_noted(differentiated))
        if _keras_is_loaded():
            stack.enter_context(bridge.layers_noted(owners, root))
        concrete = called(
            description,
            lambda: tf.function(flat, autograph=False).get_concrete_function(*specifications),
        )
    main, library = _functions(concrete.graph, owners, f"<{description}>")
    paths = {} if root is None else {id(one.value): one.path for one in root.variables}
    trained = None if root is None else {id(one.value) for one in root.trainable_variables}
    captured = [_captured(outer, concrete, paths, trained) for outer, _ in concrete.graph.captures]
    shape, losses = returned

    def finished(results: list[Tensor]) -> Tensor | None:
        if finish is not None:
            return finish(tree_unflatten(results, shape))
        return one_loss(results[:losses] if losses else results)

    program = make_program(
        main,
        library,
        captured,
        arguments,
        names,
        finish=finished,
        backward=backward,
        description=description,
    )
    return replace(program, origin=_origin(program, concrete, captured, finish is None))


def _origin(
    program: Program, concrete: Any, captured: list[Captured], has_own_loss: bool
) -> TensorFlowOrigin:
    handles = [outer for outer, _ in concrete.graph.captures]
    variables = [
        next(variable for variable in concrete.variables if variable.handle is outer)
        for outer, one in zip(handles, captured, strict=True)
        if one.is_trained and isinstance(one.value, Tensor) and one.value.dtype.is_floating_point
    ]
    return TensorFlowOrigin(
        concrete,
        tuple(program.inputs),
        dict(zip(program.parameters, variables, strict=True)),
        has_own_loss,
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _keras_is_loaded() -> bool:
    return "keras" in sys.modules


def _captured(
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


def _functions(
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
    places = _Places(graph, owners, label)
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
        body, called_functions = _functions(concrete.graph, owners, label, library, gradients=False)
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
    found = _captured(outer, concrete, {}, None)
    return Variable(found.name, found.value) if found.is_variable else found.value


class _Places:
    """Places of operations: the user's line where there is one, else the node's name."""

    def __init__(self, graph: Any, owners: dict[tuple[int, str], str], label: str) -> None:
        self._graph = graph
        self._owners = owners
        self._label = label
        self._operations: dict[str, dict[str, Any]] = {}

    def __call__(self, function: str, name: str) -> Source:
        operation = self._table(function).get(name)
        return UNKNOWN if operation is None else self._place(operation)

    def _table(self, function: str) -> dict[str, Any]:
        if function not in self._operations:
            graph = bridge.function_graph(self._graph, function) if function else self._graph
            operations = [] if graph is None else graph.get_operations()
            self._operations[function] = {one.name: one for one in operations}
        return self._operations[function]

    def _place(self, operation: Any) -> Source:
        own = self._owners.get((id(operation.graph), operation.name))
        scope = operation.name.rpartition("/")[0]
        module = own if own is not None else scope or None
        frame = _user_frame(operation.traceback)
        if frame is None:
            operands = ", ".join(tensor.op.name.rpartition("/")[2] for tensor in operation.inputs)
            return Source(
                file=self._label,
                line=0,
                end_line=0,
                column=-1,
                end_column=-1,
                module=module,
                lines=(f"{operation.type}({operands})",),
                node=operation.name,
            )
        return Source(
            file=os.path.abspath(frame.filename),
            line=frame.lineno,
            end_line=frame.lineno,
            column=-1,
            end_column=-1,
            function=frame.name,
            module=module,
            lines=source_lines(frame.filename, frame.lineno, frame.lineno),
            node=operation.name,
        )


def _user_frame(frames: Any) -> Any | None:
    """The innermost user's frame below the place where the analysis began to trace."""
    for frame in reversed(list(frames or ())):  # what was loaded from a file has none
        if frame.filename == _OWN_FILE:
            return None
        if is_user_file(frame.filename):
            return frame
    return None
