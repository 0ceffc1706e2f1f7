"""Which way an operator fails: how far its operands are from that, as a number to minimise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ranum.analysis.evaluate import NotExecutableError, flushed, run_node
from ranum.analysis.graph import Node, Ref
from ranum.analysis.result import Context, Defect

Way = Literal["below", "above", "near", "large", "steep"]

FAR = 1e4
"""More than any logarithm: beyond the edge is nearer than short of it."""

_ABOUT_SIZE = frozenset({"RN104", "RN107"})


@dataclass(frozen=True, slots=True)
class Goal:
    """One way to fail.

    Attributes:
        context: Of the analysis.
        node: The operator.
        operand: Number of the blamed operand.
        way: The operand is to go "below", "above" or "near" the edge; the result is to become
            "large", or its gradient "steep".
        edge: Where it fails.
        gradient_only: True if only the gradient fails.
    """

    context: Context
    node: Node
    operand: int
    way: Way
    edge: float = 0.0
    gradient_only: bool = False

    @property
    def wanted(self) -> tuple[int, ...]:
        """Numbers of the values it looks at."""
        return tuple(dict.fromkeys((self.operand, *self.node.operands)))

    def distance(self, known: Mapping[int, Tensor]) -> Tensor | None:
        """How far the operator is from failing; smaller is nearer. None if that has no answer.

        The logarithm keeps the gradient of a vanishing probability at order one.
        """
        if self.way in ("large", "steep"):
            size = self._size(known)
            return None if size is None else -(size + torch.finfo(size.dtype).tiny).log()
        x = known[self.operand]
        if not x.is_floating_point() or not x.numel():
            return None
        if self.way == "near":
            heights = (x - self.edge).abs()
        else:
            heights = x - self.edge if self.way == "below" else self.edge - x
        height = heights.flatten()[heights.argmin()]  # min() would push all that tie alike
        return height.log() if bool(height > 0) else height - FAR

    def _size(self, known: Mapping[int, Tensor]) -> Tensor | None:
        if self.way == "large":
            result = _first(run_node(self.node, _arguments(self.node, known)))
            return None if result is None or not result.numel() else _largest(result.abs())
        operand = known[self.operand]
        if not operand.requires_grad:
            operand = operand.detach().requires_grad_()
        with torch.enable_grad():
            arguments = _arguments(self.node, {**known, self.operand: operand})
            result = _first(run_node(self.node, arguments))
            if result is None or not result.requires_grad:
                return None
            (slope,) = torch.autograd.grad(result.sum(), operand, create_graph=True)
        return _largest(slope.abs()) if slope.numel() else None

    def crossed(self, first: Mapping[int, Tensor], second: Mapping[int, Tensor]) -> int | None:
        """An element of the operand that lies on either side of the edge; None if none does.

        Only where the operator fails at the edge and not beyond it.
        """
        if self.way != "near" or self.operand not in first or self.operand not in second:
            return None
        sides = [(known[self.operand] - self.edge).sign().flatten() for known in (first, second)]
        if sides[0].shape != sides[1].shape:
            return None
        opposite = sides[0] * sides[1] < 0
        return int(opposite.to(torch.uint8).argmax()) if bool(opposite.any()) else None

    def is_above(self, known: Mapping[int, Tensor], element: int) -> bool:
        """On which side of the edge an element of the operand lies."""
        return bool(known[self.operand].flatten()[element] > self.edge)

    def fails(self, known: Mapping[int, Tensor]) -> bool:
        """True if the operator fails on these operands, rounded to their own dtypes."""
        values = self.context.graph.values
        rounded = {
            number: known[number].detach().to(values[number].dtype)
            if number in known
            else values[number].data
            for number in self.node.operands
        }
        if self.context.program.flush_to_zero:
            rounded = {n: None if x is None else flushed(x) for n, x in rounded.items()}
        operands = [x for x in rounded.values() if x is not None and x.is_floating_point()]
        if len(operands) < 1 or not all(bool(x.isfinite().all()) for x in operands):
            return False
        try:
            with torch.enable_grad():
                if self.gradient_only:
                    rounded = {n: _leaf(x) for n, x in rounded.items() if x is not None}
                arguments = _arguments(self.node, rounded)
                result = _first(run_node(self.node, arguments, wide=False))
                if result is None:
                    return False
                if not self.gradient_only:
                    return not bool(result.isfinite().all())
                leaves = [x for x in rounded.values() if x is not None and x.requires_grad]
                slopes = torch.autograd.grad(result.sum(), leaves, allow_unused=True)
        except (NotExecutableError, RuntimeError):
            return False
        return any(s is not None and not bool(s.isfinite().all()) for s in slopes)


def goals(context: Context, defect: Defect) -> tuple[Goal, ...]:
    """The ways in which a defect can come about, likeliest first; none if it has no direction."""
    node = context.graph.nodes[defect.node]
    ways: list[tuple[Way, float]] = []
    if defect.gradient_only:
        ways = [("steep", 0.0), ("near", 0.0)]
    elif defect.safe is not None:
        least, most = defect.safe
        if defect.bounds.low < least:
            ways.append(("below", 0.0 if _is_tiny(least, defect) else least))
        if defect.bounds.high > most:
            ways.append(("above", most))
    elif defect.code in _ABOUT_SIZE:
        ways = [("large", 0.0)]
    if not ways:
        ways = [("near", 0.0), ("below", 0.0), ("large", 0.0)]
    return tuple(
        Goal(context, node, defect.operand, way, edge, defect.gradient_only) for way, edge in ways
    )


def _is_tiny(edge: float, defect: Defect) -> bool:
    return 0 < edge <= torch.finfo(defect.bounds.dtype).tiny


def _arguments(node: Node, known: Mapping[int, Tensor | None]) -> dict[str, Any]:
    found: dict[str, Any] = tree_map_only(Ref, lambda ref: known[ref.value], node.arguments)
    return found


def _largest(sizes: Tensor) -> Tensor:
    return sizes.flatten()[sizes.argmax()]


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_() if x.is_floating_point() else x


def _first(result: Any) -> Tensor | None:
    floats = [
        leaf
        for leaf in tree_leaves(result)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    return floats[0] if floats else None
