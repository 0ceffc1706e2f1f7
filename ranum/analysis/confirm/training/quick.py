"""The gradients of a training step, without the user's code around them and on fewer rows.

A step written in Python, or lowered from another framework, spends more time between its
operators than in them where the program is small; where it is large, a batch of equal rows repeats
one row's work. So the search trains on the recorded forward pass, row by row, where that has given
the same gradients as the step itself. What it finds is trained again by the step itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.program import Program
from ranum.analysis.confirm.calls import Calls
from ranum.analysis.confirm.replay import RANDOM
from ranum.analysis.confirm.training.data import Batch
from ranum.analysis.confirm.training.rows import View
from ranum.analysis.evaluate import NotExecutableError, needed_nodes
from ranum.analysis.graph import Graph
from ranum.analysis.result import Context

MOST_ROWS = 4
"""Distinct rows of a batch that are computed one by one; more are left to the step."""
CLOSE = 2e-3
"""Relative difference that sums in another order may bring to a gradient."""
SAMPLE = 8
"""Rows that stand for a batch whose rows draw random numbers of their own."""
ALIKE = 0.7
"""Relative difference from the whole batch's gradient that such a sample may have."""
MEMORY = 64
"""Batches whose distinct rows are remembered."""

Parts = list[tuple[float, dict[str, Tensor]]]
"""Rows of a batch with their shares of it."""


class Flat:
    """The recorded forward pass of a step, from inputs and parameters to the loss.

    Args:
        graph: The recorded step.

    Raises:
        NotExecutableError: If it has no loss, or a node that cannot be run again as it was.
    """

    def __init__(self, graph: Graph) -> None:
        if graph.loss is None:
            raise NotExecutableError("the step returns no loss.")
        self._loss = graph.loss
        nodes = needed_nodes(graph, [graph.loss])
        self._calls = Calls(nodes, wide=False)
        made = {number for node in nodes for number in node.outputs}
        self._values: dict[int, Tensor] = {}
        self._names: dict[str, int] = {}
        for number in {n for node in nodes for n in node.operands} - made:
            value = graph.values[number]
            if value.kind in ("input", "parameter"):
                self._names[value.name] = number
            elif value.data is None:
                raise NotExecutableError("a recorded constant was too large to be kept.")
            else:
                self._values[number] = value.data.detach()

    def loss(self, leaves: Mapping[str, Tensor]) -> Tensor:
        """The loss, summed up.

        Args:
            leaves: Inputs and parameters by name.
        """
        known = self._values.copy()
        for name, number in self._names.items():
            known[number] = leaves[name]
        return self._calls.run(known)[self._loss].sum()


@dataclass(slots=True, eq=False)
class Quick:
    """A step's loss and gradients by its recorded forward pass.

    Attributes:
        flat: The forward pass, of one row where `rows` says so.
        inputs: The example batch.
        parameters: What is trained; they move along.
        rows: Rows of a batch, where the forward pass is that of a single one; else 0.
        factor: By which the mean of rows' losses is multiplied: 1, or the number of rows.
        sample: Positions of the rows that stand for a batch whose rows draw numbers of their own;
            () where all count.
    """

    flat: Flat
    inputs: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    rows: int = 0
    factor: float = 1.0
    sample: tuple[int, ...] = ()
    _parts: dict[int, tuple[Batch, Parts | None]] = field(default_factory=dict)

    def loss(self, leaves: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch, or of a row times what it counts in one.

        Args:
            leaves: All inputs by name, one row of each where `rows` or `sample` say so.
        """
        if self.sample:
            leaves = {
                name: x.expand(len(self.sample), *x.shape[1:]) if x.dim() and len(x) == 1 else x
                for name, x in leaves.items()
            }
        return self.factor * self.flat.loss({**leaves, **self.parameters})

    def gradients(self, batch: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]] | None:
        """Loss and gradients of the parameters; None if the batch has too many distinct rows."""
        parts = self._distinct(batch)
        if parts is None:
            return None
        with torch.enable_grad():
            losses = [
                self.flat.loss({**leaves, **self.parameters}) * (share * self.factor)
                for share, leaves in parts
            ]
            loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
            found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        return loss.detach(), found

    def _distinct(self, batch: Batch) -> Parts | None:
        held = self._parts.get(id(batch))
        if held is None:
            if len(self._parts) >= MEMORY:
                self._parts.clear()
            held = self._parts[id(batch)] = (batch, self._split({**self.inputs, **batch}))
        return held[1]

    def _split(self, batch: Mapping[str, Tensor]) -> Parts | None:
        """The distinct rows with their shares, where equal rows follow each other."""
        if self.sample:
            chosen = torch.tensor(self.sample)
            return [(1.0, {n: x[chosen] if x.dim() else x for n, x in batch.items()})]
        if not self.rows:
            return [(1.0, dict(batch))]
        differ = torch.zeros(self.rows - 1, dtype=torch.bool)
        for x in batch.values():
            if x.dim():
                differ |= (x[1:] != x[:-1]).reshape(self.rows - 1, -1).any(1)
        starts = [0, *(differ.nonzero().flatten() + 1).tolist(), self.rows]
        if len(starts) > MOST_ROWS + 1:
            return None
        return [
            ((end - start) / self.rows, {n: x[start : start + 1] if x.dim() else x
                                         for n, x in batch.items()})
            for start, end in pairwise(starts)
        ]  # fmt: skip


def quick(context: Context, view: View | None, batches: Sequence[Batch]) -> Quick | None:
    """The forward pass of one row, or else of the batch, where it gives the step's gradients.

    Args:
        context: Of the analysis.
        view: What the search looks at, perhaps a row; None for the batch.
        batches: On which both are compared, as the weights are now.
    """
    program = context.program
    inputs = program.inputs
    is_random = any(node.op in RANDOM for node in context.graph.nodes)
    made: list[Quick] = []
    of_batch = (context.graph, 0, 1.0)
    of_row = [] if view is None or view.repeats == 1 else [
        (view.context.graph, view.repeats, factor) for factor in (1.0, float(view.repeats))
    ]  # fmt: skip
    for graph, rows, factor in (*of_row, of_batch):
        with suppress(NotExecutableError):
            made.append(Quick(Flat(graph), inputs, program.parameters, rows, factor))
    if view is not None and view.repeats > 2 * SAMPLE and is_random:
        made[-1:-1] = _sampled(context, view)
    random = torch.get_rng_state()
    wanted: list[Any] = []
    for one in made:
        try:
            if not wanted:
                wanted = [_of_step(program, batch, random) for batch in batches]
            if all(_agrees(one, *pair, random) for pair in zip(batches, wanted, strict=True)):
                return one
        except Exception:  # the user's step, or a recorded operator, refuses such data
            continue
        finally:
            torch.set_rng_state(random)
    return None


def _sampled(context: Context, view: View) -> list[Quick]:
    """Some rows that stand for a batch."""
    program, rows = context.program, view.repeats
    chosen = tuple(int((place + 0.5) * rows / SAMPLE) for place in range(SAMPLE))
    taken = {n: x[torch.tensor(chosen)] if x.dim() else x for n, x in program.inputs.items()}
    some = replace(program, arguments=program.batch(taken), backward=False)
    try:
        flat = Flat(some.capture(observe=False, varying=context.varying))
    except Exception:  # the user's step need not take so few rows
        return []
    return [
        Quick(flat, program.inputs, program.parameters, 0, factor, chosen)
        for factor in (1.0, rows / SAMPLE)
    ]


def _of_step(program: Program, batch: Batch, random: Tensor) -> tuple[Tensor | None, ...]:
    torch.set_rng_state(random)
    with torch.enable_grad():
        loss = program.step(*program.batch(batch))
        assert loss is not None
        return torch.autograd.grad(loss.sum(), list(program.parameters.values()), allow_unused=True)


def _agrees(one: Quick, batch: Batch, wanted: Sequence[Tensor | None], random: Tensor) -> bool:
    torch.set_rng_state(random)
    found = one.gradients(batch)
    if found is None:
        return False
    for first, second in zip(found[1], wanted, strict=True):
        if (first is None) != (second is None):
            return False
        if first is None or second is None:
            continue
        size = float(second.norm())
        if not float((first - second).norm()) <= (ALIKE if one.sample else CLOSE) * size:
            return False
    return True


__all__ = ["Flat", "Quick", "quick"]
