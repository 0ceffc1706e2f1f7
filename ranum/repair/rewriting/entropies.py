"""Binary cross entropies that are written out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from ranum.analysis.graph import Node
from ranum.analysis.precision.base import Surroundings
from ranum.analysis.result import Defect
from ranum.repair._code import Code
from ranum.repair.rewriting.base import Found, Rule

_WHY = "it works on the logits, and neither logarithm can underflow"


@dataclass(frozen=True, slots=True)
class _Term:
    """One of the two products: a sign, the product, the logarithm, the label beside it."""

    sign: int
    product: Node
    log: Node
    label: int
    is_label_left: bool


@dataclass(frozen=True, slots=True)
class _Entropy:
    """y log p + (1 - y) log(1 - p), times a sign."""

    sign: int
    total: Node
    hit: _Term
    rest: _Term
    gate: Node


def _entropy(around: Surroundings, node: Node, defect: Defect) -> Iterator[Found]:
    """±(y log p + (1 - y) log(1 - p)) with p = sigmoid(z), and its sum or mean."""
    chain, value, sign = list[Node](), node.outputs[0], 1
    while (made := around.made_by(value, "neg", "mean", "sum")) is not None:
        reduces = made.op != "neg"
        if reduces and (made.arguments.get("dim") or any(one.op != "neg" for one in chain)):
            return
        sign = sign if reduces else -sign
        chain.append(made)
        value = around.operand(made, "x")
    found = _found(around, value)
    if found is None or sign * found.sign > 0:
        return
    reduction = next((one.op for one in chain if one.op != "neg"), "none")
    if reduction == "none" and _is_reduced(around, node):
        return  # the reduction belongs to it, and is another anchor
    entropy = found

    def write(code: Code) -> str:
        written: ast.expr | None = None
        for one in chain:
            if written is not None:
                code.leads(written, one)
            written = code.operand(one)
        if written is not None:
            code.leads(written, entropy.total)
        label = _label(code, entropy)
        operand = code.operand(entropy.gate)
        if code.library == "tensorflow":
            words = (f"labels={code.words(label)}", f"logits={code.words(operand)}")
            call = code.call("cross_entropy", *words)
            reduce = code.function(f"tf.reduce_{reduction}") if reduction != "none" else ""
            return f"{reduce}({call})" if reduce else call
        ending = None if reduction == "mean" else f'reduction="{reduction}"'
        return code.call("cross_entropy", operand, label, axis=ending)

    yield Found(_WHY, node, write, (node, entropy.hit.log, entropy.rest.log))


def _found(around: Surroundings, value: int | None) -> _Entropy | None:
    total = around.made_by(value, "add", "sub")
    if total is None or total.arguments.get("alpha", 1) != 1:
        return None
    second = -1 if total.op == "sub" else 1
    terms = [
        _term(around, around.operand(total, "x"), 1),
        _term(around, around.operand(total, "other"), second),
    ]
    for hit, rest in (terms, terms[::-1]):
        if hit is None or rest is None or hit.sign != rest.sign:
            continue
        gate = around.made_by(around.operand(hit.log, "x"), "sigmoid")
        other = around.one_minus(around.operand(rest.log, "x"))
        if gate is None or around.made_by(other, "sigmoid") is not gate:
            continue
        label = around.one_minus(rest.label)
        shapes = [around.graph.values[number].shape for number in (hit.label, gate.outputs[0] or 0)]
        if label == hit.label and shapes[0] == shapes[1]:
            return _Entropy(hit.sign, total, hit, rest, gate)
    return None


def _term(around: Surroundings, value: int | None, sign: int) -> _Term | None:
    while (negative := around.made_by(value, "neg")) is not None:
        sign, value = -sign, around.operand(negative, "x")
    product = around.made_by(value, "mul")
    if product is None:
        return None
    for name, other in (("x", "other"), ("other", "x")):
        log, label = (
            around.made_by(around.operand(product, other), "log"),
            around.operand(product, name),
        )
        while label is not None and (negative := around.made_by(label, "neg")) is not None:
            sign, label = -sign, around.operand(negative, "x")
        if log is not None and label is not None:
            return _Term(sign, product, log, label, name == "x")
    return None


def _label(code: Code, entropy: _Entropy) -> ast.expr:
    """What was written for the label beside log p; the parts are looked through on the way."""
    for right in (False, True):
        code.meaning(code.side(entropy.total, right=right))
    code.meaning(code.operand(entropy.rest.log))
    code.leads(code.operand(entropy.hit.log), entropy.gate)
    label = code.side(entropy.hit.product, right=not entropy.hit.is_label_left)
    while isinstance(label, ast.UnaryOp) and isinstance(label.op, ast.USub):
        label = label.operand
    return label


def _is_reduced(around: Surroundings, node: Node) -> bool:
    """True if all that happens to a result is that it is added up or averaged."""
    output = node.outputs[0]
    readers = [
        around.graph.nodes[index]
        for index in around.readers.get(-1 if output is None else output, ())
        if around.graph.nodes[index].phase == "forward"
    ]
    return (
        len(readers) == 1
        and readers[0].op in ("mean", "sum", "neg")
        and not readers[0].arguments.get("dim")
    )


_OPS = ("add", "sub", "neg", "mean", "sum")
RULES: dict[str, tuple[Rule, ...]] = dict.fromkeys(_OPS, (_entropy,))
