"""Operators that torch does not have, as single nodes of the recorded step.

A graph that is not Python may hold operators nobody has lowered. Whoever carries it out can
still compute them elsewhere: `opaque` makes such a computation one operator, which the
recorder writes down under the name it was given and the analysis lists as unknown.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Computation = Callable[..., Sequence[Tensor]]
"""Takes the operands, detached; returns the results, which share no memory with them."""
Gradient = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor | None]]
"""Takes the operands and the gradients of all results; returns those of the operands."""

_running: dict[int, Computation] = {}
_numbers = itertools.count()
_library = torch.library.Library("ranum", "FRAGMENT")
_library.define("opaque(Tensor[] operands, str name, int number) -> Tensor[]")


def _compute(operands: list[Tensor], name: str, number: int) -> list[Tensor]:
    return [result.detach() for result in _running[number](*operands)]


_library.impl("opaque", _compute, "CompositeExplicitAutograd")


def opaque(
    name: str,
    compute: Computation,
    operands: Sequence[Tensor],
    gradient: Gradient | None = None,
) -> tuple[Tensor, ...]:
    """Runs a computation as one recorded operator.

    Args:
        name: What the report calls it: "tf.Betainc", "onnx.CustomNorm".
        compute: The computation.
        operands: What it reads.
        gradient: Its gradient, recorded as one operator too; without it, the results are
            cut off from the backward pass.
    """
    if gradient is None or not any(operand.requires_grad for operand in operands):
        return _record(name, compute, [operand.detach() for operand in operands])
    function: Any = _Opaque
    results: tuple[Tensor, ...] = function.apply(name, compute, gradient, *operands)
    return results


def _record(name: str, compute: Computation, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    number = next(_numbers)
    _running[number] = compute
    try:
        return tuple(torch.ops.ranum.opaque(list(operands), name, number))
    finally:
        del _running[number]


class _Opaque(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str, compute: Computation, gradient: Gradient, *operands: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.name, ctx.gradient = name, gradient
        ctx.save_for_backward(*operands)
        results = _record(name, compute, operands)
        exact = [result for result in results if not result.dtype.is_floating_point]
        ctx.mark_non_differentiable(*exact)
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        operands = ctx.saved_tensors
        wanted = [
            place for place, needed in enumerate(ctx.needs_input_grad[3:]) if needed
        ]  # the first three arguments are no tensors

        def compute(*tensors: Tensor) -> list[Tensor]:
            own, upstream = tensors[: len(operands)], tensors[len(operands) :]
            found = ctx.gradient(own, upstream)
            return [
                torch.zeros_like(own[place]) if (one := found[place]) is None else one
                for place in wanted
            ]

        found = _record(f"{ctx.name}_backward", compute, [*operands, *gradients])
        every: list[Tensor | None] = [None] * len(operands)
        for place, one in zip(wanted, found, strict=True):
            every[place] = one
        return (None, None, None, *every)
