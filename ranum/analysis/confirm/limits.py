"""What stands in the way of a search for a proof, as sentences for its reader."""

from __future__ import annotations

from ranum.analysis.confirm.replay import RANDOM
from ranum.analysis.confirm.space import Space
from ranum.analysis.result import Context


def limits(context: Context) -> tuple[str, ...]:
    """Integer inputs, random numbers, and inputs that nothing may move."""
    space = Space.of(context)
    found = []
    if space.choices:
        names = ", ".join(one.name for one in space.choices)
        found.append(f"Integer inputs have no gradient and were tried one by one: {names}.")
    if any(node.op in RANDOM for node in context.graph.nodes):
        found.append("Random numbers of the step came from the seed.")
    if not space.inputs and not space.choices:
        found.append("No input may move within its range.")
    if not space.weights and context.program.parameters:
        found.append("No weight may move within its range.")
    return tuple(found)
