"""Programs from ONNX models."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor, nn

from ranum.analysis.capture.onnx.interpreter import Interpreter
from ranum.analysis.capture.onnx.model import Model, read_model, subgraphs
from ranum.analysis.capture.onnx.plan import sparse_constants
from ranum.analysis.capture.onnx.values import (
    checked_size,
    element_type,
    from_numpy,
    marked,
    storage_dtype,
    type_name,
)
from ranum.analysis.capture.program import Program
from ranum.analysis.graph import Graph
from ranum.errors import ArgumentError

UNKNOWN_SIZE = 2
"""Size of a dimension that the model leaves open and nobody chose."""

_SETTINGS: dict[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "Resize": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
    "Clip": frozenset({1, 2}),
    "Pad": frozenset({2}),
    "QuantizeLinear": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "QLinearMatMul": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearConv": frozenset({1, 2, 4, 5, 6, 7}),
    "Range": frozenset({0, 1, 2}),
    "OneHot": frozenset({2}),
    "Dropout": frozenset({1, 2}),
    "NonMaxSuppression": frozenset({3, 4}),
    "RotaryEmbedding": frozenset({1, 2}),
    "Attention": frozenset({3}),
    "STFT": frozenset({2}),
    "Where": frozenset({0}),
}
"""Inputs that are statistics, scales or settings of an operator, not weights."""
_LAYERS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LayerNormalization", "GroupNormalization",
     "InstanceNormalization", "RMSNormalization", "BatchNormalization", "PRelu", "LSTM", "GRU",
     "RNN"}
)  # fmt: skip
_WEIGHT_NAME = re.compile(r"(weight|bias|kernel|gamma|beta|slope)[^./]*$", re.IGNORECASE)
_MASK_FLOOR = -1e3


def onnx_program(
    target: Any,
    example_inputs: Sequence[Any] = (),
    *,
    loss: Callable[[Any], Any] | None = None,
    backward: bool = False,
    sizes: Mapping[str, int] | None = None,
    fold_weights: bool = False,
) -> Program:
    """A program that carries out an ONNX model.

    Float initialisers are weights, by name, and vary as `weights=` says; so are float constants
    that a layer (Conv, Gemm, MatMul, LSTM, a normalisation, ...) reads. Integer initialisers,
    numbers without dimensions, masks, and what an operator takes as a statistic or a setting
    (the mean and variance of a batch normalisation, the scale of a quantisation, the limits
    of a clip) are constants.

    Args:
        target: A path, or an `onnx.ModelProto`.
        example_inputs: The model's inputs in order, or one mapping by name; tensors or numpy
            arrays. An input that is left out has its declared shape: ones if it holds integers,
            else a tensor without data, which `analyze` fills with random numbers.
        loss: Makes a loss from the output, or from a dict of the outputs by name.
        backward: Without a loss: also differentiate the sum of the outputs.
        sizes: Of named dimensions, {"batch": 4}, for inputs that are left out.
        fold_weights: Take all initialisers as constants.

    Raises:
        ArgumentError: If the model or an input is not what it should be.
    """
    model = read_model(target)
    inputs, notes = _inputs(model, example_inputs, dict(sizes or {}))
    values = {tensor.name: model.tensor(tensor) for tensor in model.graph.initializer}
    values.update(sparse_constants(model.graph))
    lifted = {} if fold_weights else _constants_of_layers(model)
    values.update(lifted)
    weights = {} if fold_weights else _weights(model, values)
    names = tuple(inputs)
    bound = _bound_sizes(model, inputs)
    interpreter = Interpreter(model, bound, given=lifted.keys())
    differentiated = backward or loss is not None
    for weight in weights.values():
        weight.requires_grad_(differentiated)
    held = [
        name
        for name, value in values.items()
        if isinstance(value, Tensor) and value.is_floating_point() and name not in weights
    ]
    if held and not fold_weights:
        some = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
        notes.append(
            f"{len(held)} initialiser(s) are taken as constants, not as weights: numbers, masks, "
            f"statistics and settings ({some})"
        )
    elements = {item.name: item.type.tensor_type.elem_type for item in model.graph.input}

    shown = _Outputs(item.name for item in model.graph.output)

    def step(*arguments: Any) -> Tensor | None:
        for weight in weights.values():
            weight.grad = None
        given = dict(zip(names, arguments, strict=True))
        for name, value in given.items():
            if isinstance(value, Tensor) and elements.get(name):
                marked(value, elements[name])
        outputs = interpreter.run({**values, **given})
        outputs = {name: shown.named(name, value) for name, value in outputs.items()}
        if loss is not None:
            result = loss(next(iter(outputs.values())) if len(outputs) == 1 else outputs)
            if not isinstance(result, Tensor):
                raise ArgumentError(f"loss must return a tensor; got {type(result).__name__}.")
            return result
        return _total(outputs) if backward else None

    return OnnxProgram(
        step=step,
        arguments=tuple(inputs.values()),
        argument_names=names,
        model=shown,
        parameters=weights,
        backward=differentiated,
        description=os.path.basename(model.file),
        notes=tuple(notes),
    )


class OnnxProgram(Program):
    """A program whose operators carry layer paths in place of `nn.Module` paths."""

    __slots__ = ()

    def capture(self, *, observe: bool = True, varying: Collection[str] = ()) -> Graph:
        """Runs the model once under the recorder; outputs and layers are named."""
        graph = Program.capture(self, observe=True, varying=varying)  # layers are named later
        outputs = dict(graph.module_outputs)
        for node in graph.nodes:
            layer, output = node.source.module, node.outputs[0]
            if not layer or output is None or node.phase == "backward":
                continue
            if graph.values[output].dtype.is_floating_point:
                graph.module_outputs[layer] = output
        graph.module_outputs.update(outputs)
        return graph


class _Outputs(nn.Module):
    """A module per output, so that the recorder sees which value has which name."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        for name in names:
            self._modules[name] = nn.Identity()  # `add_module` allows no dots in names

    def named(self, name: str, value: Any) -> Any:
        """The value itself."""
        return self._modules[name](value) if isinstance(value, Tensor) else value  # type: ignore[misc]


def _total(outputs: Mapping[str, Any]) -> Tensor | None:
    floats = [
        value.sum().float()
        for value in outputs.values()
        if isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad
    ]
    return torch.stack(floats).sum() if floats else None


# --- weights -------------------------------------------------------------------------------


def _weights(model: Model, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """The initialisers that training would change."""
    roles = dict(_uses(model.graph.node))
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and value.numel()
        and element_type(value) in _TRAINED
        and _is_weight(name, value, roles.get(name, set()))
    }


def _constants_of_layers(model: Model) -> dict[str, Tensor]:
    """Float tensors in `Constant` nodes of the main graph that layers read, by name."""
    roles = dict(_uses(model.graph.node))
    found = {}
    for node in model.graph.node:
        if node.op_type != "Constant" or roles.get(node.output[0], set()).isdisjoint(_LAYERS):
            continue
        value = next((one.t for one in node.attribute if one.name == "value"), None)
        tensor = None if value is None else model.tensor(value)
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel() > 1:
            found[node.output[0]] = tensor
    return found


_TRAINED = frozenset(element_type(torch.zeros((), dtype=dtype)) for dtype in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16))  # fmt: skip


def _uses(nodes: Any) -> Iterator[tuple[str, set[str]]]:
    """For each name, the operators that take it as something else than a setting."""
    users: dict[str, set[str]] = {}
    stack = [nodes]
    while stack:
        for node in stack.pop():
            settings = _SETTINGS.get(node.op_type, frozenset())
            for slot, name in enumerate(node.input):
                if name and slot not in settings:
                    users.setdefault(name, set()).add(node.op_type)
            stack += [graph.node for graph in subgraphs(node)]
    yield from users.items()


def _is_weight(name: str, value: Tensor, users: set[str]) -> bool:
    if not users or not bool(value.isfinite().all()):
        return False
    if value.numel() == 1:
        named = _WEIGHT_NAME.search(name) is not None
        return named or (value.dim() > 0 and not users.isdisjoint(_LAYERS))
    low, high = float(value.min()), float(value.max())
    is_mask = low <= _MASK_FLOOR and high == 0.0 and bool(((value == low) | (value == 0)).all())
    return not is_mask


# --- inputs --------------------------------------------------------------------------------


def _inputs(
    model: Model, examples: Sequence[Any], sizes: dict[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """Example data for every input, and notes on those that were made up."""
    initial = {item.name for item in model.graph.initializer}
    initial |= {item.values.name for item in model.graph.sparse_initializer}
    declared = {item.name: item for item in model.graph.input if item.name not in initial}
    given = _by_name(examples, list(declared))
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ArgumentError(f"sizes[{name!r}] must be a positive number; got {size!r}.")
    values = {
        name: _checked_input(item, given[name], sizes)
        for name, item in declared.items()
        if name in given
    }
    missing = [name for name in declared if name not in given]
    notes = []
    for name in missing:
        values[name] = _stand_in(declared[name], sizes)
        note = f"input {name} was given no example data: its shape is taken to be "
        note += f"{list(values[name].shape)}"
        notes.append(note if values[name].is_meta else f"{note}, and all its elements to be 1")
    return {name: values[name] for name in declared}, notes


def _by_name(examples: Sequence[Any], names: list[str]) -> dict[str, Any]:
    if len(examples) == 1 and isinstance(examples[0], Mapping):
        given = dict(examples[0])
        unknown = [str(name) for name in given if name not in names]
        if unknown:
            raise ArgumentError(
                f"example_inputs: the model has no input {', '.join(unknown)}; its inputs are "
                f"{', '.join(names) or 'none'}."
            )
        return given
    if len(examples) > len(names):
        raise ArgumentError(
            f"example_inputs: the model has {len(names)} input(s) ({', '.join(names)}); "
            f"got {len(examples)}."
        )
    return dict(zip(names, examples, strict=False))


def _checked_input(item: Any, value: Any, sizes: dict[str, int]) -> Any:
    kind = item.type
    if not kind.HasField("tensor_type"):
        return _structured(item.name, value)
    if isinstance(value, Tensor):
        tensor: Any = value.detach().clone()
    else:
        try:
            tensor = from_numpy(np.asarray(value))
        except (TypeError, ValueError, KeyError) as error:
            raise ArgumentError(
                f"example_inputs[{item.name!r}] must be a tensor or an array; got "
                f"{type(value).__name__}."
            ) from error
    element = kind.tensor_type.elem_type
    if element == TensorProto.STRING and not isinstance(tensor, Tensor):
        return tensor
    if not isinstance(tensor, Tensor):
        raise ArgumentError(
            f"example_inputs[{item.name!r}] must be a tensor or an array of type "
            f"{type_name(element)}; got {type(value).__name__}."
        )
    wanted = storage_dtype(element)
    if tensor.is_floating_point() != wanted.is_floating_point or (
        (tensor.dtype == torch.bool) != (wanted == torch.bool)
    ):
        raise ArgumentError(
            f"example_inputs[{item.name!r}] must be of type {type_name(element)}; "
            f"got {tensor.dtype}."
        )
    if kind.tensor_type.HasField("shape"):
        _check_shape(item, tensor, sizes)
    return marked(tensor.to(wanted), element)


def _check_shape(item: Any, tensor: Tensor, sizes: dict[str, int]) -> None:
    dims = item.type.tensor_type.shape.dim
    fits = len(dims) == tensor.dim()
    for dim, size in zip(dims, tensor.shape, strict=False):
        if dim.HasField("dim_value"):
            fits = fits and dim.dim_value == size
        elif dim.dim_param:
            sizes.setdefault(dim.dim_param, size)
    if not fits:
        declared = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
        raise ArgumentError(
            f"example_inputs[{item.name!r}] must have shape {declared}; got {list(tensor.shape)}."
        )


def _structured(name: str, value: Any) -> Any:
    """A sequence or an optional value."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [_structured(name, item) for item in value]
    if isinstance(value, Tensor):
        return value.detach().clone()
    try:
        return from_numpy(np.asarray(value))
    except (TypeError, ValueError, KeyError) as error:
        raise ArgumentError(
            f"example_inputs[{name!r}] must hold tensors; got {type(value).__name__}."
        ) from error


def _stand_in(item: Any, sizes: Mapping[str, int]) -> Tensor:
    """Ones for an integer input; for a float one its shape alone, to be filled at random."""
    kind = item.type
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        raise ArgumentError(
            f"example_inputs must hold data for {item.name!r}: the model does not declare its "
            "shape as a tensor's."
        )
    shape = checked_size(
        [
            dim.dim_value if dim.HasField("dim_value") else sizes.get(dim.dim_param, UNKNOWN_SIZE)
            for dim in kind.tensor_type.shape.dim
        ],
        f"input {item.name!r}",
    )
    element = kind.tensor_type.elem_type
    dtype = storage_dtype(element)
    if dtype.is_floating_point:
        return torch.empty(shape, dtype=dtype, device="meta")
    return marked(torch.ones(shape, dtype=dtype), element)


def _bound_sizes(model: Model, inputs: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of named dimensions, as the inputs at hand have them."""
    bound: dict[str, int] = {}
    for item in model.graph.input:
        value = inputs.get(item.name)
        if isinstance(value, Tensor) and item.type.HasField("tensor_type"):
            for dim, size in zip(item.type.tensor_type.shape.dim, value.shape, strict=False):
                if dim.dim_param:
                    bound[dim.dim_param] = size
    return bound
