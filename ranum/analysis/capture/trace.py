"""A graph in the making: values and nodes are added, and memory says which value is where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.canonical import Canonical
from ranum.analysis.capture.integers import Integers
from ranum.analysis.capture.internals import (
    as_plain,
    current_autograd_node,
    forward_sequence,
    kept_address,
    storage_key,
    version,
)
from ranum.analysis.capture.memory import Geometry, Memory, Mixture, geometry
from ranum.analysis.capture.overload import is_tensor
from ranum.analysis.graph import Graph, Kind, Node, Phase, Ref, Value
from ranum.source import Source, user_source

CONSTANT_LIMIT = 1 << 20
"""Constants with more elements than this are kept by their extremes alone."""
_SAME_ELEMENTS = frozenset({"reshape", "permute", "identity", "expand"})
"""Operators whose result has the extremes of their operand."""
_ALWAYS_OBSERVED = frozenset({"_softmax", "_log_softmax", "amax", "max", "logsumexp"})
"""Operators whose seen extremes the analysis reads (`facts.fixed_masks`)."""

Extremes = tuple[Tensor, Tensor]


class Trace:
    """Values and nodes of a step, as far as it has run.

    Attributes:
        graph: The graph so far.
        integers: Memory that holds integers of the batch, or what was made of them.
        pending: By storage, what must be called before the storage is read.
    """

    def __init__(self, *, observe: bool) -> None:
        self.graph = Graph()
        self.integers = Integers()
        self.pending: dict[int, Callable[[], None]] = {}
        self._memory = Memory()
        self._sparse: dict[int, tuple[Tensor, int]] = {}
        self._observe = observe
        self._leaf_extremes: dict[int, Extremes] = {}
        self._forward_by_sequence: dict[int, int] = {}
        self._constants: dict[tuple[int, Geometry, int], tuple[int, object]] = {}

    # --- what a tensor holds ----------------------------------------------------------------

    def find(self, tensor: Tensor) -> int | Mixture | None:
        """What is known of a tensor; None for one that depends on nothing that varies."""
        if tensor.layout is not torch.strided:
            known = self._sparse.get(id(tensor))
            return None if known is None else known[1]
        key = storage_key(tensor)
        if key in self.pending:
            self.pending.pop(key)()
        found = self._memory.find(key, tensor)
        if found is None and tensor.requires_grad and tensor.is_leaf:
            return self.leaf(tensor, "parameter", f"parameter_{len(self.graph.values)}")
        return found

    def settled(self, tensor: Tensor, found: int | Mixture | None) -> int:
        """Number of the value a tensor holds, from what `find` told; made here if need be."""
        if type(found) is int:
            return found
        if found is None:
            return self.constant(tensor)
        assert isinstance(found, Mixture)
        old = self.constant(tensor) if found.value is None else found.value
        return self._join(tensor, [old, *found.newer])

    def value_of(self, tensor: Tensor) -> int:
        """Number of the value a tensor holds now; constants and new leaves are made here."""
        return self.settled(tensor, self.find(tensor))

    def bind(self, tensor: Tensor, value: int, *, is_write: bool) -> None:
        """Says which value a tensor holds from now on; see `Memory.bind`.

        Sparse tensors have no memory of their own; they are known by themselves, and kept.
        """
        if tensor.layout is torch.strided:
            self._memory.bind(storage_key(tensor), tensor, value, is_write=is_write)
        else:
            self._sparse[id(tensor)] = (tensor, value)

    # --- values -----------------------------------------------------------------------------

    def leaf(self, tensor: Tensor, kind: Kind, name: str) -> int:
        """A new value that the step starts from: an input or a parameter.

        Nothing is assumed of the elements of complex and sparse ones: they have no data.
        """
        is_real = not tensor.is_complex() and tensor.layout is torch.strided
        data = tensor.detach() if is_real else None
        value = self.new_value(tensor, kind=kind, name=name, data=data)
        self.bind(tensor, value.index, is_write=False)
        return value.index

    def derive(self, tensor: Tensor, name: str, table: tuple[float, float] | None) -> None:
        """Makes a float tensor that was made of integer inputs alone a leaf.

        One with infinities is a mask, whatever it was made of, and stays a constant.

        Args:
            tensor: What was made.
            name: The input whose elements it holds as they are, "" if it was computed.
            table: The extremes of what it was looked up in, None if it was not.
        """
        lower, upper = (float(end) for end in torch.aminmax(tensor.detach()))
        if not abs(lower) + abs(upper) < float("inf"):
            return
        number = self.constant(tensor)
        value = self.graph.values[number]
        value.kind, value.name = "derived", name
        value.spread = table or (lower, upper)
        self.bind(tensor, number, is_write=False)

    def seed(self, gradient: Tensor) -> None:
        """The gradient of the loss with respect to itself, with which a backward pass starts."""
        value = self.new_value(gradient, kind="constant", data=gradient.detach().clone())
        value.is_gradient = True
        self.bind(gradient, value.index, is_write=False)

    def constant(self, tensor: Tensor) -> int:
        """A value holding a copy of untracked data; the same version is copied once."""
        key = None
        if tensor.layout is torch.strided and not tensor.is_inference():
            key = (storage_key(tensor), geometry(tensor), version(tensor))
            if key in self._constants:
                return self._constants[key][0]
        data = as_plain(tensor).detach()
        if data.layout is not torch.strided:
            data = data.to_dense()
        held = self.integers.held(tensor)
        kind: Kind = "constant" if held is None else "derived"
        name = "" if held is None else held.name
        small = data.numel() <= CONSTANT_LIMIT
        data = data.clone() if small else _extreme_data(data)
        value = self.new_value(tensor, kind=kind, name=name, data=None if data.is_meta else data)
        if held is not None and not held.is_mask:
            lower, upper = torch.aminmax(data)
            value.spread = (float(lower), float(upper))
        if key is not None:
            self._constants[key] = (value.index, kept_address(tensor))
        return value.index

    def new_value(
        self,
        tensor: Tensor,
        *,
        kind: Kind = "result",
        name: str = "",
        data: Tensor | None = None,
        producer: int | None = None,
        is_gradient: bool = False,
        observed: Extremes | None = None,
    ) -> Value:
        """A value of the tensor's shape and dtype, not yet bound to its memory."""
        if observed is None and self._observe and producer is not None:
            observed = extremes(tensor)
        values = self.graph.values
        value = Value(
            index=len(values),
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            kind=kind,
            name=name,
            data=data,
            producer=producer,
            is_gradient=is_gradient,
            observed=observed,
        )
        values[value.index] = value
        return value

    def observe(self, number: int, tensor: Tensor) -> None:
        """Notes the extremes of a value, which the tensor holds now."""
        value = self.graph.values[number]
        if value.observed is None and value.producer is not None:
            value.observed = extremes(tensor)

    # --- nodes ------------------------------------------------------------------------------

    def add(
        self,
        canonical: Canonical,
        outputs: Sequence[Tensor | None],
        mark: Mapping[str, Any],
        *,
        is_gradient: bool = False,
        written: Sequence[Tensor] = (),
        known: Mapping[int, int] | None = None,
    ) -> Node:
        """A node for an operator that has just run, and the values it made.

        Args:
            canonical: The operator, with tensors among its arguments.
            outputs: What it returned and wrote; None for outputs that are no tensors.
            mark: Source, phase and forward node.
            is_gradient: True if an operand depends on the gradient of the loss.
            written: The outputs that were there before and were written to.
            known: Values of operands by `id`, from before it ran.
        """
        known = known or {}

        def refer(tensor: Tensor) -> Ref:
            value = known.get(id(tensor))
            return Ref(self.value_of(tensor) if value is None else value)

        arguments = {name: _mapped(item, refer) for name, item in canonical.arguments.items()}
        observed = self._observed(canonical, arguments, outputs)
        nodes = self.graph.nodes
        index = len(nodes)
        written_ids = {id(tensor) for tensor in written}
        numbers: list[int | None] = []
        for tensor in outputs:
            if tensor is None:  # masked out, as gradients nobody asked for are
                numbers.append(None)
                continue
            value = self.new_value(
                tensor, producer=index, is_gradient=is_gradient, observed=observed
            )
            self.bind(tensor, value.index, is_write=id(tensor) in written_ids)
            numbers.append(value.index)
        node = Node(
            index=index,
            op=canonical.op,
            target=canonical.target,
            arguments=arguments,
            outputs=tuple(numbers),
            **mark,
        )
        nodes.append(node)
        return node

    def claim(self, index: int) -> None:
        """Says that the operator which has just run in the forward pass is this node."""
        self._forward_by_sequence.setdefault(forward_sequence(), index)

    def forward_of(self, sequence: int) -> Node | None:
        """The forward node that an autograd node belongs to, by its number."""
        index = self._forward_by_sequence.get(sequence)
        return None if index is None else self.graph.nodes[index]

    def note(self, places: list[Source]) -> None:
        """Adds the expression that is running to a list of places, once."""
        source = user_source()
        if source not in places:
            places.append(source)

    def _join(self, tensor: Tensor, values: Sequence[int]) -> int:
        """A node for a view whose elements were written at different times."""
        graph = self.graph
        distinct = list(dict.fromkeys(values))
        is_gradient = any(graph.values[value].is_gradient for value in distinct)
        value = self.new_value(tensor, producer=len(graph.nodes), is_gradient=is_gradient)
        phase: Phase = "forward" if current_autograd_node() is None else "backward"
        node = Node(
            index=len(graph.nodes),
            op="join",
            target=None,
            arguments={
                "values": [Ref(number) for number in distinct],
                "shape": tuple(tensor.shape),
                "dtype": tensor.dtype,
            },
            outputs=(value.index,),
            source=user_source(),
            phase=phase,
        )
        graph.nodes.append(node)
        self.bind(tensor, value.index, is_write=False)
        return value.index

    def _observed(
        self,
        canonical: Canonical,
        arguments: Mapping[str, Any],
        outputs: Sequence[Tensor | None],
    ) -> Extremes | None:
        """Extremes of the results where they need no look, or where somebody reads them."""
        if not self._observe:
            if canonical.op in _ALWAYS_OBSERVED and outputs[0] is not None:
                return extremes(outputs[0])
            return None
        if canonical.op not in _SAME_ELEMENTS:
            return None
        number = arguments["x"].value
        observed = self.graph.values[number].observed or self._leaf_extremes.get(number)
        if observed is None:
            observed = extremes(canonical.arguments["x"])
            if observed is not None:
                self._leaf_extremes[number] = observed
        return observed


def extremes(tensor: Tensor) -> Extremes | None:
    """Smallest and largest element, each `[]`; None for what has none or is not float."""
    is_real = tensor.is_floating_point() and tensor.layout is torch.strided
    if not is_real or tensor.is_meta or not tensor.numel():
        return None
    lower, upper = torch.aminmax(tensor.detach())
    return lower, upper


def _mapped(argument: Any, refer: Callable[[Tensor], Ref]) -> Any:
    if is_tensor(argument):
        return refer(argument)
    if isinstance(argument, (list, tuple)):
        mapped = [_mapped(item, refer) for item in argument]
        return mapped if isinstance(argument, list) else tuple(mapped)
    return argument


def _extreme_data(data: Tensor) -> Tensor:
    """Two elements, the extremes, in place of a large constant."""
    return torch.stack(torch.aminmax(data.reshape(-1)))
