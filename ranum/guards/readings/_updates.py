"""How far optimizer steps move the weights, estimated from some of their elements."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ranum.errors import RanumWarning
from ranum.guards.readings._norms import norms_of

PART = 4096
"""Elements of a weight whose change stands for the change of all."""

T = TypeVar("T")
Pairs = dict[str, tuple[Tensor, Tensor]]
Named = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Changes:
    """What one optimizer step did, with its numbers on the device.

    Attributes:
        pairs: Norm of the change and of the elements before it, by weight; `[]` each.
        usual: Norm that these elements have in torch's default initialisation.
    """

    pairs: Pairs = field(default_factory=dict)
    usual: dict[str, float] = field(default_factory=dict)


class Updates:
    """Copies some elements of each weight before a step, and compares them after it."""

    def __init__(self) -> None:
        self._copies: Pairs = {}
        self._changes = Changes()
        self._is_on = True

    def copy(self, weights: Named) -> None:
        """Notes the weights as they are before a step changes them."""
        self._copies = self._tried(lambda: _copied(dict(weights)), {})

    def compare(self) -> None:
        """Call after the step: notes what it changed, if `copy` was called before it."""
        if self._copies:
            copies = self._copies
            self._changes = self._tried(lambda: _changes(copies), Changes())
            self._copies = {}

    def take(self) -> Changes:
        """What was noted, once."""
        changes, self._changes = self._changes, Changes()
        return changes

    def alike(self, weights: Named) -> Pairs:
        """Largest difference between the units of each weight, and its largest element."""
        return self._tried(
            lambda: {
                name: ((weight.amax(0) - weight.amin(0)).amax(), weight.abs().amax())
                for name, weight in weights
                if len(weight) > 1
            },
            {},
        )

    def forget(self) -> None:
        """The step that was to change the weights is not taken."""
        self._copies = {}

    def close(self) -> None:
        """Lets go of all copies."""
        self._copies, self._changes = {}, Changes()

    def _tried(self, work: Callable[[], T], nothing: T) -> T:
        """Looks at the weights; they are unusual, and not looked at again, if that fails."""
        if not self._is_on:
            return nothing
        try:
            return work()
        except Exception as error:
            self._is_on = False
            warnings.warn(
                f"sizes of updates are not measured: {type(error).__name__}: {error}. "
                "Everything else is.",
                RanumWarning,
                stacklevel=5,
            )
            return nothing


def _copied(weights: dict[str, Tensor]) -> Pairs:
    if not weights:
        return {}
    copies = torch._foreach_mul([_part(weight.detach()) for weight in weights.values()], 1.0)
    return dict(zip(weights, zip(weights.values(), copies, strict=True), strict=True))


def _changes(copies: Pairs) -> Changes:
    usual = {name: _usual_norm(weight, old) for name, (weight, old) in copies.items()}
    live = [_part(weight.detach()) for weight, _ in copies.values()]
    old = [before for _, before in copies.values()]
    moved = norms_of(torch._foreach_sub(live, old))
    pairs = zip(moved, norms_of(old), strict=True)
    return Changes(dict(zip(copies, pairs, strict=True)), usual)


def _part(weight: Tensor) -> Tensor:
    """A view of some elements, spread over the weight; all of them if they are few."""
    flat = weight.view(-1) if weight.is_contiguous() else weight
    if flat.ndim > 1 or flat.numel() <= PART:
        return flat
    # Odd, so that it does not keep to a few columns of a matrix of even width.
    return flat[:: flat.numel() // PART | 1]


def _usual_norm(weight: Tensor, part: Tensor) -> float:
    """L2 of the part in torch's default initialisation: deviation 1 / sqrt(3 x inputs)."""
    inputs = weight.numel() / len(weight)
    return math.sqrt(part.numel() / (3 * inputs))
