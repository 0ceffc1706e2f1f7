"""Rewritings that remove a defect: what a developer would write instead.

A rewriting is found on the graph, where operators are known whatever their spelling, and
written in the user's own words. What is proposed here is not trusted: `clipping.fix` offers a
rewriting only if the patched program, recorded and analysed again, is without the defect.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval
from ranum.analysis.precision.base import Surroundings
from ranum.analysis.result import Defect
from ranum.errors import PatchError
from ranum.repair._code import Code, bracketed
from ranum.repair.patch import Edit, added_edit, clip_edit, derived_edit

EPSILONS = (1e-12, 1e-8, 1e-6, 1e-4)
"""What is tried under a root, the smallest first."""
_SELECTIONS = ("gather", "index", "select", "slice", "squeeze", "unsqueeze", "reshape")
REACH = 4
"""How many operators behind a defect a rewriting may begin."""


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


Write = Callable[[], Edit]
"""Makes the edit; raises `PatchError` where the source does not allow it."""
Found = Iterator[tuple[str, Write, tuple[Node, ...]]]
"""What a rule finds: why, how to write it, and the nodes that it replaces."""


def proposals(defect: Defect) -> Iterator[Proposal]:
    """The rewritings that may remove a defect, best first; none where the source is no torch."""
    context = defect.context
    if context is None or defect.source.node or context.program.origin is not None:
        return
    around = Surroundings(context.graph, context.intervals)
    for anchor in _anchors(context.graph, defect.node):
        for rule in _RULES.get(anchor.op, ()):
            for why, write, nodes in rule(around, anchor, defect):
                replaced = frozenset(node.index for node in nodes)
                if defect.node not in replaced:
                    continue
                try:
                    yield Proposal(why, write(), replaced)
                except PatchError:
                    continue


def _anchors(graph: Graph, index: int) -> Iterator[Node]:
    """A node, and the nodes of the forward pass that read it, nearest first."""
    readers = graph.consumers()
    seen, front = {index}, [index]
    for _ in range(REACH):
        for number in front:
            yield graph.nodes[number]
        front = sorted(
            {
                reader
                for number in front
                for value in graph.nodes[number].outputs
                if value is not None
                for reader in readers.get(value, ())
                if graph.nodes[reader].phase == "forward" and reader not in seen
            }
        )
        seen.update(front)


def _anew(anchor: Node, write: Callable[[Code], str]) -> Write:
    return lambda: derived_edit(anchor.source, write)


# --- logarithms ------------------------------------------------------------------------------


def _log(around: Surroundings, node: Node, defect: Defect) -> Found:
    x = around.operand(node, "x")
    softmax, sigmoid = around.made_by(x, "_softmax"), around.made_by(x, "sigmoid")
    if softmax is not None:
        soft = softmax

        def log_softmax(code: Code) -> str:
            return _log_softmax(code, code.leads(code.operand(node), soft), soft)

        why = "log_softmax does not underflow, and neither does its gradient"
        yield why, _anew(node, log_softmax), (node, softmax)
    if sigmoid is not None:
        gate = sigmoid

        def logsigmoid(code: Code) -> str:
            code.leads(code.operand(node), gate)
            return f"{code.function('F', 'logsigmoid')}({code.words(code.operand(gate))})"

        why = "logsigmoid does not underflow, and neither does its gradient"
        yield why, _anew(node, logsigmoid), (node, sigmoid)
    yield from _log_of_complement(around, node, x)
    yield from _log_of_selected(around, node, x)
    yield from _log_of_sum(around, node, x)


def _log_softmax(code: Code, call: ast.expr, softmax: Node) -> str:
    renamed = code.renamed(call, "softmax", "log_softmax")
    if renamed is not None:
        return renamed
    operand = code.words(code.operand(softmax))
    return f"{code.function('torch', 'log_softmax')}({operand}, {softmax.arguments['dim']})"


def _log_of_complement(around: Surroundings, node: Node, x: int | None) -> Found:
    complement = around.made_by(x, "rsub", "sub")
    inner = around.made_by(around.one_minus(x), "sigmoid")
    if complement is None or inner is None:
        return
    rest, gate = complement, inner

    def write(code: Code) -> str:
        code.leads(code.operand(node), rest)
        code.leads(code.side(rest, right=True), gate)
        operand = bracketed(code.words(code.operand(gate)))
        return f"{code.function('F', 'logsigmoid')}(-{operand})"

    yield "1 - sigmoid(x) is 0 for large x; logsigmoid(-x) is not", _anew(node, write), (node,)


def _log_of_selected(around: Surroundings, node: Node, x: int | None) -> Found:
    chosen = first = around.made_by(x, *_SELECTIONS)
    while first is not None:  # `x[rows, 0]` is several operators
        inner = around.made_by(around.operand(first, "x"), *_SELECTIONS)
        if inner is None or inner.source != first.source:
            break
        first = inner
    softmax = None if first is None else around.made_by(around.operand(first, "x"), "_softmax")
    if chosen is None or softmax is None:
        return
    choice, soft = chosen, softmax

    def write(code: Code) -> str:
        selection = code.leads(code.operand(node), choice)
        if isinstance(selection, ast.Subscript):
            inner, others = selection.value, [selection.slice]
        else:
            assert isinstance(selection, ast.Call)
            inner = code.operand(choice)
            words = [word.value for word in selection.keywords]
            others = [part for part in (*selection.args, *words) if part is not inner]
        for part in others:
            code.words(part)
        found = _log_softmax(code, code.leads(inner, soft), soft)
        return code.replaced(selection, inner, found)

    yield (
        "log_softmax does not underflow, and neither does its gradient",
        _anew(node, write),
        (
            node,
            softmax,
        ),
    )


def _log_of_sum(around: Surroundings, node: Node, x: int | None) -> Found:
    one, exponential = around.made_by(x, "add"), around.made_by(around.one_plus(x), "exp")
    if one is not None and exponential is not None:
        plus, power = one, exponential

        def softplus(code: Code) -> str:
            code.leads(code.operand(node), plus)
            code.leads(code.other_than_number(plus), power)
            return f"{code.function('F', 'softplus')}({code.words(code.operand(power))})"

        yield "softplus does not overflow", _anew(node, softplus), (node, plus, power)
    terms = [] if one is None else [around.operand(one, "x"), around.operand(one, "other")]
    powers = [around.made_by(term, "exp") for term in terms]
    if one is not None and len(powers) == 2 and one.arguments.get("alpha", 1) == 1:
        left, right = powers
        if left is not None and right is not None:
            first, second, total = left, right, one

            def logaddexp(code: Code) -> str:
                code.leads(code.operand(node), total)
                code.leads(code.side(total, right=False), first)
                code.leads(code.side(total, right=True), second)
                a, b = (code.words(code.operand(power)) for power in (first, second))
                return f"{code.function('torch', 'logaddexp')}({a}, {b})"

            yield "logaddexp does not overflow", _anew(node, logaddexp), (node, one, left, right)
    summed = around.made_by(x, "sum")
    inner = None if summed is None else around.made_by(around.operand(summed, "x"), "exp")
    if summed is None or inner is None or summed.arguments.get("dim") is None:
        return
    whole, exp = summed, inner

    def logsumexp(code: Code) -> str:
        code.leads(code.operand(node), whole)
        code.leads(code.operand(whole), exp)
        dims = _dims(whole)
        keep = ", keepdim=True" if whole.arguments.get("keepdim") else ""
        operand = code.words(code.operand(exp))
        return f"{code.function('torch', 'logsumexp')}({operand}, {dims}{keep})"

    yield (
        "logsumexp takes the largest exponent out first",
        _anew(node, logsumexp),
        (
            node,
            summed,
            inner,
        ),
    )


def _log1p(around: Surroundings, node: Node, defect: Defect) -> Found:
    exponential = around.made_by(around.operand(node, "x"), "exp")
    if exponential is None:
        return
    power = exponential

    def write(code: Code) -> str:
        code.leads(code.operand(node), power)
        return f"{code.function('F', 'softplus')}({code.words(code.operand(power))})"

    yield "softplus does not overflow", _anew(node, write), (node, exponential)


# --- quotients -------------------------------------------------------------------------------


def _quotient(around: Surroundings, node: Node, defect: Defect) -> Found:
    if around.is_number(node.arguments.get("x"), 1):
        return
    above, below = around.operand(node, "x"), around.operand(node, "other")
    power, summed = around.made_by(above, "exp"), around.made_by(below, "sum")
    if power is not None and summed is not None and _reads(around, summed, power):
        dims = summed.arguments.get("dim")
        if summed.arguments.get("keepdim") and dims is not None and len(dims) == 1:
            exp, total = power, summed

            def softmax(code: Code) -> str:
                code.leads(code.operand(node), exp)
                code.leads(code.operand(node, 1), total)
                operand = code.words(code.operand(exp))
                return f"{code.function('torch', 'softmax')}({operand}, {_dims(total)})"

            why = "softmax takes the largest exponent out first"
            other = around.made_by(around.operand(summed, "x"), "exp") or power
            yield why, _anew(node, softmax), (node, power, other, summed)
    yield from _normalized(around, node, above, below)
    if summed is not None and _is_count(around, summed):
        why = "an empty mask then gives 0 instead of NaN, and any other what it gave before"
        yield why, lambda: clip_edit(node.source, "div", lower=1.0, argument=1), (node,)


def _normalized(around: Surroundings, node: Node, above: int | None, below: int | None) -> Found:
    norm = around.made_by(below, "linalg_vector_norm")
    root = around.made_by(below, "sqrt")
    middle: list[Node] = []
    if norm is None and root is not None:
        norm = around.made_by(around.operand(root, "x"), "sum")
        square = None if norm is None else around.made_by(around.operand(norm, "x"), "pow", "mul")
        if norm is None or square is None or not _is_square(square):
            return
        middle = [root, square]
    if norm is None or norm.arguments.get("ord", 2) != 2:
        return
    source = around.operand(middle[-1] if middle else norm, "x")
    dims, keeps = norm.arguments.get("dim"), bool(norm.arguments.get("keepdim"))
    if above is None or source != above or not keeps or not dims or len(dims) != 1:
        return
    of = norm

    def write(code: Code) -> str:
        code.leads(code.operand(node, 1), middle[0] if middle else of)
        call = code.function("F", "normalize")
        return f"{call}({code.words(code.operand(node))}, dim={_dims(of)})"

    why = "normalize bounds the norm below by 1e-12, and leaves vectors of 0 as they are"
    yield why, _anew(node, write), (node, norm, *middle)


def _is_square(node: Node) -> bool:
    if node.op == "pow":
        return node.arguments.get("exponent") == 2
    return node.arguments.get("x") == node.arguments.get("other")


def _reads(around: Surroundings, total: Node, power: Node) -> bool:
    other = around.made_by(around.operand(total, "x"), "exp")
    return other is not None and around.operand(other, "x") == around.operand(power, "x")


def _is_count(around: Surroundings, total: Node) -> bool:
    """True for a sum of a mask: of truth values, or of an input that holds only 0 and 1."""
    value = around.operand(total, "x")
    for _ in range(3):
        made = around.made_by(value, "_to_copy", "to")
        if made is None:
            break
        value = around.operand(made, "x")
    if value is None:
        return False
    summed = around.graph.values[value]
    if summed.dtype == torch.bool:
        return True
    bounds: Interval | None = around.intervals.get(value)
    if bounds is None or bounds.low < 0 or bounds.high > 1:
        return False
    data = summed.data
    return data is not None and data.numel() > 0 and bool(((data == 0) | (data == 1)).all())


def _mean(around: Surroundings, node: Node, defect: Defect) -> Found:
    picked = around.made_by(around.operand(node, "x"), "index", "masked_select")
    if picked is None or node.arguments.get("dim"):
        return
    choice = picked

    def write(code: Code) -> str:
        chosen = code.leads(code.operand(node), choice)
        if not isinstance(chosen, ast.Subscript):
            raise PatchError("the mask is not written as an index.")
        values = code.words(chosen)
        count = bracketed(code.words(chosen.slice))
        return f"{values}.sum() / {count}.sum().clamp(min=1)"

    yield "the mean of nothing is then 0", _anew(node, write), (node,)


# --- roots and masks -------------------------------------------------------------------------


def _root(around: Surroundings, node: Node, defect: Defect) -> Found:
    exponent = node.arguments.get("exponent")
    if node.op == "pow" and not (isinstance(exponent, float) and 0 < exponent < 1):
        return
    bounds = around.intervals.get(around.operand(node, "x") or -1)
    if not defect.gradient_only or bounds is None or bounds.low < 0:
        return
    for eps in EPSILONS:
        if math.sqrt(eps) < torch.finfo(bounds.dtype).tiny:
            continue
        why = "the slope of a root is infinite at 0"
        yield why, _added(node, eps), (node,)


def _added(node: Node, eps: float) -> Write:
    return lambda: added_edit(node.source, node.op, eps)


def _softmax(around: Surroundings, node: Node, defect: Defect) -> Found:
    filled = around.made_by(around.operand(node, "x"), "masked_fill")
    if filled is None or defect.code != "RN110" or filled.arguments.get("value") != -math.inf:
        return
    fill = filled

    def write(code: Code) -> str:
        call = code.anchor
        if not (isinstance(call, ast.Call) and len(call.args) in (2, 3) and not call.keywords):
            raise PatchError("the fill value is not written as an argument.")
        operand = code.words(code.operand(fill))
        if not isinstance(ast.parse(f"({operand}\n)", mode="eval").body, (ast.Name, ast.Attribute)):
            dtype = f"{code.function('torch', str(around.dtype(fill)).removeprefix('torch.'))}"
        else:
            dtype = f"{operand}.dtype"
        least = f"{code.function('torch', 'finfo')}({dtype}).min"
        return code.replaced(call, call.args[-1], least)

    why = "a row that is masked entirely then gets equal shares instead of NaN"
    yield why, _anew(fill, write), (node,)


def _dims(node: Node) -> str:
    dims = node.arguments.get("dim")
    if isinstance(dims, (list, tuple)):
        return str(dims[0]) if len(dims) == 1 else str(tuple(dims))
    return str(dims)


_RULES: dict[str, tuple[Callable[[Surroundings, Node, Defect], Found], ...]] = {
    "_softmax": (_softmax,),
    "div": (_quotient,),
    "log": (_log,),
    "log1p": (_log1p,),
    "mean": (_mean,),
    "pow": (_root,),
    "sqrt": (_root,),
}
