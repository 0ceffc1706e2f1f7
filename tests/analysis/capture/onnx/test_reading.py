"""Bad models and bad inputs end in a clear error, before memory is taken or code is run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")

from onnx import TensorProto, helper, save_model
from onnx_cases.models import BOOL, INT64, classifier, model, unary, value

from ranum.analysis import analyze
from ranum.errors import ArgumentError

X = np.ones((2, 3), np.float32)


def refused(target: Any, message: str, *inputs: Any, **keywords: Any) -> None:
    with pytest.raises(ArgumentError, match=message):
        analyze(target, *inputs, **keywords)


# --- files ---------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "gone.onnx", "there is no file")


@pytest.mark.parametrize(
    "content", [b"", b"hello, this is no model", b"\x80\x04\x95cposix\nsystem\n", b"\0" * 100]
)
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.onnx"
    file.write_bytes(content)
    refused(str(file), "bad.onnx is not an ONNX model")


def test_every_truncated_file_is_refused_or_runs(tmp_path: Path) -> None:
    whole = classifier(stable=True).SerializeToString()
    file = tmp_path / "cut.onnx"
    refusals = 0
    for length in range(0, len(whole), 3):
        file.write_bytes(whole[:length])
        try:
            analyze(file)
        except ArgumentError:
            refusals += 1
    assert refusals > 0.9 * len(whole) / 3


def test_without_the_package_the_pip_line_is_shown() -> None:
    code = "import sys; sys.modules['onnx'] = None; import ranum; ranum.analyze('model.onnx')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'ranum[onnx]'" in done.stderr


# --- graphs --------------------------------------------------------------------------------


def test_an_opset_from_the_future() -> None:
    proto = unary("Exp")
    proto.opset_import[0].version = 999
    refused(proto, "uses opset 999; onnx .* knows 1 to .* Install a newer onnx")


def test_a_cycle() -> None:
    nodes = [helper.make_node("Exp", ["b"], ["a"]), helper.make_node("Log", ["a"], ["b"])]
    refused(model(nodes, [], [value("b", None)]), "reads 'b', which nothing before it computes")


def test_a_missing_output() -> None:
    proto = unary("Exp")
    proto.graph.output[0].name = "z"
    refused(proto, "must compute its output 'z'")


def test_a_name_computed_twice() -> None:
    nodes = [helper.make_node("Exp", ["x"], ["y"]), helper.make_node("Log", ["x"], ["y"])]
    refused(model(nodes, [value("x", [2])], [value("y", None)]), "computes 'y' a second time")


@pytest.mark.parametrize("depth", [28, 60])
def test_graphs_nested_too_deep(tmp_path: Path, depth: int) -> None:
    """Built from the inside out as bytes, since helpers refuse to."""
    node = helper.make_node("Exp", ["x"], ["y"]).SerializeToString()
    for _ in range(depth):
        graph = _field(1, node) + _field(2, b"g") + _field(12, _field(1, b"y"))
        attribute = _field(1, b"then_branch") + _field(6, graph) + b"\xa0\x01\x05"
        node = _field(1, b"c") + _field(2, b"y") + _field(4, b"If") + _field(5, attribute)
    main = _field(1, node) + _field(11, _field(1, b"c")) + _field(11, _field(1, b"x"))
    file = tmp_path / "deep.onnx"
    file.write_bytes(_field(7, main + _field(12, _field(1, b"y"))) + _field(8, b"\x10\x15"))
    refused(file, "levels deep|not an ONNX model")


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    size, length = len(content), b""
    while size >= 128:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_functions_that_call_each_other() -> None:
    imports = [helper.make_opsetid("own", 1), helper.make_opsetid("", 21)]
    functions = [
        helper.make_function(
            "own",
            name,
            ["a"],
            ["b"],
            [helper.make_node(other, ["a"], ["b"], domain="own")],
            imports,
        )
        for name, other in (("F", "G"), ("G", "F"))
    ]
    node = helper.make_node("F", ["x"], ["y"], domain="own")
    proto = model(
        [node], [value("x", [2])], [value("y", None)], functions=functions, imports=imports[:1]
    )
    refused(proto, "function F must not call itself")


def test_too_few_inputs_of_an_operator() -> None:
    node = helper.make_node("Add", ["x"], ["y"], name="sum")
    refused(
        model([node], [value("x", [2])], [value("y", None)]), "node 'sum': Add takes 2 to 2 inputs"
    )


def test_operands_that_do_not_fit_name_the_node() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    proto = model([node], [value("x", [2, 3])], [value("y", None)], {"w": np.ones((4, 4), "f")})
    refused(proto, "node 'product', MatMul.*cannot be carried out")


# --- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[10**6, 10**6], [-2, 3]])
def test_sizes_are_checked_before_memory_is_taken(sizes: list[int]) -> None:
    node = helper.make_node("ConstantOfShape", ["shape"], ["y"])
    proto = model([node], [], [value("y", None)], {"shape": np.array(sizes)})
    refused(proto, "is not made: sizes must not be negative")


@pytest.mark.parametrize("op", ["Add", "MatMul", "Greater"])
def test_products_of_sizes_are_checked(op: str) -> None:
    nodes = [
        helper.make_node("Expand", ["x", "tall"], ["a"]),
        helper.make_node("Expand", ["x", "wide"], ["b"]),
        helper.make_node(op, ["a", "b"], ["y"]),
    ]
    shapes = {"tall": np.array([10**6, 1]), "wide": np.array([1, 10**6])}
    refused(model(nodes, [value("x", [1])], [value("y", None)], shapes), "is not made")


@pytest.mark.parametrize("dims", [[1 << 40], [-1], [1 << 20, 1 << 20]])
def test_initialisers_that_claim_more_than_they_hold(dims: list[int]) -> None:
    proto = classifier(stable=True)
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    refused(proto, "tensor 'head.weight' of shape")


def test_an_initialiser_of_the_wrong_length() -> None:
    proto = classifier(stable=True)
    proto.graph.initializer[0].raw_data = b"abc"
    refused(proto, "must have 48 bytes; it has 3")


def test_a_loop_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from ranum.analysis.capture.onnx.operators import control

    monkeypatch.setattr(control, "STEP_LIMIT", 50)
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [value("i", [], INT64), value("c", [], BOOL)],
        [value("d", [], BOOL)],
    )
    node = helper.make_node("Loop", ["", "go"], [], body=body)
    end = helper.make_node("Identity", ["go"], ["y"])
    refused(
        model([node, end], [], [value("y", None)], {"go": np.array(True)}), "more than .* steps"
    )


# --- inputs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (({"z": X},), "the model has no input z; its inputs are x"),
        ((X, X), r"the model has 1 input\(s\) \(x\); got 2"),
        ((np.ones((2, 3), np.int64),), r"example_inputs\['x'\] must be of type FLOAT"),
        ((np.ones((2, 4), np.float32),), r"must have shape \[2, 3\]; got \[2, 4\]"),
        ((np.ones(2, np.float32),), r"must have shape \[2, 3\]; got \[2\]"),
        ((object(),), "must be a tensor or an array of type FLOAT; got object"),
    ],
)
def test_inputs_that_do_not_fit(inputs: tuple[Any, ...], message: str) -> None:
    refused(unary("Exp"), message, *inputs)


def test_float64_examples_are_rounded() -> None:
    analysis = analyze(unary("Exp"), np.ones((2, 3)))
    assert analysis.bounds["y"].dtype == torch.float32


# --- external data -------------------------------------------------------------------------


def external(folder: Path, location: str) -> Path:
    proto = classifier(stable=True)
    folder.mkdir(exist_ok=True)
    save_model(
        proto, folder / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0
    )
    import onnx

    proto = onnx.load(folder / "m.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


def test_external_data_is_read(tmp_path: Path) -> None:
    whole = analyze(classifier(stable=True), {"x": np.ones((2, 4), np.float32)})
    read = analyze(external(tmp_path / "in", "m.bin"), {"x": np.ones((2, 4), np.float32)})
    assert str(read.bounds["y"]) == str(whole.bounds["y"])


@pytest.mark.parametrize("location", ["../m.bin", "a/../../m.bin", "", "m.bin/../../m.bin", "."])
def test_external_data_outside_of_the_folder(tmp_path: Path, location: str) -> None:
    file = external(tmp_path / "in", location)
    (tmp_path / "m.bin").write_bytes((tmp_path / "in" / "m.bin").read_bytes())
    refused(file, "external data must lie in the model's own folder|there is no such file")


def test_external_data_by_an_absolute_path(tmp_path: Path) -> None:
    refused(external(tmp_path / "in", str(tmp_path / "in" / "m.bin")), "the model's own folder")


def test_external_data_behind_a_link(tmp_path: Path) -> None:
    file = external(tmp_path / "in", "link.bin")
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\0" * 1000)
    os.symlink(secret, tmp_path / "in" / "link.bin")
    refused(file, "also when links are followed")


def test_external_data_that_is_too_short(tmp_path: Path) -> None:
    file = external(tmp_path / "in", "m.bin")
    (tmp_path / "in" / "m.bin").write_bytes(b"\0" * 5)
    refused(file, "must have 48 bytes in 'm.bin'")


def test_external_data_of_a_model_in_memory() -> None:
    proto = classifier(stable=True)
    tensor = proto.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="m.bin")
    refused(proto, "give the model's path instead")
