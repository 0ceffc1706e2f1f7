"""The recorded step as a test of the analysis: what was seen must lie in its interval.

Every recording keeps the extremes of each result. If one of them lies outside the interval
that was propagated from the step's own inputs, a transfer function or a fact is wrong. This
costs nothing but the comparison, so any run can be turned into a test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ranum.analysis.graph import Graph, Node, Value
from ranum.analysis.propagate import GRADIENT_BOUND, Propagation


def disagreements(
    graph: Graph, found: Propagation, gradient: float = GRADIENT_BOUND
) -> Iterator[str]:
    """One line for each recorded result outside its interval.

    Args:
        graph: A step recorded with `observe`.
        found: Intervals from starts that hold the step's own inputs and weights.
        gradient: The bound on upstream gradients that was used. Operators of the backward
            pass are compared only where the gradients they read stayed within it, and what the
            step computes from gradients only where those did.
    """
    assumed: set[int] = set()
    for node in graph.nodes:
        apart = not _is_comparable(graph, node, gradient)
        if apart or not assumed.isdisjoint(node.operands):
            assumed.update(
                number
                for number in node.outputs
                if number is not None and not graph.values[number].is_gradient
            )
            continue
        for number in node.outputs:
            value = None if number is None else graph.values[number]
            if value is None or value.observed is None or number not in found.intervals:
                continue
            interval = found.intervals[number]
            low, high = (float(end) for end in value.observed)
            if math.isnan(low) or math.isnan(high):
                inside = interval.may_nan
            else:
                inside = interval.low <= low and high <= interval.high
            if not inside:
                yield f"{node.op} gave [{low!r}, {high!r}], not in {interval!r}, at {node.source}"


def _is_comparable(graph: Graph, node: Node, gradient: float) -> bool:
    return all(_is_within(graph.values[number], gradient) for number in node.operands)


def _is_within(value: Value, gradient: float) -> bool:
    if not value.is_gradient:
        return True
    if value.observed is None:  # the gradient of the loss itself, which is 1
        return value.producer is None
    low, high = (float(end) for end in value.observed)
    return -gradient <= low and high <= gradient  # False for NaN
