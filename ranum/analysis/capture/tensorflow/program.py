"""A TensorFlow function as a program: the training step that the recorder runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ranum.analysis.capture.program import Program
from ranum.analysis.capture.tensorflow.function import Function
from ranum.analysis.capture.tensorflow.lowerings import LOWERINGS
from ranum.analysis.capture.tensorflow.machine import Lowering, Machine, Variable
from ranum.analysis.capture.tensorflow.unknown import unknown
from ranum.analysis.capture.tensorflow.values import as_torch
from ranum.analysis.graph import Graph


@dataclass(frozen=True, slots=True)
class Captured:
    """A variable that a function reads, or a tensor it closes over.

    Attributes:
        name: Layer path and name: "encoder/dense/kernel".
        value: A tensor, or a numpy array of strings.
        is_variable: True for a variable, False for a tensor.
        is_trained: True for a variable that training changes.
    """

    name: str
    value: Any
    is_variable: bool = True
    is_trained: bool = False


class TensorFlowProgram(Program):
    """A program whose operators carry layer paths in place of `nn.Module` paths."""

    __slots__ = ()

    def capture(self, *, observe: bool = True, varying: Collection[str] = ()) -> Graph:
        """Runs the step once under the recorder; what each layer returns is named."""
        graph = Program.capture(self, observe=True, varying=varying)  # layers are named later
        for node in graph.nodes:
            layer, output = node.source.module, node.outputs[0]
            if not layer or output is None or node.phase == "backward":
                continue
            if graph.values[output].dtype.is_floating_point:
                graph.module_outputs[layer] = output
        return graph


def make_program(
    function: Function,
    library: Mapping[str, Function],
    captured: Sequence[Captured],
    arguments: tuple[Any, ...],
    names: tuple[str, ...],
    *,
    finish: Callable[[list[Tensor]], Tensor | None],
    backward: bool,
    description: str,
    lowerings: Mapping[str, Lowering] = LOWERINGS,
) -> Program:
    """A program that runs a TensorFlow function.

    Args:
        function: The main function; its arguments are the leaves of `arguments`, then
            `captured`.
        library: The functions it calls.
        captured: Variables and tensors it closes over.
        arguments: The example batch, of torch tensors.
        names: Names of the arguments.
        finish: Makes the loss of what the function returns.
        backward: Whether the backward pass belongs to the step.
        description: What is analysed, for messages.
        lowerings: The lowering of each operator type.
    """
    model = nn.Module()
    tensors: dict[str, Any] = {}
    parameters: dict[str, Tensor] = {}
    for number, one in enumerate(captured):
        value = one.value
        if one.is_trained and isinstance(value, Tensor) and value.dtype.is_floating_point:
            value = nn.Parameter(value)
            model.register_parameter(f"variable_{number}", value)
            parameters[_unused(one.name, parameters)] = value
        elif isinstance(value, Tensor):
            model.register_buffer(f"variable_{number}", value)
        tensors[str(number)] = value

    def step(*batch: Any) -> Tensor | None:
        leaves, _ = tree_flatten(batch)
        fed = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        held = [
            Variable(one.name, tensors[str(number)]) if one.is_variable else tensors[str(number)]
            for number, one in enumerate(captured)
        ]
        machine = Machine(library, lowerings, unknown)
        results = machine.run(function, [*fed, *held])
        return finish([result for result in results if isinstance(result, Tensor)])

    return TensorFlowProgram(
        step=step,
        arguments=arguments,
        argument_names=names,
        model=model,
        parameters=parameters,
        backward=backward,
        description=description,
        as_tensor=as_torch,
        flush_to_zero=True,  # TensorFlow's threads do, eagerly, in graphs, and under XLA
    )


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    number, chosen = 1, name
    while chosen in taken:
        chosen = f"{name}_{number}"
        number += 1
    return chosen


def one_loss(results: list[Tensor]) -> Tensor | None:
    """The loss among the results: the only one, or the sum of all that are float."""
    floats = [result for result in results if result.is_floating_point()]
    if not floats:
        return None
    if len(floats) == 1:
        return floats[0]
    return torch.stack([result.sum().to(floats[0].dtype) for result in floats]).sum()
