"""Runs a recorded graph on concrete tensors, in float64, differentiably.

The search for failing inputs works here: float64 still tells 1e-60 from 0 where float32 has
underflowed, so gradients towards the bad set do not vanish with the value. What is found is
then re-run in the user's own code and dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ranum.analysis.graph import Graph, Node, Ref
from ranum.errors import RanumError


class NotExecutableError(RanumError, RuntimeError):
    """A recorded operator has no functional form that could be run again."""


def needed_nodes(graph: Graph, values: Iterable[int]) -> list[Node]:
    """The nodes that compute the given values, in order."""
    wanted: set[int] = set()
    stack = list(values)
    while stack:
        node = graph.producer(stack.pop())
        if node is not None and node.index not in wanted:
            wanted.add(node.index)
            stack.extend(node.operands)
    return [graph.nodes[index] for index in sorted(wanted)]


def evaluate(
    graph: Graph, nodes: Iterable[Node], leaves: Mapping[int, Tensor]
) -> dict[int, Tensor]:
    """Concrete values of the outputs of `nodes`.

    Args:
        graph: A recorded step.
        nodes: The nodes to run, in order; see `needed_nodes`.
        leaves: Tensors for inputs and parameters; constants come from the recording.

    Raises:
        NotExecutableError: If a node has no functional form, or fails for these tensors.
    """
    known = dict(leaves)

    def look_up(ref: Ref) -> Tensor:
        if ref.value not in known:
            known[ref.value] = double(graph.values[ref.value].data)
        return known[ref.value]

    for node in nodes:
        arguments = tree_map_only(Ref, look_up, node.arguments)
        try:
            result = _run(node, arguments)
        except (RuntimeError, TypeError, IndexError, NotImplementedError) as error:
            raise NotExecutableError(f"{node.op} cannot be run again: {error}") from error
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        known.update(
            (number, output)
            for number, output in zip(node.outputs, outputs, strict=False)
            if number is not None
        )
    return known


def double(data: Tensor | None) -> Tensor:
    """Float tensors in float64, others as they are."""
    if data is None:
        raise NotExecutableError("a recorded constant was too large to be kept.")
    return data.to(torch.float64) if data.is_floating_point() else data


def _run(node: Node, arguments: dict[str, Any]) -> Any:
    special = _SPECIAL.get(node.op)
    if special is not None:
        return special(**arguments)
    if node.target is None:
        raise NotExecutableError(f"{node.op} has no functional form.")
    arguments = dict(arguments)
    if node.op == "native_batch_norm" and arguments.get("training"):
        arguments["running_mean"] = arguments["running_var"] = None  # they would be overwritten
    if "dtype" in arguments and isinstance(arguments["dtype"], torch.dtype):
        arguments["dtype"] = _wide(arguments["dtype"])
    names = {argument.name for argument in node.target._schema.arguments}
    if "self" in names and "x" in arguments:
        arguments["self"] = arguments.pop("x")
    elif "_self" in names and "x" in arguments:
        arguments["_self"] = arguments.pop("x")
    return node.target(**arguments)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def _full(value: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        return value.expand(shape)
    return torch.full(shape, value, dtype=_wide(dtype))


def _join(values: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    raise NotExecutableError("overlapping in-place writes cannot be run again.")


_SPECIAL: dict[str, Callable[..., Any]] = {
    "reshape": lambda x, shape: x.reshape(shape),
    "permute": lambda x, dims: x.permute(dims),
    "expand": lambda x, shape: x.expand(shape),
    "identity": lambda x: x,
    "cast": lambda x, dtype: x.to(_wide(dtype)),
    "index": lambda x, indices, shape=None: torch.ops.aten.index(x, indices),
    "masked_select": lambda x, mask, shape=None: x.masked_select(mask),
    "copy": lambda x, src: src.to(x.dtype).expand(x.shape),
    "full": _full,
    "join": _join,
    # Random draws are replaced by their likeliest value: nothing dropped, no noise.
    "bernoulli": lambda shape, dtype: torch.ones(shape, dtype=_wide(dtype)),
    "uniform": lambda low, high, shape, dtype: torch.full(
        shape, (low + high) / 2, dtype=_wide(dtype)
    ),
    "normal": lambda mean, std, shape, dtype: torch.full(shape, float(mean), dtype=_wide(dtype)),
}
