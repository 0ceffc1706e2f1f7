"""Pairs of training programs: as written with care, and as often written instead.

In the second of a pair the lines to blame end in a comment that names the rules: `# RN103`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[..., Tensor]
_MARK = re.compile(r"# (RN\d{3}(?: RN\d{3})*)\s*$")


@dataclass(frozen=True)
class Pair:
    """Two spellings of one training step.

    Attributes:
        name: For the list of tests.
        batch: The inputs of a step; a leaf with `requires_grad` is no weight.
        make: Builds model and both steps, each from the inputs to a loss `[]`.
    """

    name: str
    batch: Callable[[], tuple[Tensor, ...]]
    make: Callable[[], tuple[Step, Step]]

    def build(self) -> tuple[Step, Step, tuple[Tensor, ...]]:
        """The safe step, the other, and a batch; the same at every call."""
        torch.manual_seed(0)
        batch = self.batch()
        return (*self.make(), batch)

    def blamed(self) -> set[tuple[str, int]]:
        """Rules and lines that the marks name."""
        lines, first = inspect.getsourcelines(self.make)
        marks = ((number, _MARK.search(line)) for number, line in enumerate(lines, first))
        return {(code, number) for number, mark in marks if mark for code in mark[1].split()}


PAIRS: dict[str, Pair] = {}


def pair(
    name: str, batch: Callable[[], tuple[Tensor, ...]]
) -> Callable[..., Callable[..., object]]:
    """Puts a function that makes two steps into `PAIRS`."""

    def add(make: Callable[[], tuple[Step, Step]]) -> Callable[[], tuple[Step, Step]]:
        assert name not in PAIRS, name
        PAIRS[name] = Pair(name, batch, make)
        return make

    return add
