"""What a snapshot holds of one optimizer: state, hyper-parameters, and whose they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ranum.guards._memory import Copy, Memory, fits

Copier = Callable[[Any], Any]
"""A copy of plain data, in which parameters and the like stay themselves."""


class OptimizerCopy:
    """The state of an optimizer, its tensors in the memory of a snapshot.

    Args:
        optimizer: Anything with torch's `param_groups` and `state`.
        memory: Where its tensors go.
        copied: Copies everything else.
    """

    def __init__(self, optimizer: Any, memory: Memory, copied: Copier) -> None:
        def save(value: Any) -> Any:
            return memory.store(value) if isinstance(value, Tensor) else copied(value)

        self.trained: list[list[Tensor]] = [list(g["params"]) for g in optimizer.param_groups]
        self._settings = [
            {name: save(value) for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        self._state = {
            key: {name: save(value) for name, value in entries.items()}
            if isinstance(entries, dict)
            else copied(entries)
            for key, entries in optimizer.state.items()
        }

    def copies(self) -> Iterator[tuple[str, Any, Copy]]:
        """Name, parameter and copy of each tensor in the state."""
        for key, entries in self._state.items():
            for name, value in entries.items() if isinstance(entries, dict) else ():
                if isinstance(value, Copy):
                    yield name, key, value

    def load(self, optimizer: Any, copied: Copier) -> list[tuple[Tensor, Copy]]:
        """Puts everything back but the values of tensors: those are still to be written.

        Returns:
            Each tensor in use with the copy that belongs into it.
        """
        pairs: list[tuple[Tensor, Copy]] = []

        def put(table: dict[str, Any], name: str, value: Any) -> None:
            if not isinstance(value, Copy):
                table[name] = copied(value)
                return
            if not fits(table.get(name), value.tensor):
                table[name] = value.empty()
            pairs.append((table[name], value))

        for group, values in zip(optimizer.param_groups, self._settings, strict=True):
            for name, value in values.items():
                put(group, name, value)
        state = optimizer.state
        for key in [key for key in state if key not in self._state]:
            del state[key]
        for key, entries in self._state.items():
            if not isinstance(entries, dict):
                state[key] = copied(entries)
                continue
            if not isinstance(state.get(key), dict):
                state[key] = {}
            for name in [name for name in state[key] if name not in entries]:
                del state[key][name]
            for name, value in entries.items():
                put(state[key], name, value)
        return pairs


def same_objects(now: Any, then: Any) -> bool:
    """True if nested lists hold the very same tensors."""
    if isinstance(now, Tensor) or isinstance(then, Tensor):
        return now is then
    return len(now) == len(then) and all(map(same_objects, now, then))
