"""The table of transfer functions: canonical operator name -> function on intervals.

A transfer function receives the operator's arguments by their ATen schema names (`self`
is called `x`), with an `Interval` in place of every tensor, None for an absent optional
tensor, and a list of `Interval` for a tensor list. It returns one `Interval`, or a tuple
with one entry per output (None for outputs that are not tensors). It must contain every
result that torch can produce from elements inside the operands; it need not be tight.

    @transfer("log", domain="positive")
    def log(x: Interval) -> Interval:
        '''Increasing on (0, inf); NaN below 0.'''

An operator may have a second, much faster rule for the ordinary case of one pair of bounds
per tensor: its *twin*, registered with `uniform`. See `transfer.uniform`.

Families live in sibling files; importing `ranum.analysis.transfer` fills the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ranum.errors import ArgumentError

Domain = Literal["all", "positive", "nonnegative", "nonzero", "unit"]
Function = Callable[..., Any]
_F = TypeVar("_F", bound=Function)


@dataclass(frozen=True, slots=True)
class Rule:
    """A transfer function and its traits.

    Attributes:
        op: Canonical operator name.
        function: Computes output intervals from argument intervals.
        domain: Where the operator is finite for finite operands.
        phase: Whether the operator belongs to forward or backward passes.
    """

    op: str
    function: Function
    domain: Domain
    phase: Literal["forward", "backward"]

    @property
    def twin(self) -> Twin | None:
        """The same on one pair of bounds per tensor, if there is one."""
        return _TWINS.get(self.op)

    @property
    def doc(self) -> str:
        """The mathematics: the function's docstring."""
        return self.function.__doc__ or ""


@dataclass(frozen=True, slots=True)
class Twin:
    """A transfer function on one pair of bounds per tensor; see `transfer.uniform`.

    Attributes:
        function: Takes the outputs' values, then the arguments of the transfer function.
        aside: Arguments that may have any bounds.
        exact: Arguments that are given in full where their data is known.
        hulls: True if operands with different bounds come out as their hull.
        moves: True if it only moves elements; then blocks are moved too, not merged.
        spreads: True if one operand that can be anything makes the results so.
        fragile: True if one operand that can be infinite does.
        masks: True if an operand with -inf in some of its blocks may be merged as well.
        wide: True if operands may be infinite or NaN. A result that does not say so itself, as
            a third entry, can be NaN if an operand can.
    """

    function: Function
    aside: frozenset[str]
    exact: frozenset[str]
    hulls: bool = False
    moves: bool = False
    spreads: bool = False
    fragile: bool = False
    masks: bool = False
    wide: bool = False


_RULES: dict[str, Rule] = {}
_TWINS: dict[str, Twin] = {}


def transfer(
    *ops: str, domain: Domain = "all", phase: Literal["forward", "backward"] = "forward"
) -> Callable[[_F], _F]:
    """Registers a transfer function for one or more operators.

    Raises:
        ArgumentError: If an operator already has a rule, or the function has no docstring.
    """

    def register(function: _F) -> _F:
        if not function.__doc__:
            raise ArgumentError(
                f"transfer function {function.__name__} has no docstring; state its mathematics."
            )
        for op in ops:
            if op in _RULES:
                raise ArgumentError(
                    f"op {op!r} already has a transfer function, "
                    f"{_RULES[op].function.__qualname__}; remove one of the two."
                )
            _RULES[op] = Rule(op, function, domain, phase)
        return function

    return register


def uniform(
    *ops: str, aside: Sequence[str] = (), exact: Sequence[str] = (), **traits: bool
) -> Callable[[_F], _F]:
    """Registers the twin of one or more transfer functions; options as in `Twin`.

    Raises:
        ArgumentError: If an operator already has a twin.
    """

    def register(function: _F) -> _F:
        for op in ops:
            if op in _TWINS:
                raise ArgumentError(
                    f"op {op!r} already has a twin, {_TWINS[op].function.__qualname__}; "
                    "remove one of the two."
                )
            _TWINS[op] = Twin(function, frozenset(aside), frozenset(exact), **traits)
        return function

    return register


def rule_for(op: str) -> Rule | None:
    """The rule of an operator, or None if it is unknown."""
    return _RULES.get(op)


def rules() -> dict[str, Rule]:
    """A copy of the table."""
    return dict(_RULES)


def twins() -> dict[str, Twin]:
    """A copy of the table of twins."""
    return dict(_TWINS)
