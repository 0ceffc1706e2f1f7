"""Records one real training step, forward, loss and backward, as a `Graph`.

A `TorchDispatchMode` sees every ATen operator below autograd, with the Python stack still
standing. Whatever depends on no parameter, no float input and no randomness is recorded as
constant data; masks and index arithmetic disappear that way. In-place writes and views are
followed by storage and geometry, so that the graph is in single assignment form.

All use of private torch interfaces by the analysis is in this file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from ranum._dispatch import DispatchMode
from ranum._untouched import eager
from ranum.analysis.capture.canonical import (
    LOOKUPS,
    PLAIN,
    Canonical,
    bind,
    canonicalize,
    is_random,
    name_of,
    parts,
    reads_values,
    signature,
)
from ranum.analysis.graph import Graph, Kind, Node, Phase, Ref, Value
from ranum.source import Source, module_scope, user_source

Geometry = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]

_SAME_ELEMENTS = frozenset({"reshape", "permute", "identity", "expand"})
"""Operators whose result has the extremes of their operand."""
CONSTANT_LIMIT = 1 << 20
"""Constants with more elements than this are kept by their extremes alone."""
_OVERLAP_LIMIT = 1 << 22
"""Storages with more elements than this are taken to overlap wherever their spans do."""


@dataclass(slots=True)
class _Entry:
    value: int
    stamp: int


@dataclass(slots=True)
class _Storage:
    """What is known about one piece of memory: values by view, and the writes in order."""

    weak: Any  # keeps the storage's address from being reused; does not keep its data
    views: dict[Geometry, _Entry] = field(default_factory=dict)
    writes: list[tuple[Geometry, _Entry]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Integers:
    """A piece of memory that holds integers of the batch, or what was made of them.

    Attributes:
        weak: Keeps the storage's address from being reused.
        name: The input whose elements it holds as they are; "" if something was computed.
        is_mask: True for {0, 1} inputs, and what is made of them: masks of this batch.
    """

    weak: Any
    name: str
    is_mask: bool


@dataclass(frozen=True, slots=True)
class _Statistics:
    """Running statistics that a batch norm has written over, not yet recorded as such.

    Attributes:
        mean: The buffer, as it is now.
        variance: The same of the variance.
        arguments: Of the node that makes both, with what was there before.
        mark: Source and phase of the batch norm.
    """

    mean: Tensor
    variance: Tensor
    arguments: dict[str, Any]
    mark: Mapping[str, Any]


class Recorder(DispatchMode):
    """The recording mode; see `record`."""

    def __init__(
        self,
        inputs: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        observe: bool,
        varying: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.graph = Graph()
        self._integers: dict[int, _Integers] = {}
        self._statistics: dict[int, _Statistics] = {}
        self._observe = observe
        self._leaf_extremes: dict[int, tuple[Tensor, Tensor]] = {}
        self._storages: dict[int, _Storage] = {}
        self._stamp = 0
        self._forward_by_sequence: dict[int, int] = {}
        self._constants: dict[tuple[int, Geometry, int], tuple[int, Any]] = {}
        for name, tensor in parameters.items():
            self._leaf(tensor, "parameter", name)
        self.graph.inputs = tuple(inputs)
        self.graph.integers = frozenset(n for n, each in inputs.items() if _is_integer(each))
        for name, tensor in inputs.items():
            if tensor.is_floating_point():
                self._leaf(tensor, "input", name)
            elif _is_integer(tensor):
                is_mask = name not in varying and _is_mask(tensor)
                self._hold(tensor, name, is_mask)

    # --- the hook ---------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator, then writes it down."""
        kwargs = kwargs or {}
        bound = bind(func, args, kwargs)
        if bound.get("train", True) and name_of(func).endswith("batch_norm_backward"):
            bound["running_mean"] = bound["running_var"] = None  # not read in training
        operands: list[Tensor] = []
        _collect(bound.values(), operands)
        tracked = [tensor for tensor in operands if self._is_tracked(tensor)]
        before: dict[int, int] = {}
        if func._schema.is_mutable and tracked:
            # What an in-place operator reads must be noted before it is overwritten.
            before = {id(tensor): self._value_of(tensor) for tensor in operands}
        buffers = _statistics_of(func, bound) if tracked else None
        if buffers is not None:
            before = {id(each): self._old_value(each) for each in buffers}
        result = func(*args, **kwargs)
        self._record(func, bound, tracked, before, result)
        if buffers is not None:
            self._write_statistics(buffers, bound, before)
        if self._integers and not tracked:
            self._follow(func, bound, operands, result)
        return result

    def _record(
        self,
        func: Any,
        bound: dict[str, Any],
        tainted: list[Tensor],
        before: Mapping[int, int],
        result: Any,
    ) -> None:
        op = name_of(func)
        node = torch._C._current_autograd_node()
        phase: Phase = "forward" if node is None else "backward"
        if op == "_local_scalar_dense":
            if tainted and phase == "forward":
                self._note(self.graph.taken_branches)
            return
        if op == "ones_like" and tainted and _is_backward_seed():
            self._seed(result)
            return
        if not ((reads_values(op) and tainted) or is_random(func)) or not _has_tensor(result):
            return
        returned = _outputs(result)
        written = _written_arguments(func, bound)
        returned_ids = {id(tensor) for tensor in returned}
        outputs = returned + [tensor for tensor in written if id(tensor) not in returned_ids]
        source, forward = self._place(phase, node)
        mark = {"source": source, "phase": phase, "forward": forward}
        operand_values = [
            before[id(tensor)] if id(tensor) in before else self._value_of(tensor)
            for tensor in tainted
        ]
        # What the step itself goes on to compute from gradients is followed like any other value.
        is_gradient = phase == "backward" and any(
            self.graph.values[value].is_gradient for value in operand_values
        )
        tensors = [tensor for tensor in outputs if tensor is not None]
        if not tensors:
            return
        slices = parts(func, bound, tensors)
        if slices is not None:
            for arguments, output in zip(slices, tensors, strict=True):
                self._add_part(arguments, output, is_gradient, mark)
            return
        canonical = canonicalize(func, bound, tensors[0])
        self._add(canonical, outputs, is_gradient, mark, written=written, before=before)

    # --- running statistics -----------------------------------------------------------------

    def _old_value(self, buffer: Tensor) -> int:
        """The value of a buffer that is about to be written over."""
        if self._is_tracked(buffer):
            return self._value_of(buffer)
        return self._constant(buffer.detach().clone())

    def _write_statistics(
        self, buffers: tuple[Tensor, Tensor], bound: Mapping[str, Any], before: Mapping[int, int]
    ) -> None:
        """Remembers the write; a node is made of it only if somebody reads the buffers."""
        mean, variance = buffers
        momentum = bound.get("momentum", bound.get("exponential_average_factor"))
        arguments = {
            "input": Ref(self._value_of(bound["input"])),
            "running_mean": Ref(before[id(mean)]),
            "running_var": Ref(before[id(variance)]),
            "momentum": momentum,
        }
        source, _ = self._place("forward", None)
        entry = _Statistics(mean, variance, arguments, {"source": source, "phase": "forward"})
        for buffer in buffers:
            self._statistics[buffer.untyped_storage()._cdata] = entry

    def _settle(self, written: _Statistics) -> None:
        """Makes the node that wrote running statistics, now that they are read."""
        buffers = (written.mean, written.variance)
        for buffer in buffers:
            self._statistics.pop(buffer.untyped_storage()._cdata, None)
        index = len(self.graph.nodes)
        numbers = []
        for buffer in buffers:
            value = self._new_value(buffer, producer=index)
            self._bind(buffer, value.index, is_write=True)
            numbers.append(value.index)
        self.graph.nodes.append(
            Node(
                index=index,
                op="running_statistics",
                target=None,
                arguments=written.arguments,
                outputs=tuple(numbers),
                **written.mark,
            )
        )

    # --- integers ---------------------------------------------------------------------------

    def _hold(self, tensor: Tensor, name: str, is_mask: bool) -> None:
        storage = tensor.untyped_storage()
        self._integers[storage._cdata] = _Integers(StorageWeakRef(storage), name, is_mask)

    def _held(self, tensor: Tensor) -> _Integers | None:
        if tensor.layout != torch.strided or not self._integers:
            return None
        return self._integers.get(tensor.untyped_storage()._cdata)

    def _follow(
        self, func: Any, bound: Mapping[str, Any], operands: Sequence[Tensor], result: Any
    ) -> None:
        """Follows what is made of integer inputs: other integers, and numbers that vary.

        What is compared becomes a mask of this batch, a constant like any other.
        """
        held = [found for tensor in operands if (found := self._held(tensor)) is not None]
        op = name_of(func)
        if not held or not reads_values(op):
            return
        same = len(operands) == 1 and (op in PLAIN or len(_outputs(result)) > 1)
        name = held[0].name if same else ""
        is_mask = all(found.is_mask for found in held)
        written = _written_arguments(func, bound)
        overwritten = {id(tensor) for tensor in written}
        for tensor in [*_outputs(result), *written]:
            if tensor is None or tensor.numel() == 0 or tensor.layout != torch.strided:
                continue
            if tensor.is_floating_point():
                if not is_mask and not self._is_tracked(tensor):
                    self._derive(tensor, name, _table(op, bound))
            elif _is_integer(tensor) and (self._held(tensor) is None or id(tensor) in overwritten):
                self._hold(tensor, name, is_mask)

    def _derive(self, tensor: Tensor, name: str, table: tuple[float, float] | None) -> None:
        """Makes a float tensor that was made of integer inputs alone a leaf.

        One with infinities is a mask, whatever it was made of, and stays a constant.
        """
        lower, upper = (float(end) for end in torch.aminmax(tensor.detach()))
        if not abs(lower) + abs(upper) < float("inf"):
            return
        number = self._constant(tensor)
        value = self.graph.values[number]
        value.kind, value.name = "derived", name
        value.spread = table or (lower, upper)
        self._bind(tensor, number, is_write=False)

    # --- nodes ------------------------------------------------------------------------------

    def _add(
        self,
        canonical: Canonical,
        outputs: Sequence[Tensor | None],
        is_gradient: bool,
        mark: Mapping[str, Any],
        *,
        written: Sequence[Tensor] = (),
        before: Mapping[int, int] | None = None,
    ) -> Node:
        known = before or {}

        def refer(tensor: Tensor) -> Ref:
            value = known.get(id(tensor))
            return Ref(self._value_of(tensor) if value is None else value)

        arguments = {name: _mapped(item, refer) for name, item in canonical.arguments.items()}
        observed = self._same_extremes(canonical, arguments)
        index = len(self.graph.nodes)
        written_ids = {id(tensor) for tensor in written}
        numbers: list[int | None] = []
        for tensor in outputs:
            if tensor is None:  # masked out, as gradients nobody asked for are
                numbers.append(None)
                continue
            value = self._new_value(
                tensor, producer=index, is_gradient=is_gradient, observed=observed
            )
            self._bind(tensor, value.index, is_write=id(tensor) in written_ids)
            numbers.append(value.index)
        node = Node(
            index=index,
            op=canonical.op,
            target=canonical.target,
            arguments=arguments,
            outputs=tuple(numbers),
            **mark,
        )
        self.graph.nodes.append(node)
        if node.phase == "forward":
            # Autograd's node for this operator has been made already; it took this number.
            sequence = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
            self._forward_by_sequence.setdefault(sequence, index)
        return node

    def _add_part(
        self,
        arguments: dict[str, Any],
        output: Tensor,
        is_gradient: bool,
        mark: Mapping[str, Any],
    ) -> None:
        """One part of a split, or of an unbind: a slice, and a reshape where it lost the dim."""
        x: Tensor = arguments["x"]
        slice_op = Canonical("slice", torch.ops.aten.slice.Tensor, arguments)
        if output.dim() == x.dim():
            self._add(slice_op, [output], is_gradient, mark)
            return
        kept = output.unsqueeze(arguments["dim"])  # the same memory, with the sliced dim
        self._add(slice_op, [kept], is_gradient, mark)
        reshape = Canonical("reshape", None, {"x": kept, "shape": tuple(output.shape)})
        self._add(reshape, [output], is_gradient, mark)

    def _place(self, phase: Phase, node: Any) -> tuple[Source, int | None]:
        if phase == "forward":
            return user_source(), None
        forward = self._forward_by_sequence.get(node._sequence_nr())
        if forward is None:
            return user_source(), None
        return self.graph.nodes[forward].source, forward

    def _seed(self, gradient: Tensor) -> None:
        """The gradient of the loss with respect to itself, with which a backward pass starts."""
        value = self._new_value(gradient, kind="constant", data=gradient.detach().clone())
        value.is_gradient = True
        self._bind(gradient, value.index, is_write=False)

    def _note(self, places: list[Source]) -> None:
        source = user_source()
        if source not in places:
            places.append(source)

    # --- values -----------------------------------------------------------------------------

    def _new_value(
        self,
        tensor: Tensor,
        *,
        kind: Kind = "result",
        name: str = "",
        data: Tensor | None = None,
        producer: int | None = None,
        is_gradient: bool = False,
        observed: tuple[Tensor, Tensor] | None = None,
    ) -> Value:
        if observed is None and producer is not None:
            observed = self._extremes(tensor)
        value = Value(
            index=len(self.graph.values),
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            kind=kind,
            name=name,
            data=data,
            producer=producer,
            is_gradient=is_gradient,
            observed=observed,
        )
        self.graph.values[value.index] = value
        return value

    def _same_extremes(
        self, canonical: Canonical, arguments: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor] | None:
        """The extremes of the operand, if the result has its elements and no others."""
        if not self._observe or canonical.op not in _SAME_ELEMENTS:
            return None
        number = arguments["x"].value
        observed = self.graph.values[number].observed
        if observed is None:
            observed = self._leaf_extremes.get(number)
        if observed is None:
            observed = self._extremes(canonical.arguments["x"])
            if observed is not None:
                self._leaf_extremes[number] = observed
        return observed

    def _extremes(self, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self._observe or not tensor.is_floating_point() or tensor.numel() == 0:
            return None
        if tensor.layout != torch.strided:
            return None
        lower, upper = torch.aminmax(tensor.detach())
        return lower, upper

    def _leaf(self, tensor: Tensor, kind: Kind, name: str) -> int:
        value = self._new_value(tensor, kind=kind, name=name, data=tensor.detach())
        self._bind(tensor, value.index, is_write=False)
        return value.index

    def _value_of(self, tensor: Tensor) -> int:
        """Number of the value a tensor holds now; constants and new leaves are made here."""
        storage = self._storage(tensor)
        if storage is not None:
            geometry = _geometry(tensor)
            entry = storage.views.get(geometry)
            since = -1 if entry is None else entry.stamp
            newer = [
                write
                for where, write in storage.writes
                if write.stamp > since and where != geometry and _overlap(where, geometry, tensor)
            ]
            if entry is not None and not newer:
                return entry.value
            if entry is None and not newer:
                aliases = [
                    other
                    for where, other in storage.views.items()
                    if _overlap(where, geometry, tensor)
                ]
                newer = aliases
            if newer:
                old = self._constant(tensor) if entry is None else entry.value
                return self._join(tensor, [old, *(write.value for write in newer)])
        if tensor.requires_grad and tensor.is_leaf and tensor.is_floating_point():
            return self._leaf(tensor, "parameter", f"parameter_{len(self.graph.values)}")
        return self._constant(tensor)

    def _join(self, tensor: Tensor, values: Sequence[int]) -> int:
        distinct = list(dict.fromkeys(values))
        is_gradient = any(self.graph.values[value].is_gradient for value in distinct)
        value = self._new_value(tensor, producer=len(self.graph.nodes), is_gradient=is_gradient)
        self.graph.nodes.append(
            Node(
                index=len(self.graph.nodes),
                op="join",
                target=None,
                arguments={
                    "values": [Ref(number) for number in distinct],
                    "shape": tuple(tensor.shape),
                    "dtype": tensor.dtype,
                },
                outputs=(value.index,),
                source=user_source(),
                phase="backward" if torch._C._current_autograd_node() is not None else "forward",
            )
        )
        self._bind(tensor, value.index, is_write=False)
        return value.index

    def _constant(self, tensor: Tensor) -> int:
        """A value holding a copy of untracked data; the same version is copied once."""
        key = None
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            key = (storage._cdata, _geometry(tensor), tensor._version)
            if key in self._constants:
                return self._constants[key][0]
        data = tensor.detach()
        held = self._held(tensor) if _is_integer(tensor) and tensor.numel() else None
        kind: Kind = "constant" if held is None else "derived"
        name = "" if held is None else held.name
        small = data.numel() <= CONSTANT_LIMIT
        data = data.clone() if small else _extreme_data(data)
        value = self._new_value(tensor, kind=kind, name=name, data=data)
        if held is not None and not held.is_mask:
            lower, upper = torch.aminmax(data)
            value.spread = (float(lower), float(upper))
        if key is not None:
            self._constants[key] = (value.index, StorageWeakRef(storage))
        return value.index

    # --- memory -----------------------------------------------------------------------------

    def _storage(self, tensor: Tensor) -> _Storage | None:
        if tensor.layout != torch.strided:
            return None
        key = tensor.untyped_storage()._cdata
        if self._statistics and key in self._statistics:
            self._settle(self._statistics[key])
        return self._storages.get(key)

    def _is_tracked(self, tensor: Tensor) -> bool:
        if tensor.layout != torch.strided:
            return False
        storage = self._storage(tensor)
        if storage is None:
            return tensor.requires_grad and tensor.is_leaf and tensor.is_floating_point()
        geometry = _geometry(tensor)
        return geometry in storage.views or any(
            _overlap(where, geometry, tensor) for where in [*storage.views]
        )

    def _bind(self, tensor: Tensor, value: int, *, is_write: bool) -> None:
        if tensor.layout != torch.strided:
            return
        memory = tensor.untyped_storage()
        storage = self._storages.get(memory._cdata)
        if storage is None:
            storage = self._storages[memory._cdata] = _Storage(StorageWeakRef(memory))
        self._stamp += 1
        entry = _Entry(value, self._stamp)
        geometry = _geometry(tensor)
        storage.views[geometry] = entry
        if is_write:
            storage.writes.append((geometry, entry))

    def finish(self, loss: Tensor) -> None:
        """Remembers which value is the loss."""
        with _disable_current_modes():
            if self._is_tracked(loss):
                self.graph.loss = self._value_of(loss)

    def module_output(self, name: str, output: Any) -> None:
        """Remembers which value a module returned."""
        with _disable_current_modes():
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor) and leaf.is_floating_point() and self._is_tracked(leaf):
                    self.graph.module_outputs[name] = self._value_of(leaf)
                    return


class _Escapes(TorchFunctionMode):
    """Notes where a tensor leaves torch: what happens to it then is not seen."""

    _LEAVING = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__})

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._LEAVING and args and self._recorder._is_tracked(args[0]):
            self._recorder._note(self._recorder.graph.escapes)
        return func(*args, **(kwargs or {}))


@contextmanager
def recording(
    model: torch.nn.Module | None,
    inputs: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    *,
    observe: bool = True,
    varying: Collection[str] = (),
) -> Iterator[Recorder]:
    """Records everything that runs inside the block, in this thread.

    Args:
        model: Gives operators their module path; may be None.
        inputs: Tensors that vary from batch to batch, by name. Of integer ones, masks (what
            comparisons make of them, and inputs of 0 and 1) count as constants.
        parameters: Trainable tensors by name.
        observe: Also record the extremes of every result (about a tenth of a step).
        varying: Integer inputs of 0 and 1 that are no masks.
    """
    recorder = Recorder(inputs, parameters, observe, varying)
    with ExitStack() as stack:
        stack.enter_context(eager())
        if model is not None:
            stack.enter_context(module_scope(model))
            names = {id(module): name for name, module in model.named_modules()}

            def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
                name = names.get(id(module))
                if name:
                    recorder.module_output(name, output)

            handle = torch.nn.modules.module.register_module_forward_hook(leave)
            stack.callback(handle.remove)
        stack.enter_context(_Escapes(recorder))
        stack.enter_context(recorder)
        yield recorder


def record(
    step: Callable[[], Tensor | None],
    *,
    model: torch.nn.Module | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    backward: bool = True,
    observe: bool = True,
    varying: Collection[str] = (),
) -> Graph:
    """The graph of one call of `step`, and of the backward pass from the loss it returns.

    Args:
        step: Runs forward and loss; returns the loss `[]`, or a tensor whose sum stands for
            it, or None if it ran its own backward pass or has no loss.
        model: Gives operators their module path.
        inputs: Tensors that vary from batch to batch, by name.
        parameters: Trainable tensors by name.
        backward: Also run and record the backward pass.
        observe: Record the extremes of every result.
        varying: Integer inputs of 0 and 1 that are no masks.
    """
    with recording(
        model, inputs or {}, parameters or {}, observe=observe, varying=varying
    ) as recorder:
        loss = step()
        if isinstance(loss, Tensor):
            recorder.finish(loss)
            if backward and loss.requires_grad:
                loss.sum().backward() if loss.dim() else loss.backward()
    return recorder.graph


# --- tensors -------------------------------------------------------------------------------


def _is_backward_seed() -> bool:
    """True if `Tensor.backward` or `torch.autograd.grad` is making its first gradient."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(12):
        if frame is None:
            return False
        if frame.f_code.co_name == "_make_grads":
            return True
        frame = frame.f_back
    return False


def _statistics_of(func: Any, bound: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """The buffers that a batch norm in training writes, where its schema does not say so."""
    if name_of(func) not in ("native_batch_norm", "cudnn_batch_norm") or not bound["training"]:
        return None
    mean, variance = bound["running_mean"], bound["running_var"]
    return None if mean is None or variance is None else (mean, variance)


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _is_mask(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    lower, upper = torch.aminmax(tensor)
    return bool(lower >= 0) and bool(upper <= 1)


def _table(op: str, bound: Mapping[str, Any]) -> tuple[float, float] | None:
    """The extremes of what is looked up by an index that may be any."""
    table = bound.get("weight" if op == "embedding" else "x")
    if op not in LOOKUPS or not isinstance(table, Tensor) or table.numel() == 0:
        return None
    lower, upper = torch.aminmax(table.detach())
    return float(lower), float(upper)


def _has_tensor(result: Any) -> bool:
    if isinstance(result, Tensor) or result is None:
        return True
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))


def _outputs(result: Any) -> list[Tensor | None]:
    """Tensors an operator returned, in order; None where it returned something else."""
    if isinstance(result, Tensor):
        return [result]
    leaves = list(result) if isinstance(result, (tuple, list)) else [result]
    flat: list[Any] = []
    for leaf in leaves:
        flat += leaf if isinstance(leaf, (tuple, list)) else [leaf]
    return [leaf if isinstance(leaf, Tensor) else None for leaf in flat]


def _geometry(tensor: Tensor) -> Geometry:
    return (int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _written_arguments(func: Any, bound: Mapping[str, Any]) -> list[Tensor]:
    written: list[Tensor] = []
    for name in signature(func).written:
        _collect((bound[name],), written)
    return written


def _collect(items: Iterable[Any], tensors: list[Tensor]) -> None:
    """Adds all tensors among the arguments of an operator, lists included, in order."""
    for item in items:
        if isinstance(item, Tensor):
            tensors.append(item)
        elif isinstance(item, (list, tuple)):
            _collect(item, tensors)


def _mapped(argument: Any, refer: Callable[[Tensor], Ref]) -> Any:
    if isinstance(argument, Tensor):
        return refer(argument)
    if isinstance(argument, (list, tuple)):
        mapped = [_mapped(item, refer) for item in argument]
        return mapped if isinstance(argument, list) else tuple(mapped)
    return argument


def _overlap(first: Geometry, second: Geometry, tensor: Tensor) -> bool:
    """True if two views of one storage share an element."""
    if first[3] != second[3]:
        return True
    (low_a, high_a), (low_b, high_b) = _span(first), _span(second)
    if high_a < low_b or high_b < low_a:
        return False
    if _is_dense(first) and _is_dense(second):
        return True
    size = max(high_a, high_b) + 1
    if size > _OVERLAP_LIMIT:
        return True
    touched = torch.zeros(size, dtype=torch.bool)
    touched.as_strided(first[1], first[2], first[0]).fill_(True)
    return bool(touched.as_strided(second[1], second[2], second[0]).any())


def _span(geometry: Geometry) -> tuple[int, int]:
    offset, sizes, strides, _ = geometry
    if 0 in sizes:
        return (0, -1)
    reach = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return (offset, offset + reach)


def _is_dense(geometry: Geometry) -> bool:
    low, high = _span(geometry)
    count = 1
    for size in geometry[1]:
        count *= size
    return high - low + 1 == count


def _extreme_data(data: Tensor) -> Tensor:
    """Two elements, the extremes, in place of a large constant."""
    return torch.stack(torch.aminmax(data.reshape(-1)))
