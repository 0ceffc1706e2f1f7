"""Small constants that the dtype cannot tell from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ranum.analysis.graph import Node
from ranum.analysis.precision.base import AdviceRule, Suggestion, Surroundings, advice_rule

_SUMS = frozenset({"add", "sub", "rsub"})
_CLAMPS = frozenset({"clamp", "clamp_min", "clamp_max"})
_FRAGILE = frozenset({"log", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "div"})


def _numbers(node: Node) -> list[float]:
    """The Python floats among the arguments that shift or limit a tensor."""
    names = ("other",) if node.op in _SUMS else ("min", "max")
    found = [node.arguments.get(name) for name in names]
    return [number for number in found if isinstance(number, float)]


def _rounded(number: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(number, dtype=dtype))


@advice_rule
@dataclass(frozen=True)
class AbsorbedEps(AdviceRule):
    """A small constant that disappears in a larger neighbour.

    What it finds: a number such as 1 + 1e-10 or 1 - 1e-8, written in the program, that is
    exactly 1 in the tensor's dtype; and a small constant added to values that are all so large
    that none of them changes, where something is subtracted afterwards and a logarithm, root
    or division follows.

    Why it matters: the guard is not there. In float32 the numbers next to 1 are 1 - 6e-8 and
    1 + 1.2e-7: p.clamp(1e-8, 1 - 1e-8) lets p = 1 pass, and log(1 - p) is -inf (RN101).

    Known misses: a guard that is too small for some values only, and not for all.

    Remedies: an eps the dtype can hold next to its neighbour: 1e-7 in float32, 1e-3 in float16
    below 1, 1e-2 in bfloat16; or add it last, next to the number it guards.

    Example:
        loss = -torch.log(1 + 1e-10 - p)

    References:
        IEEE 754-2019. N. Higham, Accuracy and Stability of Numerical Algorithms, 2002, chapter 2.
    """

    code: ClassVar[str] = "RN112"
    ops: ClassVar[frozenset[str]] = _SUMS | _CLAMPS

    def look(self, around: Surroundings, node: Node) -> Suggestion | None:
        """A number that rounds to 1, or one too small for all it is added to."""
        dtype = around.dtype(node)
        if not dtype.is_floating_point:
            return None
        info = torch.finfo(dtype)
        for number in _numbers(node):
            # Sums take the number in float32 at least, clamps in the tensor's own dtype.
            is_wide = node.op in _SUMS and dtype.itemsize < 4
            held = _rounded(number, torch.float32 if is_wide else dtype)
            if abs(held) == 1 and number != held:
                return Suggestion(
                    f"{number!r} is exactly {held:g} in {_name(dtype)}",
                    f"a distance from {held:g} of {_nice(info.eps)} or more",
                )
            if node.op == "add" and self._is_lost(around, node, number, info):
                return Suggestion(
                    f"all values are so large that {number:g} changes none of them",
                    "the eps added last, next to the number it guards",
                )
        return None

    def _is_lost(self, around: Surroundings, node: Node, number: float, info: torch.finfo) -> bool:
        x, output = around.operand(node, "x"), node.outputs[0]
        interval = None if x is None else around.intervals.get(x)
        if interval is None or output is None or number == 0 or interval.may_nan:
            return False
        least = interval.low if interval.low > 0 else -interval.high
        if not abs(number) < least * info.eps / 2:
            return False
        return any(
            _is_fragile(around, graph_node)
            for graph_node in (around.graph.nodes[i] for i in around.readers.get(output, ()))
            if graph_node.op in ("sub", "rsub")
        )


def _is_fragile(around: Surroundings, difference: Node) -> bool:
    output = difference.outputs[0]
    if output is None:
        return False
    for index in around.readers.get(output, ()):
        reader = around.graph.nodes[index]
        if reader.phase != "forward" or reader.op not in _FRAGILE:
            continue
        if reader.op != "div" or around.operand(reader, "other") == output:
            return True
    return False


@advice_rule
@dataclass(frozen=True)
class VanishedEps(AdviceRule):
    """A small constant that is 0 in the tensor's dtype.

    What it finds: a non-zero number that is added to a tensor, or is a bound of a clamp, and
    rounds to 0 in the tensor's dtype: 1e-8 in float16, whose smallest number is 6e-8.

    Why it matters: the guard against 0 is 0. Code that was written for float32 is run under
    autocast or `.half()` with its constants unchanged.

    Known misses: an eps that stays above 0 but is lost next to a larger number is RN112.

    Remedies: 1e-4 in float16 (its reciprocal is finite; that of anything below 1.6e-5 is not);
    or keep that part in float32.

    Example:
        y = x.half() / (x.half().norm() + 1e-8)

    References:
        P. Micikevicius et al., Mixed Precision Training, ICLR 2018.
    """

    code: ClassVar[str] = "RN113"
    ops: ClassVar[frozenset[str]] = _SUMS | _CLAMPS

    def look(self, around: Surroundings, node: Node) -> Suggestion | None:
        """A number that rounds to 0."""
        dtype = around.dtype(node)
        if not dtype.is_floating_point:
            return None
        for number in _numbers(node):
            if number != 0 and _rounded(number, dtype) == 0:
                enough = 1e-4 if dtype == torch.float16 else torch.finfo(dtype).tiny
                return Suggestion(
                    f"{number:g} is 0 in {_name(dtype)}",
                    f"{enough:g} or more, or this part in float32",
                )
        return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _nice(eps: float) -> str:
    """The next power of ten above, as text."""
    return f"1e{len(str(int(1 / eps))) * -1 + 1}"
