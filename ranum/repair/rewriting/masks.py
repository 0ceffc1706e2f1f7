"""Masks: rows that are masked as a whole, and branches of `where` that were not taken."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator

from ranum.analysis.graph import Node, Ref
from ranum.analysis.precision.base import Surroundings
from ranum.analysis.result import Defect
from ranum.repair._code import Code
from ranum.repair.rewriting.base import Found, Rule, refuse

_WHY = "a row that is masked entirely then gets equal shares instead of NaN"
_DEPTH = 4


def _softmax(around: Surroundings, node: Node, defect: Defect) -> Iterator[Found]:
    if defect.code != "RN110":
        return
    for fill in _fills(around, node):

        def write(code: Code, fill: Node = fill) -> str:
            call = code.anchor
            places = [part for part in ast.walk(call) if _is_infinite(part)]
            if len(places) != 1:
                raise refuse("-inf is not written once in it.")
            place = places[0]
            assert isinstance(place, ast.expr)
            assert isinstance(call, ast.expr)
            return code.replaced(call, place, _least(code, around, fill))

        yield Found(_WHY, fill, write, (node,))


def _least(code: Code, around: Surroundings, fill: Node) -> str:
    """The lowest finite number of a type, as the code would name it."""
    call = code.anchor
    owner = None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
        owner = code.operand(fill) if fill.op == "masked_fill" else None
    named = isinstance(owner, (ast.Name, ast.Attribute))
    if code.library != "torch":
        return repr(-1e9)
    if named and owner is not None:
        return f"{code.function('finfo')}({code.words(owner)}.dtype).min"
    dtype = str(around.dtype(fill)).removeprefix("torch.")
    return f"{code.function('finfo')}({code.function('torch.' + dtype)}).min"


def _fills(around: Surroundings, node: Node) -> list[Node]:
    """The operators behind a softmax that put -inf somewhere."""
    found: list[Node] = []
    front = [around.operand(node, "x")]
    for _ in range(_DEPTH):
        makers = [around.graph.producer(one) for one in front if one is not None]
        own = [one for one in makers if one is not None and one.phase == "forward"]
        found += [one for one in own if _puts_infinity(around, one) and one not in found]
        front = [
            value.value for one in own for value in one.arguments.values() if isinstance(value, Ref)
        ]
    return found


def _puts_infinity(around: Surroundings, node: Node) -> bool:
    names = ("value", "other", "x", "values")
    return node.op in ("masked_fill", "where", "index_put", "full_like", "full") and any(
        around.is_number(node.arguments.get(name), -math.inf) for name in names
    )


def _is_infinite(node: ast.AST) -> bool:
    """True for float("-inf"), -math.inf, -torch.inf, -float("inf")."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = node.operand
        if isinstance(inner, ast.Attribute) and inner.attr == "inf":
            return True
        return _is_float_of(inner, ("inf", "infinity"))
    return _is_float_of(node, ("-inf", "-infinity"))


def _is_float_of(node: ast.AST, words: tuple[str, ...]) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "float"
        and len(node.args) == 1
        and isinstance(node.args[0], ast.Constant)
        and str(node.args[0].value).lower() in words
    )


def _where(around: Surroundings, node: Node, defect: Defect) -> Iterator[Found]:
    """The operand of what stands in one branch, made harmless where the other is taken."""
    index = 1 if around.graph.nodes[defect.node].op == "div" else 0
    bad = around.graph.nodes[defect.node]
    if bad.op not in ("div", "reciprocal", "log", "sqrt", "rsqrt", "pow", "log1p", "exp"):
        return
    for taken in (True, False):

        def write(code: Code, taken: bool = taken) -> str:
            call = code.anchor
            if not isinstance(call, ast.Call) or len(call.args) != 3 or call.keywords:
                raise refuse("the branches are not written as arguments.")
            branch = call.args[1 if taken else 2]
            if not code.is_inside(code.expression(bad), branch):
                raise refuse("the operator is in another line.")
            condition, operand = call.args[0], code.operand(bad, index)
            if any(isinstance(one, (ast.Await, ast.NamedExpr)) for one in ast.walk(call)):
                raise refuse("a name is given in it.")
            order = (code.words(operand), "1.0") if taken else ("1.0", code.words(operand))
            guarded = code.call("where", code.words(condition), *order)
            return code.replaced(call, operand, guarded)

        why = "the branch that is not taken then has a finite derivative"
        yield Found(why, node, write, (bad,))


RULES: dict[str, tuple[Rule, ...]] = {"_softmax": (_softmax,), "where": (_where,)}
