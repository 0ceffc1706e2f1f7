"""Applies the rules of advice to a recorded step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ranum.analysis.graph import Graph
from ranum.analysis.interval import Interval
from ranum.analysis.precision.base import CODES, AdviceRule, Surroundings
from ranum.analysis.result import Advice, Defect


def find_advice(
    graph: Graph, intervals: Mapping[int, Interval], defects: Sequence[Defect] = ()
) -> tuple[tuple[Advice, ...], tuple[Defect, ...]]:
    """Advice in execution order, once per expression; and the defects with better remedies.

    What there is to say about an operator that is defective becomes the defect's remedy.

    Args:
        graph: A recorded step.
        intervals: Bounds of its values.
        defects: What is known to be wrong with it.
    """
    by_op: dict[str, list[AdviceRule]] = {}
    for cls in CODES.values():
        for op in cls.ops:
            by_op.setdefault(op, []).append(cls())
    around = Surroundings(graph, intervals)
    blamed = {defect.node for defect in defects}
    found: dict[tuple[object, ...], Advice] = {}
    rewrites: dict[int, str] = {}
    for node in graph.nodes:
        if node.phase != "forward":
            continue
        for rule in by_op.get(node.op, ()):
            suggestion = rule.look(around, node)
            if suggestion is None:
                continue
            if node.index in blamed:
                rewrites[node.index] = suggestion.rewrite
                continue
            advice = Advice(
                code=rule.code,
                rule=type(rule).__name__,
                op=node.op,
                node=node.index,
                source=node.source,
                loss=suggestion.loss,
                rewrite=suggestion.rewrite,
            )
            place = node.source if node.source.is_known else node.index
            found.setdefault((rule.code, place, suggestion.rewrite), advice)
    better = tuple(
        replace(defect, remedy=f"write {rewrites[defect.node]}")
        if defect.node in rewrites
        else defect
        for defect in defects
    )
    return tuple(found.values()), better
