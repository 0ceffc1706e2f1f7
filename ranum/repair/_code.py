"""The user's code around an expression, as a rewriting needs to see it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from ranum.analysis.graph import Graph, Node
from ranum.errors import PatchError
from ranum.repair._library import library, spelled
from ranum.repair._operand import Expression, Names, find_expression, find_operand, span
from ranum.repair._places import placed
from ranum.repair._splice import Text
from ranum.source import Source

Mode = Literal["move", "hoist", "plain"]
"""What becomes of a call that the new expression needs and another line makes: it is moved, the
line goes; it is given a name, the line stays; it is refused."""

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_FUNCTIONS = (*_DEFINITIONS, ast.Lambda)


@dataclass(frozen=True, slots=True)
class Hoist:
    """A part of an assignment that is to get a name, on a line of its own before it."""

    statement: ast.stmt
    part: ast.expr
    name: str


class Code:
    """One file's text and tree, and the expression in it that is to be written anew.

    Every question that cannot be answered for sure raises `PatchError`.

    Attributes:
        anchor: The expression that is to be replaced.
        library: What it is written in.
    """

    def __init__(
        self,
        tree: ast.Module,
        text: Text,
        source: Source,
        *,
        graph: Graph | None = None,
        mode: Mode = "plain",
    ) -> None:
        self._tree = tree
        self._text = text
        self._names = Names(tree, source.file)
        self._mode = mode
        self._graph = graph
        self.hoisted: list[Hoist] = []
        self._followed: list[ast.Assign] = []
        self._moved: list[ast.expr] = []
        self.anchor = find_expression(tree, text, source)
        self.library = library(self._names, self.anchor, is_graph=bool(source.node))
        self._scope = self._enclosing(self.anchor)

    def text(self, node: ast.AST) -> str:
        """A part of the code as it stands."""
        assert isinstance(node, Expression)
        return self._text.part(*span(node, self._text))

    def expression(self, node: Node) -> Expression:
        """The expression that an operator of the graph ran in."""
        return find_expression(self._tree, self._text, self._source(node))

    def _source(self, node: Node) -> Source:
        return node.source if self._graph is None else placed(self._graph, node)

    def operand(self, node: Node, argument: int = 0) -> ast.expr:
        """What the user wrote for an operand of an operator of the graph."""
        source = self._source(node)
        found = find_operand(self._tree, self._text, source, node.op, argument, names=self._names)
        return found.node

    def side(self, node: Node, *, right: bool) -> ast.expr:
        """One side of a sum or difference."""
        expression = self.expression(node)
        if not isinstance(expression, ast.BinOp):
            raise PatchError(f"`{self.text(expression)}` is not written with an operator.")
        return expression.right if right else expression.left

    def other_than_number(self, node: Node) -> ast.expr:
        """The side of a sum, or the operand of `x.add(1)`, that is not the number."""
        expression = self.expression(node)
        if isinstance(expression, ast.BinOp):
            return self.side(node, right=isinstance(expression.left, ast.Constant))
        first = self.operand(node)
        return self.operand(node, 1) if isinstance(first, ast.Constant) else first

    def leads(self, written: ast.expr, node: Node) -> ast.expr:
        """Checks that what is written is an operator's result, or a name given to it once.

        Raises:
            PatchError: If it may be something else as well.
        """
        wanted = self.expression(node)
        found = self.meaning(written)
        if found is not wanted:
            raise PatchError(f"`{self.text(written)}` is not just the result of {node.op}.")
        return found

    def meaning(self, written: ast.expr) -> ast.expr:
        """The expression behind a local name that is assigned exactly once; else itself."""
        for _ in range(4):
            if not isinstance(written, ast.Name):
                break
            stores = [name for name in self._stores() if name.id == written.id]
            assigned = [
                statement
                for statement in ast.walk(self._scope)
                if isinstance(statement, ast.Assign)
                and len(statement.targets) == 1
                and statement.targets[0] in stores
            ]
            if len(stores) != 1 or len(assigned) != 1 or self._is_parameter(written.id):
                break
            if self._place(assigned[0]) > self._place(written):
                break
            self._followed.append(assigned[0])
            written = assigned[0].value
        return written

    def unread(self, new: ast.expr) -> tuple[ast.stmt, ...]:
        """The assignments that were looked through, and whose names only the anchor read.

        Args:
            new: What takes the anchor's place.

        Raises:
            PatchError: If something was to be moved out of an assignment that must stay.
        """
        kept = {part.id for part in ast.walk(new) if isinstance(part, ast.Name)}
        found: list[ast.stmt] = []
        if isinstance(self._scope, _DEFINITIONS):
            waiting = list({id(one): one for one in self._followed}.values())
            while dead := next((one for one in waiting if self._is_dead(one, kept, found)), None):
                waiting.remove(dead)
                found.append(dead)
        for part in self._moved:
            if not any(self._is_within(part, statement) for statement in found):
                raise PatchError(f"`{self.text(part)}` would be computed twice.")
        return tuple(found)

    def _is_dead(self, statement: ast.Assign, kept: set[str], gone: list[ast.stmt]) -> bool:
        """True if only the anchor and lines that are gone read what a line assigns."""
        target = statement.targets[0]
        assert isinstance(target, ast.Name)
        without = {id(part) for one in (self.anchor, *gone) for part in ast.walk(one)}
        return not (target.id in kept or self._is_shared(target.id)) and not any(
            isinstance(part, ast.Name)
            and part.id == target.id
            and isinstance(part.ctx, ast.Load)
            and id(part) not in without
            for part in ast.walk(self._scope)
        )

    def _is_shared(self, name: str) -> bool:
        """True if a function declares the name as one of a scope around it."""
        return any(
            isinstance(part, (ast.Global, ast.Nonlocal)) and name in part.names
            for part in ast.walk(self._tree)
        )

    def _is_within(self, inner: ast.AST, outer: ast.AST) -> bool:
        return any(part is inner for part in ast.walk(outer))

    def words(self, node: ast.expr) -> str:
        """A part of the code, to be written again in the new expression.

        Raises:
            PatchError: If it would mean something else there, or be computed twice.
        """
        start, end = span(node, self._text)
        own_start, own_end = span(self.anchor, self._text)
        shown = self.text(node)
        if own_start <= start and end <= own_end:
            return shown
        if self._enclosing(node) is not self._scope:
            raise PatchError(f"`{shown}` stands in another function.")
        if any(isinstance(part, (ast.Call, ast.Await, ast.NamedExpr)) for part in ast.walk(node)):
            if self._mode == "hoist":
                return self._hoisted(node)
            if self._mode == "plain":
                raise PatchError(f"`{shown}` would be computed twice; give it a name first.")
            self._moved.append(node)
        used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        kept = {ast.unparse(part) for part in ast.walk(node) if isinstance(part, ast.Attribute)}
        for part in ast.walk(self._scope):
            if not isinstance(getattr(part, "ctx", None), (ast.Store, ast.Del)):
                continue
            changes = ast.unparse(part) in used | kept
            if changes and not self._place(part) < start:
                raise PatchError(f"`{shown}` is changed after it was used.")
        return shown

    def axis(self, node: Node) -> str:
        """The dimension that an operator runs along, as the user wrote it.

        A graph knows it for the shapes that were recorded alone; -1 holds for all.
        """
        call = self.expression(node)
        written: ast.expr | None = None
        if isinstance(call, ast.Call):
            words = [word.value for word in call.keywords if word.arg in ("axis", "dim")]
            is_function = isinstance(call.func, ast.Name) or (
                isinstance(call.func, ast.Attribute) and self._names.is_namespace(call.func.value)
            )
            # A norm's first argument is its order.
            plain = [] if node.op == "linalg_vector_norm" else call.args[is_function:]
            written = next(iter([*words, *plain]), None)
        if written is not None and all(
            isinstance(part, (ast.Constant, ast.UnaryOp, ast.USub, ast.Tuple, ast.List, ast.Load))
            for part in ast.walk(written)
        ):
            return self.text(written)
        if written is None and node.op == "_softmax" and self.library != "torch":
            return "-1"
        found = node.arguments.get("dim")
        if isinstance(found, (list, tuple)):
            return str(found[0]) if len(found) == 1 else str(tuple(found))
        return str(found)

    def named(self, node: ast.expr) -> str:
        """A name for a part of the code that is to be written more than once.

        Raises:
            PatchError: If it has none, and cannot be given one.
        """
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self.words(node)
        if self._mode != "hoist":
            raise PatchError(f"`{self.text(node)}` has no name.")
        return self._hoisted(node)

    def _hoisted(self, node: ast.expr) -> str:
        """The name that a part of an assignment gets on a line of its own, before that one.

        Raises:
            PatchError: If it is no part of an assignment that was looked through.
        """
        statement = next((one for one in self._followed if self._is_within(node, one)), None)
        if statement is None or not isinstance(
            self._scope, (ast.FunctionDef, ast.AsyncFunctionDef)
        ):
            raise PatchError(f"`{self.text(node)}` would be computed twice; give it a name first.")
        target, value = statement.targets[0], statement.value
        assert isinstance(target, ast.Name)
        called = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
        kind = "logits" if called.endswith(("softmax", "sigmoid")) else "input"
        name = f"{target.id}_{kind}"
        if any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(self._tree)):
            raise PatchError(f"the name {name} is taken.")
        hoist = Hoist(statement, node, name)
        if hoist not in self.hoisted:
            self.hoisted.append(hoist)
        return name

    def function(self, name: str) -> str:
        """How this file would call a function: "torch.log_softmax", "tf.nn.log_softmax".

        Raises:
            PatchError: If the file has no name for the library.
        """
        return spelled(self._names, self.library, name)

    def call(self, name: str, *operands: ast.expr | str, axis: object = None) -> str:
        """A call of a function, with what the user wrote as operands."""
        words = [one if isinstance(one, str) else self.words(one) for one in operands]
        words += [] if axis is None else [str(axis)]
        return f"{self.function(name)}({', '.join(words)})"

    def renamed(self, call: Expression, old: str, new: str) -> str | None:
        """The call with another function of the same library, or method, in place of its own."""
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            return None
        owner = call.func.value
        if call.func.attr != old:
            return None
        is_library = self._names.is_namespace(owner)
        home = self._names.resolve(owner)
        if is_library and not (isinstance(home, ModuleType) and hasattr(home, new)):
            return None
        self._all_words(call)
        if self.hoisted:
            return None
        start, end = span(call, self._text)
        _, owner_end = span(owner, self._text)
        rest = self._text.part(owner_end, end)
        return self._text.part(start, owner_end) + rest.replace(old, new, 1)

    def replaced(self, whole: ast.expr, part: ast.expr, new: str) -> str:
        """The text of an expression with one part of it written anew."""
        start, end = span(whole, self._text)
        inner_start, inner_end = span(part, self._text)
        before, after = self._text.part(start, inner_start), self._text.part(inner_end, end)
        if isinstance(whole, ast.Subscript) and whole.value is part:
            new = bracketed(new)
        return before + new + after

    def is_inside(self, node: Expression, outer: ast.expr) -> bool:
        """True for a part of another expression."""
        start, end = span(node, self._text)
        own_start, own_end = span(outer, self._text)
        return own_start <= start and end <= own_end

    def _all_words(self, call: ast.Call) -> None:
        """Checks the owner and every argument of a call that is to be written again."""
        assert isinstance(call.func, ast.Attribute)
        if not self._names.is_namespace(call.func.value):
            self.words(call.func.value)
        for argument in (*call.args, *(word.value for word in call.keywords)):
            self.words(argument)

    def _stores(self) -> list[ast.Name]:
        return [
            part
            for part in ast.walk(self._scope)
            if isinstance(part, ast.Name) and isinstance(part.ctx, (ast.Store, ast.Del))
        ]

    def _is_parameter(self, name: str) -> bool:
        return any(isinstance(part, ast.arg) and part.arg == name for part in ast.walk(self._scope))

    def _place(self, node: ast.AST) -> int:
        line, column = getattr(node, "lineno", 0), getattr(node, "col_offset", 0)
        return self._text.offset(line, column)

    def _enclosing(self, node: ast.AST) -> ast.AST:
        """The innermost function that holds a node, or the module."""
        place, found, smallest = self._place(node), self._tree, len(self._text.data) + 1
        scope: ast.AST = found
        for function in ast.walk(self._tree):
            if not isinstance(function, _FUNCTIONS):
                continue
            start = self._text.offset(function.lineno, function.col_offset)
            end = self._text.offset(function.end_lineno or 0, function.end_col_offset or 0)
            if start <= place < end and end - start < smallest:
                scope, smallest = function, end - start
        return scope


def bracketed(text: str) -> str:
    """The text of an expression, in brackets where another operator could tear it apart."""
    tree = ast.parse(f"({text}\n)", mode="eval").body
    atoms = (ast.Name, ast.Call, ast.Attribute, ast.Subscript)
    return text if isinstance(tree, atoms) and "\n" not in text else f"({text})"
