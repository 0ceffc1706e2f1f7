"""Relational facts: what the box alone cannot say.

Each fact is a pattern over recorded operators and a bound that then holds for the result,
in floating point too. A fact that does not match costs precision, never soundness.
`refine` is called after every transfer function; it only ever narrows.

Families live in sibling files, which are imported here to fill the table.
"""

from __future__ import annotations

from ranum.analysis.facts import (  # noqa: F401 - they fill the table
    attention,
    boxes,
    branches,
    differences,
    extremes,
    first,
    fixed_masks,
    guards,
    masked,
    moments,
    norms,
    order,
    shares,
    softmax,
)
from ranum.analysis.facts._patterns import COUNT_FACTS, FACTS, Intervals, root
from ranum.analysis.facts.absorbed import is_absorbed
from ranum.analysis.facts.branches import divides_by_nonzero, is_discarded
from ranum.analysis.facts.guards import is_guarded
from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval

__all__ = [
    "divides_by_nonzero",
    "has_facts",
    "is_absorbed",
    "is_discarded",
    "is_guarded",
    "refine",
    "root",
]


def has_facts(op: str) -> bool:
    """True if any fact is known for an operator."""
    return op in FACTS or op in COUNT_FACTS


def refine(graph: Graph, node: Node, intervals: Intervals, result: Interval) -> Interval:
    """The result narrowed by every fact known for the operator."""
    table = FACTS if result.dtype.is_floating_point else COUNT_FACTS
    known = table.get(node.op, ())
    if not known or result.is_empty_tensor:
        return result
    for fact in known:
        result = fact(graph, node, intervals, result)
    return result
