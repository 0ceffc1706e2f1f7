"""What a defect rule is, and the table of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch

from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval
from ranum.errors import ArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A rule's verdict on one operator.

    Attributes:
        argument: Name of the operator's argument to blame.
        bad: The values that do harm, in words.
        outcome: What comes out, in words.
        safe: Range of the argument in which the operator is harmless; what a clip may keep.
        remedy: What a developer would write instead.
        gradient_only: True if only the gradient is lost.
    """

    argument: str
    bad: str
    outcome: str
    safe: tuple[float, float] | None = None
    remedy: str = ""
    gradient_only: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """What lies around the operator that is judged.

    Attributes:
        graph: The recorded step.
        interval: Bounds of a value by number; None where they are not computed (yet).
    """

    graph: Graph
    interval: Callable[[int], Interval | None]


@dataclass(frozen=True)
class DefectRule(ABC):
    """One family of numerical defects.

    A rule sees one operator at a time: its arguments with intervals in place of tensors, and
    its result; one that needs more sees the graph as well (`check_in`). It is pure. The
    docstring of a subclass is its page: What it finds, Why it matters, Known misses, Remedies,
    Example, References.
    """

    code: ClassVar[str]
    ops: ClassVar[frozenset[str]]
    is_about_size: ClassVar[bool] = False
    """True for rules that must hold for operands of moderate size as well: a network whose
    values have grown beyond that by themselves is not this operator's defect."""
    is_about_result: ClassVar[bool] = False
    """True for rules that never object to a finite result."""
    is_exhaustive: ClassVar[bool] = True
    """True if the rules about any operator (RN107, RN111) have nothing to add to this one."""

    @abstractmethod
    def check(self, node: Node, arguments: Mapping[str, Any], result: Interval) -> Problem | None:
        """The problem the operator can have for these intervals, or None."""

    def check_in(
        self, scene: Scene, node: Node, arguments: Mapping[str, Any], result: Interval
    ) -> Problem | None:
        """As `check`, for rules that look at other operators as well."""
        return self.check(node, arguments, result)


CODES: dict[str, type[DefectRule]] = {}


def defect_rule(cls: type[DefectRule]) -> type[DefectRule]:
    """Registers a rule by its code.

    Raises:
        ArgumentError: If the code is taken, malformed, or the rule has no page.
    """
    if not cls.code.startswith("RN1") or len(cls.code) != 5:
        raise ArgumentError(f"code must be RN1 and two digits; got {cls.code!r}.")
    if cls.code in CODES:
        raise ArgumentError(f"code {cls.code} is taken by {CODES[cls.code].__name__}.")
    if not cls.__doc__:
        raise ArgumentError(f"defect rule {cls.__name__} has no docstring; it is the rule's page.")
    CODES[cls.code] = cls
    return cls


# --- what rules ask ------------------------------------------------------------------------


@cache
def moderate(dtype: torch.dtype) -> float:
    """The size up to which operands count as ordinary.

    The sixteenth root of the largest number: 256 in float32 and bfloat16, 1.8e19 in float64.
    In float16, whose range ends at 65,504, every size is.
    """
    largest = torch.finfo(dtype).max
    return float(largest if largest < 1e6 else largest ** (1 / 16))


@cache
def smallest_positive(dtype: torch.dtype) -> float:
    """The smallest positive number of the dtype, subnormal."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def is_float(argument: Any) -> bool:
    """True for an interval of floating-point elements."""
    return isinstance(argument, Interval) and argument.dtype.is_floating_point


def number_or_interval(argument: Any) -> tuple[float, float]:
    """Bounds of an argument that may be a Python number."""
    if isinstance(argument, Interval):
        return argument.low, argument.high
    return float(argument), float(argument)


def is_finite(argument: Any) -> bool:
    """True unless an interval (or number) holds NaN or infinity; other arguments are finite."""
    if isinstance(argument, Interval):
        return argument.is_finite
    if isinstance(argument, float):
        return argument - argument == 0.0
    if isinstance(argument, (list, tuple)):
        return all(is_finite(item) for item in argument)
    return True
