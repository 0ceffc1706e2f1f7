"""Sequences (lists) and optionals (a value, or None)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import number
from ranum.analysis.capture.onnx.registry import Call, UnsupportedError, lowering


def _place(position: Tensor | None, length: int, last: int) -> int:
    place = last if position is None else number(position)
    if not -length <= place <= last:
        raise UnsupportedError(f"position {place} in a sequence of {length}")
    return place


@lowering("SequenceEmpty")
def sequence_empty(*, dtype: int | None = None) -> tuple[list[Any]]:
    """No tensors."""
    return ([],)


@lowering("SequenceConstruct")
def sequence_construct(*items: Any) -> tuple[list[Any]]:
    """The given tensors."""
    return (list(items),)


@lowering("SequenceAt")
def sequence_at(items: list[Any], position: Tensor) -> Any:
    """One tensor of a sequence."""
    return items[_place(position, len(items), len(items) - 1)]


@lowering("SequenceInsert")
def sequence_insert(items: list[Any], item: Any, position: Tensor | None = None) -> Any:
    """With one tensor more, at the end by default."""
    place = _place(position, len(items), len(items))
    return (
        ([*items[:place], item, *items[place:]],)
        if place != -1
        else ([*items[:-1], item, items[-1]],)
    )


@lowering("SequenceErase")
def sequence_erase(items: list[Any], position: Tensor | None = None) -> Any:
    """With one tensor less, the last by default."""
    place = _place(position, len(items), len(items) - 1)
    return ([item for i, item in enumerate(items) if i != place % len(items)],)


@lowering("SequenceLength")
def sequence_length(items: list[Any]) -> Tensor:
    """How many tensors."""
    return torch.tensor(len(items), dtype=torch.int64)


@lowering("SequenceMap")
def sequence_map(items: list[Any], *others: Any, body: Any, call: Call) -> tuple[Any, ...]:
    """The body on each tensor of a sequence."""
    columns: list[list[Any]] = [[] for _ in body.output]
    for index, item in enumerate(items):
        row = [other[index] if isinstance(other, list) else other for other in others]
        for column, result in zip(columns, call.run(body, [item, *row]), strict=True):
            column.append(result)
    return tuple(columns)


@lowering("Optional")
def optional(value: Any = None, *, type: Any = None) -> tuple[Any]:
    """The value as an optional one."""
    return (value,)


@lowering("OptionalHasElement")
def optional_has_element(value: Any = None) -> Tensor:
    """True unless the optional is empty."""
    return torch.tensor(value is not None)


@lowering("OptionalGetElement")
def optional_get_element(value: Any) -> tuple[Any]:
    """The value of an optional that is not empty."""
    if value is None:
        raise UnsupportedError("the element of an empty optional")
    return (value,)
