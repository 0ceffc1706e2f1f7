"""Carries out an ONNX model in eager torch, node by node.

What a node is in torch, the first of these says: a function of the model itself; the table
of lowerings; the function body that ONNX's own schema gives. A node that none of them covers
is *opaque*: it is recorded as an unknown operator, and its result comes from ONNX's
reference evaluator or, where that cannot run it either, is a tensor of zeros.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx
import torch
from torch import Tensor

from ranum.analysis.capture.onnx import fallback, operators
from ranum.analysis.capture.onnx.budget import Budget
from ranum.analysis.capture.onnx.model import DEPTH_LIMIT, Model, opset_versions
from ranum.analysis.capture.onnx.plan import Body, Step, attribute_value, function_body, graph_body
from ranum.analysis.capture.onnx.registry import (
    Call,
    Lowering,
    UnsupportedError,
    lowering_for,
)
from ranum.analysis.capture.onnx.values import (
    checked_size,
    element_type,
    is_held_wider,
    marked,
    storage_dtype,
    wrapped,
)
from ranum.analysis.capture.onnx.work import ELEMENT_WORK, elements_of, work_of
from ranum.analysis.capture.opaque import opaque
from ranum.analysis.transfer._common import broadcast_shapes
from ranum.errors import ArgumentError
from ranum.source import located

__all__ = ["Interpreter", "operators"]

_WIDER = {
    torch.uint8: torch.int32,
    torch.int8: torch.int32,
    torch.int16: torch.int32,
    torch.bool: torch.int32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}
"""The type to compute in where torch has no kernel for one."""


_BROADCASTING = frozenset(
    {"Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
     "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu",
     "Pow", "Sub", "Sum", "Where", "Xor"}
)  # fmt: skip


class Scope:
    """Values by name; a subgraph sees those around it."""

    __slots__ = ("_outer", "_values")

    def __init__(self, values: Mapping[str, Any], outer: Scope | None = None) -> None:
        self._values = dict(values)
        self._outer = outer

    def __getitem__(self, name: str) -> Any:
        scope: Scope | None = self
        while scope is not None:
            if name in scope._values:
                return scope._values[name]
            scope = scope._outer
        raise ArgumentError(f"nothing in the model computes {name!r}.")

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = value

    def drop(self, name: str) -> None:
        """Forgets a value of this scope, if it is one."""
        self._values.pop(name, None)


class Interpreter:
    """Runs one model, any number of times.

    Args:
        model: A checked model.
        sizes: Sizes of named dimensions, for results that have to be invented.
        given: Names of constants that `run` is given in the place of their nodes.

    Attributes:
        unknown: Operators that had no lowering in the last run, with the reason.
    """

    def __init__(
        self,
        model: Model,
        sizes: Mapping[str, int] | None = None,
        given: Collection[str] = (),
    ) -> None:
        self._model = model
        body = graph_body(model, model.graph, keep_initializers=False)
        steps = (
            step for step in body.steps if step.op != "Constant" or step.outputs[0] not in given
        )
        self._body = replace(body, steps=tuple(steps))
        self._functions = {
            key: (function, function_body(model, function))
            for key, function in model.functions.items()
        }
        self._fallback = fallback.Fallback(model, sizes or {})
        self._generator = torch.Generator()
        self._budget = Budget()
        self._guessed = False
        self.unknown: dict[str, str] = {}

    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name.

        Args:
            values: Inputs and initialisers by name.
        """
        self._generator.manual_seed(0)
        self._budget, self._guessed = Budget(), False
        self.unknown = {}
        frame = _Frame(self._model.opsets, "", (), {})
        outputs = self._run(self._body, Scope(values), frame)
        return dict(zip(self._body.output, outputs, strict=True))

    def run_body(self, call: Call, graph: Any, inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a subgraph that sees the names around its node."""
        if len(inputs) != len(graph.input):
            raise UnsupportedError(f"a graph of {len(graph.input)} inputs, given {len(inputs)}")
        scope, frame = call.scope
        inner = Scope({**graph.constants, **dict(zip(graph.input, inputs, strict=True))}, scope)
        return self._run(graph, inner, frame.inside(call.name))

    def _run(self, body: Body, scope: Scope, frame: _Frame) -> list[Any]:
        for step in body.steps:
            self._budget.spend(step.name)
            inputs = [scope[name] if name else None for name in step.inputs]
            with located(step.place(self._model.file, frame.path)):
                outputs = self._carry_out(step, inputs, scope, frame)
            self._budget.work(step.name, ELEMENT_WORK * elements_of(outputs))
            for name, value in zip(step.outputs, outputs, strict=False):
                if name:
                    scope[name] = value
            for name in step.dead:
                scope.drop(name)
        return [scope[name] for name in body.output]

    # --- one node ---------------------------------------------------------------------------

    def _carry_out(
        self, step: Step, inputs: list[Any], scope: Scope, frame: _Frame
    ) -> Sequence[Any]:
        attributes = frame.resolved(step)
        key = (step.domain, step.op, step.overload)
        if key in self._functions:
            return self._call(step, self._functions[key], inputs, attributes, frame)
        self._budget.work(step.name, work_of(step.op, inputs, attributes))
        version = frame.opsets.get(step.domain, 1)
        reasons: list[Exception] = []
        entry = lowering_for(step.domain, step.op, version)
        if entry is not None:
            call = Call(
                op=step.op,
                name=step.name,
                version=version,
                outputs=step.outputs,
                attributes=attributes,
                scope=(scope, frame),
                interpreter=self,
                generator=self._generator,
            )
            try:
                return _lowered(entry, inputs, attributes, call)
            except (ArgumentError, RecursionError, MemoryError):
                raise
            except Exception as error:
                reasons.append(error)
        body = fallback.schema_function(step, version, inputs, frame.opsets)
        if body is not None:
            try:
                plan = function_body(self._model, body)
                return self._call(step, (body, plan), inputs, attributes, frame)
            except (RecursionError, MemoryError):
                raise
            except Exception as error:
                reasons.append(error)
        return self._unknown(step, inputs, reasons, frame)

    def _call(
        self,
        step: Step,
        function: tuple[Any, Body],
        inputs: list[Any],
        attributes: Mapping[str, Any],
        frame: _Frame,
    ) -> Sequence[Any]:
        proto, body = function
        given = dict(attributes)
        for attribute in proto.attribute_proto:
            given.setdefault(attribute.name, attribute_value(self._model, attribute))
        opsets = opset_versions(proto.opset_import, f"function {proto.name}")
        inner = frame.calling(step, {**frame.opsets, **opsets}, given)
        padded = [*inputs, *[None] * (len(body.input) - len(inputs))]
        if len(padded) > len(body.input):
            raise ArgumentError(
                f"node {step.name!r}: function {step.op} takes {len(body.input)} inputs; "
                f"got {len(inputs)}."
            )
        scope = Scope(dict(zip(body.input, padded, strict=True)))
        return self._run(body, scope, inner)

    def _unknown(
        self, step: Step, inputs: list[Any], reasons: list[Exception], frame: _Frame
    ) -> list[Any]:
        """An opaque node: recorded as unknown, computed by other means or invented."""
        outputs = self._fallback.evaluated(step, inputs, frame.opsets)
        if outputs is None and reasons and not self._guessed:
            reason = reasons[0]
            if not isinstance(reason, UnsupportedError):
                raise ArgumentError(
                    f"node {step.name!r}, {step.text}, cannot be carried out with these inputs: "
                    f"{next(iter(str(reason).splitlines()), repr(reason))}"
                ) from reason
        operands = [value for value in inputs if isinstance(value, Tensor)]
        if outputs is None:
            self._guessed = True
            outputs = self._fallback.invented(step, inputs)
            # Nobody knows the result, so it must not pass for a constant: random numbers never do.
            operands.append(torch.rand(()))
        self.unknown[step.op] = str(reasons[0]) if reasons else "no such operator is known"
        places = [place for place, value in enumerate(outputs) if isinstance(value, Tensor)]
        computed = [outputs[place] for place in places]
        recorded = opaque(f"{step.domain or 'onnx'}.{step.op}", lambda *_: computed, operands)
        for place, value in zip(places, recorded, strict=True):
            outputs[place] = marked(value, element_type(outputs[place]))
        return outputs


class _Frame:
    """Where the interpreter is: opsets in force, calls around it, their attributes."""

    __slots__ = ("_attributes", "_stack", "opsets", "path")

    def __init__(
        self,
        opsets: Mapping[str, int],
        path: str,
        stack: tuple[tuple[str, str, str], ...],
        attributes: Mapping[str, Any],
    ) -> None:
        self.opsets = opsets
        self.path = path
        self._stack = stack
        self._attributes = attributes

    def inside(self, name: str) -> _Frame:
        """The frame of a subgraph of a node."""
        return _Frame(self.opsets, f"{self.path}{name}/", self._stack, self._attributes)

    def calling(
        self, step: Step, opsets: Mapping[str, int], attributes: Mapping[str, Any]
    ) -> _Frame:
        """The frame of a function.

        Raises:
            ArgumentError: If the function calls itself, or calls lie too deep.
        """
        key = (step.domain, step.op, step.overload)
        if key in self._stack or len(self._stack) >= DEPTH_LIMIT:
            raise ArgumentError(
                f"function {step.op} must not call itself, nor functions lie more than "
                f"{DEPTH_LIMIT} calls deep."
            )
        return _Frame(opsets, f"{self.path}{step.name}/", (*self._stack, key), attributes)

    def resolved(self, step: Step) -> dict[str, Any]:
        """The attributes of a node, those of the function's caller filled in."""
        values = dict(step.attributes)
        for name, outer in step.references.items():
            if outer in self._attributes:
                values[name] = self._attributes[outer]
        return values


# --- calling a lowering --------------------------------------------------------------------


def _lowered(
    entry: Lowering, inputs: list[Any], attributes: Mapping[str, Any], call: Call
) -> Sequence[Any]:
    unknown = set(attributes) - entry.attributes
    if unknown:
        raise UnsupportedError(f"attribute {', '.join(sorted(unknown))} is not covered")
    while len(inputs) > entry.least and inputs[-1] is None:
        inputs = inputs[:-1]
    too_many = entry.most is not None and len(inputs) > entry.most
    if len(inputs) < entry.least or too_many:
        most = "or more" if entry.most is None else f"to {entry.most}"
        raise ArgumentError(
            f"node {call.name!r}: {entry.op} takes {entry.least} {most} inputs; got {len(inputs)}."
        )
    if any(value is None for value in inputs[: entry.least]) and not entry.op.startswith("Opt"):
        raise UnsupportedError("a required input is left out")
    if entry.op in _BROADCASTING:
        shapes = [value.shape for value in inputs if isinstance(value, Tensor)]
        checked_size(broadcast_shapes(*shapes), f"the result of {call.name}")
    keywords: dict[str, Any] = dict(attributes)
    if entry.takes_call:
        keywords["call"] = call
    try:
        result = entry.function(*inputs, **keywords)
    except (NotImplementedError, RuntimeError) as error:
        if "not implemented for" not in str(error) and "not supported" not in str(error):
            raise
        result = _in_wider_type(entry, inputs, keywords)
        if result is None:
            raise
    return _remembered(entry, inputs, list(_outputs(result)))


def _remembered(entry: Lowering, inputs: list[Any], results: list[Any]) -> Sequence[Any]:
    """Results of the same ONNX type as an operand whose type torch does not show."""
    elements = {
        slot: element_type(value)
        for slot, value in enumerate(inputs)
        if isinstance(value, Tensor) and hasattr(value, "_onnx_element")
    }
    if not elements:
        return results
    schema = _schema(entry)
    last = len(schema.inputs) - 1
    kinds = {schema.inputs[min(slot, last)].type_str: kind for slot, kind in elements.items()}
    for index, value in enumerate(results):
        formal = schema.outputs[min(index, len(schema.outputs) - 1)]
        element = kinds.get(formal.type_str)
        plain = isinstance(value, Tensor) and not hasattr(value, "_onnx_element")
        if element is not None and plain and value.dtype == storage_dtype(element):
            shared = any(value is operand for operand in inputs)
            if is_held_wider(element) and not shared:
                results[index] = wrapped(value, element)
            else:
                results[index] = marked(value.clone() if shared else value, element)
    return results


def _outputs(result: Any) -> Sequence[Any]:
    return result if isinstance(result, tuple) else (result,)


def _in_wider_type(entry: Lowering, inputs: list[Any], keywords: dict[str, Any]) -> Any:
    """The result computed in a type that torch has kernels for, and rounded back."""
    narrow = [
        value.dtype for value in inputs if isinstance(value, Tensor) and value.dtype in _WIDER
    ]
    if not narrow:
        return None
    kind = narrow[0]

    def widened(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype == kind:
            return marked(value.to(_WIDER[kind]), element_type(value))
        return value

    results = _outputs(entry.function(*(widened(value) for value in inputs), **keywords))
    schema = _schema(entry)
    same = {formal.type_str for formal, value in zip(schema.inputs, inputs, strict=False)
            if isinstance(value, Tensor) and value.dtype == kind}  # fmt: skip
    restored = []
    for index, value in enumerate(results):
        formal = schema.outputs[min(index, len(schema.outputs) - 1)]
        keep = isinstance(value, Tensor) and formal.type_str in same
        restored.append(value.to(kind) if keep else value)
    return tuple(restored)


def _schema(entry: Lowering) -> Any:
    return onnx.defs.get_schema(entry.op, max_inclusive_version=100, domain=entry.domain)
