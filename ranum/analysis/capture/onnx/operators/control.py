"""Control flow, carried out for the values at hand: the branch taken, the steps made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import filled, number, sized
from ranum.analysis.capture.onnx.registry import Call, UnsupportedError, lowering
from ranum.errors import ArgumentError

STEP_LIMIT = 10_000
"""A loop that makes more steps is refused."""


@lowering("If")
def if_(condition: Tensor, *, then_branch: Any, else_branch: Any, call: Call) -> tuple[Any, ...]:
    """One of two graphs."""
    return tuple(call.run(then_branch if bool(condition) else else_branch, []))


@lowering("Loop")
def loop(
    trips: Tensor | None = None,
    condition: Tensor | None = None,
    *carried: Any,
    body: Any,
    call: Call,
) -> tuple[Any, ...]:
    """The body, while its condition holds and trips remain.

    Returns the carried values, then for each scan output its elements of all steps, stacked.
    """
    limit = None if trips is None else number(trips)
    going = True if condition is None else bool(condition)
    state = list(carried)
    collected: list[list[Any]] = [[] for _ in body.output[1 + len(state) :]]
    step = 0
    while going and (limit is None or step < limit):
        if step >= STEP_LIMIT:
            raise ArgumentError(f"{call.name} makes more than {STEP_LIMIT} steps.")
        index = torch.tensor(step, dtype=torch.int64)
        outputs = call.run(body, [index, torch.tensor(True), *state])
        going = bool(outputs[0]) if isinstance(outputs[0], Tensor) else True
        state = outputs[1 : 1 + len(state)]
        for column, item in zip(collected, outputs[1 + len(state) :], strict=True):
            column.append(item)
        step += 1
    return (*state, *(_stacked(column) for column in collected))


def _stacked(items: list[Any], axis: int = 0, backwards: bool = False) -> Any:
    if not items:
        return torch.zeros(0)
    sized((len(items), *items[0].shape))
    return torch.stack(list(reversed(items)) if backwards else items, axis)


@lowering("Scan", since=9)
def scan(
    *operands: Any,
    body: Any,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
    call: Call,
) -> tuple[Any, ...]:
    """The body on each slice of the scan inputs; its state goes from step to step."""
    split = len(operands) - num_scan_inputs
    state, inputs = list(operands[:split]), operands[split:]
    axes = filled(num_scan_inputs, scan_input_axes, 0)
    directions = filled(num_scan_inputs, scan_input_directions, 0)
    columns = [
        list(x.flip(axis).unbind(axis) if backwards else x.unbind(axis))
        for x, axis, backwards in zip(inputs, axes, directions, strict=True)
    ]
    steps = {len(column) for column in columns}
    if len(steps) != 1:
        raise UnsupportedError("scan inputs of different lengths")
    count = len(body.output) - split
    collected: list[list[Any]] = [[] for _ in range(count)]
    for step in range(steps.pop()):
        outputs = call.run(body, [*state, *(column[step] for column in columns)])
        state = outputs[:split]
        for row, item in zip(collected, outputs[split:], strict=True):
            row.append(item)
    out_axes = filled(count, scan_output_axes, 0)
    out_directions = filled(count, scan_output_directions, 0)
    stacked = [
        _stacked(row, axis, bool(backwards))
        for row, axis, backwards in zip(collected, out_axes, out_directions, strict=True)
    ]
    return (*state, *stacked)


@lowering("Scan", since=8)
def batched_scan(
    lengths: Tensor | None = None,
    *operands: Any,
    body: Any,
    num_scan_inputs: int,
    directions: Sequence[int] | None = None,
    call: Call,
) -> tuple[Any, ...]:
    """Opset 8: every operand has a batch dimension first."""
    if lengths is not None:
        raise UnsupportedError("scans of different lengths")
    rows = [
        scan(
            *(x[index] for x in operands), body=body, num_scan_inputs=num_scan_inputs,
            scan_input_directions=directions, call=call,
        )
        for index in range(operands[0].shape[0])
    ]  # fmt: skip
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))
