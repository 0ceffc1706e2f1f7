"""Rewritings that remove a defect: what a developer would write instead.

A rewriting is found on the graph, where operators are known whatever their spelling, and
written in the user's own words. What is proposed here is not trusted: `clipping.fix` offers a
rewriting only if the patched program, recorded and analysed again, is without the defect.
"""

from __future__ import annotations

from collections.abc import Iterator

from ranum.analysis.graph import Graph, Node
from ranum.analysis.precision.base import Surroundings
from ranum.analysis.result import Defect
from ranum.errors import PatchError
from ranum.repair.rewriting import (
    entropies,
    exponentials,
    logarithms,
    masks,
    quotients,
    roots,
)
from ranum.repair.rewriting.base import Proposal, Rule

__all__ = ["Proposal", "proposals"]

REACH = 7
"""How many operators behind a defect a rewriting may begin."""

_RULES: dict[str, tuple[Rule, ...]] = {}
for _family in (entropies, logarithms, exponentials, quotients, roots, masks):
    for _op, _rules in _family.RULES.items():
        _RULES[_op] = (*_RULES.get(_op, ()), *_rules)


def proposals(defect: Defect) -> Iterator[Proposal]:
    """The rewritings that may remove a defect, best first; none for a graph without source."""
    context = defect.context
    if context is None or defect.source.line < 1:
        return
    around = Surroundings(context.graph, context.intervals)
    for anchor in _anchors(context.graph, defect.node):
        for rule in _RULES.get(anchor.op, ()):
            for found in rule(around, anchor, defect):
                replaced = frozenset(node.index for node in found.nodes)
                if defect.node not in replaced:
                    continue
                try:
                    yield Proposal(found.why, found.write(context.graph), replaced)
                except PatchError:
                    continue


def _anchors(graph: Graph, index: int) -> Iterator[Node]:
    """A node, and the nodes of the forward pass that read it, nearest first."""
    readers = graph.consumers()
    seen, front = {index}, [index]
    for _ in range(REACH):
        for number in front:
            yield graph.nodes[number]
        front = sorted(
            {
                reader
                for number in front
                for value in graph.nodes[number].outputs
                if value is not None
                for reader in readers.get(value, ())
                if graph.nodes[reader].phase == "forward" and reader not in seen
            }
        )
        seen.update(front)
