"""Runs a TensorFlow function operator by operator on torch tensors.

Branches, loops and calls are carried out concretely. Values are tensors, or what stands for
TensorFlow's other values: `Variable` for a resource, a list for a TensorList, a numpy array
for strings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ranum.analysis.capture.tensorflow.function import (
    ARGUMENT,
    CustomGradient,
    Function,
    Operation,
)
from ranum.analysis.capture.tensorflow.gradients import (
    PassedOn,
    Reread,
    UnreadGradient,
    applied,
    applied_all,
)
from ranum.errors import ArgumentError
from ranum.source import Source, located

_MOST_RESULTS = 8
"""Lowerings that ask which results are read have fewer than this."""
LOOP_LIMIT = 100_000
"""A loop that has not ended after so many rounds is taken to be endless."""


class Variable:
    """A TensorFlow variable while a step runs.

    Attributes:
        name: Layer path and name.
        tensor: What it holds now.
    """

    def __init__(self, name: str, tensor: Any) -> None:
        self.name = name
        self.tensor = tensor
        self._first = tensor

    def assign(self, value: Any) -> None:
        """Another value, for the rest of the step.

        As in TensorFlow, gradients of later reads are the variable's and stop there.
        """
        value = value.detach() if isinstance(value, Tensor) else value
        trained = isinstance(self._first, Tensor) and self._first.requires_grad
        self.tensor = applied(Reread, self._first, value) if trained else value


@dataclass(frozen=True, slots=True)
class Call:
    """What a lowering is told about the operation it carries out.

    Attributes:
        operation: The operation.
        constant: For each operand, True if it depends on nothing but constants of the graph.
        read: Positions of the results that somebody reads.
        awaited: True if somebody waits for its side effects.
        machine: Runs the functions that the operation names.
    """

    operation: Operation
    constant: tuple[bool, ...]
    read: frozenset[int]
    awaited: bool
    machine: Machine

    def __getitem__(self, attribute: str) -> Any:
        return self.operation.attributes[attribute]

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute, or `default` where the operation lacks it."""
        value = self.operation.attributes.get(attribute)
        return default if value is None else value


Lowering = Callable[..., Any]
"""Takes the `Call` and the operands; returns the result, or a tuple of results."""


class Machine:
    """Runs functions of one program; made anew for every step.

    Args:
        library: The functions by name.
        lowerings: The lowering of each operator type.
        unknown: Carries out the operators that have none, or whose lowering raises
            `NotImplementedError`.
    """

    def __init__(
        self,
        library: Mapping[str, Function],
        lowerings: Mapping[str, Lowering],
        unknown: Lowering,
    ) -> None:
        self._library = library
        self._lowerings = lowerings
        self._unknown = unknown
        self._caller: list[Source] = []

    def call(
        self,
        name: str,
        arguments: Sequence[Any],
        constant: Sequence[bool] | None = None,
        *,
        effects: bool = True,
    ) -> tuple[Any, ...]:
        """Runs a function of the library; see `run`."""
        if name not in self._library:
            raise ArgumentError(f"target calls the function {name}, which it does not hold.")
        return self.run(self._library[name], arguments, constant, effects=effects)

    def run(
        self,
        function: Function,
        arguments: Sequence[Any],
        constant: Sequence[bool] | None = None,
        *,
        effects: bool = False,
    ) -> tuple[Any, ...]:
        """Runs a function.

        Args:
            function: The function.
            arguments: Its arguments.
            constant: Which of them are constants of the graph.
            effects: Whether its side effects are wanted, or its results alone.
        """
        plan = function.whole if effects else function.pure
        flags = [False] * len(arguments) if constant is None else list(constant)
        results: dict[int, tuple[Any, ...]] = {
            number: (argument,)
            for number, argument in zip(function.arguments, arguments, strict=True)
        }
        constants = {
            number: flag for number, flag in zip(function.arguments, flags, strict=True) if flag
        }
        for number in plan.schedule:
            operation = function.operations[number]
            if operation.type == ARGUMENT:
                continue
            operands = [results[source][position] for source, position in operation.inputs]
            known = tuple(source in constants for source, _ in operation.inputs)
            if all(known) and _is_fixed(operation.type):
                constants[number] = True
            read = frozenset(
                position for position in range(_MOST_RESULTS) if (number, position) in plan.read
            )
            call = Call(operation, known, read, number in plan.awaited, self)
            if operation.gradient is not None:
                results[number] = self._with_gradient(operation, operation.gradient, operands)
            elif operation.has_unread_gradient:
                with located(operation.place):
                    results[number] = _passed_on(operands, UnreadGradient)
            else:
                results[number] = self._carry_out(call, operands)
        return tuple(results[source][position] for source, position in function.results)

    def _with_gradient(
        self,
        operation: Operation,
        own: CustomGradient,
        operands: Sequence[Any],
    ) -> tuple[Any, ...]:
        """An operation that passes its operands on, with a gradient of its own."""
        operands, read = operands[: own.passed], iter(operands[own.passed :])
        captured = [without_tracking(next(read)) if one is None else one for one in own.captured]

        def gradient(upstream: Sequence[Tensor]) -> list[Tensor | None]:
            found = self.run(own.function, [*upstream, *captured])
            every: list[Tensor | None] = [None] * len(operands)
            for place, one in zip(own.places, found, strict=True):
                every[place] = one
            return every

        with located(operation.place):
            return _passed_on(operands, PassedOn, gradient)

    def _carry_out(self, call: Call, operands: Sequence[Any]) -> tuple[Any, ...]:
        operation = call.operation
        lowering = self._lowerings.get(operation.type, self._unknown)
        place = operation.place
        if not place.is_known and self._caller:
            caller = self._caller[-1]
            place = replace(caller, node=f"{caller.node}/{operation.name}")
        self._caller.append(place)
        try:
            with located(place):
                result = self._lowered(lowering, call, operands)
        finally:
            self._caller.pop()
        return result if isinstance(result, tuple) else (result,)

    def _lowered(self, lowering: Lowering, call: Call, operands: Sequence[Any]) -> Any:
        """What a lowering returns, or the unknown operator where it says that it cannot."""
        try:
            return lowering(call, *operands)
        except NotImplementedError:
            if call.operation.type not in self._lowerings:
                raise
            return self._unknown(call, *operands)

    def loop(
        self,
        condition: Callable[[list[Any]], Any],
        body: Callable[[list[Any]], Sequence[Any]],
        state: list[Any],
    ) -> list[Any]:
        """Repeats `body` while `condition` holds.

        Raises:
            ArgumentError: If it does not end within `LOOP_LIMIT` rounds.
        """
        for _ in range(LOOP_LIMIT):
            if not truth(condition(state)):
                return state
            state = list(body(state))
        raise ArgumentError(f"target holds a loop of more than {LOOP_LIMIT} rounds.")


_VARYING = (
    "Call",
    "Case",
    "If",
    "Multinomial",
    "Placeholder",
    "Random",
    "Rng",
    "Stateful",
    "Truncated",
    "Var",
    "While",
)


def _is_fixed(kind: str) -> bool:
    """False for operators whose result may change though all their operands are constant."""
    return not any(part in kind for part in _VARYING)


def _passed_on(operands: Sequence[Any], function: Any, *arguments: Any) -> tuple[Any, ...]:
    """The operands, handed through one of the functions of `gradients`; variables stay."""
    tensors = [one.tensor if isinstance(one, Variable) else one for one in operands]
    passed = applied_all(function, *arguments, *tensors)
    return tuple(
        given if isinstance(given, Variable) else one
        for given, one in zip(operands, passed, strict=True)
    )


def without_tracking(value: Any) -> Any:
    """The same values, cut off from the backward pass."""
    return value.detach() if isinstance(value, Tensor) else value


def truth(value: Any) -> bool:
    """What a condition of TensorFlow says: a number that is not 0, anything not empty."""
    if isinstance(value, Tensor):
        return bool(value) if value.dim() == 0 else value.numel() > 0
    return bool(value)


def branch_index(value: Any) -> int:
    """The number of the branch that a `Case` takes."""
    return int(value) if isinstance(value, (Tensor, int)) else 0
