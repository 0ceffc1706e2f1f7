"""Records one real training step, forward, loss and backward, as a `Graph`.

A `TorchDispatchMode` sees every ATen operator below autograd, with the Python stack still
standing. Whatever depends on no parameter, no float input and no randomness is recorded as
constant data; masks and index arithmetic disappear that way. In-place writes and views are
followed by storage and geometry, so that the graph is in single assignment form.

What an operator is called, and which arguments it has: `overload` and `canonical`. What
memory holds: `memory`, `integers`, `running_statistics`. The graph itself: `trace`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ranum._dispatch import DispatchMode
from ranum._untouched import eager
from ranum.analysis.capture.canonical import Canonical, canonicalize, parts
from ranum.analysis.capture.integers import is_integer, is_mask
from ranum.analysis.capture.internals import (
    backward_sequence,
    current_autograd_node,
    has_memory,
    is_wrapper,
    parts_of,
    starts_backward,
)
from ranum.analysis.capture.memory import Mixture
from ranum.analysis.capture.overload import Overload, is_tensor, overload
from ranum.analysis.capture.running_statistics import StatisticsWrite, forget_unread
from ranum.analysis.capture.trace import Trace
from ranum.analysis.graph import Graph
from ranum.source import module_scope, user_source


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
        self.trace = trace = Trace(observe=observe)
        self._is_paused = False
        for name, tensor in parameters.items():
            trace.leaf(tensor, "parameter", name)
        trace.graph.inputs = tuple(inputs)
        trace.graph.integers = frozenset(n for n, each in inputs.items() if is_integer(each))
        for name, tensor in _unwrapped(inputs):
            if tensor.is_floating_point() or tensor.is_complex():
                trace.leaf(tensor, "input", name)
            elif is_integer(tensor) and tensor.layout is torch.strided:
                trace.integers.hold(tensor, name, is_mask=name not in varying and is_mask(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator, then writes it down."""
        kwargs = kwargs or {}
        if self._is_paused:
            return func(*args, **kwargs)
        if types and any(map(is_wrapper, types)):
            return NotImplemented  # what it does to the tensors inside is seen next
        known = overload(func)
        bound = known.bind(args, kwargs)
        forget_unread(known, bound)
        operands = known.operands(bound)
        find = self.trace.find
        found = [(tensor, place) for tensor in operands if (place := find(tensor)) is not None]
        if not found and not known.is_random:
            result = func(*args, **kwargs)
            if self.trace.integers:
                self._follow(known, bound, operands, result)
            return result
        if known.name == "_local_scalar_dense":
            if current_autograd_node() is None:
                self.trace.note(self.trace.graph.taken_branches)
            return func(*args, **kwargs)
        if not known.reads_values and not known.is_random:
            result = func(*args, **kwargs)
            if known.name == "ones_like" and starts_backward():
                self.trace.seed(result)
            return result
        run = partial(func, *args, **kwargs)
        return self._record(known, bound, operands, found, run)

    def _record(
        self,
        known: Overload,
        bound: dict[str, Any],
        operands: Sequence[Tensor],
        found: Sequence[tuple[Tensor, int | Mixture]],
        run: Callable[[], Any],
    ) -> Any:
        """Runs an operator that reads what varies, or draws random numbers; adds its node."""
        trace = self.trace
        values = {id(tensor): trace.settled(tensor, place) for tensor, place in found}
        statistics = None
        if found:
            statistics = StatisticsWrite.of(trace, known, bound)
            if statistics is not None:
                values |= statistics.known
            elif known.is_mutable:
                # What an in-place operator reads must be noted before it is overwritten.
                for tensor in operands:
                    if id(tensor) not in values:
                        values[id(tensor)] = trace.constant(tensor)
        result = run()
        outputs = _outputs(result)
        written = known.overwritten(bound)
        if written:
            returned = {id(tensor) for tensor in outputs}
            outputs += [tensor for tensor in written if id(tensor) not in returned]
        tensors = [tensor for tensor in outputs if tensor is not None]
        if tensors:
            mark, first = self._mark(), len(trace.graph.nodes)
            # What the step itself computes from gradients is followed like any other value.
            is_gradient = mark["phase"] == "backward" and any(
                trace.graph.values[value].is_gradient for value in values.values()
            )
            slices = parts(known, bound, tensors)
            if slices is not None:
                for arguments, output in zip(slices, tensors, strict=True):
                    self._add_part(arguments, output, is_gradient, mark)
            else:
                trace.add(
                    canonicalize(known, bound, tensors[0]),
                    outputs,
                    mark,
                    is_gradient=is_gradient,
                    written=written,
                    known=values,
                )
            if mark["phase"] == "forward":
                trace.claim(first)
        if statistics is not None:
            statistics.remember(bound)
        return result

    def _mark(self) -> dict[str, Any]:
        """Where and when the operator that has just run was running."""
        node = current_autograd_node()
        if node is None:
            return {"source": user_source(), "phase": "forward"}
        forward = self.trace.forward_of(backward_sequence(node))
        if forward is None:
            return {"source": user_source(), "phase": "backward"}
        return {"source": forward.source, "phase": "backward", "forward": forward.index}

    def _add_part(
        self, arguments: dict[str, Any], output: Tensor, is_gradient: bool, mark: dict[str, Any]
    ) -> None:
        """One part of a split, or of an unbind: a slice, and a reshape where it lost the dim."""
        add = self.trace.add
        x: Tensor = arguments["x"]
        slice_op = Canonical("slice", torch.ops.aten.slice.Tensor, arguments)
        if output.dim() == x.dim():
            add(slice_op, [output], mark, is_gradient=is_gradient)
            return
        kept = output.unsqueeze(arguments["dim"])  # the same memory, with the sliced dim
        add(slice_op, [kept], mark, is_gradient=is_gradient)
        reshape = Canonical("reshape", None, {"x": kept, "shape": tuple(output.shape)})
        add(reshape, [output], mark, is_gradient=is_gradient)

    def _follow(
        self, known: Overload, bound: Mapping[str, Any], operands: Sequence[Tensor], result: Any
    ) -> None:
        """What is made of integers of the batch alone, as derived values."""
        trace = self.trace
        for made in trace.integers.follow(known, bound, operands, _outputs(result)):
            if trace.find(made.tensor) is None:
                trace.derive(made.tensor, made.name, made.table)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what the recorder itself runs outside of an operator."""
        outer, self._is_paused = self._is_paused, True
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self._is_paused = outer

    def finish(self, loss: Tensor) -> None:
        """Remembers which value is the loss."""
        with self.paused():
            self.trace.graph.loss = self._shown(loss)

    def module_output(self, name: str, output: Any) -> None:
        """Remembers which value a module returned."""
        with self.paused():
            for leaf in [output] if is_tensor(output) else tree_leaves(output):
                if is_tensor(leaf) and leaf.is_floating_point() and has_memory(leaf):
                    number = self._shown(leaf)
                    if number is not None:
                        self.trace.graph.module_outputs[name] = number
                        return

    def run_backward(self, loss: Tensor) -> None:
        """The backward pass from the loss, unless the step has run it itself."""
        is_again = any(node.phase == "backward" for node in self.trace.graph.nodes)
        try:
            loss.sum().backward() if loss.dim() else loss.backward()
        except RuntimeError as error:
            if not (is_again and "backward through the graph a second time" in str(error)):
                raise

    def _shown(self, tensor: Tensor) -> int | None:
        """The value of a tensor that the report has a name for; its extremes are noted."""
        found = self.trace.find(tensor)
        if found is None:
            return None
        number = self.trace.settled(tensor, found)
        self.trace.observe(number, tensor)
        return number

    def escape(self, tensor: Tensor) -> None:
        """Notes that a tensor leaves torch here, if what it holds varies."""
        with self.paused():
            if self.trace.find(tensor) is not None:
                self.trace.note(self.trace.graph.escapes)


class _Escapes(TorchFunctionMode):
    """Notes where a tensor leaves torch: what happens to it then is not seen."""

    _LEAVING = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__})

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._LEAVING and args:
            self._recorder.escape(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pauses the garbage collector.

    Recording makes objects by the ten thousand, which all live on; looking for cycles among
    them and in everything else the process has imported takes longer than recording does.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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
        observe: Record the extremes of every result (about a tenth of a step); otherwise of
            module outputs, the loss and what the analysis reads.
        varying: Integer inputs of 0 and 1 that are no masks.
    """
    with ExitStack() as stack:
        stack.enter_context(_uncollected())
        recorder = Recorder(inputs, parameters, observe, varying)
        stack.enter_context(eager())
        if model is not None:
            names = stack.enter_context(module_scope(model))

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
        observe: Record the extremes of every result; otherwise of module outputs, the loss
            and what the analysis reads.
        varying: Integer inputs of 0 and 1 that are no masks.
    """
    with recording(
        model, inputs or {}, parameters or {}, observe=observe, varying=varying
    ) as recorder:
        loss = step()
        if isinstance(loss, Tensor):
            recorder.finish(loss)
            if backward and loss.requires_grad:
                recorder.run_backward(loss)
    return recorder.trace.graph


def _unwrapped(inputs: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The inputs, and in place of tensors that wrap others, those."""
    for name, tensor in inputs.items():
        inside = parts_of(tensor)
        if inside:
            yield from _unwrapped({f"{name}.{part}": each for part, each in inside.items()})
        else:
            yield name, tensor


def _outputs(result: Any) -> list[Tensor | None]:
    """Tensors an operator returned, in order; None where it returned something else."""
    if is_tensor(result):
        return [result]
    if not isinstance(result, (tuple, list)):
        return [None]
    flat: list[Any] = []
    for each in result:
        flat += each if isinstance(each, (tuple, list)) else [each]
    return [each if is_tensor(each) else None for each in flat]
