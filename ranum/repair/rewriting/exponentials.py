"""Exponentials: their quotients, and functions that are written out with them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ranum.analysis.graph import Node
from ranum.analysis.precision.base import Surroundings
from ranum.analysis.result import Defect
from ranum.repair._code import Code, bracketed
from ranum.repair.rewriting.base import Found, Rule, same, through
from ranum.repair.rewriting.logarithms import by_sum


def _quotient(around: Surroundings, node: Node, defect: Defect) -> Iterator[Found]:
    above, below = around.operand(node, "x"), around.operand(node, "other")
    found = by_sum(around, above, below)
    if found is not None:
        power, other, total, layout = found

        def softmax(code: Code) -> str:
            code.leads(code.operand(node), power)
            code.leads(through(code, code.operand(node, 1), layout), total)
            return code.call("softmax", code.operand(power), axis=code.axis(total))

        why = "softmax takes the largest exponent out first"
        yield Found(why, node, softmax, (node, power, other, total))
    first, second = around.made_by(above, "exp"), around.made_by(below, "exp")
    if first is not None and second is not None:
        over, under = first, second

        def difference(code: Code) -> str:
            code.leads(code.operand(node), over)
            code.leads(code.operand(node, 1), under)
            taken = bracketed(code.words(code.operand(under)))
            return code.call("exp", f"{code.words(code.operand(over))} - {taken}")

        why = "the difference of the exponents stays small where each is large"
        yield Found(why, node, difference, (node, first, second))
    yield from _tanh(around, node, above, below)


def _tanh(
    around: Surroundings, node: Node, above: int | None, below: int | None
) -> Iterator[Found]:
    """(exp(u) - exp(-u)) / (exp(u) + exp(-u))."""
    difference, total = around.made_by(above, "sub"), around.made_by(below, "add")
    if difference is None or total is None:
        return
    minus, plus = difference, total
    powers = [
        around.made_by(around.operand(one, name), "exp")
        for one in (minus, plus)
        for name in ("x", "other")
    ]
    if any(power is None for power in powers):
        return
    exps = [power for power in powers if power is not None]
    inner = [around.operand(power, "x") for power in exps]
    negative = around.made_by(inner[1], "neg")
    if negative is None or around.operand(negative, "x") != inner[0]:
        return
    if not (same(around, inner[0], inner[2]) and same(around, inner[1], inner[3])):
        return

    def write(code: Code) -> str:
        sides = (code.operand(node), code.operand(node, 1))
        for side, one, pair in zip(sides, (minus, plus), (exps[:2], exps[2:]), strict=True):
            code.leads(side, one)
            code.leads(code.side(one, right=False), pair[0])
            code.leads(code.side(one, right=True), pair[1])
        return code.call("tanh", code.operand(exps[0]))

    yield Found("tanh does not overflow", node, write, (node, minus, plus, *exps))


def _inverse(around: Surroundings, node: Node, defect: Defect) -> Iterator[Found]:
    """1 / (1 + exp(-u))."""
    name = "x" if node.op == "reciprocal" else "other"
    if node.op == "div" and not around.is_number(node.arguments.get("x"), 1):
        return
    below = around.operand(node, name)
    plus, power = around.made_by(below, "add"), around.made_by(around.one_plus(below), "exp")
    if plus is None or power is None:
        return
    one, exponential = plus, power

    def write(code: Code) -> str:
        code.leads(code.operand(node, 0 if node.op == "reciprocal" else 1), one)
        code.leads(code.other_than_number(one), exponential)
        written = code.meaning(code.operand(exponential))
        if not (isinstance(written, ast.UnaryOp) and isinstance(written.op, ast.USub)):
            return code.call("sigmoid", f"-{bracketed(code.words(code.operand(exponential)))}")
        return code.call("sigmoid", written.operand)

    yield Found("sigmoid does not overflow", node, write, (node, plus, power))


def _complement(around: Surroundings, node: Node, defect: Defect) -> Iterator[Found]:
    """1 - sigmoid(u) among what a defective operator reads: sigmoid(-u) keeps its digits."""
    seen: list[Node] = []
    front = [around.operand(node, name) for name in node.arguments]
    for _ in range(3):
        makers = [around.graph.producer(one) for one in front if one is not None]
        seen += [one for one in makers if one is not None and one not in seen]
        front = [around.operand(one, name) for one in makers if one for name in one.arguments]
    for rest in seen:
        gate = around.made_by(around.one_minus(rest.outputs[0]), "sigmoid")
        if rest.op not in ("rsub", "sub") or gate is None:
            continue

        def write(code: Code, rest: Node = rest, gate: Node = gate) -> str:
            code.leads(code.side(rest, right=True), gate)
            return code.call("sigmoid", f"-{bracketed(code.words(code.operand(gate)))}")

        why = "1 - sigmoid(x) is 0 from x = 17 on; sigmoid(-x) is not"
        yield Found(why, rest, write, (defect_node(around, defect),))


def defect_node(around: Surroundings, defect: Defect) -> Node:
    """The operator of a defect."""
    return around.graph.nodes[defect.node]


RULES: dict[str, tuple[Rule, ...]] = {
    "div": (_quotient, _inverse, _complement),
    "reciprocal": (_inverse, _complement),
    "sqrt": (_complement,),
    "rsqrt": (_complement,),
    "pow": (_complement,),
    "log": (_complement,),
}
