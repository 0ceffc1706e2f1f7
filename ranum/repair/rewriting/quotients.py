"""Quotients by norms and by counts, and means of what may be empty."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import torch

from ranum.analysis.graph import Node
from ranum.analysis.interval import Interval
from ranum.analysis.precision.base import Surroundings
from ranum.analysis.result import Defect
from ranum.repair._code import Code, bracketed
from ranum.repair.patch import clip_edit
from ranum.repair.rewriting.base import LAYOUT, Found, Rule, behind, refuse, through
from ranum.repair.rewriting.logarithms import is_square


def _quotient(around: Surroundings, node: Node, defect: Defect) -> Iterator[Found]:
    if around.is_number(node.arguments.get("x"), 1):
        return
    yield from _normalized(around, node)
    total = around.made_by(around.operand(node, "other"), "sum")
    if total is not None and _is_count(around, total):
        why = "an empty mask then gives 0 instead of NaN, and any other what it gave before"
        yield Found(
            why,
            node,
            lambda source: clip_edit(source, "div", lower=1.0, argument=1),
            (node,),
            is_edit=True,
        )


def _normalized(around: Surroundings, node: Node) -> Iterator[Found]:
    above, below = around.operand(node, "x"), around.operand(node, "other")
    layout = behind(around, below, *LAYOUT)
    inner = around.operand(layout[-1], "x") if layout else below
    norm = around.made_by(inner, "linalg_vector_norm")
    root = around.made_by(inner, "sqrt")
    middle: list[Node] = []
    if norm is None and root is not None:
        norm = around.made_by(around.operand(root, "x"), "sum")
        square = None if norm is None else around.made_by(around.operand(norm, "x"), "pow", "mul")
        if norm is None or square is None or not is_square(square):
            return
        middle = [root, square]
    if norm is None or norm.arguments.get("ord", 2) != 2 or above is None or below is None:
        return
    source = around.operand(middle[-1] if middle else norm, "x")
    along = norm.arguments.get("dim")
    if source != above or not along or len(along) != 1:
        return
    wide = list(around.graph.values[above].shape)
    wide[along[0]] = 1
    if list(around.graph.values[below].shape) != wide:
        return
    of = norm

    def write(code: Code) -> str:
        code.leads(through(code, code.operand(node, 1), layout), middle[0] if middle else of)
        axis = f"dim={code.axis(of)}" if code.library == "torch" else code.axis(of)
        return code.call("normalize", code.operand(node), axis=axis)

    why = "normalize bounds the norm below by 1e-12, and leaves vectors of 0 as they are"
    yield Found(why, node, write, (node, norm, *middle))


def _is_count(around: Surroundings, total: Node) -> bool:
    """True for a sum of a mask: of truth values, or of an input that holds only 0 and 1."""
    value = around.operand(total, "x")
    for _ in range(3):
        made = around.made_by(value, "_to_copy", "to", "cast")
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


def _mean(around: Surroundings, node: Node, defect: Defect) -> Iterator[Found]:
    picked = around.made_by(around.operand(node, "x"), "index", "masked_select")
    if picked is None or node.arguments.get("dim"):
        return
    choice = picked

    def write(code: Code) -> str:
        chosen = code.leads(code.operand(node), choice)
        if not isinstance(chosen, ast.Subscript) or code.library != "torch":
            raise refuse("the mask is not written as an index.")
        values = code.words(chosen)
        count = bracketed(code.words(chosen.slice))
        return f"{values}.sum() / {count}.sum().clamp(min=1)"

    yield Found("the mean of nothing is then 0", node, write, (node,))


def _mean_loss(around: Surroundings, node: Node, defect: Defect) -> Iterator[Found]:
    """mse_loss(x[mask], y[mask]), whose mean over nothing is NaN."""
    picked = around.made_by(around.operand(node, "x"), "index", "masked_select")
    if picked is None or node.arguments.get("reduction", 1) != 1 or defect.code != "RN109":
        return
    choice = picked

    def write(code: Code) -> str:
        call = code.anchor
        if not isinstance(call, ast.Call) or any(word.arg == "reduction" for word in call.keywords):
            raise refuse("the reduction is written out.")
        chosen = code.leads(code.operand(node), choice)
        if not isinstance(chosen, ast.Subscript):
            raise refuse("the mask is not written as an index.")
        whole = code.text(call).rstrip()
        summed = whole[:-1].rstrip().rstrip(",") + ', reduction="sum")'
        return f"{summed} / {bracketed(code.words(chosen.slice))}.sum().clamp(min=1)"

    yield Found("the mean of nothing is then 0", node, write, (node,))


RULES: dict[str, tuple[Rule, ...]] = {
    "div": (_quotient,),
    "mean": (_mean,),
    "mse_loss": (_mean_loss,),
    "smooth_l1_loss": (_mean_loss,),
    "huber_loss": (_mean_loss,),
}
