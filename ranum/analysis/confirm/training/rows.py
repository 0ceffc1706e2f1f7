"""The same step on one row: as near to failing as a batch of equal rows, and much quicker to ask.

A batch whose rows are all alike fails where one of them does, unless the step counts its rows. So
the step is recorded again on a single row, and compared with the whole batch before it is believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ranum.analysis.confirm.replay import RANDOM, Replay
from ranum.analysis.confirm.space import Choice, Variable
from ranum.analysis.confirm.training.data import Slot
from ranum.analysis.evaluate import needed_nodes
from ranum.analysis.result import Context

CLOSE = 1e-3
"""Relative difference that matrix products of other shapes may bring."""


@dataclass(frozen=True, slots=True)
class View:
    """What the search for the failing batch looks at.

    Attributes:
        context: Of the analysis, with the graph of so many rows.
        replay: Of that graph.
        slots: The inputs, with so many rows.
        repeats: Times each row stands in a batch.
    """

    context: Context
    replay: Replay
    slots: tuple[Slot, ...]
    repeats: int = 1

    def whole(self, point: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch that a point stands for."""
        if self.repeats == 1:
            return dict(point)
        return {
            name: x.expand(self.repeats, *x.shape[1:]).clone() if x.dim() else x
            for name, x in point.items()
        }


def view(
    context: Context, slots: tuple[Slot, ...], wanted: Sequence[int], draws: Sequence[Tensor]
) -> View:
    """One row if it tells as much as a batch of such rows, else the batch.

    Args:
        context: Of the analysis.
        slots: The inputs that training data may change.
        wanted: Numbers of the values that are looked at.
        draws: What the random operators of the step give.
    """
    whole = View(context, Replay(context, wanted, draws), slots)
    lengths = {one.recorded.shape[0] for one in slots if one.recorded.dim()}
    if len(lengths) != 1 or lengths == {1} or not context.program.parameters:
        return whole
    (rows,) = lengths
    try:
        row = _one_row(context, slots, wanted, draws, rows)
        return whole if row is None or not _agree(whole, row) else row
    except Exception:  # the user's step need not take a single row
        return whole


def _one_row(
    context: Context,
    slots: tuple[Slot, ...],
    wanted: Sequence[int],
    draws: Sequence[Tensor],
    rows: int,
) -> View | None:
    program = context.program
    cut = {name: _first(x, rows) for name, x in program.inputs.items()}
    single = replace(program, arguments=program.batch(cut), backward=False)
    graph = single.capture(observe=False, varying=context.varying)
    nodes, others = needed_nodes(context.graph, wanted), needed_nodes(graph, wanted)
    if [(n.op, n.operands, n.outputs) for n in nodes] != [
        (n.op, n.operands, n.outputs) for n in others
    ]:
        return None
    narrow = replace(context, graph=graph)
    drawn = (graph.values[node.outputs[0]] for node in graph.nodes if node.op in RANDOM)  # type: ignore[index]
    fitting = [
        draw if len(value.shape) == 0 else draw[: value.shape[0]]
        for draw, value in zip(draws, drawn, strict=False)
    ]
    replay = Replay(narrow, wanted, fitting)
    return View(narrow, replay, tuple(_cut(one, rows) for one in slots), rows)


def _agree(whole: View, row: View) -> bool:
    """True if rows at either end of their ranges give in a batch what one gives alone."""
    for end in (torch.inf, -torch.inf):
        placed = {
            slot.name: slot
            for slot in row.slots
            if slot.variable is not None and row.replay.depends_on(slot.number)
        }
        point = {
            name: slot.recorded if slot.is_label else slot.legal(_filled(slot, end))
            for name, slot in placed.items()
        }
        first, second = (
            one.run({placed[name].number: x for name, x in leaves.items()})
            for one, leaves in ((row.replay, point), (whole.replay, row.whole(point)))
        )
        for number in row.replay.wanted:
            alone, among = first[number], second[number]
            if alone.dim() and among.shape[1:] == alone.shape[1:]:
                among = among[: len(alone)]
            if alone.shape != among.shape or not torch.allclose(
                alone, among, rtol=CLOSE, equal_nan=True
            ):
                return False
    return True


def _filled(slot: Slot, value: float) -> Tensor:
    return torch.full_like(slot.recorded, value)


def _first(x: Tensor, rows: int) -> Tensor:
    return x[:1].clone() if x.dim() and len(x) == rows else x


def _cut(slot: Slot, rows: int) -> Slot:
    held: Variable | Choice | None = slot.variable or slot.choice
    assert held is not None
    recorded = _first(slot.recorded, rows)
    if isinstance(held, Choice):
        return replace(slot, choice=replace(held, recorded=recorded))
    lower, upper = _first(held.lower, rows), _first(held.upper, rows)
    return replace(slot, variable=replace(held, recorded=recorded, lower=lower, upper=upper))


__all__ = ["View", "view"]
