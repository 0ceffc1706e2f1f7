"""Integers of the batch: labels and indices, which vary from batch to batch.

What is made of them alone is followed through memory, so that it becomes a "derived" value
and no constant. Masks are constants: what comparisons make, and inputs of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.canonical import LOOKUPS, PLAIN
from ranum.analysis.capture.internals import kept_address, storage_key
from ranum.analysis.capture.overload import Overload


@dataclass(frozen=True, slots=True)
class Held:
    """A piece of memory that holds integers of the batch, or what was made of them.

    Attributes:
        address: Keeps the storage's address from being reused.
        name: The input whose elements it holds as they are; "" if something was computed.
        is_mask: True for {0, 1} inputs, and what is made of them: masks of this batch.
    """

    address: object
    name: str
    is_mask: bool


@dataclass(frozen=True, slots=True)
class Made:
    """A float tensor that was made of integers of the batch alone, masks not among them.

    Attributes:
        tensor: What was made.
        name: The input whose elements it holds as they are; "" if something was computed.
        table: Extremes of what it was looked up in; None if it was not.
    """

    tensor: Tensor
    name: str
    table: tuple[float, float] | None


class Integers:
    """Which memory holds integers of the batch."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def hold(self, tensor: Tensor, name: str, *, is_mask: bool) -> None:
        """Says that a tensor holds integers of the batch."""
        self._held[storage_key(tensor)] = Held(kept_address(tensor), name, is_mask)

    def held(self, tensor: Tensor) -> Held | None:
        """What is known of an integer tensor's memory; None for all others."""
        if not self._held or not is_integer(tensor) or tensor.numel() == 0:
            return None
        return self._at(tensor)

    def follow(
        self,
        known: Overload,
        bound: Mapping[str, Any],
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor | None],
    ) -> Iterator[Made]:
        """Follows an operator that has read no other tensor that varies.

        Args:
            known: The operator.
            bound: Its arguments.
            operands: The tensors among them.
            outputs: What it returned; what it wrote is found here.
        """
        held = [found for tensor in operands if (found := self._at(tensor)) is not None]
        if not held or not known.reads_values:
            return
        same = len(operands) == 1 and (known.name in PLAIN or len(outputs) > 1)
        name = held[0].name if same else ""
        is_mask = all(found.is_mask for found in held)
        written = known.overwritten(bound)
        overwritten = {id(tensor) for tensor in written}
        for tensor in [*outputs, *written]:
            if tensor is None or tensor.numel() == 0 or tensor.layout is not torch.strided:
                continue
            if tensor.is_floating_point():
                if not is_mask:
                    yield Made(tensor, name, _table(known.name, bound))
            elif is_integer(tensor) and (self._at(tensor) is None or id(tensor) in overwritten):
                self.hold(tensor, name, is_mask=is_mask)

    def _at(self, tensor: Tensor) -> Held | None:
        if tensor.layout is not torch.strided:
            return None
        return self._held.get(storage_key(tensor))


def is_integer(tensor: Tensor) -> bool:
    """True for integers, not for truth values."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def is_mask(tensor: Tensor) -> bool:
    """True if all its elements are 0 or 1."""
    if tensor.numel() == 0:
        return True
    lower, upper = torch.aminmax(tensor)
    return bool(lower >= 0) and bool(upper <= 1)


def _table(op: str, bound: Mapping[str, Any]) -> tuple[float, float] | None:
    """The extremes of what is looked up by an index that may be any."""
    table = bound.get("weight" if op == "embedding" else "x")
    if op not in LOOKUPS or not isinstance(table, Tensor) or table.numel() == 0:
        return None
    lower, upper = torch.aminmax(table.detach())
    return float(lower), float(upper)
