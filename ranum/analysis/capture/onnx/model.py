"""Reads ONNX models and checks them before anything is carried out.

A model is data from anywhere: nothing in it is unpickled or run, its external data may not
lie outside its own folder, and sizes are checked against what is really there before memory
is taken.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto

from ranum.analysis.capture.onnx import values
from ranum.errors import ArgumentError

DEPTH_LIMIT = 20
"""Subgraphs inside subgraphs; also functions that call functions."""
_FILE_LIMIT = (1 << 31) - 1
"""Protocol buffers hold no more bytes; larger models keep their weights outside."""

FunctionKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checked model.

    Attributes:
        proto: The `ModelProto`.
        file: Its absolute path, or "<onnx>".
        folder: Where its external data may lie; None for a model in memory.
        opsets: Version by domain; "" is ai.onnx.
        functions: Model-local functions by domain, name and overload.
    """

    proto: Any
    file: str
    folder: Path | None
    opsets: Mapping[str, int]
    functions: Mapping[FunctionKey, Any]

    @property
    def graph(self) -> Any:
        """The main graph."""
        return self.proto.graph

    def tensor(self, proto: Any) -> Any:
        """The value of a tensor of the model, external data included."""
        what = f"tensor {proto.name!r}"
        if proto.data_location != TensorProto.EXTERNAL:
            return values.from_proto(proto, what)
        return _external(proto, self.folder, what)


def read_model(target: Any) -> Model:
    """A path or a `ModelProto` as a checked model.

    Raises:
        ArgumentError: If there is no such file, it is not an ONNX model, or the model breaks
            a rule of the format.
    """
    file, folder = "<onnx>", None
    proto = target
    if isinstance(target, (str, os.PathLike)):
        path = Path(os.fspath(target))
        proto = _parse(path)
        file, folder = os.path.abspath(path), Path(os.path.abspath(path)).parent
    _require(proto.HasField("graph"), f"{file} is not an ONNX model: it has no graph.")
    opsets = opset_versions(proto.opset_import, file)
    functions = {(domain_of(f.domain), f.name, f.overload): f for f in proto.functions}
    known = {item.name for item in proto.graph.input}
    for function in functions.values():
        _check_nodes(function.node, set(function.input), f"function {function.name}", 0)
    _check_graph(proto.graph, known, "graph", 0)
    return Model(proto=proto, file=file, folder=folder, opsets=opsets, functions=functions)


def subgraphs(node: Any) -> Iterator[Any]:
    """Graphs among the attributes of a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH or attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _parse(path: Path) -> Any:
    if not path.is_file():
        raise ArgumentError(f"target must be an ONNX file; there is no file {str(path)!r}.")
    size = path.stat().st_size
    if not 0 < size <= _FILE_LIMIT:
        raise ArgumentError(
            f"{path.name} is not an ONNX model: it has {size} bytes, and a model has from 1 to "
            f"{_FILE_LIMIT} (larger ones keep their weights in a file beside them)."
        )
    try:
        return onnx.ModelProto.FromString(path.read_bytes())
    except Exception as error:  # protobuf's own, which this package does not depend on
        raise ArgumentError(
            f"{path.name} is not an ONNX model, or it is cut off: {error}."
        ) from error


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ArgumentError(message)


def domain_of(name: str) -> str:
    """Domains by one name each: "ai.onnx" is ""."""
    return "" if name == "ai.onnx" else name


def opset_versions(imports: Any, what: str) -> dict[str, int]:
    """Version by domain, checked against what the installed `onnx` knows."""
    opsets = {domain_of(item.domain): int(item.version) for item in imports}
    newest = int(onnx.defs.onnx_opset_version())
    version = opsets.get("", newest)
    _require(
        1 <= version <= newest,
        f"{what} uses opset {version}; onnx {onnx.__version__} knows 1 to {newest}. Install a "
        "newer onnx, or export the model with an older opset.",
    )
    return opsets


# --- graphs --------------------------------------------------------------------------------


def _check_graph(graph: Any, outer: Collection[str], what: str, depth: int) -> None:
    """Every name is made once, before it is read; no graph lies too deep."""
    _require(
        depth <= DEPTH_LIMIT, f"{what} must not hold graphs more than {DEPTH_LIMIT} levels deep."
    )
    known = set(outer)
    known.update(item.name for item in graph.input)
    known.update(item.name for item in graph.initializer)
    known.update(item.values.name for item in graph.sparse_initializer)
    known = _check_nodes(graph.node, known, what, depth)
    for output in graph.output:
        _require(
            output.name in known, f"{what} must compute its output {output.name!r}; nothing does."
        )


def _check_nodes(nodes: Any, known: Collection[str], what: str, depth: int) -> set[str]:
    seen, made = set(known), set()
    for node in nodes:
        place = f"node {node.name or node.op_type!r} of {what}"
        for name in node.input:
            _require(
                not name or name in seen,
                f"{place} reads {name!r}, which nothing before it computes (a cycle, a missing "
                "input, or nodes out of order).",
            )
        for graph in subgraphs(node):
            _check_graph(graph, seen, f"a graph inside {node.op_type}", depth + 1)
        for name in node.output:
            _require(not name or name not in made, f"{place} computes {name!r} a second time.")
            made.add(name)
            seen.add(name)
    return seen


# --- external data -------------------------------------------------------------------------


def _external(proto: Any, folder: Path | None, what: str) -> Any:
    entries = {entry.key: entry.value for entry in proto.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ArgumentError(
            f"{what} keeps its data in {location!r}: give the model's path instead of a "
            "ModelProto, or load its external data first."
        )
    path = _inside(folder, location, what)
    shape = values.checked_size(proto.dims, what)
    element = int(proto.data_type)
    values.storage_dtype(element)
    expected = values.byte_count(element, shape)
    offset = _number(entries.get("offset", "0"), f"offset of {what}")
    length = _number(entries.get("length", str(expected)), f"length of {what}")
    _require(
        length == expected and offset + length <= path.stat().st_size,
        f"{what} must have {expected} bytes in {location!r} from byte {offset} on; its length is "
        f"{length}, and the file has {path.stat().st_size} bytes.",
    )
    with path.open("rb") as stream:
        stream.seek(offset)
        return values.from_bytes(stream.read(length), element, shape)


def _inside(folder: Path, location: str, what: str) -> Path:
    """The file that external data names, which must lie in the model's own folder."""
    parts = Path(location).parts
    good = bool(parts) and not Path(location).is_absolute() and ".." not in parts
    good = good and "\\" not in location and "\0" not in location
    path = folder.joinpath(*parts) if good else folder
    root = Path(os.path.realpath(folder))
    good = good and Path(os.path.realpath(path)).is_relative_to(root)
    _require(
        good,
        f"{what} keeps its data in {location!r}; external data must lie in the model's own "
        "folder, also when links are followed.",
    )
    _require(path.is_file(), f"{what} keeps its data in {location!r}; there is no such file.")
    return path


def _number(text: str, what: str) -> int:
    _require(text.isascii() and text.isdigit(), f"{what} must be a whole number; got {text!r}.")
    return int(text)
