"""What a rule of advice is, the table of them, and what such rules ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from ranum.analysis.facts import root
from ranum.analysis.graph import Graph, Node, Ref
from ranum.analysis.interval import Interval
from ranum.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What a rule has to say about one operator.

    Attributes:
        loss: What is lost, in words.
        rewrite: What to write instead, an expression.
    """

    loss: str
    rewrite: str


class Surroundings:
    """The recorded step and its bounds, as rules of advice see them."""

    def __init__(self, graph: Graph, intervals: Mapping[int, Interval]) -> None:
        self.graph = graph
        self.intervals = intervals

    @cached_property
    def readers(self) -> Mapping[int, tuple[int, ...]]:
        """For each value, the indices of the nodes that read it."""
        return self.graph.consumers()

    def operand(self, node: Node, name: str) -> int | None:
        """The value behind an argument, or None if it is a number."""
        argument = node.arguments.get(name)
        return root(self.graph, argument.value) if isinstance(argument, Ref) else None

    def made_by(self, value: int | None, *ops: str) -> Node | None:
        """The node that made a value, behind copies, if it is one of `ops`."""
        node = None if value is None else self.graph.producer(root(self.graph, value))
        return node if node is not None and node.op in ops else None

    def is_number(self, argument: object, number: float) -> bool:
        """True for the number itself and for a recorded constant that holds nothing else."""
        if isinstance(argument, Ref):
            value = self.graph.values[argument.value]
            return (
                value.kind == "constant"
                and value.data is not None
                and value.data.numel() > 0
                and bool((value.data == number).all())
            )
        return isinstance(argument, (int, float)) and argument == number

    def one_plus(self, value: int | None) -> int | None:
        """The x of a 1 + x, or None."""
        node = self.made_by(value, "add")
        if node is None or node.arguments.get("alpha", 1) != 1:
            return None
        if self.is_number(node.arguments["other"], 1):
            return self.operand(node, "x")
        return self.operand(node, "other") if self.is_number(node.arguments["x"], 1) else None

    def one_minus(self, value: int | None) -> int | None:
        """The x of a 1 - x, or None."""
        node = self.made_by(value, "rsub", "sub")
        if node is None or node.arguments.get("alpha", 1) != 1:
            return None
        whole, part = ("other", "x") if node.op == "rsub" else ("x", "other")
        return self.operand(node, part) if self.is_number(node.arguments[whole], 1) else None

    def may_be_small(self, value: int | None) -> bool:
        """True if the value's bounds come within a hundredth of 0, where 1 + x loses digits."""
        interval = None if value is None else self.intervals.get(value)
        return interval is not None and interval.low <= 0.01 and interval.high >= -0.01

    def dtype(self, node: Node) -> torch.dtype:
        """Of the node's first output."""
        output = node.outputs[0]
        return torch.bool if output is None else self.graph.values[output].dtype


@dataclass(frozen=True)
class AdviceRule(ABC):
    """One family of spellings that lose precision.

    A rule sees one operator of the forward pass and what lies around it. It is pure. The
    docstring of a subclass is its page, with the same sections as those of defect rules.
    """

    code: ClassVar[str]
    ops: ClassVar[frozenset[str]]

    @abstractmethod
    def look(self, around: Surroundings, node: Node) -> Suggestion | None:
        """What to say about the node, or None."""


CODES: dict[str, type[AdviceRule]] = {}


def advice_rule(cls: type[AdviceRule]) -> type[AdviceRule]:
    """Registers a rule of advice by its code; codes are shared with the defect rules.

    Raises:
        ArgumentError: If the code is taken, or the rule has no page.
    """
    from ranum.analysis.defects.base import CODES as DEFECTS

    if cls.code in CODES or cls.code in DEFECTS:
        raise ArgumentError(f"code {cls.code} is taken.")
    if not cls.__doc__:
        raise ArgumentError(f"rule {cls.__name__} has no docstring; it is the rule's page.")
    CODES[cls.code] = cls
    return cls
