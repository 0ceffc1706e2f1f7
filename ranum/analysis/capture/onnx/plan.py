"""An ONNX graph as steps that are ready to run: attributes converted, places named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnx import AttributeProto

from ranum.analysis.capture.onnx.model import Model, domain_of, subgraphs
from ranum.analysis.capture.onnx.values import from_proto
from ranum.errors import ArgumentError
from ranum.source import Source

_SCOPE = re.compile(r"'([^']*)'")


@dataclass(frozen=True, slots=True)
class Step:
    """One node.

    Attributes:
        op: Operator.
        domain: Its domain; "" is ai.onnx.
        overload: Tells functions of one name apart.
        name: The node's name, or one made up from its operator and place in the graph.
        inputs: Names read; "" where an optional input is left out.
        outputs: Names written.
        attributes: By name; graphs are `Body`, tensors are values.
        references: For nodes of functions: attribute name to the name in the caller.
        text: "Log(probs) -> logp".
        module: Path of the layer it belongs to, if the model says.
        dead: Names that no later step reads.
        proto: The node itself.
    """

    op: str
    domain: str
    overload: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    references: Mapping[str, str]
    text: str
    module: str | None
    dead: tuple[str, ...]
    proto: Any = field(repr=False)

    def place(self, file: str, inside: str) -> Source:
        """Where the step stands; `inside` names the calls around it."""
        return Source(
            file=file,
            line=0,
            end_line=0,
            column=-1,
            end_column=-1,
            module=self.module,
            lines=(self.text,),
            node=f"{inside}{self.name}",
        )


@dataclass(frozen=True, slots=True)
class Body:
    """A graph, or the body of a function.

    Attributes:
        input: Names of its inputs.
        output: Names of its outputs.
        constants: Values of the initialisers of a subgraph, by name.
        steps: Its nodes, in order.
    """

    input: tuple[str, ...]
    output: tuple[str, ...]
    constants: Mapping[str, Any]
    steps: tuple[Step, ...]


def graph_body(model: Model, graph: Any, *, keep_initializers: bool = True) -> Body:
    """The plan of a graph; the main one's initialisers are left to the program."""
    constants: dict[str, Any] = {}
    if keep_initializers:
        constants = {tensor.name: model.tensor(tensor) for tensor in graph.initializer}
        constants.update(sparse_constants(graph))
    outputs = tuple(item.name for item in graph.output)
    inputs = tuple(item.name for item in graph.input if item.name not in constants)
    return Body(inputs, outputs, constants, _steps(model, graph.node, set(outputs)))


def function_body(model: Model, function: Any) -> Body:
    """The plan of a function's body."""
    outputs = tuple(function.output)
    return Body(tuple(function.input), outputs, {}, _steps(model, function.node, set(outputs)))


def sparse_constants(graph: Any) -> dict[str, Any]:
    """Sparse initialisers by name, made dense."""
    return {item.values.name: _dense(item) for item in graph.sparse_initializer}


def attribute_value(model: Model, attribute: Any) -> Any:
    """An attribute as a lowering gets it.

    Raises:
        ArgumentError: For an attribute whose kind is not known.
    """
    kind = attribute.type
    if kind == AttributeProto.FLOAT:
        return float(attribute.f)
    if kind == AttributeProto.INT:
        return int(attribute.i)
    if kind == AttributeProto.STRING:
        return attribute.s.decode("utf-8", errors="replace")
    if kind == AttributeProto.FLOATS:
        return [float(item) for item in attribute.floats]
    if kind == AttributeProto.INTS:
        return [int(item) for item in attribute.ints]
    if kind == AttributeProto.STRINGS:
        return [item.decode("utf-8", errors="replace") for item in attribute.strings]
    if kind == AttributeProto.TENSOR:
        return model.tensor(attribute.t)
    if kind == AttributeProto.TENSORS:
        return [model.tensor(tensor) for tensor in attribute.tensors]
    if kind == AttributeProto.GRAPH:
        return graph_body(model, attribute.g)
    if kind == AttributeProto.SPARSE_TENSOR:
        return _dense(attribute.sparse_tensor)
    if kind == AttributeProto.TYPE_PROTO:
        return attribute.tp
    raise ArgumentError(f"attribute {attribute.name!r} is of a kind ({kind}) that is not known.")


def _steps(model: Model, nodes: Any, kept: set[str]) -> tuple[Step, ...]:
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in _reads(node):
            last[name] = index
        for name in node.output:
            last.setdefault(name, index)
    ends: dict[int, list[str]] = {}
    for name, index in last.items():
        if name and name not in kept:
            ends.setdefault(index, []).append(name)
    return tuple(
        _step(model, node, index, tuple(ends.get(index, ()))) for index, node in enumerate(nodes)
    )


def _reads(node: Any) -> set[str]:
    """Names a node reads, those inside its subgraphs included."""
    names = set(node.input)
    for graph in subgraphs(node):
        names.update(item.name for item in graph.output)
        for inner in graph.node:
            names |= _reads(inner)
    return names


def _step(model: Model, node: Any, index: int, dead: tuple[str, ...]) -> Step:
    attributes, references = {}, {}
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            references[attribute.name] = attribute.ref_attr_name
        else:
            attributes[attribute.name] = attribute_value(model, attribute)
    reads, writes = ", ".join(node.input), ", ".join(name for name in node.output if name)
    return Step(
        op=node.op_type,
        domain=domain_of(node.domain),
        overload=node.overload,
        name=node.name or f"{node.op_type}_{index}",
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=attributes,
        references=references,
        text=f"{node.op_type}({reads}) -> {writes}",
        module=_module(node),
        dead=dead,
        proto=node,
    )


def _module(node: Any) -> str | None:
    """Path of the layer a node belongs to.

    Torch's exporter writes it into the metadata; others put it in front of the node's name.
    """
    metadata = {item.key: item.value for item in node.metadata_props}
    scopes = _SCOPE.findall(metadata.get("pkg.torch.onnx.name_scopes", ""))
    if len(scopes) > 1:
        return str(scopes[-2])
    namespace = metadata.get("namespace", "")
    if namespace:
        parts = [part.partition(":")[0].strip() for part in namespace.split("/")]
        return next((part for part in reversed(parts[:-1]) if part), "")
    head, slash, _ = node.name.strip("/").rpartition("/")
    return head if slash else None


def _dense(sparse: Any) -> Any:
    import torch

    from ranum.analysis.capture.onnx.values import checked_size

    what = f"sparse tensor {sparse.values.name!r}"
    shape = checked_size(sparse.dims, what)
    entries, places = from_proto(sparse.values, what), from_proto(sparse.indices, what)
    dense = torch.zeros(shape, dtype=entries.dtype)
    if places.dim() == 2:
        columns = places.t()
        if len(columns) != len(shape):
            raise ArgumentError(f"{what} has {len(columns)} indices per entry for {list(shape)}.")
        flat = torch.zeros_like(columns[0])
        for size, column in zip(shape, columns, strict=True):
            flat = flat * size + column
        places = flat
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < dense.numel():
        raise ArgumentError(f"{what} has an index outside of its shape {list(shape)}.")
    dense.view(-1)[places] = entries
    return dense
