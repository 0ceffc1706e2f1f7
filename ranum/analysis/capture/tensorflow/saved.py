"""SavedModels, read as data.

`tf.saved_model.load` runs the restore functions that a file brings, and TensorFlow has
operators that read and write files. Here the file's messages are parsed, every operator that
would run is checked first, and variables come from the checkpoint by its own reader. Only
operators on the table of lowerings, and operators without a state that read and return
nothing but numbers, are ever carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.program import Program
from ranum.analysis.capture.tensorflow import bridge
from ranum.analysis.capture.tensorflow.function import ARGUMENT, Function, library_function
from ranum.analysis.capture.tensorflow.lowerings import LOWERINGS
from ranum.analysis.capture.tensorflow.program import Captured, make_program, one_loss
from ranum.analysis.capture.tensorflow.saved_gradients import with_saved_gradients
from ranum.analysis.capture.tensorflow.values import DTYPES, as_torch, from_array
from ranum.errors import ArgumentError
from ranum.source import Source, display_path

FILE = "saved_model.pb"
UNKNOWN_SIZE = 2
"""Size given to dimensions that a signature leaves open, where no example inputs are given."""
_DEFAULT = "serving_default"


@dataclass(frozen=True, slots=True)
class _Input:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...] | None


def saved_model_program(
    path: str | Path,
    arguments: tuple[Any, ...],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    backward: bool = True,
) -> Program:
    """A program that runs the default signature of a SavedModel.

    Args:
        path: The model's folder.
        arguments: One array per input, in the order of their names; without any, standard
            normal numbers (zeros for integers) of the signature's shapes are made up.
        loss: Makes the loss `[]` from the output, or from a dict of the outputs by name;
            without it, the sum of the outputs stands for the loss.
        backward: Whether the backward pass belongs to the step.

    Raises:
        ArgumentError: If the folder holds no SavedModel, if the model needs operators that
            are not run from files, or if the arguments do not fit its signature.
    """
    graph = _message(Path(path))
    objects = graph.object_graph_def
    name, signature, bound = _signature(graph, path)
    place = _places(str(path))
    library = {
        one.signature.name: library_function(one, place, bridge.operator)
        for one in graph.graph_def.library.function
    }
    if name not in library:
        raise ArgumentError(f"target {str(path)!r} names a function that it does not hold: {name}.")
    values = _Values(objects, graph.graph_def, Path(path))
    library = with_saved_gradients(library, graph, values.held)
    _check(library, name, path)
    inputs = _inputs(signature)
    outputs = sorted(signature.outputs)
    captured = [values.held(number) for number in bound]
    if len(inputs) + len(captured) != len(library[name].arguments):
        raise ArgumentError(f"target {str(path)!r} has a signature that does not fit its function.")

    def finish(results: list[Tensor]) -> Tensor | None:
        if loss is None:
            return one_loss(results)
        if len(results) == 1:
            return loss(results[0])
        return loss(dict(zip(outputs, results, strict=False)))

    return make_program(
        library[name],
        library,
        captured,
        _arguments(inputs, arguments),
        tuple(one.name for one in inputs),
        finish=finish,
        backward=backward,
        description=f"SavedModel {display_path(str(path))}",
    )


def _message(folder: Path) -> Any:
    """The first meta graph of a SavedModel."""
    bridge.tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / FILE
    if not file.is_file():
        raise ArgumentError(
            f"target must be the folder of a SavedModel; {str(folder)!r} holds no {FILE}."
        )
    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(file.read_bytes())
    except Exception as error:
        raise ArgumentError(f"target {str(file)!r} is not a SavedModel: {error}.") from error
    if not model.meta_graphs or not model.meta_graphs[0].HasField("object_graph_def"):
        raise ArgumentError(
            f"target {str(file)!r} holds no functions; it was saved by TensorFlow 1. Save it "
            "again with TensorFlow 2."
        )
    return model.meta_graphs[0]


def _signature(graph: Any, path: str | Path) -> tuple[str, Any, list[int]]:
    """Function name, signature and captured objects of the default signature, or the first."""
    nodes = graph.object_graph_def.nodes
    root = {child.local_name: child.node_id for child in nodes[0].children} if nodes else {}
    found = {}
    if "signatures" in root:
        for child in nodes[root["signatures"]].children:
            found[child.local_name] = nodes[child.node_id].bare_concrete_function
    known = [key for key in found if key in graph.signature_def]
    if not known:
        raise ArgumentError(f"target {str(path)!r} has no signature; save it with one.")
    key = _DEFAULT if _DEFAULT in known else known[0]
    name = found[key].concrete_function_name
    bound = graph.object_graph_def.concrete_functions[name].bound_inputs
    return name, graph.signature_def[key], list(bound)


def _inputs(signature: Any) -> list[_Input]:
    inputs = []
    for name in sorted(signature.inputs):
        info = signature.inputs[name]
        if info.dtype not in DTYPES:
            raise ArgumentError(f"target has the input {name!r}, which is no tensor of numbers.")
        shape = info.tensor_shape
        sizes = None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)
        inputs.append(_Input(name, DTYPES[info.dtype], sizes))
    return inputs


def _arguments(inputs: list[_Input], given: tuple[Any, ...]) -> tuple[Tensor, ...]:
    if not given:
        return tuple(_made_up(one) for one in inputs)
    if len(given) != len(inputs):
        names = ", ".join(one.name for one in inputs)
        raise ArgumentError(
            f"example_inputs must match the model's {len(inputs)} inputs ({names}); "
            f"got {len(given)}."
        )
    return tuple(_fitted(one, value) for one, value in zip(inputs, given, strict=True))


def _made_up(one: _Input) -> Tensor:
    sizes = [UNKNOWN_SIZE if size < 0 else size for size in one.shape or ()]
    if one.dtype.is_floating_point:
        return torch.randn(sizes, dtype=torch.float32).to(one.dtype)
    return torch.zeros(sizes, dtype=one.dtype)


def _fitted(one: _Input, value: Any) -> Tensor:
    tensor = as_torch(value)
    if not isinstance(tensor, Tensor):
        tensor = torch.as_tensor(value)
    fits = one.shape is None or (
        tensor.dim() == len(one.shape)
        and all(wanted in (-1, size) for size, wanted in zip(tensor.shape, one.shape, strict=True))
    )
    if not fits or tensor.is_floating_point() != one.dtype.is_floating_point:
        wanted = [None if size < 0 else size for size in one.shape or ()]
        raise ArgumentError(
            f"example_inputs[{one.name!r}] must be {one.dtype} of shape {wanted}; got "
            f"{tensor.dtype} of shape {list(tensor.shape)}."
        )
    return tensor.to(one.dtype)


# --- what may run --------------------------------------------------------------------------


def _check(library: Mapping[str, Function], name: str, path: str | Path) -> None:
    """Refuses a model that would run anything but arithmetic."""
    refused: set[str] = set()
    waiting, seen = [name], set()
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        for number in library[function].whole.schedule:
            operation = library[function].operations[number]
            kind = operation.type
            if kind not in LOWERINGS and kind != ARGUMENT and not bridge.reads_only_numbers(kind):
                refused.add(kind)
            waiting += [one for one in _strings(operation.attributes) if one in library]
            if operation.gradient is not None:
                waiting.append(operation.gradient.function.name)
    if refused:
        raise ArgumentError(
            f"target {str(path)!r} holds operators that are not run from a file: "
            f"{', '.join(sorted(refused))}. If you trust it, load it with TensorFlow and pass "
            "the loaded function."
        )


def _strings(attributes: Mapping[str, Any]) -> Iterable[str]:
    for value in attributes.values():
        items = value if isinstance(value, list) else [value]
        yield from (one for one in items if isinstance(one, str))


# --- variables -----------------------------------------------------------------------------


class _Values:
    """Variables from the checkpoint, and constants, by the number of their object."""

    def __init__(self, objects: Any, graph: Any, folder: Path) -> None:
        self._objects = objects
        self._graph = graph
        self._folder = folder
        self._checkpoint = _Checkpoint(objects, folder)

    def held(self, number: int) -> Captured:
        """What an object holds."""
        nodes = self._objects.nodes
        if not 0 <= number < len(nodes):
            raise ArgumentError(
                f"target {str(self._folder)!r} names an object that it does not hold."
            )
        node = nodes[number]
        kind = node.WhichOneof("kind")
        if kind == "variable":
            name = node.variable.name
            value = from_array(self._checkpoint.read(number, name))
            return Captured(name, value, is_trained=node.variable.trainable)
        if kind == "constant":
            stored = _stored(self._graph, node.constant.operation)
            return Captured("constant", stored, is_variable=False)
        raise ArgumentError(
            f"target {str(self._folder)!r} captures a {kind}; only variables and constants are "
            "read."
        )


def _stored(graph: Any, name: str) -> Any:
    for node in graph.node:
        if node.name == name and node.op == "Const":
            return from_array(bridge.tensorflow().make_ndarray(node.attr["value"].tensor))
    raise ArgumentError(f"target captures the constant {name!r}, which it does not hold.")


class _Checkpoint:
    """Values of variables by their object's number."""

    def __init__(self, objects: Any, folder: Path) -> None:
        self._folder = folder
        self._keys: dict[int, str] = {}
        self._reader: Any = None
        file = folder / "variables" / "variables"
        if not file.with_name("variables.index").is_file():
            return
        from tensorflow.core.protobuf import trackable_object_graph_pb2

        try:
            self._reader = bridge.tensorflow().train.load_checkpoint(str(file))
            saved = trackable_object_graph_pb2.TrackableObjectGraph()
            saved.ParseFromString(self._reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
        except Exception as error:
            raise ArgumentError(
                f"target {str(folder)!r} has a checkpoint that cannot be read: {error}"
            ) from error
        self._match(objects, saved)

    def _match(self, objects: Any, saved: Any) -> None:
        """Walks both object graphs from their roots, along the same names."""
        waiting, seen = [(0, 0)], set()
        while waiting:
            own, other = waiting.pop()
            if own in seen or own >= len(objects.nodes) or other >= len(saved.nodes):
                continue
            seen.add(own)
            for attribute in saved.nodes[other].attributes:
                self._keys.setdefault(own, attribute.checkpoint_key)
            children = {child.local_name: child.node_id for child in saved.nodes[other].children}
            waiting += [
                (child.node_id, children[child.local_name])
                for child in objects.nodes[own].children
                if child.local_name in children
            ]

    def read(self, number: int, name: str) -> Any:
        """The value of a variable."""
        key = self._keys.get(number)
        if self._reader is None or key is None:
            raise ArgumentError(
                f"target {str(self._folder)!r} has no value for the variable {name!r}."
            )
        try:
            return self._reader.get_tensor(key)
        except Exception as error:
            raise ArgumentError(
                f"target {str(self._folder)!r} has a checkpoint that cannot be read: {error}"
            ) from error


def _places(path: str) -> Callable[[str, str], Source]:
    """Places of operations: the node's name in the model's folder."""

    def place(function: str, name: str) -> Source:
        return Source(
            file=path,
            line=0,
            end_line=0,
            column=-1,
            end_column=-1,
            module=name.rpartition("/")[0] or None,
            node=name,
        )

    return place
