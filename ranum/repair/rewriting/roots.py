"""Roots and powers below one, whose slope is infinite at 0."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

from ranum.analysis.graph import Node
from ranum.analysis.precision.base import Surroundings
from ranum.analysis.result import Defect
from ranum.repair.patch import Edit, added_edit
from ranum.repair.rewriting.base import Found, Rule
from ranum.source import Source

EPSILONS = (1e-12, 1e-8, 1e-6, 1e-4)
"""What is tried under a root, the smallest first."""


def _root(around: Surroundings, node: Node, defect: Defect) -> Iterator[Found]:
    exponent = node.arguments.get("exponent")
    if node.op == "pow" and not (isinstance(exponent, float) and 0 < exponent < 1):
        return
    operand = around.operand(node, "x")
    bounds = None if operand is None else around.intervals.get(operand)
    if not defect.gradient_only or bounds is None or bounds.low < 0:
        return
    for eps in EPSILONS:
        if math.sqrt(eps) < torch.finfo(bounds.dtype).tiny:
            continue
        edit = partial(_added, op=node.op, eps=eps)
        yield Found("the slope of a root is infinite at 0", node, edit, (node,), is_edit=True)


def _added(source: Source, op: str, eps: float) -> Edit:
    return added_edit(source, op, eps)


RULES: dict[str, tuple[Rule, ...]] = {"sqrt": (_root,), "pow": (_root,)}
