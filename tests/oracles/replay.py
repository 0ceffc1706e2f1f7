"""Runs a recorded graph again, in its own dtypes, on other inputs.

Control flow, constants and shapes stay those of the recording. Gradients are drawn afresh
in [-1, 1] for each backward operator, since that is what its transfer function is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.graph import Graph, Node, Ref


class NotReplayableError(Exception):
    """A node has no functional form, or torch refuses the drawn values."""


def replay(
    graph: Graph, leaves: Mapping[int, Tensor], generator: torch.Generator
) -> Iterator[tuple[Node, list[Tensor | None]]]:
    """Each node with its results, in order; nodes behind one that cannot be run are left out.

    Args:
        graph: A recorded step.
        leaves: Tensors for inputs and parameters.
        generator: Draws the upstream gradients.
    """
    known: dict[int, Tensor] = dict(leaves)

    def look_up(argument: Any) -> Any:
        if isinstance(argument, Ref):
            value = graph.values[argument.value]
            if value.is_gradient and value.dtype.is_floating_point:
                return gradient(value.shape, value.dtype, generator)
            if argument.value not in known:
                if value.kind == "result" or value.data is None:
                    raise NotReplayableError("an operand was not computed")
                if tuple(value.data.shape) != value.shape:
                    raise NotReplayableError("a constant was too large to be kept")
                known[argument.value] = value.data
            return known[argument.value]
        if isinstance(argument, (list, tuple)):
            return type(argument)(look_up(item) for item in argument)
        return argument

    for node in graph.nodes:
        try:
            arguments = {name: look_up(item) for name, item in node.arguments.items()}
            results = _written(graph, node, _outputs(_run(node, arguments)))
        except (NotReplayableError, RuntimeError, IndexError, ValueError, TypeError):
            continue
        if not _agree(graph, node, results):
            continue
        pairs = zip(node.outputs, results, strict=False)
        known |= {
            number: result for number, result in pairs if not (number is None or result is None)
        }
        yield node, results


def gradient(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A gradient in [-1, 1]: every third draw takes the ends and 0 only."""
    if int(torch.randint(0, 3, (), generator=generator)):
        return (torch.rand(shape, generator=generator) * 2 - 1).to(dtype)
    return torch.randint(-1, 2, shape, generator=generator).to(dtype)


def _agree(graph: Graph, node: Node, results: list[Tensor | None]) -> bool:
    """True if shapes and dtypes are those of the recording."""
    for number, result in zip(node.outputs, results, strict=False):
        if number is not None and isinstance(result, Tensor):
            value = graph.values[number]
            if tuple(result.shape) != value.shape or result.dtype != value.dtype:
                return False
    return True


def _written(graph: Graph, node: Node, results: list[Tensor | None]) -> list[Tensor | None]:
    """Results as an operator in place writes them: in the type of the tensor it works on."""
    number = node.outputs[0] if len(results) == 1 else None
    result = results[0] if results else None
    if number is None or result is None or not result.is_floating_point():
        return results
    dtype = graph.values[number].dtype
    return [result.to(dtype)] if dtype.is_floating_point else results


def _outputs(result: Any) -> list[Tensor | None]:
    leaves = list(result) if isinstance(result, (tuple, list)) else [result]
    flat: list[Any] = []
    for leaf in leaves:
        flat += leaf if isinstance(leaf, (tuple, list)) else [leaf]
    return [leaf if isinstance(leaf, Tensor) else None for leaf in flat]


def _run(node: Node, arguments: dict[str, Any]) -> Any:
    special = _SPECIAL.get(node.op)
    if special is not None:
        return special(**arguments)
    if node.target is None:
        raise NotReplayableError(f"{node.op} has no functional form")
    if node.op.startswith("grid_sampler") and not _placed(arguments["grid"]):
        raise NotReplayableError("torch reads outside the image's memory there")
    if "_polynomial_" in node.op and not _is_short(arguments["n"]):
        raise NotReplayableError("torch takes one step per degree")
    names = {argument.name for argument in node.target._schema.arguments}
    for name in ("self", "_self"):
        if name in names and "x" in arguments:
            arguments[name] = arguments.pop("x")
    return node.target(**{key: _copied(item) for key, item in arguments.items()})


def _placed(grid: Tensor) -> bool:
    return bool((grid.abs() <= 1e6).all())


def _is_short(degree: Any) -> bool:
    return bool((torch.as_tensor(degree).double().abs() <= 1000).all())


def _copied(argument: Any) -> Any:
    """Running statistics are written to by operators that do not say so."""
    return argument.clone() if isinstance(argument, Tensor) else argument


def _full(value: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(dtype).expand(shape)
    return torch.full(shape, value, dtype=dtype)


def _join(values: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Writes that overlap, any of which may have come last: each element from one of them."""
    parts = [value.to(dtype) for value in values if value.numel()]
    if not parts or 0 in shape:
        return torch.zeros(shape, dtype=dtype)
    whole = [
        part if part.shape == shape else part.flatten()[torch.randint(part.numel(), shape)]
        for part in parts
    ]
    choice = torch.randint(len(whole), (1, *shape))
    return torch.stack(whole).gather(0, choice)[0]


_SPECIAL: dict[str, Callable[..., Any]] = {
    "reshape": lambda x, shape: x.reshape(shape),
    "permute": lambda x, dims: x.permute(dims),
    "expand": lambda x, shape: x.expand(shape),
    "identity": lambda x: x,
    "cast": lambda x, dtype: x.to(dtype),
    "join": _join,
    "copy": lambda x, src: src.to(x.dtype).expand(x.shape),
    "slice": lambda x, dim=0, start=None, end=None, step=1: torch.ops.aten.slice(
        x, dim, start, end, step
    ),
    "full": _full,
    "bernoulli": lambda shape, dtype: torch.bernoulli(torch.full(shape, 0.5)).to(dtype),
    "uniform": lambda low, high, shape, dtype: torch.empty(shape, dtype=dtype).uniform_(low, high),
    "normal": lambda mean, std, shape=None, dtype=None: (
        torch.normal(mean, std, shape).to(dtype) if shape is not None else torch.normal(mean, std)
    ),
}
