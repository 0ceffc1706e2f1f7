"""Hyper-parameters of optimizers, and the states of schedulers and scaler, as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from ranum.guards._memory import fits

_PLAIN = (int, float, complex, bool, str, bytes, type(None))


class Stateful(Protocol):
    """A scheduler, a gradient scaler, a metric, a loop: whatever can give and take its state."""

    def state_dict(self) -> Any:
        """Its state; copied by Ranum."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Takes a state back."""


class Settings:
    """What a scheduler may have changed since."""

    def __init__(self) -> None:
        self._groups: list[list[dict[str, Any]]] = []
        self._states: list[Any] = []

    def take(self, optimizers: Sequence[Any], others: Sequence[Stateful]) -> None:
        """Notes the optimizers' hyper-parameters and the others' states."""
        whole = [*optimizers, *others]
        self._groups = [
            [
                {name: own_copy(value, whole) for name, value in group.items() if name != "params"}
                for group in one.param_groups
            ]
            for one in optimizers
        ]
        self._states = [own_copy(one.state_dict(), whole) for one in others]

    def restore(self, optimizers: Sequence[Any], others: Sequence[Stateful]) -> None:
        """Puts back what was noted, once; does nothing if nothing was."""
        groups, states = self._groups, self._states
        self._groups, self._states = [], []
        for other, state in zip(others, states, strict=False):
            other.load_state_dict(state)
        for optimizer, saved in zip(optimizers, groups, strict=False):
            for group, values in zip(optimizer.param_groups, saved, strict=False):
                for name, value in values.items():
                    if isinstance(value, Tensor) and fits(group.get(name), value):
                        group[name].copy_(value)
                    else:
                        group[name] = value


def own_copy(value: Any, whole: Iterable[Any], known: Mapping[int, Any] | None = None) -> Any:
    """A deep copy in which some objects stay themselves.

    Args:
        value: What is copied.
        whole: Objects that are not copied: the model, its optimizers.
        known: More of them, by identity: parameters.
    """
    if isinstance(value, _PLAIN):
        return value
    return copy.deepcopy(value, {**(known or {}), **{id(thing): thing for thing in whole}})
