"""One edit of an expression in a user's file: how it is made and checked."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ranum.errors import PatchError
from ranum.repair import _codeswap
from ranum.repair._code import Hoist
from ranum.repair._diff import merged_diff
from ranum.repair._live import AppliedPatch, apply_edits
from ranum.repair._operand import (
    Expression,
    NotHereError,
    span,
)
from ranum.repair._splice import Splice, Text, merge, read_text
from ranum.source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A change of one expression in a user's file, not yet made anywhere.

    Attributes:
        source: The expression, as it was recorded.
        file: Absolute path, or the name of a notebook cell.
        old: The expression as it stands.
        new: The expression with the change.
        text: The file's text that the edit was made for.
        splice: What is put where.
        others: What it needs elsewhere: lines taken away that assign what nobody reads any more,
            lines put in that give a name to what is needed twice.
    """

    source: Source
    file: str
    old: str
    new: str
    text: Text = field(repr=False)
    splice: Splice = field(repr=False)
    others: tuple[Splice, ...] = field(default=(), repr=False)

    def diff(self, root: str | os.PathLike[str] | None = None) -> str:
        """The edit as a unified diff for `git apply` or `patch -p1`.

        Args:
            root: Directory that the paths in the diff are relative to; the working directory
                by default. The path of a file outside of it is shown from `/` on.
        """
        return merged_diff([self], root)

    def apply(self) -> AppliedPatch:
        """Makes the edit live: all functions that hold the expression run the new code.

        It takes effect at the next call of each function. See `apply_edits`.

        Raises:
            PatchError: If that is not possible; nothing was changed.
        """
        return apply_edits([self])

    def __str__(self) -> str:
        return f"{self.source.location}: {self.old} -> {self.new}"


def unused(tree: ast.Module, wanted: str) -> str:
    """A name that the file does not use."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    numbered = (f"{wanted}_{number}" for number in range(2, len(used) + 3))
    return next(name for name in (wanted, *numbered) if name not in used)


@dataclass(frozen=True, slots=True)
class Change:
    """What is to become of a tree, and texts that may say so, nicest first."""

    expression: Expression
    node: ast.expr
    replacement: ast.expr
    splices: Sequence[Splice]
    removed: Sequence[ast.stmt] = ()
    hoisted: Sequence[Hoist] = ()


def make_edit(source: Source, edit_in: Callable[[ast.Module, Text], Change]) -> Edit:
    """Makes an edit in the text that runs, or else in the one that ran before patches."""
    live = _codeswap.current_text(source.file)
    if live is None:
        text = read_text(source.file)
        return _checked(source, text, edit_in, lambda splice: splice, text)
    original, merged, splices = live

    def in_original(splice: Splice) -> Splice:
        start = merged.original(splice.start, is_end=False)
        end = merged.original(splice.end, is_end=True)
        moved = Splice(start, end, splice.before, splice.after, splice.instead)
        wanted = merge(merged.text, [splice]).text.content
        with suppress(PatchError):
            if min(start, end) >= 0 and merge(original, [*splices, moved]).text.content == wanted:
                return moved
        raise PatchError(
            f"The expression at {source.location} is part of a live patch; undo that one first."
        )

    try:
        return _checked(source, merged.text, edit_in, in_original, original)
    except PatchError as refusal:
        try:  # recorded before the live edits were made
            return _checked(source, original, edit_in, lambda splice: splice, original)
        except PatchError as other:
            raise (other if isinstance(refusal, NotHereError) else refusal) from None


def _checked(
    source: Source,
    text: Text,
    edit_in: Callable[[ast.Module, Text], Change],
    in_original: Callable[[Splice], Splice],
    original: Text,
) -> Edit:
    """The first of the texts that parses to exactly the tree that is wanted."""
    try:
        tree = ast.parse(text.content)
    except (SyntaxError, ValueError) as error:
        raise PatchError(f"{source.file} cannot be parsed: {error}.") from error
    change = edit_in(tree, text)
    start, end = span(change.expression, text)
    others = [_line(statement, text) for statement in change.removed]
    others += [splice for hoist in change.hoisted for splice in _named(hoist, text)]
    _Lines(change.removed, change.hoisted).visit(tree)
    statements = _statements(tree)
    place = max(n for n, statement in enumerate(statements) if _holds(statement, change.node))
    _Put(change.node, change.replacement).visit(statements[place])
    wanted = ast.dump(statements[place])
    for splice in change.splices:
        try:
            after = merge(text, [splice, *others]).text
            found = _statements(ast.parse(after.content))
        except (SyntaxError, ValueError, PatchError):
            continue
        if len(found) != len(statements) or ast.dump(found[place]) != wanted:
            continue
        alone = merge(text, [splice]).text
        return Edit(
            source=source,
            file=source.file,
            old=text.part(start, end),
            new=_within(alone, splice, start, end, len(alone.data) - len(text.data)),
            text=original,
            splice=in_original(splice),
            others=tuple(in_original(one) for one in others),
        )
    raise PatchError(
        f"`{text.part(start, end)}` at {source.location} cannot be edited safely, because of where "
        "it stands (inside an f-string, say); edit the file by hand."
    )


def _within(after: Text, splice: Splice, start: int, end: int, grown: int) -> str:
    """The changed expression, and the parentheses around it only if they were kept."""
    first, last = min(start, splice.start), max(end, splice.end)
    return after.part(first, last + grown)


def _line(statement: ast.stmt, text: Text) -> Splice:
    """Takes a statement away with its lines.

    Raises:
        PatchError: If it shares them with something else, a comment say.
    """
    first = text.offset(statement.lineno, 0)
    last = text.offset((statement.end_lineno or 0) + 1, 0)
    last = last if last >= 0 else len(text.data)
    start = text.offset(statement.lineno, statement.col_offset)
    end = text.offset(statement.end_lineno or 0, statement.end_col_offset or 0)
    if (text.part(first, start) + text.part(end, last)).strip() or "#" in text.part(start, end):
        raise PatchError(f"line {statement.lineno} holds more than an assignment.")
    return Splice(first, last, instead="")


def _named(hoist: Hoist, text: Text) -> tuple[Splice, Splice]:
    """Puts a part of a statement under a name on the line before.

    Raises:
        PatchError: If the statement does not begin its line.
    """
    first = text.offset(hoist.statement.lineno, 0)
    start = text.offset(hoist.statement.lineno, hoist.statement.col_offset)
    indent = text.part(first, start)
    if indent.strip():
        raise PatchError(f"line {hoist.statement.lineno} holds more than an assignment.")
    part = span(hoist.part, text)
    words = text.part(*part)
    words = f"({words})" if "\n" in words else words
    end = "\r\n" if "\r\n" in text.content else "\n"
    line = Splice(first, first, instead=f"{indent}{hoist.name} = {words}{end}")
    return line, Splice(*part, instead=hoist.name)


def _statements(tree: ast.Module) -> list[ast.AST]:
    """The module and what statements it is made of, every one after those it stands in."""
    found: list[ast.AST] = [tree]
    for node in found:
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            found.extend(getattr(node, part, ()))
    return found


def _holds(statement: ast.AST, node: ast.expr) -> bool:
    if not isinstance(statement, ast.stmt):
        return isinstance(statement, ast.Module)  # a decorator is in no smaller part
    outer, inner = (
        (at.lineno, at.col_offset, at.end_lineno or 0, at.end_col_offset or 0)
        for at in (statement, node)
    )
    return outer[:2] <= inner[:2] and inner[2:] <= outer[2:]


class _Put(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


class _Lines(ast.NodeTransformer):
    """Takes statements away, and puts names before others."""

    def __init__(self, removed: Sequence[ast.stmt], hoisted: Sequence[Hoist]) -> None:
        self._removed, self._hoisted = removed, hoisted

    def visit(self, node: ast.AST) -> Any:
        if any(node is one for one in self._removed):
            return None
        before: list[ast.stmt] = []
        for hoist in self._hoisted:
            if node is hoist.statement:
                before += ast.parse(f"{hoist.name} = 0").body
                before[-1].value = hoist.part  # type: ignore[attr-defined]
                _Put(hoist.part, ast.Name(hoist.name, ast.Load())).visit(node)
        return [*before, node] if before else self.generic_visit(node)


def replace_name(tree: ast.expr, name: str, node: ast.expr) -> None:
    """Puts a node in the place of the one use of a name."""
    place = next(n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == name)
    _Put(place, node).visit(tree)


def parentheses(text: Text, start: int, end: int) -> tuple[int, int] | None:
    """The extent with the parentheses right around it, if there are any."""
    before = re.search(rb"\(\s*\Z", text.data[:start])
    after = re.match(rb"\s*\)", text.data[end:])
    return None if before is None or after is None else (before.start(), end + after.end())
