"""Small ONNX models, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
OPSET = 21


def value(name: str, shape: Sequence[Any] | None, element: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, element, shape)


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    weights: dict[str, Any] | None = None,
    *,
    opset: int = OPSET,
    **more: Any,
) -> ModelProto:
    """A model of one graph; weights by name are numpy arrays."""
    initial = [numpy_helper.from_array(np.asarray(w), n) for n, w in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "main", list(inputs), list(outputs), initial)
    imports = [helper.make_opsetid("", opset), *more.pop("imports", ())]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **more)


def unary(op: str, shape: Sequence[Any] = (2, 3), **attributes: Any) -> ModelProto:
    """One operator from x to y."""
    node = helper.make_node(op, ["x"], ["y"], name="only", **attributes)
    return model([node], [value("x", shape)], [value("y", None)])


def classifier(*, stable: bool) -> ModelProto:
    """A linear layer and the logarithm of its softmax, in one operator or in two."""
    head = helper.make_node(
        "Gemm", ["x", "head.weight", "head.bias"], ["logits"], name="/head/Gemm"
    )
    if stable:
        tail = [helper.make_node("LogSoftmax", ["logits"], ["y"], name="/LogSoftmax")]
    else:
        tail = [
            helper.make_node("Softmax", ["logits"], ["probs"], name="/Softmax"),
            helper.make_node("Log", ["probs"], ["y"], name="/Log"),
        ]
    rng = np.random.default_rng(0)
    weights = {
        "head.weight": 10 * rng.standard_normal((4, 3), dtype=np.float32),
        "head.bias": np.zeros(3, np.float32),
    }
    return model([head, *tail], [value("x", ["batch", 4])], [value("y", ["batch", 3])], weights)
