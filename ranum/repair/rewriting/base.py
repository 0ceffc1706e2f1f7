"""What a rule of rewriting finds, and what such rules ask."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ranum.analysis.graph import Graph, Node
from ranum.analysis.precision.base import Surroundings
from ranum.analysis.result import Defect
from ranum.errors import PatchError
from ranum.repair._code import Code
from ranum.repair._places import placed
from ranum.repair.patch import Edit, derived_edit
from ranum.source import Source


@dataclass(frozen=True, slots=True)
class Proposal:
    """One way to write an expression.

    Attributes:
        why: Why it is better, half a sentence.
        edit: The change, not made anywhere.
        nodes: The operators that it replaces.
    """

    why: str
    edit: Edit
    nodes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Found:
    """What a rule finds.

    Attributes:
        why: Why it is better, half a sentence.
        anchor: The operator whose expression is written anew.
        text: Writes it, or makes the edit where another kind is wanted. Raises `PatchError`
            where the source does not allow it.
        nodes: The operators that it replaces.
    """

    why: str
    anchor: Node
    text: Callable[[Code], str] | Callable[[Source], Edit]
    nodes: tuple[Node, ...]
    is_edit: bool = False

    def write(self, graph: Graph) -> Edit:
        """Makes the edit.

        Raises:
            PatchError: If the source does not allow it.
        """
        source = placed(graph, self.anchor)
        if self.is_edit:
            edit: Edit = self.text(source)  # type: ignore[arg-type,assignment]
            return edit
        return derived_edit(source, self.text, graph)  # type: ignore[arg-type]


Rule = Callable[[Surroundings, Node, Defect], Iterator[Found]]

LAYOUT = ("reshape", "unsqueeze", "squeeze", "expand", "view")


def behind(around: Surroundings, value: int | None, *ops: str) -> list[Node]:
    """The operators of the given kinds that made a value, the last one first."""
    found: list[Node] = []
    while (node := around.made_by(value, *ops)) is not None:
        found.append(node)
        value = around.operand(node, "x")
    return found


def same(around: Surroundings, one: int | None, other: int | None) -> bool:
    """True for one value, or for two that the same operator made of the same values."""
    if one is None or other is None:
        return False
    if one == other:
        return True
    first, second = around.graph.producer(one), around.graph.producer(other)
    if first is None or second is None or first.op != second.op:
        return False
    plain = [
        {name: value for name, value in node.arguments.items() if name not in ("x", "other")}
        for node in (first, second)
    ]
    pairs = [
        (around.operand(first, name), around.operand(second, name))
        for name in ("x", "other")
        if name in first.arguments
    ]
    return plain[0] == plain[1] and bool(pairs) and all(a == b and a is not None for a, b in pairs)


def through(code: Code, written: ast.expr, nodes: list[Node]) -> ast.expr:
    """What stands behind operators that are written one around the other.

    Raises:
        PatchError: If something else may stand there.
    """
    for node in nodes:
        found = code.leads(written, node)
        written = found.value if isinstance(found, ast.Subscript) else code.operand(node)
    return written


def refuse(why: str) -> PatchError:
    """The error of a rule that cannot write what it found."""
    return PatchError(why)
