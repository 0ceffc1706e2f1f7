"""Whole models: defects are found by node name, healthy models are quiet, the rest is said."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")

from onnx import helper, numpy_helper  # noqa: E402
from onnx_cases.models import BOOL, FLOAT, INT64, classifier, model, unary, value  # noqa: E402

from ranum.analysis import analyze  # noqa: E402
from ranum.analysis.capture.onnx import is_onnx_model, onnx_program  # noqa: E402

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)


def exported(module: nn.Module, *inputs: Any, file: Path, **keywords: Any) -> Path:
    """The model as torch's own exporter writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: it is deprecated, but needs no extra
        torch.onnx.export(
            module.eval(), inputs, str(file), dynamo=False, output_names=["y"], **keywords
        )
    return file


# --- what is found -------------------------------------------------------------------------


def test_log_of_softmax_is_found_by_node_name() -> None:
    analysis = analyze(classifier(stable=False), {"x": X})
    (defect,) = analysis.defects
    assert defect.code == "RN101"
    assert defect.source.node == "/Log"
    assert defect.source.expression == "Log(probs) -> y"
    assert "<onnx>:/Log" in str(defect)
    assert analysis.is_complete


def test_log_softmax_is_quiet() -> None:
    analysis = analyze(classifier(stable=True), X)
    assert analysis.defects == ()
    assert analysis.is_complete
    assert {"y", "head"} <= set(analysis.bounds)


class Probabilities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(torch.softmax(self.head(self.encoder(x)), -1))


def test_an_exported_module_keeps_its_names(tmp_path: Path) -> None:
    file = exported(Probabilities(), torch.randn(2, 4), file=tmp_path / "m.onnx", input_names=["x"])
    analysis = analyze(file, X, weights={"*": (-10, 10)})
    (defect,) = analysis.defects
    assert (defect.code, defect.source.node) == ("RN101", "/Log")
    assert defect.source.file == str(file)
    assert {"encoder.0.weight", "head.bias"} <= set(analysis.ranges)
    assert {"encoder/encoder.0", "head"} <= set(analysis.bounds)


HEALTHY = {
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, stride=2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 5), nn.LogSoftmax(-1),
        ),
        (torch.randn(2, 3, 12, 12),),
    ),
    "transformer": (
        lambda: nn.Sequential(_Attention(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)),
        (torch.randn(2, 5, 16),),
    ),
    "lstm": (lambda: _First(nn.LSTM(4, 6, bidirectional=True)), (torch.randn(3, 2, 4),)),
    "gru": (lambda: _First(nn.GRU(4, 6, num_layers=2)), (torch.randn(3, 2, 4),)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 2), nn.Softmax(-1)),
        (torch.tensor([[1, 2, 6], [0, 3, 3]]),),
    ),
}  # fmt: skip


class _First(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.norm(x)).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return x + torch.softmax(scores, -1) @ v


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_models_are_quiet_and_give_torchs_numbers(tmp_path: Path, name: str) -> None:
    make, inputs = HEALTHY[name]
    module = make()
    file = exported(module, *inputs, file=tmp_path / "m.onnx", opset_version=17)
    analysis = analyze(file, *inputs)
    assert analysis.defects == ()
    assert analysis.is_complete, analysis.unknowns
    with torch.no_grad():
        wanted = module(*inputs)
    low, high = analysis.observed["y"]
    assert low == pytest.approx(float(wanted.min()), abs=1e-5)
    assert high == pytest.approx(float(wanted.max()), abs=1e-5)
    assert analysis.bounds["y"].contains(wanted)


# --- the backward pass ---------------------------------------------------------------------


def root() -> Any:
    nodes = [
        helper.make_node("Mul", ["x", "scale.weight"], ["a"], name="scale"),
        helper.make_node("Mul", ["a", "a"], ["b"], name="square"),
        helper.make_node("Sqrt", ["b"], ["y"], name="root"),
    ]
    return model(nodes, [value("x", [2, 4])], [value("y", None)], {"scale.weight": np.ones(4, "f")})


def test_without_a_loss_only_the_forward_pass_is_analysed() -> None:
    analysis = analyze(root(), X)
    assert {node.phase for node in analysis.graph.nodes} == {"forward"}
    assert analysis.defects == ()


@pytest.mark.parametrize("keywords", [{"backward": True}, {"loss": lambda y: y.mean()}])
def test_with_a_loss_gradients_are_analysed(keywords: dict[str, Any]) -> None:
    analysis = analyze(root(), X, **keywords)
    (defect,) = analysis.defects
    assert defect.source.node == "root"
    assert defect.gradient_only
    assert any(node.phase == "backward" for node in analysis.graph.nodes)


def test_a_loss_of_several_outputs_gets_them_by_name() -> None:
    nodes = [helper.make_node("Exp", ["x"], ["a.b"]), helper.make_node("Tanh", ["x"], ["c"])]
    proto = model(nodes, [value("x", [2])], [value("a.b", None), value("c", None)])
    seen: list[str] = []

    def loss(outputs: dict[str, Tensor]) -> Tensor:
        seen.extend(outputs)
        return outputs["a.b"].sum() + outputs["c"].sum()

    analysis = analyze(proto, np.ones(2, np.float32), loss=loss)
    assert seen == ["a.b", "c"]
    assert {"a.b", "c", "loss"} <= set(analysis.bounds)


# --- weights -------------------------------------------------------------------------------


def test_weights_stay_symbolic_and_follow_the_level() -> None:
    proto = model(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [value("x", [2])],
        [value("y", None)],
        {"w": np.array([1, 2], "f")},
    )
    x = np.ones(2, np.float32)
    assert analyze(proto, x, weights="initial").bounds["y"].high == 2
    assert analyze(proto, x).bounds["y"].high == 20
    assert analyze(proto, x, weights={"w": (5, 6)}).bounds["y"].low == 5
    folded = analyze(onnx_program(proto, [x], fold_weights=True))
    assert folded.bounds["y"].high == 2
    assert "w" not in folded.ranges


def test_a_chain_of_weights_only_is_not_folded() -> None:
    nodes = [
        helper.make_node("Exp", ["w"], ["grown"], name="growth"),
        helper.make_node("Mul", ["x", "grown"], ["y"]),
    ]
    proto = model(nodes, [value("x", [2])], [value("y", None)], {"w": np.ones(2, "f")})
    analysis = analyze(proto, np.ones(2, np.float32), weights=100.0)
    assert [defect.source.node for defect in analysis.defects] == ["growth"]


def test_numbers_statistics_and_masks_are_constants() -> None:
    nodes = [
        helper.make_node("BatchNormalization", ["x", "w", "b", "mean", "var"], ["a"]),
        helper.make_node("Add", ["a", "mask"], ["c"]),
        helper.make_node("Div", ["c", "eps"], ["y"]),
    ]
    weights = {
        "w": np.ones(3, "f"),
        "b": np.zeros(3, "f"),
        "mean": np.zeros(3, "f"),
        "var": np.full(3, 0.5, "f"),
        "mask": np.array([0, -1e9, 0], "f"),
        "eps": np.array(1e-3, "f"),
    }
    analysis = analyze(model(nodes, [value("x", [2, 3])], [value("y", None)], weights))
    assert set(analysis.ranges) == {"x", "w", "b"}
    assert analysis.defects == ()
    assert any("4 initialiser(s) are taken as constants" in note for note in analysis.notes)


def test_a_bias_of_one_element_is_a_weight() -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    weights = {"w": np.ones((4, 1), "f"), "b": np.zeros(1, "f")}
    analysis = analyze(model([node], [value("x", [2, 4])], [value("y", None)], weights), X)
    assert set(analysis.ranges) == {"x", "w", "b"}


# --- inputs --------------------------------------------------------------------------------


def test_inputs_without_data_have_their_declared_shape() -> None:
    analysis = analyze(classifier(stable=True))
    assert analysis.bounds["y"].shape == (2, 3)
    assert any("input x was given no example data" in note for note in analysis.notes)
    sized = analyze(onnx_program(classifier(stable=True), sizes={"batch": 5}))
    assert sized.bounds["y"].shape == (5, 3)


def test_ranges_by_name() -> None:
    analysis = analyze(unary("Exp"), inputs={"x": (0, 100)})
    assert [defect.source.node for defect in analysis.defects] == ["only"]
    assert analyze(unary("Exp"), inputs={"x": (0, 80)}).defects == ()


# --- control flow and functions ------------------------------------------------------------


def test_a_branch_on_data_is_noted() -> None:
    def branch(op: str) -> Any:
        node = helper.make_node(op, ["x"], ["out"], name=op.lower())
        return helper.make_graph([node], op, [], [value("out", None)])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["c"]),
        helper.make_node(
            "If", ["c"], ["y"], name="choice", then_branch=branch("Log"), else_branch=branch("Neg")
        ),
    ]
    proto = model(nodes, [value("x", [3])], [value("y", None)], {"zero": np.array(0, "f")})
    analysis = analyze(proto, np.array([1, 2, 3], "f"), inputs={"x": (0, 3)})
    assert [defect.source.node for defect in analysis.defects] == ["choice/log"]
    assert any("only the branch taken was analysed" in note for note in analysis.notes)


def test_a_loop_is_unrolled() -> None:
    body = helper.make_graph(
        [
            helper.make_node("Log", ["s"], ["t"], name="log"),
            helper.make_node("Identity", ["c"], ["d"]),
        ],
        "body",
        [value("i", [], INT64), value("c", [], BOOL), value("s", [1])],
        [value("d", [], BOOL), value("t", [1])],
    )
    proto = model(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body, name="loop")],
        [value("x", [1])],
        [value("y", None)],
        {"n": np.array(2)},
    )
    analysis = analyze(proto, np.array([1.5], "f"), inputs={"x": (1, 2)})
    assert [defect.source.node for defect in analysis.defects] == ["loop/log"]


def test_functions_of_the_model_are_run() -> None:
    imports = [helper.make_opsetid("own", 1), helper.make_opsetid("", 21)]
    node = helper.make_node("Log", ["a"], ["b"], name="inner")
    function = helper.make_function("own", "F", ["a"], ["b"], [node], imports)
    call = helper.make_node("F", ["x"], ["y"], domain="own", name="outer")
    proto = model(
        [call], [value("x", [2])], [value("y", None)], functions=[function], imports=imports[:1]
    )
    analysis = analyze(proto, np.ones(2, "f"), inputs={"x": (0, 1)})
    assert [defect.source.node for defect in analysis.defects] == ["outer/inner"]


def test_an_operator_without_a_lowering_uses_the_schemas_function() -> None:
    heads = {"q_num_heads": 1, "kv_num_heads": 1, "update_rule": "linear"}
    node = helper.make_node("LinearAttention", ["q", "q", "q"], ["y", "state"], **heads)
    proto = model([node], [value("q", [1, 3, 4])], [value("y", None)], opset=27)
    analysis = analyze(proto)
    assert analysis.is_complete
    assert len(analysis.graph.nodes) > 5


# --- what is not known ---------------------------------------------------------------------


def custom(shape: Sequence[int] | None) -> Any:
    nodes = [
        helper.make_node("Mystery", ["x"], ["a"], domain="com.example", name="riddle"),
        helper.make_node("Exp", ["a"], ["y"], name="growth"),
    ]
    return model(
        nodes, [value("x", [2, 3])], [value("y", None)],
        imports=[helper.make_opsetid("com.example", 1)],
    ) if shape is None else helper.make_model(
        helper.make_graph(
            nodes, "main", [value("x", [2, 3])], [value("y", None)],
            value_info=[value("a", shape)],
        ),
        opset_imports=[helper.make_opsetid("com.example", 1), helper.make_opsetid("", 21)],
    )  # fmt: skip


@pytest.mark.parametrize(("shape", "wanted"), [(None, (2, 3)), ([4, 5], (4, 5))])
def test_an_operator_of_an_unknown_domain(shape: Any, wanted: tuple[int, ...]) -> None:
    analysis = analyze(custom(shape))
    assert not analysis.is_complete
    (unknown,) = analysis.unknowns
    assert unknown.op == "com.example.Mystery"
    assert unknown.source.node == "riddle"
    assert analysis.bounds["y"].shape == wanted
    assert analysis.bounds["y"].high == float("inf")


def test_an_unknown_operator_of_constants_is_no_constant() -> None:
    node = helper.make_node("Mystery", ["w"], ["y"], domain="com.example")
    proto = model(
        [node], [], [value("y", None)], {"w": np.ones(2, np.int64)},
        imports=[helper.make_opsetid("com.example", 1)],
    )  # fmt: skip
    assert [unknown.op for unknown in analyze(proto).unknowns] == ["com.example.Mystery"]


def test_an_attribute_that_is_not_covered_makes_the_operator_unknown() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], novelty=1)
    analysis = analyze(model([node], [value("x", [2])], [value("y", None)]))
    assert not analysis.is_complete


@pytest.mark.parametrize("element", [FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16])
def test_the_limits_are_those_of_the_type(element: int) -> None:
    proto = unary("Exp")
    proto.graph.input[0].type.tensor_type.elem_type = element
    defects = analyze(proto, inputs={"x": (0, 12)}).defects
    assert len(defects) == (element == onnx.TensorProto.FLOAT16)


# --- the entry -----------------------------------------------------------------------------


def test_what_counts_as_a_model(tmp_path: Path) -> None:
    assert is_onnx_model("m.onnx")
    assert is_onnx_model(tmp_path / "m.onnx")
    assert is_onnx_model(unary("Exp"))
    assert not is_onnx_model(tmp_path)
    assert not is_onnx_model("m.pt2")
    assert not is_onnx_model(nn.Linear(1, 1))


def test_the_command_line_takes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ranum import cli

    file = tmp_path / "m.onnx"
    file.write_bytes(classifier(stable=False).SerializeToString())
    assert cli.main(["analyze", str(file), "--size", "batch=3"]) == cli.FOUND
    output = capsys.readouterr().out
    assert "RN101 certain" in output
    assert "m.onnx:/Log `Log(probs) -> y`" in output
    assert "[3, 4]" in output
    file.write_bytes(classifier(stable=True).SerializeToString())
    assert cli.main(["analyze", str(file), "--input", "2,4"]) == cli.OK
    assert cli.main(["analyze", str(file), "--input", "2,5"]) == cli.FAILED
    assert cli.main(["analyze", "model.py:Net", "--size", "batch=3"]) == cli.FAILED
    assert "--size is for ONNX models" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["batch", "batch=0", "=3", "batch=x"])
def test_a_bad_size_is_a_usage_error(size: str) -> None:
    from ranum import cli

    with pytest.raises(SystemExit):
        cli.main(["analyze", "m.onnx", "--size", size])


def test_lowerings_are_registered_once() -> None:
    from ranum.analysis.capture.onnx.registry import lowering
    from ranum.errors import ArgumentError

    with pytest.raises(ArgumentError, match="Exp has a lowering since opset 1"):
        lowering("Exp")(lambda x: x)


def test_older_opsets_keep_their_meaning() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype("f")
    flat = analyze(_softmax(11), x).observed["y"]
    last = analyze(_softmax(13), x).observed["y"]
    wanted = torch.softmax(torch.tensor(x).flatten(1), -1)
    assert flat == pytest.approx((float(wanted.min()), float(wanted.max())))
    assert last == pytest.approx(
        (float((s := torch.softmax(torch.tensor(x), 1)).min()), float(s.max()))
    )


def _softmax(opset: int) -> Any:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    return model([node], [value("x", [2, 3, 4])], [value("y", None)], opset=opset)


def test_constants_that_a_layer_reads_are_weights() -> None:
    kernel, scale = np.ones((4, 3), np.float32), np.full(3, 4.0, np.float32)
    nodes = [
        helper.make_node("Constant", [], ["kernel"], value=numpy_helper.from_array(kernel)),
        helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(scale)),
        helper.make_node("MatMul", ["x", "kernel"], ["h"]),
        helper.make_node("Mul", ["h", "scale"], ["s"]),
        helper.make_node("Exp", ["s"], ["y"]),
    ]
    proto = model(nodes, [value("x", [2, 4])], [value("y", None)])
    x = np.ones((2, 4), np.float32)
    analysis = analyze(proto, x, inputs={"x": (-1, 1)})
    assert set(analysis.ranges) == {"x", "kernel"}
    assert [defect.code for defect in analysis.defects] == ["RN104"]
    folded = analyze(onnx_program(proto, (x,), fold_weights=True), inputs={"x": (-1, 1)})
    assert set(folded.ranges) == {"x"}
    assert folded.defects == ()
