"""Which part of a user's expression is the operand of the operator that ran there."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ranum.errors import PatchError
from ranum.repair._splice import Text, module_of
from ranum.source import Source

Expression = ast.expr | ast.AugAssign

_SPELLINGS: dict[str, frozenset[str]] = {
    "_log_softmax": frozenset({"cross_entropy"}),
    "abs": frozenset({"absolute"}),
    "amax": frozenset({"reduce_max", "max"}),
    "acos": frozenset({"arccos"}),
    "acosh": frozenset({"arccosh"}),
    "asin": frozenset({"arcsin"}),
    "atan": frozenset({"arctan"}),
    "atanh": frozenset({"arctanh"}),
    "div": frozenset({"divide", "true_divide", "truediv"}),
    "linalg_vector_norm": frozenset({"norm", "vector_norm"}),
    "mean": frozenset({"reduce_mean"}),
    "mul": frozenset({"multiply"}),
    "neg": frozenset({"negative"}),
    "pow": frozenset({"square"}),
    "repeat": frozenset({"tile"}),
    "reshape": frozenset({"view", "unsqueeze", "squeeze", "flatten", "expand_dims"}),
    "sigmoid": frozenset({"expit"}),
    "sub": frozenset({"subtract"}),
    "sum": frozenset({"reduce_sum"}),
}
"""Function and method names, besides its own, under which a user reaches an operator."""

_SYMBOLS: dict[type[ast.AST], dict[str, tuple[int, int]]] = {
    ast.Add: {"add": (0, 1)},
    ast.Sub: {"sub": (0, 1), "rsub": (1, 0)},
    ast.Mult: {"mul": (0, 1)},
    ast.Div: {"div": (0, 1), "reciprocal": (1, 0)},  # a number over a tensor is a reciprocal
    ast.FloorDiv: {"floor_divide": (0, 1)},
    ast.Mod: {"remainder": (0, 1), "fmod": (0, 1)},
    ast.Pow: {"pow": (0, 1)},
}
"""Operators behind a symbol; for each, the side (0 left, 1 right) of its two arguments."""

_KEYWORDS = (
    ("input", "x", "self", "logits", "input_tensor", "x1"),
    ("other", "exponent", "target", "y", "x2"),
)
"""Keyword names of the first and second argument."""

_TENSOR_LIKE = (
    ast.Name,
    ast.Attribute,
    ast.Call,
    ast.Subscript,
    ast.BinOp,
    ast.UnaryOp,
    ast.IfExp,
    ast.Await,
    ast.NamedExpr,
)
_NUMBER_CALLS = frozenset({"float", "int", "len", "item", "numel", "size", "dim"})


class NotHereError(PatchError):
    """Nothing in this text has the recorded position."""


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand in the user's source.

    Attributes:
        expression: The whole call, binary operation or augmented assignment.
        node: The operand in it.
        is_overwritten: True if the operator writes its result into the operand.
    """

    expression: Expression
    node: ast.expr
    is_overwritten: bool = False


def span(node: Expression, text: Text) -> tuple[int, int]:
    """Start and end of a node, in UTF-8 bytes."""
    return (
        text.offset(node.lineno, node.col_offset),
        text.offset(node.end_lineno or node.lineno, node.end_col_offset or 0),
    )


def find_expression(tree: ast.AST, text: Text, source: Source) -> Expression:
    """The expression, or augmented assignment, with exactly the recorded extent.

    Raises:
        NotHereError: If there is none.
    """
    wanted = (
        text.offset(source.line, source.column),
        text.offset(source.end_line, source.end_column),
    )
    if source.column >= 0 and source.end_column >= 0:
        for node in _at(tree, source.line):
            if isinstance(node, Expression) and wanted in _extents(node, text):
                return node
    raise NotHereError(_not_here(source))


def _at(node: ast.AST, line: int) -> Iterator[ast.AST]:
    """The nodes that a line is part of, outer ones first."""
    yield node
    for child in ast.iter_child_nodes(node):
        first, last = getattr(child, "lineno", line), getattr(child, "end_lineno", line)
        if first <= line <= last or getattr(child, "decorator_list", None):
            yield from _at(child, line)


def find_operand(
    tree: ast.AST,
    text: Text,
    source: Source,
    op: str,
    argument: int,
    *,
    names: Names | None = None,
) -> Operand:
    """The operand of `op` in the expression at a recorded position.

    Args:
        tree: The parsed text.
        text: The text.
        source: The recorded position. Without columns (python -X no_debug_ranges), the only
            expression of the line that spells `op` is taken.
        op: Canonical operator name.
        argument: Position among the operator's tensor arguments, from 0.
        names: Those of the tree, where they are known already.

    Raises:
        NotHereError: If no expression is at the position.
        PatchError: If it does not spell `op`, or its operand cannot be clipped.
    """
    names = Names(tree, source.file) if names is None else names
    if source.column >= 0:
        return _operand(find_expression(tree, text, source), op, argument, names, source)
    found, reason = [], NotHereError(_not_here(source))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Call, ast.BinOp, ast.AugAssign)) and source.line in (
            node.lineno,
            node.func.end_lineno if isinstance(node, ast.Call) else node.lineno,
        ):
            try:
                found.append(_operand(node, op, argument, names, source))
            except PatchError as error:
                reason = error if isinstance(error, NotHereError) else reason
    if len(found) > 1:
        raise PatchError(
            f"{source.location} holds {len(found)} expressions that could be the {op} meant, and "
            "Python recorded no columns to tell them apart; run without -X no_debug_ranges."
        )
    if not found:
        raise reason
    return found[0]


def is_spelled(node: Expression, op: str, names: Names) -> bool:
    """True if an expression is written as an operator on tensors."""
    if isinstance(node, ast.Call):
        return names.spelled(node.func, op) is not None
    if isinstance(node, ast.UnaryOp):
        return op == "neg" and isinstance(node.op, ast.USub) and not names.is_number(node)
    if isinstance(node, (ast.BinOp, ast.AugAssign)):
        is_number = isinstance(node, ast.BinOp) and names.is_number(node)
        return op in _SYMBOLS.get(type(node.op), {}) and not is_number
    return False


def _not_here(source: Source) -> str:
    columns = f", columns {source.column}-{source.end_column}," if source.column >= 0 else ""
    return (
        f"There is no expression at {source.location}{columns} in the source as it is now. The "
        "file was changed after it was imported, or the code was rewritten on import; restart "
        "the run, or edit the file by hand."
    )


def _extents(node: Expression, text: Text) -> Iterator[tuple[int, int]]:
    start, end = span(node, text)
    yield start, end
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        # Python marks a method call that begins on an earlier line from the method's name on.
        method = node.func
        if method.end_lineno != node.lineno:
            name_end = text.offset(method.end_lineno or 0, method.end_col_offset or 0)
            yield name_end - len(method.attr.encode()), end


def _operand(
    expression: Expression, op: str, argument: int, names: Names, source: Source
) -> Operand:
    node: ast.expr | None
    overwritten = False
    if isinstance(expression, ast.Call):
        written = names.spelled(expression.func, op)
        if written is None:
            raise PatchError(_not_spelled(expression, op, source))
        node = _argument(expression, argument, names)
        overwritten = argument == 0 and written.endswith("_")
    elif isinstance(expression, ast.UnaryOp) and is_spelled(expression, op, names):
        node = expression.operand if argument == 0 else None
    elif isinstance(expression, (ast.BinOp, ast.AugAssign)):
        sides = _SYMBOLS.get(type(expression.op), {}).get(op)
        if sides is None:
            raise PatchError(_not_spelled(expression, op, source))
        side = sides[argument] if argument < 2 else -1
        if isinstance(expression, ast.AugAssign):
            node = expression.value if side == 1 else None
            if side == 0:
                raise PatchError(
                    f"`{ast.unparse(expression)}` at {source.location} overwrites the operand "
                    "that would have to be clipped; clip it on the line before instead."
                )
        else:
            node = (expression.left, expression.right)[side] if side >= 0 else None
    else:
        raise PatchError(_not_spelled(expression, op, source))
    if node is None:
        raise PatchError(
            f"`{ast.unparse(expression)}` at {source.location} does not show operand {argument} "
            f"of {op}: it is a default, or hidden in * or **. Write it out, then it can be clipped."
        )
    if names.is_number(node) or not isinstance(node, _TENSOR_LIKE):
        kind = "a Python number" if names.is_number(node) else "not an expression with one tensor"
        raise PatchError(
            f"The operand `{ast.unparse(node)}` of {op} at {source.location} is {kind}: there is "
            "nothing to clip. Change the expression with rewrite_edit instead."
        )
    return Operand(expression, node, overwritten)


def _not_spelled(expression: Expression, op: str, source: Source) -> str:
    return (
        f"`{ast.unparse(expression)}` at {source.location} is not a call of {op} itself: the "
        f"operator runs inside it, in a library or in code made by exec, so its operand is not in "
        "this line. Use module_clip on the module instead, or change the expression with "
        "rewrite_edit."
    )


def _argument(call: ast.Call, index: int, names: Names) -> ast.expr | None:
    arguments = list(call.args)
    if isinstance(call.func, ast.Attribute) and not names.is_namespace(call.func.value):
        arguments.insert(0, call.func.value)
    plain = next(
        (number for number, node in enumerate(arguments) if isinstance(node, ast.Starred)),
        len(arguments),
    )
    if index < plain:
        return arguments[index]
    if plain < len(arguments) or index >= len(_KEYWORDS):
        return None
    return next((word.value for word in call.keywords if word.arg in _KEYWORDS[index]), None)


class Names:
    """What the names of one file stand for, from its imports, assignments and live module."""

    def __init__(self, tree: ast.AST, file: str) -> None:
        module = module_of(file)
        if module is None and not os.path.isfile(file):  # a notebook's cell
            module = sys.modules.get("__main__")
        self._live: dict[str, Any] = {} if module is None else vars(module)
        self._imported: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        self._assigned: dict[str, list[ast.expr]] = {}
        self._bound: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    bound = alias.asname or alias.name.split(".")[0]
                    self._imported[bound] = alias.name.rsplit(".", 1)[-1]
                    home = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                    self._paths[bound] = home + (alias.name if alias.asname else bound)
            elif isinstance(node, ast.Assign) and len(node.targets) == 1:
                target = node.targets[0]
                if isinstance(target, (ast.Name, ast.Attribute)):
                    self._assigned.setdefault(_last(target), []).append(node.value)
            if isinstance(node, ast.arg):
                self._bound.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._bound.add(node.id)

    def spelled(self, function: ast.expr, op: str) -> str | None:
        """The name under which a callee is the operator, None if it is not."""
        plain = op.strip("_").removeprefix("special_")
        known = {plain, *_SPELLINGS.get(op, ())}
        for name in self._meanings(function):
            if name.removesuffix("_") in known:
                return name
        return None

    def _meanings(self, node: ast.expr, depth: int = 3) -> Iterator[str]:
        name = _last(node)
        if not name:
            return
        yield name
        if isinstance(node, ast.Name) and name in self._imported:
            yield self._imported[name]
        live = getattr(self.resolve(node), "__name__", None)
        if isinstance(live, str):
            yield live
        for value in self._assigned.get(name, ()) if depth else ():
            yield from self._meanings(value, depth - 1)

    def home(self, name: str) -> str:
        """The dotted path of what a name was imported from; "" if it was not."""
        return self._paths.get(name, "")

    def modules(self) -> Iterator[tuple[str, str]]:
        """Names that the file uses for modules, and what the modules are called."""
        for name in self._imported:
            live = self._live.get(name)
            if name not in self._bound and (live is None or isinstance(live, ModuleType)):
                yield name, self._paths[name] if live is None else live.__name__

    def is_namespace(self, node: ast.expr) -> bool:
        """True for a module or class, whose attribute is a function rather than a method.

        So is `self` in `self.log(x)`: a layer kept there, or a method of the user's own.
        """
        if isinstance(node, ast.Name) and node.id in ("self", "cls"):
            return True
        value = self.resolve(node)
        if value is not None:
            return isinstance(value, (ModuleType, type))
        while isinstance(node, ast.Attribute):
            node = node.value
        # A name that this text does not bind comes from elsewhere: a module, most likely.
        return isinstance(node, ast.Name) and (
            node.id in self._imported or node.id not in self._bound
        )

    def is_number(self, node: ast.expr) -> bool:
        """True for what is a Python number as far as the text shows."""
        if isinstance(node, ast.Constant):
            return isinstance(node.value, (int, float, complex))
        if isinstance(node, ast.UnaryOp):
            return self.is_number(node.operand)
        if isinstance(node, ast.BinOp):
            return self.is_number(node.left) and self.is_number(node.right)
        if isinstance(node, ast.Call):
            return _last(node.func) in _NUMBER_CALLS
        if isinstance(node, ast.Subscript):
            return _last(node.value) == "shape" and not isinstance(node.slice, ast.Slice)
        return isinstance(self.resolve(node), (int, float, complex))

    def resolve(self, node: ast.expr) -> Any:
        """The live object a name or dotted name stands for; None if that is not known."""
        if isinstance(node, ast.Name):
            return self._live.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.resolve(node.value)
            if isinstance(owner, ModuleType):
                return getattr(owner, node.attr, None)  # some are made when they are asked for
            if isinstance(owner, type):
                return vars(owner).get(node.attr)
        return None


def _last(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""
