"""The loosest clamp of a defective operator's operand, found by asking the bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ranum.analysis import facts
from ranum.analysis.defects import find_defects
from ranum.analysis.defects.find import moderate_part
from ranum.analysis.graph import Graph, Node
from ranum.analysis.result import Context, Defect

GRADIENT_HEADROOM = 2.0**16
"""Upstream gradients a clip must bear: the initial loss scale of `torch.amp.GradScaler`."""


def clamp_bounds(defect: Defect, context: Context) -> tuple[float | None, float | None] | None:
    """The loosest clamp (minimum, maximum) that removes a defect; None if there is none."""
    node = context.graph.nodes[defect.node]
    if node.phase != "forward" or defect.code == "RN107":
        return None
    if defect.safe is None and not defect.gradient_only:
        return None
    dtype = defect.bounds.dtype
    low, high = defect.safe or (defect.bounds.low, defect.bounds.high)
    largest, tiny = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    low = tiny if 0 < low < tiny else low  # subnormal numbers are 0 on much hardware
    if low > high or low > largest or high < -largest:
        return None
    trial = _Trial(defect, context)
    needs_lower = defect.gradient_only or (defect.bounds.low < low and low > -largest)
    needs_upper = defect.bounds.high > high and high < largest
    # The operator alone is quickly tried; most clips that hold there hold in the whole graph.
    for holds in (trial.removes, trial.removes_cleanly):
        found = _loosest(
            holds,
            lower=low if needs_lower else None,
            upper=high if needs_upper else None,
            defect=defect,
        )
        if found is None:
            return None
        lower, upper = found
        lower = None if lower is None else readable(lower, math.ceil)
        upper = None if upper is None else readable(upper, math.floor)
        if trial.removes_cleanly(lower, upper):
            return lower, upper
    return None


def distance_from_zero(defect: Defect, context: Context) -> float | None:
    """How far a divisor of either sign is to be kept from 0; None if that does not help.

    The smallest power of two for which quotient and gradient stay finite, up to 1e-3; else the
    smallest for which no rule objects.
    """
    node = context.graph.nodes[defect.node]
    if defect.code != "RN103" or node.phase != "forward" or defect.safe is not None:
        return None
    if not defect.bounds.low < 0 < defect.bounds.high:
        return None
    trial = _Trial(defect, context)
    first = math.ceil(math.log2(torch.finfo(defect.bounds.dtype).smallest_normal))
    for finite, last in ((True, -10), (False, 0)):
        low, high = first, last
        if not trial.removes_apart(2.0**high, finite=finite):
            continue
        while low < high:
            middle = (low + high) // 2
            if trial.removes_apart(2.0**middle, finite=finite):
                high = middle
            else:
                low = middle + 1
        distance = readable(2.0**high, math.ceil)
        if trial.removes_apart(distance, finite=finite, everywhere=True):
            return distance
    return None


Holds = Callable[[float | None, float | None], bool]


def _loosest(
    holds: Holds, *, lower: float | None, upper: float | None, defect: Defect
) -> tuple[float | None, float | None] | None:
    """The loosest clamps, from the given ones inwards, that hold; None if none does."""
    if holds(lower, upper):
        return lower, upper
    found = None
    if lower is not None or upper is None:
        found = _loosest_lower(holds, max(lower or 0.0, 0.0), upper, defect.bounds.dtype)
    if found is None and upper is not None:
        found = _loosest_upper(holds, lower, upper)
    if found is None and (defect.gradient_only or (lower, upper) == (-1.0, 1.0)):
        found = _inner(holds, defect)
    return found


def _loosest_lower(
    holds: Holds, floor: float, upper: float | None, dtype: torch.dtype
) -> tuple[float | None, float | None] | None:
    """The smallest power of two, from `floor` up to 1, that holds as a lower clamp."""
    first = math.ceil(math.log2(max(floor, torch.finfo(dtype).smallest_normal)))
    last = 0
    if first > last or not holds(2.0**last, upper):
        return None
    while first < last:
        middle = (first + last) // 2
        if holds(2.0**middle, upper):
            last = middle
        else:
            first = middle + 1
    return 2.0**last, upper


def _loosest_upper(
    holds: Holds, lower: float | None, ceiling: float
) -> tuple[float | None, float | None] | None:
    """The largest upper clamp below `ceiling` that holds, to a thousandth of it."""
    low, high = 0.0, 1.0  # the share of the ceiling that is given up
    if not holds(lower, ceiling - abs(ceiling) * high):
        return None
    for _ in range(10):
        middle = (low + high) / 2
        if holds(lower, ceiling - abs(ceiling) * middle):
            high = middle
        else:
            low = middle
    return lower, ceiling - abs(ceiling) * high


def _inner(holds: Holds, defect: Defect) -> tuple[float, float] | None:
    """Clamps inside both ends of [-1, 1], for acos and asin."""
    low, high = max(defect.bounds.low, -1.0), min(defect.bounds.high, 1.0)
    if not low < high:
        return None
    for exponent in range(24, 2, -1):
        margin = 2.0**-exponent
        if holds(low + margin, high - margin):
            return low + margin, high - margin
    return None


def _own_nodes(graph: Graph, index: int) -> list[Node]:
    """A node, the copies of what it returns, and its backward operators."""
    aliases = {number for number in graph.nodes[index].outputs if number is not None}
    found = []
    for node in graph.nodes:
        is_copy = node.op == "identity" and not aliases.isdisjoint(node.operands)
        if index in (node.index, node.forward) or is_copy:
            found.append(node)
        if is_copy:
            aliases.update(number for number in node.outputs if number is not None)
    return found


class _Trial:
    """Asks the bounds whether a clamp removes a defect."""

    def __init__(self, defect: Defect, context: Context) -> None:
        graph = context.graph
        self._defect = defect
        self._context = context
        self._root = facts.root(graph, defect.operand)
        self._nodes = _own_nodes(graph, defect.node)
        self._before: set[tuple[str, int]] | None = None

    def removes(self, lower: float | None, upper: float | None) -> bool:
        """True if the operator and its gradient stay finite behind the clamp."""
        if lower is not None and upper is not None and lower >= upper:
            return False
        defects, _ = find_defects(
            self._context.graph,
            self._context.intervals,
            clips=self._clips(lower, upper),
            gradient=GRADIENT_HEADROOM,
            nodes=self._nodes,
        )
        return not any(defect.node == self._defect.node for defect in defects)

    def removes_cleanly(self, lower: float | None, upper: float | None) -> bool:
        """True if, besides, the whole graph analysed again has gained no other defect."""
        if not self.removes(lower, upper):
            return False
        after, _ = find_defects(
            self._context.graph, self._context.start, clips=self._clips(lower, upper)
        )
        found = {(defect.code, defect.node) for defect in after}
        return found < self._defects_before() and not any(
            node == self._defect.node for _, node in found
        )

    def removes_apart(self, distance: float, *, finite: bool, everywhere: bool = False) -> bool:
        """True if the operator is harmless with its operand this far from 0, on either side.

        Args:
            distance: What is kept.
            finite: Ask for finite results and gradients as well.
            everywhere: Go on through the whole graph: whatever the two sides give there.
        """
        graph, sides = self._context.graph, []
        for lower, upper in ((distance, None), (None, -distance)):
            defects, known = find_defects(
                graph,
                self._context.intervals,
                clips=self._clips(lower, upper),
                gradient=1.0 if everywhere else GRADIENT_HEADROOM,
                nodes=self._nodes,
            )
            if any(defect.node == self._defect.node for defect in defects):
                return False
            sides.append(known.intervals)
        made = {number for node in self._nodes for number in node.outputs if number is not None}
        hulls = {number: sides[0][number].hull(sides[1][number]) for number in made}
        if finite and not all(interval.is_finite for interval in hulls.values()):
            return False
        if not everywhere:
            return True
        # An infinity made of finite operands is size alone, here as in the analysis.
        hulls = {n: one if one.is_finite else moderate_part(one) for n, one in hulls.items()}
        own = {node.index for node in self._nodes}
        rest = [node for node in graph.nodes if node.index not in own]
        after, _ = find_defects(graph, {**self._context.start, **hulls}, nodes=rest)
        return {(defect.code, defect.node) for defect in after} < self._defects_before()

    def _defects_before(self) -> set[tuple[str, int]]:
        if self._before is None:
            defects, _ = find_defects(self._context.graph, self._context.start)
            self._before = {(defect.code, defect.node) for defect in defects}
        return self._before

    def _clips(
        self, lower: float | None, upper: float | None
    ) -> dict[int, dict[int, tuple[float, float]]]:
        bounds = (
            -math.inf if lower is None else lower,
            math.inf if upper is None else upper,
        )
        return {self._defect.node: {self._root: bounds}}


def readable(value: float, towards: Callable[[float], int]) -> float:
    """Two significant digits, between 1/2 and 1 seven, rounded towards the inside of the clamp."""
    if value == 0 or not math.isfinite(value):
        return value
    exponent = math.floor(math.log10(abs(value))) - (6 if 0.5 < abs(value) < 1 else 1)
    digits = towards(value / 10.0**exponent)
    return float(f"{digits}e{exponent}")
