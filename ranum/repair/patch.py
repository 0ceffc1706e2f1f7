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
import math
from collections.abc import Callable

import numpy as np

from ranum.analysis.graph import Graph
from ranum.errors import ArgumentError, PatchError
from ranum.repair._code import Code, Mode
from ranum.repair._diff import merged_diff
from ranum.repair._edit import Change, Edit, make_edit, parentheses, replace_name, unused
from ranum.repair._library import library, spelled
from ranum.repair._live import AppliedPatch, apply_edits, check_bounds, module_clip
from ranum.repair._operand import (
    Names,
    find_expression,
    find_operand,
    span,
)
from ranum.repair._splice import Splice, Text
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
    check_bounds(lower, upper)
    if argument < 0:
        raise ArgumentError(f"argument must be 0 or more; got {argument}.")
    bounds = [
        f"{name}={number_text(bound)}"
        for name, bound in (("min", lower), ("max", upper))
        if bound is not None
    ]

    def edit_in(tree: ast.Module, text: Text) -> Change:
        names = Names(tree, source.file)
        operand = find_operand(tree, text, source, op, argument, names=names)
        written = library(names, operand.expression, is_graph=bool(source.node))
        start, end = span(operand.node, text)
        if written != "torch":
            function, limits = limits_call(lower, upper)
            before, after = f"{spelled(names, written, function)}(", f", {limits})"
            clipped = ast.parse(f"{before}_{after}", mode="eval").body
            replace_name(clipped, "_", operand.node)
            splices = [Splice(start, end, before=before, after=after)]
            return Change(operand.expression, operand.node, clipped, splices)
        method = "clamp_" if operand.is_overwritten else "clamp"
        after = f".{method}({', '.join(bounds)})"
        clipped = ast.parse(f"_{after}", mode="eval").body
        replace_name(clipped, "_", operand.node)
        splices = [
            Splice(start, end, after=after),
            Splice(start, end, before="(", after=")" + after),
        ]
        if (outer := parentheses(text, start, end)) is not None:
            splices.insert(0, Splice(*outer, after=after))
        return Change(operand.expression, operand.node, clipped, splices)

    return make_edit(source, edit_in)


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

    def edit_in(tree: ast.Module, text: Text) -> Change:
        node = find_expression(tree, text, source)
        if not isinstance(node, ast.expr):
            raise PatchError(
                f"`{ast.unparse(node)}` at {source.location} is a statement, which an expression "
                "cannot replace; clip its right side with clip_edit, or edit the file by hand."
            )
        start, end = span(node, text)
        lines = new.replace("\n", "\r\n") if "\r\n" in text.content else new
        splices = [Splice(start, end, instead=form) for form in (lines, f"({lines})")]
        return Change(node, node, replacement, splices)

    return make_edit(source, edit_in)


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
        def edit_in(tree: ast.Module, text: Text) -> Change:
            code = Code(tree, text, source, graph=graph, mode=mode)
            node, new = code.anchor, write(code)
            if not isinstance(node, ast.expr):
                raise PatchError(f"`{ast.unparse(node)}` at {source.location} is a statement.")
            if mode == "hoist" and not code.hoisted:
                raise PatchError("nothing needs a name.")
            replacement = ast.parse(f"({new}\n)", mode="eval").body
            start, end = span(node, text)
            splices = [Splice(start, end, instead=form) for form in (new, f"({new})")]
            if (outer := parentheses(text, start, end)) is not None:
                splices.insert(0, Splice(*outer, instead=new))
            removed = code.unread(replacement) if mode == "move" else ()
            return Change(node, node, replacement, splices, removed, code.hoisted)

        return make_edit(source, edit_in)

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

    def edit_in(tree: ast.Module, text: Text) -> Change:
        operand = find_operand(tree, text, source, op, argument)
        if operand.is_overwritten:
            raise PatchError(f"{op} at {source.location} overwrites its operand.")
        after = f" + {number_text(amount)}"
        added = ast.parse(f"_{after}", mode="eval").body
        replace_name(added, "_", operand.node)
        start, end = span(operand.node, text)
        splices = [
            Splice(start, end, after=after),
            Splice(start, end, before="(", after=after + ")"),
            Splice(start, end, before="((", after=")" + after + ")"),
        ]
        return Change(operand.expression, operand.node, added, splices)

    return make_edit(source, edit_in)


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

    def edit_in(tree: ast.Module, text: Text) -> Change:
        operand = find_operand(tree, text, source, op, argument)
        if operand.is_overwritten:
            raise PatchError(f"{op} at {source.location} overwrites its operand.")
        names = Names(tree, source.file)
        written = library(names, operand.expression, is_graph=bool(source.node))
        start, end = span(operand.node, text)
        shown = text.part(start, end)
        first = name = shown
        if not isinstance(operand.node, (ast.Name, ast.Attribute)):
            name = unused(tree, "divisor")
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
        if (outer := parentheses(text, start, end)) is not None:
            splices.insert(0, Splice(*outer, instead=new))
        return Change(operand.expression, operand.node, guarded, splices)

    return make_edit(source, edit_in)


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
