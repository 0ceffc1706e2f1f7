"""Recorded operators made ready to be run many times.

What `evaluate` works out about a node each time (its overload, the names of its arguments, where
its operands stand) is worked out once here; small programs spend most of their time on that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ranum.analysis.evaluate import NotExecutableError, has_special_form, run_node
from ranum.analysis.graph import Node, Ref

Call = tuple[Callable[..., Any], list[Any], tuple[tuple[int, int], ...], tuple[int | None, ...]]
"""A function, its arguments with gaps, which value fills which gap, and the values it makes."""


class Calls:
    """Some nodes, in order, ready to be run on tensors.

    Args:
        nodes: Of a recorded step.
        wide: In float64, with random numbers replaced by their likeliest value, as `evaluate`
            does; else in the recorded dtypes, and random numbers are drawn.

    Raises:
        NotExecutableError: If a node has no functional form.
    """

    def __init__(self, nodes: Iterable[Node], *, wide: bool) -> None:
        self._calls = [_call(node, wide) for node in nodes]

    def run(self, known: dict[int, Tensor]) -> dict[int, Tensor]:
        """Adds what the nodes compute to the values they are given, by number.

        Raises:
            NotExecutableError: If a node fails for these tensors.
        """
        function: Callable[..., Any] | None = None
        try:
            for function, template, gaps, outputs in self._calls:
                arguments = template.copy()
                for place, number in gaps:
                    arguments[place] = known[number]
                result = function(*arguments)
                if not isinstance(result, (tuple, list)):
                    result = (result,)
                known.update(
                    (made, one)
                    for made, one in zip(outputs, result, strict=False)
                    if made is not None
                )
        except (RuntimeError, TypeError, IndexError, NotImplementedError, KeyError) as error:
            raise NotExecutableError(f"{function} cannot be run again: {error}") from error
        return known


def _call(node: Node, wide: bool) -> Call:
    """A node, ready to be run with other operands."""
    names, values = list(node.arguments), list(node.arguments.values())
    function = _function(node, names, wide)
    if wide and not has_special_form(node.op):
        values = [_widened(one) for one in values]
    if all(not isinstance(one, (tuple, list, dict)) or not _holds_values(one) for one in values):
        gaps = tuple((place, one.value) for place, one in enumerate(values) if isinstance(one, Ref))
        return function, values, gaps, node.outputs
    leaves, spec = tree_flatten(values)
    gaps = tuple((place, one.value) for place, one in enumerate(leaves) if isinstance(one, Ref))

    def nested(*flat: Any) -> Any:
        return function(*tree_unflatten(list(flat), spec))

    return nested, leaves, gaps, node.outputs


def _function(node: Node, names: list[str], wide: bool) -> Callable[..., Any]:
    if not wide and node.op == "bernoulli":
        raise NotExecutableError("the probability of a draw was not recorded.")
    if not wide and node.op in _DRAWS:
        return _by_name(names, _DRAWS[node.op])
    if node.target is None and not has_special_form(node.op):
        raise NotExecutableError(f"{node.op} has no functional form.")
    if has_special_form(node.op) or node.op in ("convolution", "native_batch_norm"):
        return _by_name(names, lambda **arguments: run_node(node, arguments, wide=wide))
    schema = node.target._schema.arguments
    known = {one.name for one in schema}
    own = "self" if "self" in known else "_self" if "_self" in known else "x"
    named = [own if name == "x" else name for name in names]
    first = schema[: len(named)]
    if named == [one.name for one in first] and not any(one.kwarg_only for one in first):
        target: Callable[..., Any] = node.target
        return target
    return _by_name(named, node.target)


def _holds_values(nested: Any) -> bool:
    return any(isinstance(one, Ref) for one in tree_flatten(nested)[0])


def _by_name(names: list[str], function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*values: Any) -> Any:
        return function(**dict(zip(names, values, strict=True)))

    return called


def _widened(argument: Any) -> Any:
    if isinstance(argument, torch.dtype) and argument.is_floating_point:
        return torch.float64
    return argument


_DRAWS: dict[str, Callable[..., Any]] = {
    "uniform": lambda low, high, shape, dtype: torch.empty(shape, dtype=dtype).uniform_(low, high),
    "normal": lambda mean, std, shape, dtype: torch.empty(shape, dtype=dtype).normal_(mean, std),
}


__all__ = ["Calls"]
