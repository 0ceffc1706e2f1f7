"""Functions of TensorFlow tensors, traced into a graph: nothing of them is run."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ranum.analysis.capture.program import Program
from ranum.analysis.capture.tensorflow import bridge
from ranum.analysis.capture.tensorflow.origin import TensorFlowOrigin
from ranum.analysis.capture.tensorflow.program import Captured, make_program, one_loss
from ranum.analysis.capture.tensorflow.traced_graph import captured_value, graph_functions
from ranum.analysis.capture.tensorflow.values import as_torch, to_array
from ranum.errors import ArgumentError
from ranum.source import traceback_source


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
    main, library = graph_functions(concrete.graph, owners, f"<{description}>")
    paths = {} if root is None else {id(one.value): one.path for one in root.variables}
    trained = None if root is None else {id(one.value) for one in root.trainable_variables}
    captured = [
        captured_value(outer, concrete, paths, trained) for outer, _ in concrete.graph.captures
    ]
    shape, losses = returned

    def again() -> Program:
        return traced(
            function,
            arguments,
            names,
            root=root,
            finish=finish,
            backward=backward,
            description=description,
        )

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
    origin = _origin(program, concrete, captured, finish is None)
    return replace(program, origin=origin, retrace=again)


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
