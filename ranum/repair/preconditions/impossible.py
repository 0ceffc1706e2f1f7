"""Shows that no range of the chosen places removes a defect.

Either nothing that is chosen reaches the operator, or the places that are not chosen can hold
numbers with which it fails whatever the chosen ones hold: a bias so large that the softmax behind
it underflows, say, with the weights that multiply the input at 0. The second is shown by the
analysis over the whole ranges of what is chosen, with integer inputs as in the example, and by a
run of the user's own step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ranum.analysis.confirm.goals import goals
from ranum.analysis.confirm.rerun import rerun
from ranum.analysis.evaluate import needed_nodes
from ranum.analysis.execution import unflushed
from ranum.analysis.graph import Node
from ranum.analysis.interval import Interval
from ranum.analysis.propagate import propagate
from ranum.analysis.result import Context, Defect
from ranum.repair.preconditions.places import Place, all_places
from ranum.repair.preconditions.settled import Settled
from ranum.repair.preconditions.trial import reaching

How = Literal["no path", "fails anyway", "not found"]

_SIZES = (0.0, 1.0, 30.0, 200.0, 1e4, 1e9, 1e20)
_REFUSALS = 8
"""Times that the user's step may not fail where the graph does."""
_HALVINGS = 5
_NEAREST = 6
"""Places next to the operator that are set to other numbers than the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncured:
    """A defect that no range of the chosen places was found to remove.

    Attributes:
        defect: Which.
        how: "no path" from the chosen places to its operator; or it "fails anyway", whatever
            they hold; both are shown. Else "not found" in the time there was.
        reason: In words.
        witness: Numbers of the other places, by name, with which it fails anyway.
    """

    defect: Defect
    how: How
    reason: str
    witness: Mapping[str, Tensor] | None = None
    edit = None

    @property
    def is_found(self) -> bool:
        """False: there is no cure."""
        return False

    @property
    def is_impossible(self) -> bool:
        """True if it is shown that there can be no cure at these places."""
        return self.how != "not found"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "code": self.defect.code,
            "source": self.defect.source.to_dict(),
            "how": self.how,
            "reason": self.reason,
            "diff": "",
        }

    def __str__(self) -> str:
        verdict = "no range" if self.is_impossible else "no range found"
        return f"{verdict} for {self.defect.code} at {self.defect.source}: {self.reason}"


def shown_impossible(
    context: Context, places: Sequence[Place], defect: Defect, *, deadline: float = math.inf
) -> Uncured | None:
    """The proof that no range of the places removes a defect; None if none was found.

    Args:
        context: Of the analysis.
        places: The chosen ones.
        defect: What is to be removed.
        deadline: When to give up, by `time.monotonic`.
    """
    if not reaching(context, places, defect):
        names = "nothing that was chosen" if places else "there is nothing to choose: nothing"
        return Uncured(defect=defect, how="no path", reason=f"{names} reaches the operator")
    witness = _Fixed(context, places, defect).witness(deadline)
    if witness is None:
        return None
    special = [name for name, x in witness.items() if len(witness) <= 3 or _is_special(x)]
    parts = [f"{name} = {_words(witness[name])}" for name in special]
    if len(special) < len(witness):
        parts.append("all other weights and inputs at 0 or 1")
    with_what = f"with {' and '.join(parts)} " if parts else ""
    return Uncured(
        defect=defect,
        how="fails anyway",
        reason=f"{with_what}it fails, whatever the chosen ones hold",
        witness=witness,
    )


class _Fixed:
    """Runs the step with numbers in the other places, and the chosen ones anywhere."""

    def __init__(self, context: Context, places: Sequence[Place], defect: Defect) -> None:
        self._context = context
        self._graph = context.graph
        self._defect = defect
        self._node = context.graph.nodes[defect.node]
        self._nodes = needed_nodes(self._graph, self._node.operands)
        chosen = {place.number for place in places}
        others = [p for p in all_places(context) if p.number not in chosen]
        read = {operand for node in (*self._nodes, self._node) for operand in node.operands}
        self._others = tuple(place for place in others if place.number in read)
        self._chosen = {place.number: place for place in places if place.kind == "output"}
        self._goals = goals(context, defect)

    def witness(self, deadline: float) -> dict[str, Tensor] | None:
        """Numbers for the other places with which the operator fails for sure."""
        with unflushed():
            for base in self._bases():
                refused = 0
                for fills in self._around(base):
                    if time.monotonic() > deadline:
                        return None
                    if refused > _REFUSALS or not self._fails(fills):
                        continue
                    for found in (fills, self._nearest(fills)):
                        if self._fails_in_the_step(found):
                            return {p.name: self._tensor(p, found[p.number]) for p in self._others}
                    refused += 1
        return None

    def _nearest(self, fills: dict[int, Any]) -> dict[int, Any]:
        """Where it just fails: behind a clamp, what lies far beyond may go unnoticed."""
        for number, fill in fills.items():
            far = fill[1] if isinstance(fill, tuple) else fill
            if far in (0.0, 1.0):
                continue
            near = 0.0
            for _ in range(_HALVINGS):
                middle = (near + far) / 2
                put = (fill[0], middle, fill[2]) if isinstance(fill, tuple) else middle
                if self._fails({**fills, number: put}):
                    far, fills = middle, {**fills, number: put}
                else:
                    near = middle
        return fills

    # --- numbers to try -----------------------------------------------------------------------

    def _bases(self) -> Iterator[dict[int, Any]]:
        """A number for every other place."""
        ones = {place.number: _inside(place, 1.0) for place in self._others}
        yield {place.number: _inside(place, 0.0) for place in self._others}
        yield self._cut(ones)
        yield ones

    def _around(self, base: dict[int, Any]) -> Iterator[dict[int, Any]]:
        """The same, and one place or some elements of it set to another number."""
        yield base
        for place in list(reversed(self._others))[:_NEAREST]:
            rest, shape = base[place.number], place.start.shape
            dims = [dim for dim in sorted({0, len(shape) - 1}) if shape and shape[dim] > 1]
            for number in {_inside(place, sign * size): 0 for size in _SIZES for sign in (1, -1)}:
                if number != rest:
                    yield {**base, place.number: number}
                    yield from ({**base, place.number: (rest, number, dim)} for dim in dims)

    def _cut(self, base: dict[int, Any]) -> dict[int, Any]:
        """0 for what multiplies something that depends on the chosen places."""
        base = dict(base)
        for _ in self._others:
            met = [place for place in self._settled(base).met if base[place.number] != 0.0]
            if not met:
                break
            base[met[0].number] = _inside(met[0], 0.0)  # what lies behind may be settled now
        return base

    def _tensor(self, place: Place, fill: Any) -> Tensor:
        shape, dtype = place.start.shape, place.start.dtype
        if not isinstance(fill, tuple):
            return torch.full(shape, fill, dtype=dtype)
        rest, number, dim = fill
        tensor = torch.full(shape, rest, dtype=dtype)
        tensor.select(dim, 0).fill_(number)
        return tensor

    # --- does it fail -------------------------------------------------------------------------

    def _fails(self, fills: Mapping[int, Any]) -> bool:
        found = self._settled(fills)
        known = {number: found.value(number) for number in self._node.operands}
        values = {number: value for number, value in known.items() if value is not None}
        if len(values) == len(known) and any(goal.fails(values) for goal in self._goals):
            return True
        return self._surely(self._node, found.intervals)

    def _settled(self, fills: Mapping[int, Any]) -> Settled:
        fixed = {
            place: self._tensor(place, fill) if isinstance(fill, tuple) else fill
            for place in self._others
            for fill in [fills[place.number]]
        }
        return Settled.of(self._context, self._nodes, fixed, self._chosen)

    def _fails_in_the_step(self, fills: Mapping[int, Any]) -> bool:
        tensors = {p: self._tensor(p, fills[p.number]) for p in self._others}
        weights = {p.name: x for p, x in tensors.items() if p.kind == "weight"}
        inputs = {p.name: x for p, x in tensors.items() if p.kind == "input"}
        return rerun(self._context, self._defect, inputs, weights, seed=0) is not None

    def _surely(self, node: Node, intervals: Mapping[int, Interval]) -> bool:
        """True if some element of the operand lies in the bad set, wherever in its bounds."""
        x = intervals[self._defect.operand]
        if not x.dtype.is_floating_point or x.is_empty_tensor:
            return False
        op, gradient = node.op, self._defect.gradient_only
        if op in ("log", "log2", "log10", "rsqrt") or (op == "sqrt" and gradient):
            return float(x.upper.min()) <= 0
        if op == "log1p":
            return float(x.upper.min()) <= -1
        if op == "sqrt":
            return float(x.upper.min()) < 0
        if op in ("div", "reciprocal"):
            return bool(((x.lower == 0) & (x.upper == 0)).any())
        outputs = propagate(self._graph, intervals, nodes=[node], blocks=True).intervals
        result = outputs[node.outputs[0] or 0]
        infinite = (result.lower == torch.inf) | (result.upper == -torch.inf)
        return result.dtype.is_floating_point and bool(infinite.any())


def _inside(place: Place, number: float) -> float:
    return min(max(number, place.full[0]), place.full[1])


def _is_special(x: Tensor) -> bool:
    return not (bool((x == 0).all()) or bool((x == 1).all()))


def _words(x: Tensor) -> str:
    return " or ".join(f"{number:g}" for number in x.unique().tolist())
