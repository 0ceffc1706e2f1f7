"""The table of lowerings: what an ONNX operator is in torch.

    @lowering("Softmax", since=13)
    def softmax(x: Tensor, *, axis: int = -1) -> Tensor: ...

Positional parameters are the operator's inputs in order (`None` where an optional one is
left out), keyword-only ones its attributes, with ONNX's defaults. A lowering holds from the
opset `since` until the next one of the same operator. An attribute that a lowering does not
name makes the operator unknown: nothing is silently left out. A keyword-only parameter
`call` receives the `Call`, for what needs more than values: subgraphs, the number of
outputs, random numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from ranum.errors import ArgumentError

_F = TypeVar("_F", bound=Callable[..., Any])


class UnsupportedError(Exception):
    """A lowering does not cover this use of its operator; the node counts as unknown."""


class RunsGraphs(Protocol):
    """What a lowering of control flow needs of the interpreter."""

    def run_body(self, call: Call, graph: Any, inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a subgraph that sees the names around its node."""


@dataclass(frozen=True, slots=True)
class Call:
    """One node as it is being carried out.

    Attributes:
        op: ONNX operator.
        name: The node's name in messages.
        version: Opset version in force.
        outputs: Names of the declared outputs; "" for one that is left out.
        attributes: By name, as the lowering gets them.
        scope: Values by name, around the node.
        interpreter: Runs subgraphs.
        generator: Source of random numbers, seeded once per run.
    """

    op: str
    name: str
    version: int
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    scope: Any
    interpreter: RunsGraphs
    generator: torch.Generator

    def run(self, graph: Any, inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a subgraph."""
        return self.interpreter.run_body(self, graph, inputs)

    def wants(self, output: int) -> bool:
        """True if the model names the output."""
        return output < len(self.outputs) and self.outputs[output] != ""


@dataclass(frozen=True, slots=True)
class Lowering:
    """One entry of the table.

    Attributes:
        op: ONNX operator.
        domain: Its domain; "" is ai.onnx.
        since: First opset version the function holds for.
        function: Computes the outputs, a value or a tuple of values.
        attributes: Names of the attributes it takes.
        takes_call: True if it wants the `Call`.
        least: Fewest inputs.
        most: Most inputs; None if there is no limit.
    """

    op: str
    domain: str
    since: int
    function: Callable[..., Any] = field(repr=False)
    attributes: frozenset[str]
    takes_call: bool
    least: int
    most: int | None


_TABLE: dict[tuple[str, str], list[Lowering]] = {}


def lowering(*ops: str, since: int = 1, domain: str = "") -> Callable[[_F], _F]:
    """Registers a function for one or more operators from opset `since` on.

    Raises:
        ArgumentError: If an operator already has a lowering from that opset on.
    """

    def register(function: _F) -> _F:
        parameters = list(inspect.signature(function).parameters.values())
        inputs = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        for op in ops:
            entries = _TABLE.setdefault((domain, op), [])
            if any(entry.since == since for entry in entries):
                raise ArgumentError(f"{op} has a lowering since opset {since}; remove one.")
            entries.append(
                Lowering(
                    op=op,
                    domain=domain,
                    since=since,
                    function=function,
                    attributes=frozenset(keywords - {"call"}),
                    takes_call="call" in keywords,
                    least=sum(p.default is p.empty for p in inputs),
                    most=None if variadic else len(inputs),
                )
            )
            entries.sort(key=lambda entry: entry.since)
        return function

    return register


def lowering_for(domain: str, op: str, version: int) -> Lowering | None:
    """The lowering in force at an opset version, or None."""
    entries = _TABLE.get((domain, op), ())
    return next((entry for entry in reversed(entries) if entry.since <= version), None)


def lowerings() -> list[Lowering]:
    """All entries, by operator and opset."""
    return [entry for key in sorted(_TABLE) for entry in _TABLE[key]]
