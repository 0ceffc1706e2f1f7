"""What is known about operators without a lowering: ONNX's own definition of them.

Also the last resort: results from ONNX's reference evaluator, or zeros of the shape that
shape inference gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TypeProto, helper
from torch import Tensor

from ranum.analysis.capture.onnx.model import Model
from ranum.analysis.capture.onnx.plan import Step
from ranum.analysis.capture.onnx.values import (
    ELEMENT_LIMIT,
    element_type,
    from_numpy,
    marked,
    storage_dtype,
    to_numpy,
)

_EVALUATED_ELEMENTS = 1 << 20
"""The reference evaluator, plain Python in part, is not given larger operands."""
_NOT_EVALUATED = frozenset({"RegexFullMatch", "ImageDecoder"})
"""Patterns that may never end, and decoders of foreign formats, are not run."""


def schema_function(
    step: Step, version: int, inputs: Sequence[Any], opsets: Mapping[str, int]
) -> Any:
    """The function body ONNX's schema gives an operator for these input types, or None."""
    try:
        schema = onnx.defs.get_schema(step.op, version, step.domain)
        if any(attribute.name not in schema.attributes for attribute in step.proto.attribute):
            return None
        core = opsets.get("", version)
        if schema.has_context_dependent_function:
            known = [v for v in schema.context_dependent_function_opset_versions if v <= core]
            if not known:
                return None
            types = [
                b"" if value is None else type_of(value).SerializeToString() for value in inputs
            ]
            text = schema.get_context_dependent_function_with_opset_version(
                max(known), step.proto.SerializeToString(), types
            )
            return onnx.FunctionProto.FromString(text) if text else None
        if schema.has_function:
            known = [v for v in schema.function_opset_versions if v <= core]
            if not known:
                return None
            text = schema.get_function_with_opset_version(max(known))
            return onnx.FunctionProto.FromString(text) if text else None
    except Exception:  # the schema has no body for this use of the operator
        return None
    return None


def type_of(value: Any) -> TypeProto:
    """ONNX's type of a value."""
    if isinstance(value, list):
        inner = type_of(value[0]) if value else helper.make_tensor_type_proto(1, None)
        return helper.make_sequence_type_proto(inner)
    if isinstance(value, np.ndarray):
        return helper.make_tensor_type_proto(onnx.TensorProto.STRING, value.shape)
    if isinstance(value, Tensor):
        return helper.make_tensor_type_proto(element_type(value), tuple(value.shape))
    return TypeProto()


class Fallback:
    """Results of operators that could not be lowered.

    Args:
        model: The model, for its shapes.
        sizes: Sizes of named dimensions.
    """

    def __init__(self, model: Model, sizes: Mapping[str, int]) -> None:
        self._model = model
        self._sizes = sizes
        self._types: dict[str, Any] | None = None

    def evaluated(
        self, step: Step, inputs: Sequence[Any], opsets: Mapping[str, int]
    ) -> list[Any] | None:
        """Results of ONNX's reference evaluator, or None if it cannot run the node."""
        from onnx.reference import ReferenceEvaluator

        if step.op in _NOT_EVALUATED or step.references or not _is_small(inputs):
            return None
        if any(attribute.HasField("g") for attribute in step.proto.attribute):
            return None
        try:
            given = [
                (name, value)
                for name, value in zip(step.inputs, inputs, strict=True)
                if name and value is not None
            ]
            infos = [onnx.ValueInfoProto(name=name, type=type_of(value)) for name, value in given]
            outputs = [onnx.ValueInfoProto(name=name) for name in step.outputs if name]
            graph = helper.make_graph([step.proto], "node", infos, outputs)
            imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
            model = helper.make_model(graph, opset_imports=imports)
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(model).run(
                    None, {name: to_numpy(value) for name, value in given}
                )
            found = iter([_from_evaluator(result) for result in results])
            return [next(found) if name else None for name in step.outputs]
        except Exception:  # whatever it raises, it cannot run the node
            return None

    def invented(self, step: Step, inputs: Sequence[Any]) -> list[Any]:
        """Zeros of the shapes that the model gives its results."""
        return [self._zeros(name, inputs) if name else None for name in step.outputs]

    def _zeros(self, name: str, inputs: Sequence[Any]) -> Tensor:
        kind = self._inferred().get(name)
        if kind is not None and kind.HasField("tensor_type") and kind.tensor_type.elem_type:
            element = kind.tensor_type.elem_type
            if kind.tensor_type.HasField("shape") and element != onnx.TensorProto.STRING:
                shape = [self._size(dim) for dim in kind.tensor_type.shape.dim]
                if all(size >= 0 for size in shape) and np.prod(shape, dtype=float) <= (
                    ELEMENT_LIMIT
                ):
                    return marked(torch.zeros(shape, dtype=storage_dtype(element)), element)
        like = next((value for value in inputs if isinstance(value, Tensor)), torch.zeros(()))
        return torch.zeros(like.shape, dtype=like.dtype)

    def _size(self, dim: Any) -> int:
        if dim.HasField("dim_value"):
            return int(dim.dim_value)
        return self._sizes.get(dim.dim_param, 1)

    def _inferred(self) -> dict[str, Any]:
        if self._types is None:
            proto = self._model.proto
            try:
                proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
            except Exception:  # an invalid or very large model: what it says itself must do
                proto = self._model.proto
            graph = proto.graph
            self._types = {item.name: item.type for item in [*graph.value_info, *graph.output]}
        return self._types


def _is_small(inputs: Sequence[Any]) -> bool:
    return all(
        value.numel() <= _EVALUATED_ELEMENTS for value in inputs if isinstance(value, Tensor)
    )


def _from_evaluator(result: Any) -> Any:
    if isinstance(result, list):
        return [_from_evaluator(item) for item in result]
    return None if result is None else from_numpy(result)
