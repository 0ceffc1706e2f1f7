"""Logarithms of shares, of complements, of sums and quotients of exponentials."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from ranum.analysis.graph import Node
from ranum.analysis.precision.base import Surroundings
from ranum.analysis.result import Defect
from ranum.repair._code import Code, bracketed
from ranum.repair.rewriting.base import LAYOUT, Found, Rule, behind, refuse, same, through

_SELECTIONS = ("gather", "index", "select", "slice", "squeeze", "unsqueeze", "reshape")
_TINY = 1e-5
"""Numbers up to this are taken for a guard that was added to keep a logarithm finite."""
_SHARES = "log_softmax does not underflow, and neither does its gradient"
_GATE = "logsigmoid does not underflow, and neither does its gradient"


def _log(around: Surroundings, node: Node, defect: Defect) -> Iterator[Found]:
    x = around.operand(node, "x")
    softmax, sigmoid = around.made_by(x, "_softmax"), around.made_by(x, "sigmoid")
    if softmax is not None:
        soft = softmax

        def log_softmax(code: Code) -> str:
            return _log_softmax(code, code.operand(node), soft)

        yield Found(_SHARES, node, log_softmax, (node, softmax))
    if sigmoid is not None:
        gate = sigmoid

        def logsigmoid(code: Code) -> str:
            code.leads(code.operand(node), gate)
            return code.call("logsigmoid", code.operand(gate))

        yield Found(_GATE, node, logsigmoid, (node, sigmoid))
    yield from _guarded(around, node, x)
    yield from _of_complement(around, node, x)
    yield from _of_selected(around, node, x)
    yield from _of_quotient(around, node, x)
    yield from _of_sum(around, node, x)
    yield from _of_tanh(around, node, x)


def _log_softmax(code: Code, written: ast.expr, softmax: Node) -> str:
    call = code.leads(written, softmax)
    renamed = code.renamed(call, "softmax", "log_softmax")
    if renamed is not None:
        return renamed
    return code.call("log_softmax", code.operand(softmax), axis=code.axis(softmax))


def _addends(around: Surroundings, value: int | None) -> tuple[Node, int | None, bool] | None:
    """The sum with a tiny number that made a value, the other side, and if that is the left."""
    node = around.made_by(value, "add")
    if node is None or node.arguments.get("alpha", 1) != 1:
        return None
    for name, other in (("x", "other"), ("other", "x")):
        number = _number(around, node, other)
        if number is not None and 0 < number <= _TINY:
            return node, around.operand(node, name), name == "x"
    return None


def _number(around: Surroundings, node: Node, name: str) -> float | None:
    argument = node.arguments.get(name)
    if isinstance(argument, (int, float)):
        return float(argument)
    value = around.operand(node, name)
    data = None if value is None else around.graph.values[value].data
    is_known = value is not None and around.graph.values[value].kind == "constant"
    return float(data) if is_known and data is not None and data.numel() == 1 else None


def _guarded(around: Surroundings, node: Node, x: int | None) -> Iterator[Found]:
    """A logarithm whose guard is lost in rounding: log(p + 1e-46)."""
    found = _addends(around, x)
    if found is None:
        return
    plus, inner, is_left = found
    softmax, sigmoid = around.made_by(inner, "_softmax"), around.made_by(inner, "sigmoid")

    def side(code: Code) -> ast.expr:
        code.leads(code.operand(node), plus)
        return code.side(plus, right=not is_left)

    if softmax is not None:
        soft = softmax

        def log_softmax(code: Code) -> str:
            return _log_softmax(code, side(code), soft)

        yield Found(_SHARES, node, log_softmax, (node, plus, softmax))
    if sigmoid is not None:
        gate = sigmoid

        def logsigmoid(code: Code) -> str:
            code.leads(side(code), gate)
            return code.call("logsigmoid", code.operand(gate))

        yield Found(_GATE, node, logsigmoid, (node, plus, sigmoid))


def _of_complement(around: Surroundings, node: Node, x: int | None) -> Iterator[Found]:
    rest = around.made_by(x, "rsub", "sub")
    if rest is None:
        return
    whole, part = ("other", "x") if rest.op == "rsub" else ("x", "other")
    one = _number(around, rest, whole)
    gate = around.made_by(around.operand(rest, part), "sigmoid")
    if one is None or gate is None or abs(one - 1) > _TINY or rest.arguments.get("alpha", 1) != 1:
        return

    def write(code: Code) -> str:
        code.leads(code.operand(node), rest)
        code.leads(code.side(rest, right=True), gate)
        operand = bracketed(code.words(code.operand(gate)))
        return code.call("logsigmoid", f"-{operand}")

    why = "1 - sigmoid(x) is 0 for large x; logsigmoid(-x) is not"
    yield Found(why, node, write, (node,))


def _of_selected(around: Surroundings, node: Node, x: int | None) -> Iterator[Found]:
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
        elif isinstance(selection, ast.Call):
            inner = code.operand(choice)
            words = [word.value for word in selection.keywords]
            others = [part for part in (*selection.args, *words) if part is not inner]
        else:
            raise refuse("the choice is not written as an index or a call.")
        for part in others:
            code.words(part)
        return code.replaced(selection, inner, _log_softmax(code, inner, soft))

    yield Found(_SHARES, node, write, (node, softmax))


def _of_quotient(around: Surroundings, node: Node, x: int | None) -> Iterator[Found]:
    ratio = around.made_by(x, "div")
    if ratio is None:
        return
    over, above, below = ratio, around.operand(ratio, "x"), around.operand(ratio, "other")
    first, second = around.made_by(above, "_softmax"), around.made_by(below, "_softmax")
    if first is not None and second is not None:
        p, q = first, second

        def difference(code: Code) -> str:
            code.leads(code.operand(node), over)
            left = _log_softmax(code, code.operand(over), p)
            return f"{left} - {_log_softmax(code, code.operand(over, 1), q)}"

        yield Found(_SHARES, node, difference, (node, ratio, first, second))
    found = by_sum(around, above, below)
    if found is not None:
        power, other, total, layout = found

        def log_softmax(code: Code) -> str:
            code.leads(code.operand(node), over)
            code.leads(code.operand(over), power)
            code.leads(through(code, code.operand(over, 1), layout), total)
            return code.call("log_softmax", code.operand(power), axis=code.axis(total))

        why = "log_softmax takes the largest exponent out first"
        yield Found(why, node, log_softmax, (node, ratio, power, other, total))


def by_sum(
    around: Surroundings, above: int | None, below: int | None
) -> tuple[Node, Node, Node, list[Node]] | None:
    """The parts of exp(x) / sum(exp(x), dim): both powers, the sum, what changes its shape."""
    power = around.made_by(above, "exp")
    layout = behind(around, below, *LAYOUT, "repeat")
    total = around.made_by(around.operand(layout[-1], "x") if layout else below, "sum")
    if power is None or total is None:
        return None
    other = around.made_by(around.operand(total, "x"), "exp")
    if other is None or not same(around, around.operand(power, "x"), around.operand(other, "x")):
        return None
    along = total.arguments.get("dim")
    if not isinstance(along, (list, tuple)) or len(along) != 1:
        return None
    wide = list(around.graph.values[power.outputs[0] or 0].shape)
    wide[along[0]] = 1
    shape = around.graph.values[_before_repeats(around, below)].shape
    return (power, other, total, layout) if list(shape) == wide else None


def _before_repeats(around: Surroundings, value: int | None) -> int:
    while (node := around.made_by(value, "repeat", "expand")) is not None:
        value = around.operand(node, "x")
    assert value is not None
    return value


def _of_sum(around: Surroundings, node: Node, x: int | None) -> Iterator[Found]:
    one, exponential = around.made_by(x, "add"), around.made_by(around.one_plus(x), "exp")
    if one is not None and exponential is not None:
        plus, power = one, exponential

        def softplus(code: Code) -> str:
            code.leads(code.operand(node), plus)
            code.leads(code.other_than_number(plus), power)
            return code.call("softplus", code.operand(power))

        yield Found("softplus does not overflow", node, softplus, (node, plus, power))
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
                return code.call("logaddexp", code.operand(first), code.operand(second))

            why = "logaddexp does not overflow"
            yield Found(why, node, logaddexp, (node, one, left, right))
    summed = around.made_by(x, "sum", "mean")
    inner = None if summed is None else around.made_by(around.operand(summed, "x"), "exp")
    if summed is not None and inner is not None:
        write = _logsumexp(around, node, summed, inner)
        why = "logsumexp takes the largest exponent out first"
        yield Found(why, node, write, (node, summed, inner))


def _logsumexp(around: Surroundings, node: Node, total: Node, power: Node) -> Callable[[Code], str]:
    shape = around.graph.values[power.outputs[0] or 0].shape
    along = total.arguments.get("dim")

    def write(code: Code) -> str:
        code.leads(code.operand(node), total)
        code.leads(code.operand(total), power)
        written = code.operand(power)
        operand, axis = bracketed(code.words(written)), code.axis(total)
        if not along and code.library == "torch" and len(shape) != 1:
            operand, axis = f"{operand}.flatten()", "0"
        elif not along:
            axis = "0" if code.library == "torch" else "None"
        else:
            operand = code.words(written)
        if total.arguments.get("keepdim"):
            axis += ", keepdim=True" if code.library == "torch" else ", keepdims=True"
        call = code.call("logsumexp", operand, axis=axis)
        if total.op == "sum":
            return call
        if not isinstance(written, (ast.Name, ast.Attribute)) or not along or len(along) != 1:
            raise refuse("what is averaged over has no name.")
        size = f"{code.words(written)}.shape[{along[0]}]"
        return f"{call} - {code.call('math.log', size)}"

    return write


def _of_tanh(around: Surroundings, node: Node, x: int | None) -> Iterator[Found]:
    """log(1 - tanh(u)²) = 2 (log 2 - u - softplus(-2u))."""
    rest, inner = around.made_by(x, "rsub", "sub"), around.one_minus(x)
    square = around.made_by(inner, "pow", "mul")
    tanh = None if square is None else around.made_by(around.operand(square, "x"), "tanh")
    if rest is None or square is None or tanh is None or not is_square(square):
        return
    one, power, bent = rest, square, tanh

    def write(code: Code) -> str:
        code.leads(code.operand(node), one)
        code.leads(code.side(one, right=True), power)
        code.leads(code.operand(power), bent)
        u = code.named(code.operand(bent))
        return f"2 * ({code.call('math.log', '2')} - {u} - {code.call('softplus', f'-2 * {u}')})"

    why = "1 - tanh(x)**2 is 0 for large x; its logarithm by softplus is not"
    yield Found(why, node, write, (node,))


def is_square(node: Node) -> bool:
    """True for x**2 and x * x."""
    if node.op == "pow":
        return node.arguments.get("exponent") == 2
    return node.arguments.get("x") == node.arguments.get("other")


def _log1p(around: Surroundings, node: Node, defect: Defect) -> Iterator[Found]:
    exponential = around.made_by(around.operand(node, "x"), "exp")
    if exponential is None:
        return
    power = exponential

    def write(code: Code) -> str:
        code.leads(code.operand(node), power)
        return code.call("softplus", code.operand(power))

    yield Found("softplus does not overflow", node, write, (node, exponential))


RULES: dict[str, tuple[Rule, ...]] = {"log": (_log,), "log1p": (_log1p,)}
