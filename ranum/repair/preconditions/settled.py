"""What a part of the step computes with some places fixed, whatever the others hold.

Bounds alone rarely say that a number is this and no other: they are rounded outward. So values
that are computed from known numbers alone are computed, and so are products with zeros alone; and
an exponential far below the smallest number is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ranum.analysis.confirm.replay import RANDOM
from ranum.analysis.evaluate import NotExecutableError, flushed, run_node
from ranum.analysis.graph import Node, Ref
from ranum.analysis.interval import Interval
from ranum.analysis.propagate import propagate
from ranum.analysis.result import Context
from ranum.repair.preconditions.places import Place

_FACTORS = {
    "mm": ("x", "mat2"),
    "addmm": ("mat1", "mat2"),
    "bmm": ("x", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "mv": ("x", "vec"),
    "addmv": ("mat", "vec"),
    "dot": ("x", "tensor"),
    "mul": ("x", "other"),
    "convolution": ("x", "weight"),
}
"""Operators that multiply, and by which names they call the factors."""
_GONE = {torch.float64: 800.0, torch.float32: 200.0, torch.bfloat16: 200.0, torch.float16: 40.0}
"""Where the exponential of the negative number is 0, with room for any rounding."""
_MATRICES = frozenset({"mm", "addmm", "bmm", "baddbmm"})
_FEW = 1 << 12
_LARGEST = 1 << 22
"""Elements above which no value is computed."""
_EXPONENTIALS = frozenset({"exp", "sigmoid", "_softmax"})


@dataclass(slots=True)
class Settled:
    """The outcome of one walk.

    Attributes:
        context: Of the analysis.
        values: What is known to the number, by value number.
        intervals: Bounds of everything.
        met: Fixed places that multiply something unknown, in order.
    """

    context: Context
    values: dict[int, Tensor] = field(default_factory=dict)
    intervals: dict[int, Interval] = field(default_factory=dict)
    met: list[Place] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        context: Context,
        nodes: Sequence[Node],
        fixed: Mapping[Place, float | Tensor],
        free: Mapping[int, Place],
    ) -> Settled:
        """Walks some nodes.

        Args:
            context: Of the analysis.
            nodes: What is computed, in order.
            fixed: What places hold: a tensor, or one number everywhere.
            free: Results, by value number, that may be anything in their place's range.
        """
        graph = context.graph
        found = cls(context, intervals={**context.intervals, **context.start})
        for leaf in graph.leaves("derived"):  # integer inputs are those of the example
            if leaf.data is not None and tuple(leaf.data.shape) == leaf.shape:
                found._learn(leaf.index, leaf.data.detach())
        owner: dict[int, Place] = {}
        for place, held in fixed.items():
            owner[place.number] = place
            if isinstance(held, Tensor):
                found._learn(place.number, held)
            else:
                start = place.start
                found.intervals[place.number] = Interval.full(held, held, start.shape, start.dtype)
        for node in nodes:
            found._step(node, owner, free)
        return found

    def value(self, number: int) -> Tensor | None:
        """The very numbers of a value, if its bounds leave only one for each element."""
        if number in self.values:
            return self.values[number]
        interval = self.intervals.get(number)
        if interval is None or interval.may_nan:
            return None
        if interval.is_uniform:
            is_known = interval.low == interval.high
        else:
            is_known = bool((interval.lower == interval.upper).all())
        return interval.lower.expand(interval.shape) if is_known else None

    def _learn(self, number: int, value: Tensor) -> None:
        self.values[number] = value
        self.intervals[number] = Interval.point(value)

    def _step(self, node: Node, owner: dict[int, Place], free: Mapping[int, Place]) -> None:
        intervals, operands = self.intervals, node.operands
        apart = {n: _apart(intervals[n]) for n in operands} if node.op in _MATRICES else {}
        known = propagate(self.context.graph, {**intervals, **apart}, nodes=[node], blocks=True)
        outputs = [number for number in node.outputs if number is not None]
        intervals.update((number, known.intervals[number]) for number in outputs)
        for number in outputs:
            if number in free:
                place = free[number]
                intervals[number] = place.start.intersect(*place.full).with_nan(False)
                return
        is_settled = all(self.value(number) is not None for number in operands)
        if node.op in _FACTORS and not is_settled:
            self.met += [owner[n] for n in operands if n in owner]
        elif len(set(operands)) == 1 and operands[0] in owner:
            owner.update((number, owner[operands[0]]) for number in outputs)
        if all(self.value(number) is not None for number in outputs):
            return
        if (is_settled and node.op not in RANDOM) or self._is_zero_product(node):
            self._run(node)
        else:
            intervals.update(_vanished(node, intervals))

    def _run(self, node: Node) -> None:
        """The node on the numbers its operands are known to have, and on 0 for the others."""
        graph = self.context.graph
        numbers = [*node.operands, *(number for number in node.outputs if number is not None)]
        if max(torch.Size(graph.values[n].shape).numel() for n in numbers) > _LARGEST:
            return

        def operand(ref: Ref) -> Tensor:
            value, of = self.value(ref.value), graph.values[ref.value]
            return torch.zeros((), dtype=of.dtype).expand(of.shape) if value is None else value

        try:
            with torch.no_grad():
                result = run_node(node, tree_map_only(Ref, operand, node.arguments), wide=False)
        except (NotExecutableError, RuntimeError, TypeError, IndexError):
            return
        for number, tensor in zip(node.outputs, tree_leaves(result), strict=False):
            if number is not None and isinstance(tensor, Tensor):
                flushes = self.context.program.flush_to_zero
                self._learn(number, flushed(tensor) if flushes else tensor)

    def _is_zero_product(self, node: Node) -> bool:
        """True for a product with zeros alone of what is finite, and nothing unknown added.

        Its sums are exact in any order: the other factor could be anything finite.
        """
        factors = [node.arguments.get(name) for name in _FACTORS.get(node.op, ())]
        refs = [factor.value for factor in factors if isinstance(factor, Ref)]
        known = [self.value(number) for number in refs]
        if len(refs) != 2 or not any(x is not None and not bool(x.any()) for x in known):
            return False
        rest = [number for number in node.operands if number not in refs]
        if any(self.value(number) is None for number in rest):
            return False
        return all(self.intervals[number].is_finite for number in refs)


def _apart(interval: Interval) -> Interval:
    """The same with a bound for each element, so that columns are told apart; if they are few."""
    count = torch.Size(interval.shape).numel()
    if interval.is_point or not 1 < count <= _FEW:
        return interval
    lower, upper = (bound.contiguous() for bound in interval.expanded())
    return Interval(lower, upper, interval.shape, interval.dtype, interval.may_nan)


def _vanished(node: Node, intervals: Mapping[int, Interval]) -> dict[int, Interval]:
    """What an exponential gives where it underflows for every operand in its bounds.

    Bounds of transcendental functions are rounded outward, and never say that it is just 0.
    """
    number = node.outputs[0]
    operand = node.arguments.get("x")
    if number is None or not isinstance(operand, Ref) or node.op not in _EXPONENTIALS:
        return {}
    x, result = intervals[operand.value], intervals[number]
    gone = _GONE.get(x.dtype)
    if gone is None or not x.is_finite or result.may_nan:
        return {}
    lower, upper = x.expanded()
    if node.op == "_softmax":
        dim = node.arguments["dim"]
        depth = upper - lower.amax(dim, keepdim=True)
    else:
        depth = upper
    below = depth < -gone
    low, high = result.expanded()
    high = torch.where(below, torch.zeros_like(high), high)
    low = torch.where(below, torch.zeros_like(low), low)
    if node.op == "sigmoid":
        low = torch.where(lower > gone, torch.ones_like(low), low)
        high = torch.where(lower > gone, torch.ones_like(high), high)
    return {number: Interval.between(low, high, result.shape, result.dtype)}
