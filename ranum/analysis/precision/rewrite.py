"""Rewritings in the user's own words: their operands, and the library they write for."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from functools import lru_cache

from ranum.analysis.graph import Node

LONGEST = 48
"""Characters of an operand or expression that is still quoted; a longer one becomes `x`."""

_CALLS = {
    "sigmoid": "sigmoid",
    "_softmax": "softmax",
    "exp": "exp",
    "log": "log",
    "cos": "cos",
    "sum": "sum",
    "square": "square",
    "pow": "pow",
    "binary_cross_entropy": "binary_cross_entropy",
}
_OPERATORS: dict[str, tuple[type[ast.operator], ...]] = {
    "add": (ast.Add,),
    "sub": (ast.Sub,),
    "rsub": (ast.Sub,),
    "mul": (ast.Mult,),
    "pow": (ast.Pow,),
}
_LIBRARIES = frozenset({"torch", "F", "nn", "functional", "special", "tf", "ops", "keras", "K"})
_WORDS: dict[str, dict[str, str]] = {
    "torch": {
        "logsigmoid": "F.logsigmoid({})",
        "log_softmax": "torch.log_softmax({}, {dim})",
        "softplus": "F.softplus({})",
        "log1p": "torch.log1p({})",
        "logsumexp": "torch.logsumexp({}, {dim})",
        "expm1": "torch.expm1({})",
        "sin": "torch.sin({})",
        "bce": "F.binary_cross_entropy_with_logits({}, {target})",
        "var": "{}.var({dim}, unbiased=False)",
    },
    "tf": {
        "logsigmoid": "tf.math.log_sigmoid({})",
        "log_softmax": "tf.nn.log_softmax({})",
        "softplus": "tf.math.softplus({})",
        "log1p": "tf.math.log1p({})",
        "logsumexp": "tf.reduce_logsumexp({}, {dim})",
        "expm1": "tf.math.expm1({})",
        "sin": "tf.sin({})",
        "bce": "tf.nn.sigmoid_cross_entropy_with_logits({target}, {})",
        "var": "tf.math.reduce_variance({}, {dim})",
    },
    "ops": {
        "logsigmoid": "ops.log_sigmoid({})",
        "log_softmax": "ops.log_softmax({})",
        "softplus": "ops.softplus({})",
        "log1p": "ops.log1p({})",
        "logsumexp": "ops.logsumexp({}, {dim})",
        "expm1": "ops.expm1({})",
        "sin": "ops.sin({})",
        "bce": "ops.binary_crossentropy({target}, {}, from_logits=True)",
        "var": "ops.var({}, {dim})",
    },
}


def written(node: Node) -> str:
    """The expression of an operator as it stands in the source; "" if long or unknown."""
    text = node.source.expression
    call = _own(_tree(text), node.op)
    if isinstance(call, ast.expr):
        return _short(call)
    tree = _tree(text)
    whole = tree.body[0] if tree is not None and len(tree.body) == 1 else None
    return _short(whole.value) if isinstance(whole, ast.Expr) else ""


def operand_text(node: Node | None) -> str:
    """What the user wrote for the tensor operand of an operator, or "x".

    Of `a op number` that is the side that is not the number.
    """
    if node is None:
        return "x"
    own = _own(_tree(node.source.expression), node.op)
    if isinstance(own, ast.BinOp):
        return _short(own.right if isinstance(own.left, ast.Constant) else own.left) or "x"
    if isinstance(own, ast.Call):
        operand = _first(own)
        return (_short(operand) if operand is not None else "") or "x"
    return "x"


def target_text(node: Node) -> str:
    """What the user wrote for the target of a loss, or "target"."""
    own = _own(_tree(node.source.expression), node.op)
    if isinstance(own, ast.Call) and _is_function(own) and len(own.args) > 1:
        return _short(own.args[1]) or "target"
    return "target"


def spelled(node: Node, name: str, operand: str, *, dim: object = None, target: str = "") -> str:
    """A call of the function `name` on an operand, in the library that the node's line uses."""
    if isinstance(dim, (list, tuple)) and len(dim) == 1:
        dim = dim[0]
    shown = str(dim) if isinstance(dim, int) else "dim"
    return _WORDS[_library(node)][name].format(operand, dim=shown, target=target)


def negated(operand: str) -> str:
    """The operand with a minus before it, in brackets where it needs them."""
    return f"-{bracketed(operand)}"


def bracketed(operand: str) -> str:
    """The operand, in brackets where another operator could tear it apart."""
    tree = _tree(operand)
    first = tree.body[0] if tree is not None and tree.body else None
    whole = first.value if isinstance(first, ast.Expr) else None
    atoms = (ast.Name, ast.Call, ast.Attribute, ast.Subscript, ast.Constant)
    return operand if isinstance(whole, atoms) else f"({operand})"


@lru_cache(maxsize=256)
def _tree(text: str) -> ast.Module | None:
    try:
        return ast.parse(textwrap.dedent(text)) if text else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _own(tree: ast.Module | None, op: str) -> ast.expr | None:
    """The part of an expression that is the operator: all of it, or the only one of its kind."""
    if tree is None or len(tree.body) != 1:
        return None
    found = list(_candidates(tree, op))
    whole = tree.body[0].value if isinstance(tree.body[0], ast.Expr) else None
    if whole in found:
        return whole
    return found[0] if len(found) == 1 else None


def _candidates(tree: ast.Module, op: str) -> Iterator[ast.expr]:
    for part in ast.walk(tree):
        if isinstance(part, ast.BinOp) and isinstance(part.op, _OPERATORS.get(op, ())):
            yield part
        elif isinstance(part, ast.Call) and op in _CALLS:
            function = part.func
            name = function.attr if isinstance(function, ast.Attribute) else ""
            name = function.id if isinstance(function, ast.Name) else name
            if name == _CALLS[op]:
                yield part


def _first(call: ast.Call) -> ast.expr | None:
    """The tensor that a call works on: its first argument, or the object of a method."""
    if not _is_function(call):
        return call.func.value if isinstance(call.func, ast.Attribute) else None
    return call.args[0] if call.args and not isinstance(call.args[0], ast.Starred) else None


def _is_function(call: ast.Call) -> bool:
    """True for `torch.exp(x)` and `exp(x)`, False for `x.exp()`."""
    return isinstance(call.func, ast.Name) or _root(call.func) in _LIBRARIES


def _root(part: ast.expr) -> str:
    while isinstance(part, ast.Attribute):
        part = part.value
    return part.id if isinstance(part, ast.Name) else ""


def _library(node: Node) -> str:
    """The library of the calls in a node's line: "torch", "tf" or "ops" of Keras."""
    tree = _tree(node.source.expression)
    names = {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)} if tree else set()
    if "tf" in names:
        return "tf"
    return "ops" if names & {"ops", "keras"} else "torch"


def _short(part: ast.expr) -> str:
    text = ast.unparse(part)
    return text if len(text) <= LONGEST and "\n" not in text else ""
