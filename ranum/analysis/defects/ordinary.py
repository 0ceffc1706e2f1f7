"""Operands of ordinary size: what the rules about size are judged on.

A network whose values have grown large is not the fault of the operator that meets them. An
exponential is another matter: it is large for an operand of ordinary size, and what sums and
products make of it is large for the same reason.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ranum.analysis.defects.base import moderate
from ranum.analysis.graph import Ref
from ranum.analysis.interval import Interval
from ranum.analysis.propagate import Step, Walk, step_of

EXPONENTIALS = frozenset({"exp", "exp2", "expm1", "sinh", "cosh"})
CARRIERS = frozenset(
    {"identity", "reshape", "expand", "permute", "cast", "neg", "abs", "add", "sub", "rsub",
     "mul", "sum", "mean"}
)  # fmt: skip
"""Operators whose result is as large as an exponential among their operands."""
STEPS = 16
"""How far back an exponential is looked for."""


def ordinary(
    walk: Walk, step: Step, arguments: Mapping[str, Any], flagged: Collection[int]
) -> dict[str, Any]:
    """The arguments cut to what they are when the network feeds in values of ordinary size.

    Args:
        walk: Gives the bounds of earlier values.
        step: The operator.
        arguments: Its arguments with intervals in place of tensors.
        flagged: Nodes that are reported already; exponentials among them do not count.
    """
    given = step.template
    return {name: _cut(walk, given[name], item, flagged) for name, item in arguments.items()}


def _cut(walk: Walk, argument: Any, known: Any, flagged: Collection[int]) -> Any:
    if isinstance(known, (list, tuple)):
        pairs = zip(argument, known, strict=True)
        return type(known)([_cut(walk, *pair, flagged) for pair in pairs])
    if not isinstance(known, Interval) or not known.dtype.is_floating_point or not known.is_finite:
        return known
    if isinstance(argument, Ref):
        if walk.graph.values[argument.value].is_gradient:  # its size is an option of the search
            return known
        grown = _grown(walk, argument.value, known, flagged, STEPS)
        if grown is not None:
            return grown
    return _moderate(known)


def _moderate(interval: Interval) -> Interval:
    reach = moderate(interval.dtype)
    return interval.intersect(-reach, reach)


def _grown(
    walk: Walk, value: int, known: Interval, flagged: Collection[int], left: int
) -> Interval | None:
    """Bounds of a value that an exponential made large; None for any other."""
    node = walk.graph.producer(value)
    if node is None or left == 0 or max(known.high, -known.low) <= moderate(known.dtype):
        return None
    if node.op in EXPONENTIALS:
        return None if node.index in flagged else known
    if node.op not in CARRIERS or node.outputs[0] != value:
        return None
    step = step_of(walk.graph, node)
    arguments, found = walk.operands(step), False
    for name, number in step.tensors:
        operand = arguments[name]
        if not operand.dtype.is_floating_point or not operand.is_finite:
            continue
        grown = _grown(walk, number, operand, flagged, left - 1)
        found = found or grown is not None
        arguments[name] = _moderate(operand) if grown is None else grown
    if not found:
        return None
    result = walk.outputs(step, arguments)[0]
    return result if result.is_finite else None
