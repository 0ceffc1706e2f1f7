"""What a step trains on, and how it is run once more."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

BATCHES_KEPT = 64
"""Micro-batches of one step that are kept for the replay; earlier ones are let go."""

Run = Callable[[], Any]


@dataclass(slots=True)
class Content:
    """The micro-batches of one step.

    Attributes:
        batches: The latest ones, each with what runs forward, loss and backward of it once more;
            None if nothing does.
        parts: The same for the calls of `Step.backward`, of which one batch may have several;
            None for one that had nothing to train on. Empty if they are not known.
        count: Micro-batches, with those that are no longer kept.
        absent: Numbers of those that this process had nothing for.
    """

    batches: list[tuple[Any, Run | None]] = field(default_factory=list)
    parts: Sequence[Run | None] = ()
    count: int = 0
    absent: set[int] = field(default_factory=set)

    def add(self, batch: Any, replay: Run | None) -> None:
        """One more micro-batch."""
        self.batches.append((batch, replay))
        del self.batches[:-BATCHES_KEPT]
        self.count += 1

    def withdraw_replays(self) -> None:
        """The batches cannot be run again after all."""
        self.batches = [(batch, None) for batch, _ in self.batches]

    @property
    def values(self) -> list[Any]:
        """The batches alone."""
        return [batch for batch, _ in self.batches]

    @property
    def replays(self) -> list[Run]:
        """What runs them again, as far as that is possible."""
        return [replay for _, replay in self.batches if replay is not None]

    @property
    def can_run(self) -> bool:
        """True if all batches that are kept can be run again."""
        return len(self.replays) == len(self.batches)

    def runs(self) -> Sequence[Run | None] | None:
        """What runs each micro-batch of the step once more, None for one without a batch.

        None if they cannot be run one by one, all of them.
        """
        runs = self.parts or [
            None if number in self.absent else replay
            for number, (_, replay) in enumerate(self.batches)
        ]
        missing = sum(run is None for run in runs)
        return runs if len(runs) == self.count and missing == len(self.absent) else None


def frozen(function: Any) -> Any:
    """The same function, for which the variables around it stay as they are now.

    A loop goes on while a step is outstanding, and gives its `x` and `y` to the next batch; what a
    lambda refers to would be those. Objects are shared, and functions that it calls see what they
    always see. What is no plain function comes back as it is.
    """
    if not isinstance(function, types.FunctionType):
        return function
    code, around = function.__code__, function.__globals__
    names = set(_names(code))
    if not names.isdisjoint({"globals", "eval", "exec"}):
        names = set(around)
    names |= {name for name in around if name.startswith("__")}
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(types.CellType(cell.cell_contents))
        except ValueError:  # a variable that has no value yet
            cells.append(types.CellType())
    copy = types.FunctionType(
        code,
        {name: around[name] for name in names if name in around},
        function.__name__,
        function.__defaults__,
        tuple(cells),
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
