"""Programs from a `torch.export.ExportedProgram`, in memory or from a file that is trusted.

Its graph is run operator by operator under the recorder; the stack traces that export kept
lead back to files and lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from ranum.analysis.capture.program import Program
from ranum.analysis.capture.torch import as_loss
from ranum.errors import ArgumentError, CaptureError
from ranum.source import Source, is_user_file, located, source_lines

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def is_exported(target: Any) -> bool:
    """True for an `ExportedProgram`, without importing `torch.export`."""
    kind = type(target)
    return kind.__name__ == "ExportedProgram" and kind.__module__.startswith("torch.export")


def exported_file(path: str | Path, *, trust: bool) -> Any:
    """The program in a `.pt2` file.

    Raises:
        ArgumentError: If the file is not trusted: reading it can run code that is in it.
        CaptureError: If it cannot be read; the error is the cause.
    """
    if not trust:
        raise ArgumentError(
            f"{path} holds pickled objects, which run whatever code the file's author put there "
            "when they are read. If you know where it comes from, pass trust=True (--trust "
            "in a terminal); "
            "an ONNX file or the exported program in memory needs no trust."
        )
    try:
        return torch.export.load(path)
    except Exception as error:
        raise CaptureError(
            f"{path} could not be read as an exported program: {type(error).__name__}: {error}"
        ) from error


def exported_program(
    exported: Any,
    arguments: tuple[Any, ...],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    backward: bool = True,
) -> Program:
    """A program that runs an exported one.

    Args:
        exported: The `ExportedProgram`.
        arguments: One batch; by default the example it was exported with, or where that was
            not kept, stand-ins of the recorded shapes without data.
        loss: Makes the loss `[]` from the output.
        backward: Whether the backward pass belongs to the step.

    Raises:
        ArgumentError: If the arguments do not fit the program's inputs.
    """
    module: Any = exported.module()
    names: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    if not arguments:
        positional, named = exported.example_inputs or _stand_ins(exported)
        keywords = tuple(named)
        arguments = (*positional, *named.values())
    inputs = [name for name in exported.graph_signature.user_inputs if isinstance(name, str)]
    given = len(tree_flatten(arguments)[0])
    if given != len(exported.graph_signature.user_inputs):
        raise ArgumentError(
            f"example_inputs must match the {len(inputs)} input(s) of the exported program "
            f"({', '.join(inputs)}); got {given}."
        )
    if len(inputs) == len(arguments):
        names = tuple(inputs)
    count = len(arguments) - len(keywords)
    runner = _Runner(module)

    def step(*args: Any) -> Tensor | None:
        named = dict(zip(keywords, args[count:], strict=True))
        output = runner.call(args[:count], named)
        return as_loss(output if loss is None else loss(output))

    return Program(
        step=step,
        arguments=arguments,
        argument_names=names,
        model=module,
        parameters=dict(module.named_parameters()),
        backward=backward,
        description="the exported program",
    )


def _stand_ins(exported: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tensors without data, of the shapes that export recorded."""
    wanted = set(exported.graph_signature.user_inputs)
    values = [
        node.meta["val"]
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.name in wanted
    ]
    flat = [
        torch.empty([int(size) for size in value.shape], dtype=value.dtype, device="meta")
        if isinstance(value, Tensor)
        else value
        for value in values
    ]
    positional, named = tree_unflatten(flat, exported.call_spec.in_spec)
    return positional, named


class _Runner(fx.Interpreter):
    """Runs a graph node by node, each under the place it came from."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self._graph = module.graph
        self._places: dict[str, Source] = {}

    def call(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The output for one batch."""
        flat, _ = tree_flatten((arguments, named))
        self.env, self.args_iter = {}, iter(flat)
        for node in self._graph.nodes:
            self.env[node] = self.run_node(node)
        return self._graph.process_outputs(self.env[node])

    def run_node(self, node: fx.Node) -> Any:
        """One operator; checks of shapes that export added are left out."""
        if node.op == "call_module" and str(node.target) == "_guards_fn":
            return None
        if node.op != "call_function":
            return super().run_node(node)
        if node.name not in self._places:
            self._places[node.name] = _place(node)
        with located(self._places[node.name]):
            return super().run_node(node)


def _place(node: fx.Node) -> Source:
    """Where the user wrote an operator: the innermost frame of the user's own code."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if is_user_file(frame[0])] or frames
    path = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
    module = path[-1] if path else None
    if not own:
        return Source(
            file="<exported>", line=0, end_line=0, column=-1, end_column=-1,
            module=module, lines=(str(node.target),), node=node.name,
        )  # fmt: skip
    file, line, function = own[-1]
    return Source(
        file=file,
        line=int(line),
        end_line=int(line),
        column=-1,
        end_column=-1,
        function=function,
        module=module,
        lines=source_lines(file, int(line), int(line)),
        node=node.name,
    )
