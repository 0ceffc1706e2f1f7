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
    graph: Graph,
    nodes: Iterable[Node],
    leaves: Mapping[int, Tensor],
    *,
    straight_through: bool = False,
    wide: bool = True,
    flush: bool = False,
) -> dict[int, Tensor]:
    """Concrete values of the outputs of `nodes`.

    Args:
        graph: A recorded step.
        nodes: The nodes to run, in order; see `needed_nodes`.
        leaves: Tensors for inputs and parameters; constants come from the recording.
        straight_through: Let gradients through where a function is flat, as if it were the
            identity there (Bengio et al., Estimating or Propagating Gradients Through
            Stochastic Neurons, 2013); values stay the same.
        wide: In float64; else in the dtypes of the recorded step.
        flush: Make 0 of subnormal results.

    Raises:
        NotExecutableError: If a node has no functional form, or fails for these tensors.
    """
    known = dict(leaves)

    def look_up(ref: Ref) -> Tensor:
        if ref.value not in known:
            data = graph.values[ref.value].data
            if data is None:
                raise NotExecutableError("a recorded constant was too large to be kept.")
            known[ref.value] = double(data) if wide else data.detach()
        return known[ref.value]

    for node in nodes:
        arguments = tree_map_only(Ref, look_up, node.arguments)
        try:
            result = run_node(node, arguments, wide=wide)
            if straight_through and node.op in _FLAT:
                result = _let_through(node.op, result, arguments)
        except (RuntimeError, TypeError, IndexError, NotImplementedError) as error:
            raise NotExecutableError(f"{node.op} cannot be run again: {error}") from error
        if flush:
            result = tree_map_only(Tensor, flushed, result)
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        known.update(
            (number, output)
            for number, output in zip(node.outputs, outputs, strict=False)
            if number is not None
        )
    return known


def double(data: Tensor) -> Tensor:
    """Float tensors in float64, others as they are."""
    return data.to(torch.float64) if data.is_floating_point() else data


def flushed(x: Tensor) -> Tensor:
    """The tensor with 0 in place of subnormal numbers; NaN and infinities stay."""
    if not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return torch.hardshrink(x, _largest_subnormal(x.dtype))


def flush_(x: Tensor) -> None:
    """The same in place."""
    if x.is_floating_point() and x.dtype != torch.float64:
        torch.ops.aten.hardshrink.out(x, _largest_subnormal(x.dtype), out=x)


def _largest_subnormal(dtype: torch.dtype) -> float:
    limits = torch.finfo(dtype)
    return limits.tiny * (1.0 - limits.eps)


def run_node(node: Node, arguments: Mapping[str, Any], *, wide: bool = True) -> Any:
    """The result of one operator on tensors.

    Args:
        node: The operator.
        arguments: Its arguments, with tensors in place of references.
        wide: Make float64 what it makes anew; else what the recorded step made.

    Raises:
        NotExecutableError: If it has no functional form.
    """
    special = _SPECIAL.get(node.op)
    if special is not None:
        return special(**arguments) if wide else _narrow(node.op, special, arguments)
    if node.target is None:
        raise NotExecutableError(f"{node.op} has no functional form.")
    if wide and node.op == "convolution":  # ten times slower in float64
        result = _run_target(node, tree_map_only(Tensor, _single, dict(arguments)))
        return result.to(torch.float64)
    return _run_target(node, dict(arguments), wide=wide)


def has_special_form(op: str) -> bool:
    """True if an operator is run by a function of its own, not by the recorded overload."""
    return op in _SPECIAL


def _single(x: Tensor) -> Tensor:
    return x.to(torch.float32) if x.dtype == torch.float64 else x


def _run_target(node: Node, arguments: dict[str, Any], *, wide: bool = False) -> Any:
    if node.op == "native_batch_norm" and arguments.get("training"):
        arguments["running_mean"] = arguments["running_var"] = None  # they would be overwritten
    if wide and isinstance(arguments.get("dtype"), torch.dtype):
        arguments["dtype"] = _wide(arguments["dtype"])
    names = {argument.name for argument in node.target._schema.arguments}
    if "self" in names and "x" in arguments:
        arguments["self"] = arguments.pop("x")
    elif "_self" in names and "x" in arguments:
        arguments["_self"] = arguments.pop("x")
    return node.target(**arguments)


def _narrow(op: str, special: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    if op == "cast":
        return arguments["x"].to(arguments["dtype"])
    result = special(**arguments)
    dtype = arguments.get("dtype")
    return result.to(dtype) if isinstance(dtype, torch.dtype) else result


_FLAT = frozenset(
    {"relu", "relu6", "hardtanh", "threshold", "clamp", "clamp_min", "clamp_max", "hardsigmoid",
     "sign", "round", "floor", "ceil", "trunc", "gt", "ge", "lt", "le"}
)  # fmt: skip
"""Operators with a gradient of 0 over whole ranges."""


def _let_through(op: str, result: Any, arguments: Mapping[str, Any]) -> Any:
    x = arguments.get("x")
    if not isinstance(x, Tensor) or not isinstance(result, Tensor) or not x.requires_grad:
        return result
    if not result.is_floating_point() or x.shape != result.shape:
        return result
    flat = result.detach() + (x - x.detach())
    return torch.where(result != x, flat, result) if result.requires_grad else flat


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
