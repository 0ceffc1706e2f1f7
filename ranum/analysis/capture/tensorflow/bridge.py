"""All use of TensorFlow's and Keras' private interfaces, and of their modules at all.

Only reached when the target is TensorFlow's; the rest of the package works on plain data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any
from weakref import ReferenceType, ref

from ranum.errors import MissingExtraError

CUSTOM_GRADIENT = "CustomGradient-"
"""How the types begin under which `tf.custom_gradient` registers gradients."""


def tensorflow() -> Any:
    """The module.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise MissingExtraError("tensorflow", "tensorflow", "the analysis of it") from error
    return tf


def keras() -> Any:
    """The module `keras`, version 3."""
    import keras as module

    return module


@lru_cache(maxsize=4096)
def operator(name: str) -> Any | None:
    """The `OpDef` message of an operator type, or None."""
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(name)


def function_graph(graph: Any, name: str) -> Any | None:
    """The traced graph of a function that `graph` calls, with its tracebacks, or None."""
    found = graph._get_function(name)
    return getattr(found, "graph", None)


def keras_backend() -> str:
    """Keras' backend: "tensorflow", "torch", "jax"."""
    name: str = keras().config.backend()
    return name


def custom_gradient(operation: Any) -> tuple[Any, list[int]] | None:
    """The gradient that `tf.custom_gradient` registered for an operation, traced.

    Returns:
        A concrete function of the upstream gradients of all results, which captures tensors
        of the operation's graph, and the operand each of its results belongs to; None if the
        operation has no gradient of its own, or one that is not in this process.
    """
    from tensorflow.python.framework import ops

    kind = operation.node_def.attr["_gradient_op_type"].s.decode()
    if not kind.startswith(CUSTOM_GRADIENT):
        return None
    tf = tensorflow()
    try:
        registered = ops.gradient_registry.lookup(kind)
    except LookupError:  # loaded from a file that does not hold it
        return None
    places: list[int] = []

    def gradient(*upstream: Any) -> list[Any]:
        found = registered(operation, *upstream)
        places[:] = [place for place, one in enumerate(found) if one is not None]
        return [tf.convert_to_tensor(found[place]) for place in places]

    specifications = [
        tf.TensorSpec(
            [] if result.dtype in (tf.resource, tf.variant) else result.shape,
            tf.float32 if result.dtype in (tf.resource, tf.variant) else result.dtype,
        )
        for result in operation.outputs
    ]
    with operation.graph.as_default():
        concrete = tf.function(gradient, autograph=False).get_concrete_function(*specifications)
    return concrete, places


def is_eager(tensor: Any) -> bool:
    """True for a tensor with values, False for a result of a graph's operation."""
    from tensorflow.python.framework import ops

    return isinstance(tensor, ops.EagerTensor)


def calls_with_training(model: Any) -> bool:
    """True if the model's `call` takes `training`, as Keras' own training step asks."""
    return bool(getattr(model, "_call_has_training_arg", True))


def compiled_loss(model: Any) -> Any | None:
    """The loss given to `compile`, or None."""
    return getattr(model, "_compile_loss", None)


@contextmanager
def layers_noted(owners: dict[tuple[int, str], str], root: Any) -> Iterator[None]:
    """Notes which Keras layer makes each operation while graphs are traced.

    Args:
        owners: Takes, by the graph's `id` and the operation's name, the path of the innermost
            layer: names from the outermost layer inside `root` to it, joined by "/".
        root: The layer that stands for the whole; its own path is "".
    """
    tf = tensorflow()
    layer = keras().layers.Layer
    plain = layer.__call__
    path: list[str] = []

    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        graph = tf.compat.v1.get_default_graph()
        before = len(graph.get_operations())
        is_inner = self is not root
        if is_inner:
            path.append(self.name)
        try:
            return plain(self, *args, **kwargs)
        finally:
            own = "/".join(path)
            if is_inner:
                path.pop()
            for operation in graph.get_operations()[before:]:
                owners.setdefault((id(graph), operation.name), own)

    layer.__call__ = noting
    try:
        yield
    finally:
        layer.__call__ = plain


@contextmanager
def losses_noted(losses: list[Any]) -> Iterator[None]:
    """Notes what gradients with respect to variables are taken of while graphs are traced.

    Args:
        losses: Takes the tensors that `tf.GradientTape.gradient` differentiates, in order.
    """
    tf = tensorflow()
    plain = tf.GradientTape.gradient

    def noting(self: Any, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
        if any(hasattr(one, "trainable") for one in tf.nest.flatten(sources)):
            losses.extend(one for one in tf.nest.flatten(target) if tf.is_tensor(one))
        return plain(self, target, sources, *args, **kwargs)

    tf.GradientTape.gradient = noting
    try:
        yield
    finally:
        tf.GradientTape.gradient = plain


def graph_python(function: Any) -> Callable[..., Any]:
    """A function to trace into the graph that is being made, its Python branches and loops too.

    A `tf.function` gives the Python it was made of, so that its tensors belong to the same graph;
    one with a signature, without autograph or from a file is called as it is.
    """
    from tensorflow.python.eager.polymorphic_function import polymorphic_function

    if type(function) is polymorphic_function.Function:
        if function._autograph and function.input_signature is None:
            return graph_python(function.python_function)
    elif not hasattr(function, "get_concrete_function"):
        return _converted(function)
    plain: Callable[..., Any] = function
    return plain


class Traces:
    """What every `tf.function` has traced, Keras' steps among them; to be forgotten.

    There is no public way to have a `tf.function` traced anew, and no list of them: those that
    are made from now on are noted, the others must be handed in.

    Attributes:
        kind: The class of a `tf.function`.
        is_complete: True once the others were handed in.
    """

    def __init__(self) -> None:
        from tensorflow.python.eager.polymorphic_function import polymorphic_function

        self.kind: type[Any] = polymorphic_function.Function
        self.is_complete = False
        self._functions: list[ReferenceType[Any]] = []
        self._plain = plain = self.kind.__init__

        def noting(one: Any, *args: Any, **kwargs: Any) -> None:
            plain(one, *args, **kwargs)
            self._functions.append(ref(one))

        self.kind.__init__ = wraps(plain)(noting)

    def complete(self, functions: Iterable[Any]) -> None:
        """Takes all that were alive when this object was made."""
        self._functions.extend(ref(one) for one in functions)
        self.is_complete = True

    def forget(self) -> None:
        """Has each of them traced anew when it is called."""
        for reference in list(self._functions):
            function = reference()
            if function is None:
                self._functions.remove(reference)
            else:
                function._function_cache.clear()

    def close(self) -> None:
        """Notes no more."""
        self.kind.__init__ = self._plain


def _converted(function: Callable[..., Any]) -> Callable[..., Any]:
    from tensorflow.python.autograph.core import ag_ctx
    from tensorflow.python.eager.polymorphic_function import autograph_util

    converted = autograph_util.py_func_from_autograph(function)

    def traceable(*args: Any) -> Any:
        with ag_ctx.ControlStatusCtx(ag_ctx.Status.ENABLED):
            return converted(*args)

    return traceable


def own_train_step(model: Any) -> Callable[..., Any] | None:
    """The training step that a model's author wrote in the place of Keras' own, or None."""
    step: Callable[..., Any] = model.train_step
    module = getattr(getattr(step, "__func__", step), "__module__", None) or ""
    return None if module.partition(".")[0] == "keras" else step


@contextmanager
def weights_kept(model: Any) -> Iterator[None]:
    """While the block runs, Keras' optimizers do nothing; the model's metrics are put back."""
    optimizer = keras().optimizers.Optimizer
    plain = optimizer.apply
    metrics = [variable for metric in model.metrics for variable in metric.variables]
    values = [keras().ops.convert_to_numpy(variable) for variable in metrics]
    optimizer.apply = lambda *args, **kwargs: None
    try:
        yield
    finally:
        optimizer.apply = plain
        for variable, value in zip(metrics, values, strict=True):
            variable.assign(value)


def packed(batch: tuple[Any, ...]) -> Any:
    """X, y and sample weights as `fit` hands them to a training step: x alone if nothing else."""
    return keras().utils.pack_x_y_sample_weight(*batch)


def run_operator(kind: str, attributes: dict[str, Any], operands: Sequence[Any]) -> tuple[Any, ...]:
    """One operator carried out by TensorFlow itself, on TensorFlow's tensors."""
    tf = tensorflow()
    definition = operator(kind)
    function: Callable[..., Any] = getattr(tf.raw_ops, kind)
    given: dict[str, Any] = {}
    waiting = list(operands)
    for argument in definition.input_arg:  # type: ignore[union-attr]
        if argument.number_attr:
            count = attributes[argument.number_attr]
            given[argument.name], waiting = waiting[:count], waiting[count:]
        elif argument.type_list_attr:
            count = len(attributes[argument.type_list_attr])
            given[argument.name], waiting = waiting[:count], waiting[count:]
        else:
            given[argument.name] = waiting.pop(0)
    kinds = {attribute.name: attribute.type for attribute in definition.attr}  # type: ignore[union-attr]
    for name in inspect.signature(function).parameters:
        if name in attributes and name not in given:
            value = attributes[name]
            if kinds[name] == "type":
                value = tf.dtypes.as_dtype(value)
            elif kinds[name] == "list(type)":
                value = [tf.dtypes.as_dtype(one) for one in value]
            given[name] = value
    result = function(**given)
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def reads_only_numbers(kind: str) -> bool:
    """True for operators without a state that read and return numbers, nothing else."""
    tf = tensorflow()
    definition = operator(kind)
    if definition is None or definition.is_stateful or "PyFunc" in kind:
        return False
    outside = {
        tf.string.as_datatype_enum,
        tf.resource.as_datatype_enum,
        tf.variant.as_datatype_enum,
    }
    return not any(
        argument.type in outside for argument in (*definition.input_arg, *definition.output_arg)
    )
