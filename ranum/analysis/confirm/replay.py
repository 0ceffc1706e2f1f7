"""Runs the part of a recorded graph again that a search changes.

What does not depend on the variables that move is computed once, in its own dtype. The rest runs
in float64 while searching, or in its own dtype to see what really happens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ranum.analysis.confirm.calls import Calls
from ranum.analysis.evaluate import NotExecutableError, double, evaluate, needed_nodes
from ranum.analysis.graph import Graph, Node
from ranum.analysis.result import Context

RANDOM = frozenset(
    {"bernoulli", "uniform", "normal", "randint", "randperm", "multinomial", "exponential",
     "poisson", "geometric", "cauchy", "log_normal", "binomial"}
)  # fmt: skip
"""Operators that draw random numbers, as the graph calls them."""


class Replay:
    """The nodes that compute some values, ready to be run with other leaves.

    Args:
        context: Of the analysis.
        wanted: Numbers of the values that are asked for.
        draws: What the random operators of the step gave with the seed that counts, in order.
            Where they do not match the graph, the likeliest numbers are used.
    """

    def __init__(
        self, context: Context, wanted: Iterable[int], draws: Sequence[Tensor] = ()
    ) -> None:
        self._context = context
        self._graph = context.graph
        self.wanted = tuple(dict.fromkeys(wanted))
        self._nodes = needed_nodes(self._graph, self.wanted)
        self._tails: dict[frozenset[int], list[Node]] = {}
        self._calls: dict[frozenset[int], Calls] = {}
        self._draws = _drawn(self._graph, draws)
        self._settled: dict[int, Tensor] = dict(self._draws)
        self._widened: dict[int, Tensor] = {}

    def holding(self, leaves: Mapping[int, Tensor]) -> Replay:
        """The same where other leaves than the recorded ones stand still.

        Args:
            leaves: Tensors in their own dtype, by value number.
        """
        other = copy.copy(self)
        other._settled = {**self._draws, **leaves}
        other._widened = {}
        return other

    def run(
        self, leaves: Mapping[int, Tensor], *, straight_through: bool = False
    ) -> dict[int, Tensor]:
        """Values in float64, of the wanted numbers at least.

        Args:
            leaves: Float64 tensors for what moves; everything else stays as recorded.
            straight_through: See `evaluate`.

        Raises:
            NotExecutableError: If a node has no functional form, or fails for these tensors.
        """
        moved = frozenset(leaves)
        nodes = self._tail(moved)
        known = {**self._wide(self._operands(nodes)), **leaves}
        if straight_through:
            return evaluate(self._graph, nodes, known, straight_through=True)
        return self._ready(moved, nodes).run(known)

    def run_in_own_dtype(self, leaves: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The same values as the recorded step computes them.

        Raises:
            NotExecutableError: If a node has no functional form, or fails for these tensors.
        """
        nodes = self._tail(frozenset(leaves))
        own = {n: x.to(self._graph.values[n].dtype) for n, x in leaves.items()}
        known = {**self._settle(self._operands(nodes)), **own}
        return self._evaluate(nodes, known)

    def cost(self, leaf: int) -> int:
        """Elements that are computed again when a leaf moves."""
        values = self._graph.values
        return sum(
            torch.Size(values[number].shape).numel()
            for node in self._tail(frozenset([leaf]))
            for number in node.outputs
            if number is not None
        )

    def depends_on(self, leaf: int) -> bool:
        """False if no wanted value is computed from it."""
        return leaf in self.wanted or bool(self._tail(frozenset([leaf])))

    def _tail(self, moved: frozenset[int]) -> list[Node]:
        """The nodes that read what moves, or what is computed from it."""
        if moved not in self._tails:
            reached = set(moved)
            tail = []
            for node in self._nodes:
                if not reached.isdisjoint(node.operands):
                    tail.append(node)
                    reached.update(number for number in node.outputs if number is not None)
            self._tails[moved] = tail
        return self._tails[moved]

    def _ready(self, moved: frozenset[int], nodes: list[Node]) -> Calls:
        if moved not in self._calls:
            self._calls[moved] = Calls(nodes, wide=True)
        return self._calls[moved]

    def _operands(self, nodes: Iterable[Node]) -> set[int]:
        """What nodes, and who asks, read and do not compute."""
        made = {number for node in nodes for number in node.outputs}
        return {n for node in nodes for n in node.operands}.union(self.wanted) - made

    def _settle(self, numbers: Iterable[int]) -> dict[int, Tensor]:
        """Values at the recorded point, in their own dtype."""
        numbers = set(numbers)
        missing = numbers.difference(self._settled)
        if missing:
            nodes = [
                node
                for node in needed_nodes(self._graph, missing)
                if not self._settled.keys() >= {n for n in node.outputs if n is not None}
            ]
            self._settled = self._evaluate(nodes, self._settled)
            for number in missing.difference(self._settled):
                data = self._graph.values[number].data
                if data is None:
                    raise NotExecutableError("a recorded constant was too large to be kept.")
                self._settled[number] = data.detach()
        return {number: self._settled[number] for number in numbers}

    def _evaluate(self, nodes: Iterable[Node], known: Mapping[int, Tensor]) -> dict[int, Tensor]:
        with torch.no_grad():
            return evaluate(
                self._graph, nodes, known, wide=False, flush=self._context.program.flush_to_zero
            )

    def _wide(self, numbers: Iterable[int]) -> dict[int, Tensor]:
        numbers = set(numbers)
        for number, value in self._settle(numbers.difference(self._widened)).items():
            self._widened[number] = double(value)
        return {number: self._widened[number] for number in numbers}


def _drawn(graph: Graph, draws: Sequence[Tensor]) -> dict[int, Tensor]:
    """The results of random nodes by number; none if the draws are not theirs."""
    results = [
        graph.values[node.outputs[0]]
        for node in graph.nodes
        if node.op in RANDOM and node.phase == "forward" and node.outputs[0] is not None
    ]
    if [value.shape for value in results] != [tuple(draw.shape) for draw in draws]:
        return {}
    return {value.index: draw.to(value.dtype) for value, draw in zip(results, draws, strict=True)}
