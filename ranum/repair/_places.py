"""Columns for operators of which only the line is known, as TensorFlow's graphs record it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from ranum.analysis.graph import Graph, Node
from ranum.errors import PatchError
from ranum.repair import _codeswap
from ranum.repair._operand import Expression, Names, is_spelled, span
from ranum.repair._splice import Text, read_text
from ranum.source import Source


def placed(graph: Graph, node: Node) -> Source:
    """The place of an operator, with columns.

    Operators of one kind that were made on one line are told apart by their order, which is
    that in which Python evaluates the line.

    Raises:
        PatchError: If the line does not show as many as ran, or there is no line.
    """
    source = node.source
    if source.column >= 0 or not source.node:
        return source
    if source.line < 1:
        raise PatchError(f"{source.node} belongs to a graph; no line of Python made it.")
    text = running_text(source.file)
    made = [one for one in graph.nodes if one.phase == "forward" and one.op == node.op]
    same = [one.source for one in made if _line(one.source) == _line(source)]
    siblings = list(dict.fromkeys(one.node for one in same))
    sets = _candidates(source.file, text, source.line, node.op)
    fitting = [one for one in sets if one and len(siblings) == len(one)] or [
        one for one in sets if one and len(siblings) % len(one) == 0
    ]
    if not fitting:
        raise PatchError(
            f"{source.location} runs {node.op} {len(siblings)} times and does not show which is "
            "which; put each on a line of its own."
        )
    chosen = fitting[0][siblings.index(source.node) % len(fitting[0])]
    return replace(
        source,
        line=chosen.lineno,
        column=chosen.col_offset,
        end_line=chosen.end_lineno or chosen.lineno,
        end_column=chosen.end_col_offset or 0,
    )


def running_text(file: str) -> Text:
    """The text of a file that runs now, live patches included.

    Raises:
        PatchError: If there is none.
    """
    live = _codeswap.current_text(file)
    return read_text(file) if live is None else live[1].text


def _line(source: Source) -> tuple[str, int]:
    return source.file, source.line


@lru_cache(maxsize=256)
def _candidates(file: str, text: Text, line: int, op: str) -> tuple[tuple[Expression, ...], ...]:
    """Expressions that spell an operator: those on the line; those of the statement there."""
    try:
        tree = ast.parse(text.content)
    except (SyntaxError, ValueError) as error:
        raise PatchError(f"{file} cannot be parsed: {error}.") from error
    names = Names(tree, file)
    found = [one for one in _evaluated(tree) if is_spelled(one, op, names)]
    statements = [
        one
        for one in ast.walk(tree)
        if isinstance(one, ast.stmt) and not hasattr(one, "body") and one.lineno == line
    ]
    within = [
        one
        for one in found
        if any(
            span(statement, text)[0] <= span(one, text)[0] < span(statement, text)[1]  # type: ignore[arg-type]
            for statement in statements
        )
    ]
    return tuple(one for one in found if line in _lines(one)), tuple(within)


def _lines(node: Expression) -> set[int]:
    """Lines that Python may record for the operator."""
    called = node.func.end_lineno if isinstance(node, ast.Call) else None
    return {node.lineno, called or node.lineno}


def _evaluated(node: ast.AST) -> Iterator[Expression]:
    """Expressions in the order in which they are evaluated, operands first."""
    for child in ast.iter_child_nodes(node):
        yield from _evaluated(child)
    if isinstance(node, Expression):
        yield node
