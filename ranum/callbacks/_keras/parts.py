"""What a Keras variable is made of: a value, or one on each replica."""

from __future__ import annotations

from typing import Any

import torch


def parts(variable: Any) -> list[Any]:
    """What a variable is on each replica."""
    found = getattr(variable.value, "values", None)
    return list(found) if isinstance(found, tuple) else [variable.value]


def copied(part: Any, room: Any = None) -> Any:
    """The value of a part as it is now, in memory that is used again if `room` is given."""
    if not isinstance(part, torch.Tensor):
        return part.read_value()
    if room is None:
        return part.detach().clone()
    return room.copy_(part.detach())


def assign(part: Any, value: Any) -> None:
    """Gives a part a value."""
    if isinstance(part, torch.Tensor):
        part.data.copy_(value)
    else:
        part.assign(value)
