"""The recorded training step: a flat list of operators in static single assignment form.

Axes, here and in every docstring of the analysis: N batch, C channel or class, H height,
W width, T time or token, D feature. Shapes are written `[N, C, H, W]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from ranum.source import UNKNOWN, Source

if TYPE_CHECKING:
    from ranum.analysis.execution import Execution

Kind = Literal["input", "parameter", "buffer", "constant", "derived", "random", "result"]
Phase = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for a tensor among the arguments of a `Node`: the value's number."""

    value: int


@dataclass(slots=True, kw_only=True)
class Value:
    """One tensor of the recorded step, at one moment of its life.

    Attributes:
        index: Number of the value in the graph.
        shape: Shape seen in the recorded step.
        dtype: Element type it was computed in.
        kind: Where it comes from. "constant" values depend on no parameter, no float
            input and no randomness; their recorded data holds. "derived" ones are made of
            integer inputs: their data is that of the recorded batch, other batches differ.
        name: Parameter, buffer or input name, "" for results.
        data: The recorded tensor of inputs, parameters, buffers and constants.
        spread: Of a derived value, the smallest and largest element it can have, as far as
            the batch shows; None for {0, 1} masks, which only vary as indices.
        is_shared: True if all its rows (last dimension) are known to be shares of 1.
        is_gradient: True if the backward pass made it from the gradient of the loss. What the
            step computes from such gradients itself (a penalty on their norm) is not one.
        observed: Smallest and largest element seen, 0-d tensors; None where not recorded.
        producer: Index of the node that made it; None for leaves.
    """

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind = "result"
    name: str = ""
    data: torch.Tensor | None = None
    spread: tuple[float, float] | None = None
    is_shared: bool = False
    is_gradient: bool = False
    observed: tuple[torch.Tensor, torch.Tensor] | None = None
    producer: int | None = None


@dataclass(slots=True, kw_only=True)
class Node:
    """One operator of the recorded step.

    Attributes:
        index: Position in the graph.
        op: Canonical operator name: the ATen name without overload and in-place mark.
        target: The functional ATen overload that computes it, where there is one.
        arguments: By schema name; tensors are replaced by `Ref`. ATen's `self` is `x`.
        outputs: Value numbers; None where an output is not a tensor.
        source: The user's expression that was running. Backward nodes carry the source of
            the forward operator they differentiate.
        phase: "forward" or "backward".
        forward: For a backward node, the index of the forward node it belongs to.
    """

    index: int
    op: str
    target: Any
    arguments: dict[str, Any]
    outputs: tuple[int | None, ...]
    source: Source = UNKNOWN
    phase: Phase = "forward"
    forward: int | None = None
    _operands: tuple[int, ...] | None = field(default=None, repr=False, compare=False)

    @property
    def operands(self) -> tuple[int, ...]:
        """Numbers of all values among the arguments, in order, nested ones included."""
        if self._operands is None:
            self._operands = tuple(_refs(tuple(self.arguments.values())))
        return self._operands


def fits(name: str, pattern: object) -> bool:
    """True if a name is the pattern, or fits it ("head.*")."""
    return isinstance(pattern, str) and (name == pattern or fnmatchcase(name, pattern))


def _refs(argument: Any) -> Iterator[int]:
    if isinstance(argument, Ref):
        yield argument.value
    elif isinstance(argument, (tuple, list)):
        for item in argument:
            yield from _refs(item)


@dataclass(slots=True, kw_only=True, repr=False)
class Graph:
    """A recorded step: `values` by number, `nodes` in execution order.

    Attributes:
        inputs: Names of all tensors of the recorded batch, in order.
        integers: Those of them that hold integers, and vary from batch to batch.
        execution: How its arithmetic is carried out; None for plain IEEE 754.
        loss: Value number of the loss, or None if the step has none.
        module_outputs: Value number of the last tensor each module path returned.
        taken_branches: Places where the step turned a tensor into a Python number, so only
            the branch taken was seen.
        escapes: Places where a tensor left torch (numpy, list): later arithmetic is not seen.
    """

    values: dict[int, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    inputs: tuple[str, ...] = ()
    integers: frozenset[str] = frozenset()
    execution: Execution | None = None
    loss: int | None = None
    module_outputs: dict[str, int] = field(default_factory=dict)
    taken_branches: list[Source] = field(default_factory=list)
    escapes: list[Source] = field(default_factory=list)
    derived: dict[Any, Any] = field(default_factory=dict, compare=False)
    """What an analysis worked out about the nodes once and for all."""

    def __repr__(self) -> str:
        return f"Graph({len(self.nodes)} nodes, {len(self.values)} values)"

    def leaves(self, *kinds: Kind) -> Iterator[Value]:
        """Values of the given kinds, in order of first use."""
        for value in self.values.values():
            if value.kind in kinds:
                yield value

    def producer(self, value: int) -> Node | None:
        """The node that made a value, or None for a leaf."""
        index = self.values[value].producer
        return None if index is None else self.nodes[index]

    def consumers(self) -> Mapping[int, tuple[int, ...]]:
        """For each value, the indices of the nodes that read it; worked out once."""
        known = self.derived.get("consumers")
        if known is not None and known[0] is self.nodes and known[1] == len(self.nodes):
            return cast("Mapping[int, tuple[int, ...]]", known[2])
        readers: dict[int, list[int]] = {}
        for node in self.nodes:
            for operand in node.operands:
                readers.setdefault(operand, []).append(node.index)
        found = {value: tuple(indices) for value, indices in readers.items()}
        self.derived["consumers"] = (self.nodes, len(self.nodes), found)
        return found
