"""One edit, two outputs: a clip of the user's expression, run live and shown as a diff.

    edit = clip_edit(defect.source, "log", lower=1e-30)
    print(edit.diff())              # for `git apply` or `patch -p1`
    with edit.apply():              # torch.log(p) now runs as torch.log(p.clamp(min=1e-30))
        train()

The user's files are never written. What cannot be done is refused before anything was
changed, with a `PatchError` that says why and what else there is; where the source of an
operator is out of reach, `module_clip` clips the input or output of a module.
"""

from __future__ import annotations

import ast
import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ranum.analysis.graph import Graph
from ranum.errors import ArgumentError, PatchError
from ranum.repair import _codeswap
from ranum.repair._code import Code, Hoist, Mode
from ranum.repair._library import library, spelled
from ranum.repair._operand import (
    Expression,
    Names,
    NotHereError,
    find_expression,
    find_operand,
    span,
)
from ranum.repair._splice import Splice, Text, merge, read_text
from ranum.source import Source

__all__ = [
    "AppliedPatch",
    "Edit",
    "apply_edits",
    "clip_edit",
    "merged_diff",
    "module_clip",
    "rewrite_edit",
]


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


class AppliedPatch:
    """A change that is live, and the way back. Use it in a `with` block, or `undo` it.

    Attributes:
        edits: The edits that were made; empty for a module hook.
        functions: Qualified names of the functions, or class name of the module, changed.
        is_pending: True if a call of one of the functions was under way when it was patched:
            that call goes on with the old code, the next one runs the new.
    """

    def __init__(
        self,
        undo: Callable[[], None],
        *,
        functions: tuple[str, ...],
        edits: tuple[Edit, ...] = (),
        is_pending: bool = False,
    ) -> None:
        self.edits = edits
        self.functions = functions
        self.is_pending = is_pending
        self._undo: Callable[[], None] | None = undo

    @property
    def is_active(self) -> bool:
        """True until it is undone."""
        return self._undo is not None

    def diff(self, root: str | os.PathLike[str] | None = None) -> str:
        """All edits as one unified diff; "" for a module hook."""
        return merged_diff(self.edits, root)

    def undo(self) -> None:
        """Puts back what was there before; other live patches stay. Harmless a second time."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def __enter__(self) -> AppliedPatch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        state = "active" if self.is_active else "undone"
        return f"AppliedPatch({', '.join(self.functions)}; {state})"


# --- making edits --------------------------------------------------------------------------


def clip_edit(
    source: Source,
    op: str,
    *,
    lower: float | None = None,
    upper: float | None = None,
    argument: int = 0,
) -> Edit:
    """Clips an operand of the operator that ran at a recorded position.

    `torch.log(p)` becomes `torch.log(p.clamp(min=1e-30))`. The operand is found in calls of
    functions and methods, also under other names, and in binary operations. A clamp has no
    gradient outside its bounds and lets NaN through; where the expression can be written
    without the defect, `rewrite_edit` is the better cure. What is not checked: that the
    operand is a tensor in every call.

    Args:
        source: Position of the expression, as recorded when it ran, before or after patches.
        op: Canonical operator name: "log", "div", "pow".
        lower: Smallest value to let through.
        upper: Largest value to let through.
        argument: Which of the operator's arguments to clip, from 0; 1 is the divisor of a
            division and the exponent of a power.

    Raises:
        ArgumentError: If no bound is given, one is not finite, or they are crossed.
        PatchError: If the expression is not there, or its operand cannot be clipped.
    """
    _check_bounds(lower, upper)
    if argument < 0:
        raise ArgumentError(f"argument must be 0 or more; got {argument}.")
    bounds = [
        f"{name}={number_text(bound)}"
        for name, bound in (("min", lower), ("max", upper))
        if bound is not None
    ]

    def edit_in(tree: ast.Module, text: Text) -> _Change:
        names = Names(tree, source.file)
        operand = find_operand(tree, text, source, op, argument, names=names)
        written = library(names, operand.expression, is_graph=bool(source.node))
        start, end = span(operand.node, text)
        if written != "torch":
            function, limits = limits_call(lower, upper)
            before, after = f"{spelled(names, written, function)}(", f", {limits})"
            clipped = ast.parse(f"{before}_{after}", mode="eval").body
            _replace(clipped, "_", operand.node)
            splices = [Splice(start, end, before=before, after=after)]
            return _Change(operand.expression, operand.node, clipped, splices)
        method = "clamp_" if operand.is_overwritten else "clamp"
        after = f".{method}({', '.join(bounds)})"
        clipped = ast.parse(f"_{after}", mode="eval").body
        _replace(clipped, "_", operand.node)
        splices = [
            Splice(start, end, after=after),
            Splice(start, end, before="(", after=")" + after),
        ]
        if (outer := _parentheses(text, start, end)) is not None:
            splices.insert(0, Splice(*outer, after=after))
        return _Change(operand.expression, operand.node, clipped, splices)

    return _edit(source, edit_in)


def rewrite_edit(source: Source, new_expression: str) -> Edit:
    """Puts another expression in place of the one at a recorded position.

    Args:
        source: Position of the expression, as recorded when it ran, before or after patches.
        new_expression: Python text; it is put in parentheses where its place demands that.

    Raises:
        ArgumentError: If `new_expression` is not an expression.
        PatchError: If there is no expression at the position.
    """
    new = new_expression.strip()
    try:
        replacement = ast.parse(f"({new}\n)", mode="eval").body
        alone = ast.parse(f"[{new}\n]", mode="eval").body
    except SyntaxError as error:
        raise ArgumentError(
            f"new_expression must be one Python expression; got {new_expression!r}: {error.msg}."
        ) from error
    if isinstance(alone, ast.List) and not alone.elts:
        raise ArgumentError("new_expression must be one Python expression; got none.")

    def edit_in(tree: ast.Module, text: Text) -> _Change:
        node = find_expression(tree, text, source)
        if not isinstance(node, ast.expr):
            raise PatchError(
                f"`{ast.unparse(node)}` at {source.location} is a statement, which an expression "
                "cannot replace; clip its right side with clip_edit, or edit the file by hand."
            )
        start, end = span(node, text)
        lines = new.replace("\n", "\r\n") if "\r\n" in text.content else new
        splices = [Splice(start, end, instead=form) for form in (lines, f"({lines})")]
        return _Change(node, node, replacement, splices)

    return _edit(source, edit_in)


def derived_edit(source: Source, write: Callable[[Code], str], graph: Graph | None = None) -> Edit:
    """Puts an expression in place of another that is written from the parts of it.

    A line is taken away if it assigned what only the old expression read.

    Args:
        source: Position of the expression, as recorded when it ran.
        write: Called with the code around it; returns the new expression.
        graph: Of the operators that `write` asks for, where they have no columns.

    Raises:
        PatchError: If there is no expression at the position, or `write` refuses.
    """

    def made(mode: Mode) -> Edit:
        def edit_in(tree: ast.Module, text: Text) -> _Change:
            code = Code(tree, text, source, graph=graph, mode=mode)
            node, new = code.anchor, write(code)
            if not isinstance(node, ast.expr):
                raise PatchError(f"`{ast.unparse(node)}` at {source.location} is a statement.")
            if mode == "hoist" and not code.hoisted:
                raise PatchError("nothing needs a name.")
            replacement = ast.parse(f"({new}\n)", mode="eval").body
            start, end = span(node, text)
            splices = [Splice(start, end, instead=form) for form in (new, f"({new})")]
            if (outer := _parentheses(text, start, end)) is not None:
                splices.insert(0, Splice(*outer, instead=new))
            removed = code.unread(replacement) if mode == "move" else ()
            return _Change(node, node, replacement, splices, removed, code.hoisted)

        return _edit(source, edit_in)

    refusal = None
    for mode in _MODES:
        try:
            return made(mode)
        except PatchError as error:
            refusal = error
    assert refusal is not None
    raise refusal


_MODES: tuple[Mode, ...] = ("move", "hoist", "plain")


def added_edit(source: Source, op: str, amount: float, *, argument: int = 0) -> Edit:
    """Adds a number to an operand: `torch.sqrt(x)` becomes `torch.sqrt(x + 1e-12)`.

    Args:
        source: Position of the expression, as recorded when it ran.
        op: Canonical operator name.
        amount: What is added; finite and positive.
        argument: Which of the operator's arguments, from 0.

    Raises:
        ArgumentError: If the amount is not finite and positive.
        PatchError: As `clip_edit`.
    """
    if not (math.isfinite(amount) and amount > 0):
        raise ArgumentError(f"amount must be finite and positive; got {amount}.")

    def edit_in(tree: ast.Module, text: Text) -> _Change:
        operand = find_operand(tree, text, source, op, argument)
        if operand.is_overwritten:
            raise PatchError(f"{op} at {source.location} overwrites its operand.")
        after = f" + {number_text(amount)}"
        added = ast.parse(f"_{after}", mode="eval").body
        _replace(added, "_", operand.node)
        start, end = span(operand.node, text)
        splices = [
            Splice(start, end, after=after),
            Splice(start, end, before="(", after=after + ")"),
            Splice(start, end, before="((", after=")" + after + ")"),
        ]
        return _Change(operand.expression, operand.node, added, splices)

    return _edit(source, edit_in)


def away_edit(source: Source, op: str, distance: float, *, argument: int = 1) -> Edit:
    """Keeps an operand away from 0, on whichever side it is.

    `a / x` becomes `a / torch.where(x < 0, x.clamp(max=-1e-3), x.clamp(min=1e-3))`. What is more
    than a name is given one on the way, so that it is computed once.

    Args:
        source: Position of the expression, as recorded when it ran.
        op: Canonical operator name.
        distance: The smallest magnitude to let through; finite and positive.
        argument: Which of the operator's arguments, from 0.

    Raises:
        ArgumentError: If the distance is not finite and positive.
        PatchError: As `clip_edit`; or if the file has no name for the library.
    """
    if not (math.isfinite(distance) and distance > 0):
        raise ArgumentError(f"distance must be finite and positive; got {distance}.")

    def edit_in(tree: ast.Module, text: Text) -> _Change:
        operand = find_operand(tree, text, source, op, argument)
        if operand.is_overwritten:
            raise PatchError(f"{op} at {source.location} overwrites its operand.")
        names = Names(tree, source.file)
        written = library(names, operand.expression, is_graph=bool(source.node))
        start, end = span(operand.node, text)
        shown = text.part(start, end)
        first = name = shown
        if not isinstance(operand.node, (ast.Name, ast.Attribute)):
            name = _unused(tree, "divisor")
            first = f"({name} := {shown})"
        size = number_text(distance)
        where = f"{spelled(names, written, 'where')}({first} < 0, "
        if written == "torch":
            new = f"{where}{name}.clamp(max=-{size}), {name}.clamp(min={size}))"
        else:
            less, more = (spelled(names, written, word) for word in ("minimum", "maximum"))
            new = f"{where}{less}({name}, -{size}), {more}({name}, {size}))"
        guarded = ast.parse(f"({new}\n)", mode="eval").body
        splices = [Splice(start, end, instead=new)]
        if (outer := _parentheses(text, start, end)) is not None:
            splices.insert(0, Splice(*outer, instead=new))
        return _Change(operand.expression, operand.node, guarded, splices)

    return _edit(source, edit_in)


def _unused(tree: ast.Module, wanted: str) -> str:
    """A name that the file does not use."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    numbered = (f"{wanted}_{number}" for number in range(2, len(used) + 3))
    return next(name for name in (wanted, *numbered) if name not in used)


@dataclass(frozen=True, slots=True)
class _Change:
    """What is to become of a tree, and texts that may say so, nicest first."""

    expression: Expression
    node: ast.expr
    replacement: ast.expr
    splices: Sequence[Splice]
    removed: Sequence[ast.stmt] = ()
    hoisted: Sequence[Hoist] = ()


def _edit(source: Source, edit_in: Callable[[ast.Module, Text], _Change]) -> Edit:
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
    edit_in: Callable[[ast.Module, Text], _Change],
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


def _replace(tree: ast.expr, name: str, node: ast.expr) -> None:
    place = next(n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == name)
    _Put(place, node).visit(tree)


def _parentheses(text: Text, start: int, end: int) -> tuple[int, int] | None:
    """The extent with the parentheses right around it, if there are any."""
    before = re.search(rb"\(\s*\Z", text.data[:start])
    after = re.match(rb"\s*\)", text.data[end:])
    return None if before is None or after is None else (before.start(), end + after.end())


def _check_bounds(lower: float | None, upper: float | None) -> None:
    if lower is None and upper is None:
        raise ArgumentError("lower or upper must be given; got neither.")
    for name, bound in (("lower", lower), ("upper", upper)):
        if bound is not None and not math.isfinite(bound):
            raise ArgumentError(f"{name} must be finite; got {bound}. Leave it out instead.")
    if lower is not None and upper is not None and lower > upper:
        raise ArgumentError(f"lower must not exceed upper; got {lower} and {upper}.")


def limits_call(lower: float | None, upper: float | None) -> tuple[str, str]:
    """The function that clips in TensorFlow and Keras, and its further arguments."""
    if lower is not None and upper is not None:
        return "clip", f"{number_text(lower)}, {number_text(upper)}"
    if lower is not None:
        return "maximum", number_text(lower)
    assert upper is not None
    return "minimum", number_text(upper)


def number_text(value: float) -> str:
    """The fewest digits that read back to the same number, in float32 if it is one of those."""
    value = float(value)
    with np.errstate(over="ignore"):
        single = np.float32(value)
    if float(single) != value:
        return repr(value)
    short = str(single).replace("e+", "e")
    if abs(float(short)) > float(np.finfo(np.float32).max):
        return repr(value)  # torch refuses a bound that is larger than the type's largest number
    return min(short, repr(value), key=len)


# --- edits as a diff -----------------------------------------------------------------------


def merged_diff(edits: Iterable[Edit], root: str | os.PathLike[str] | None = None) -> str:
    """Several edits, also of one file or line, as one unified diff.

    Written to a file in the encoding of the edited files and without translation of line
    ends, `git apply` and `patch -p1` take it.

    Args:
        edits: The edits.
        root: Directory that the paths in the diff are relative to; the working directory by
            default. The path of a file outside of it is shown from `/` on.

    Raises:
        PatchError: If two edits overlap, or were made for different states of a file.
    """
    return "".join(
        _diff(file, text, merge(text, splices).text, root)
        for file, (text, splices) in edits_by_file(edits).items()
    )


def edits_by_file(edits: Iterable[Edit]) -> dict[str, tuple[Text, list[Splice]]]:
    """For each file, its text and the splices to make in it.

    Raises:
        PatchError: If two edits were made for different states of a file.
    """
    files: dict[str, tuple[Text, list[Splice]]] = {}
    for edit in edits:
        text, splices = files.setdefault(edit.file, (edit.text, []))
        if text.content != edit.text.content:
            raise PatchError(
                f"{edit.file} was changed on disk between two edits of it; make them again."
            )
        splices += (edit.splice, *edit.others)
    return files


def _diff(file: str, old: Text, new: Text, root: str | os.PathLike[str] | None) -> str:
    before, after = (
        re.findall(r"[^\n]*\n|[^\n]+", text.mark + text.content) for text in (old, new)
    )
    name = _relative(file, root)
    header = name + "\t" if " " in name else name  # ends the name where it holds spaces
    lines = list(difflib.unified_diff(before, after, "a", "b"))
    if not lines:
        return ""
    body = (
        line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
        for line in lines[2:]
    )
    return f"--- a/{header}\n+++ b/{header}\n" + "".join(body)


def _relative(file: str, root: str | os.PathLike[str] | None) -> str:
    if file.startswith("<"):
        return file
    start = os.path.realpath(os.getcwd() if root is None else root)
    try:
        path = os.path.relpath(os.path.realpath(file), start)
    except ValueError:  # another drive
        path = os.pardir
    if path.split(os.sep, 1)[0] == os.pardir:
        path = os.path.splitdrive(file)[1].lstrip(os.sep)
    return path.replace(os.sep, "/")


# --- edits live ----------------------------------------------------------------------------


def apply_edits(edits: Iterable[Edit]) -> AppliedPatch:
    """Makes edits live, all or none, and together with those that already are.

    The source with the edits in it is compiled, and every live function of the file gets the
    new code: methods, closures, lambdas and wrapped functions too, and closures that are made
    later. Tracebacks show the text that runs. A call that is under way goes on with the old
    code. Other processes (data loader workers, other ranks) are not patched. What
    `torch.compile` has compiled is compiled anew.

    Raises:
        ArgumentError: If there are no edits.
        PatchError: If an edit cannot be made live: the file was changed, the expression runs
            at import only, the function is scripted, ...; nothing was changed.
    """
    edits = tuple(edits)
    if not edits:
        raise ArgumentError("edits must hold at least one edit; got none.")
    groups = {
        file: (text, [(one.splice, *one.others) for one in edits if one.file == file])
        for file, (text, _) in edits_by_file(edits).items()
    }
    done = _codeswap.install(groups)
    return AppliedPatch(
        done.remove, functions=done.functions, edits=edits, is_pending=done.is_pending
    )


def module_clip(
    module: torch.nn.Module,
    *,
    lower: float | None = None,
    upper: float | None = None,
    where: Literal["input", "output"] = "input",
) -> AppliedPatch:
    """Clips what goes into or comes out of a module, where its source is out of reach.

    All floating-point tensors among the arguments (or results) are clamped, also those in
    tuples, lists and dicts. The hook is not part of the state dict.

    Args:
        module: The module; it is changed until the patch is undone.
        lower: Smallest value to let through.
        upper: Largest value to let through.
        where: "input" or "output".

    Raises:
        ArgumentError: If the bounds or `where` are wrong.
        PatchError: If the module takes no hooks, as a scripted one.
    """
    _check_bounds(lower, upper)
    if where not in ("input", "output"):
        raise ArgumentError(f"where must be 'input' or 'output'; got {where!r}.")

    def clamped(tree: Any) -> Any:
        return pytree.tree_map_only(
            torch.Tensor,
            lambda x: x.clamp(lower, upper) if x.is_floating_point() else x,
            tree,
        )

    def before(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        return clamped(args), clamped(kwargs)

    def after(module: torch.nn.Module, args: Any, output: Any) -> Any:
        return clamped(output)

    try:
        handle = (
            module.register_forward_pre_hook(before, with_kwargs=True)
            if where == "input"
            else module.register_forward_hook(after)
        )
    except RuntimeError as error:
        raise PatchError(
            f"{type(module).__name__} takes no hooks ({error}); clip before scripting it."
        ) from error
    return AppliedPatch(handle.remove, functions=(type(module).__name__,))
