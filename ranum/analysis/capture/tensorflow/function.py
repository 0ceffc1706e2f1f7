"""TensorFlow graphs as plain data: operations in the order in which they run.

A live `FuncGraph` and a function stored in a SavedModel reach the analysis in the same form,
TensorFlow's protocol buffers. Reading them executes nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ranum.analysis.capture.tensorflow import bridge
from ranum.analysis.capture.tensorflow.values import from_array
from ranum.errors import ArgumentError
from ranum.source import UNKNOWN, Source

Output = tuple[int, int]
"""One result of an operation: the operation's number and the position among its results."""

ARGUMENT = "_Argument"
"""Type of the operations that stand for the arguments of a function."""


@dataclass(frozen=True, slots=True)
class CustomGradient:
    """The gradient that `tf.custom_gradient` gave to an operation.

    Attributes:
        function: Takes the upstream gradients of all results, then `captured`.
        captured: What else it reads: values, of variables as they were when it was traced, or
            None for the next one of the operands that the operation has beyond `passed`.
        places: For each of its results, the operand it is the gradient of.
        passed: Number of operands that the operation passes on.
    """

    function: Function
    captured: tuple[Any, ...]
    places: tuple[int, ...]
    passed: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One node of a TensorFlow graph.

    Attributes:
        name: Unique in its function: "conv2d/BiasAdd".
        type: TensorFlow's operator type: "BiasAdd".
        inputs: Where its operands come from.
        control: Numbers of operations that run before it, for their side effects.
        attributes: Plain Python values; tensors as torch's, types as TensorFlow's numbers.
        place: The user's line that made it, or the node's name.
        gradient: Its own gradient, where it has one.
    """

    name: str
    type: str
    inputs: tuple[Output, ...] = ()
    control: tuple[int, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    place: Source = UNKNOWN
    gradient: CustomGradient | None = None

    @property
    def has_unread_gradient(self) -> bool:
        """True if it has a gradient of its own that could not be read: in a file, say."""
        kind = str(self.attributes.get("_gradient_op_type") or "")
        passes_on = self.type == "IdentityN" and kind.startswith(bridge.CUSTOM_GRADIENT)
        return passes_on and self.gradient is None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which operations of a function run.

    Attributes:
        schedule: Their numbers, in an order that works.
        read: Results that another operation or the caller reads.
        awaited: Operations whose side effects another operation or the caller waits for.
    """

    schedule: tuple[int, ...]
    read: frozenset[Output]
    awaited: frozenset[int]


@dataclass(frozen=True, slots=True)
class Function:
    """A TensorFlow function.

    Attributes:
        name: Name in the library.
        operations: All its operations.
        arguments: Numbers of the operations that stand for its arguments, in order.
        results: What it returns, in order.
        whole: What runs where somebody waits for its side effects: assignments, say.
        pure: What its results need. A training step that returns its loss leaves out the
            gradients and the optimizer that way.
        effects: Numbers of the operations that run for their side effects alone.
    """

    name: str
    operations: tuple[Operation, ...]
    arguments: tuple[int, ...]
    results: tuple[Output, ...]
    whole: Plan
    pure: Plan
    effects: tuple[int, ...] = ()

    def having(self, operations: Sequence[Operation]) -> Function:
        """The function with other operations in the place of its own, number by number."""
        return _function(self.name, operations, self.arguments, self.results, self.effects)


Places = Callable[[str, str], Source]
"""The place of an operation, from the name of its function ("" for the main graph) and its own."""


def main_function(
    nodes: Iterable[Any], arguments: Sequence[str], results: Sequence[str], places: Places
) -> Function:
    """A graph with placeholders as a function.

    Args:
        nodes: `NodeDef` messages, whose inputs are spelled "name:2".
        arguments: Names of the placeholders, in order.
        results: Names of the returned tensors, "Identity:0".
        places: Gives each operation its place.
    """
    listed = list(nodes)
    fed = set(arguments)
    numbers = {node.name: number for number, node in enumerate(listed)}

    def output(reference: str) -> Output:
        name, _, position = reference.partition(":")
        return numbers[name], int(position or 0)

    operations = [
        Operation(
            name=node.name,
            type=ARGUMENT if node.name in fed else node.op,
            inputs=tuple(output(text) for text in node.input if not text.startswith("^")),
            control=tuple(numbers[text[1:]] for text in node.input if text.startswith("^")),
            attributes=_attributes(node.attr),
            place=places("", node.name),
        )
        for node in listed
    ]
    returned = tuple(output(text) for text in results)
    return _function("", operations, [numbers[name] for name in arguments], returned, [])


def library_function(
    definition: Any, places: Places, operator: Callable[[str], Any | None]
) -> Function:
    """A function of a library.

    Args:
        definition: A `FunctionDef` message, whose inputs are spelled "name:argument:0".
        places: Gives each operation its place.
        operator: The `OpDef` message of an operator type, or None.

    Raises:
        ArgumentError: If the function reads a result of an operator nobody has defined.
    """
    name = definition.signature.name
    operations = [Operation(argument.name, ARGUMENT) for argument in definition.signature.input_arg]
    arguments = tuple(range(len(operations)))
    numbers = {operation.name: number for number, operation in enumerate(operations)}
    nodes = list(definition.node_def)
    for node in nodes:
        numbers.setdefault(node.name, len(numbers))
    starts: dict[int, dict[str, int]] = {}

    def output(reference: str) -> Output:
        parts = reference.split(":")
        number = numbers[parts[0]]
        if number < len(arguments) or len(parts) == 1:
            return number, 0
        if number not in starts:
            starts[number] = _starts(nodes[number - len(arguments)], operator)
        return number, starts[number][parts[1]] + int(parts[2])

    operations += [
        Operation(
            name=node.name,
            type=node.op,
            inputs=tuple(output(text) for text in node.input if not text.startswith("^")),
            control=tuple(numbers[text[1:]] for text in node.input if text.startswith("^")),
            attributes=_attributes(node.attr),
            place=places(name, node.name),
        )
        for node in nodes
    ]
    results = tuple(
        output(definition.ret[result.name]) for result in definition.signature.output_arg
    )
    effects = [numbers[node] for node in definition.control_ret.values()]
    return _function(name, operations, arguments, results, effects)


def _function(
    name: str,
    operations: Sequence[Operation],
    arguments: Sequence[int],
    results: Sequence[Output],
    effects: Sequence[int],
) -> Function:
    return Function(
        name,
        tuple(operations),
        tuple(arguments),
        tuple(results),
        whole=_plan(operations, results, effects),
        pure=_plan(operations, results, None),
        effects=tuple(effects),
    )


_LOOPS_OF_TF1 = frozenset({"Enter", "Exit", "LoopCond", "Merge", "NextIteration", "Switch"})


def _plan(
    operations: Sequence[Operation], results: Sequence[Output], effects: Sequence[int] | None
) -> Plan:
    """The plan for the results, and for side effects unless they are None."""
    ends = [number for number, _ in results]
    operations = list(operations)
    for operation in operations:
        if operation.type.removeprefix("Ref") in _LOOPS_OF_TF1:
            raise ArgumentError(
                f"target holds a loop or branch of TensorFlow 1 ({operation.type} "
                f"{operation.name!r}), which is not carried out; make it in TensorFlow 2, or "
                "after tf.compat.v1.enable_control_flow_v2()."
            )
    if effects is None:
        # Returned identities wait for every side effect of the function; the value does not.
        for number in ends:
            if operations[number].type == "Identity":
                operations[number] = replace(operations[number], control=())
    schedule = _schedule(operations, [*ends, *(effects or ())])
    read = {source for number in schedule for source in operations[number].inputs}
    awaited = {before for number in schedule for before in operations[number].control}
    return Plan(
        tuple(schedule), frozenset(read | set(results)), frozenset(awaited | set(effects or ()))
    )


def _starts(node: Any, operator: Callable[[str], Any | None]) -> dict[str, int]:
    """Position of the first tensor of each named result of an operation."""
    definition = operator(node.op)
    if definition is None:
        raise ArgumentError(f"target holds the operator {node.op}, which TensorFlow lacks.")
    starts, position = {}, 0
    for result in definition.output_arg:
        starts[result.name] = position
        if result.number_attr:
            position += node.attr[result.number_attr].i
        elif result.type_list_attr:
            position += len(node.attr[result.type_list_attr].list.type)
        else:
            position += 1
    return starts


def _schedule(operations: Sequence[Operation], ends: Sequence[int]) -> tuple[int, ...]:
    """The operations that `ends` need, each behind what it needs, else in the order given."""
    needed: set[int] = set()
    waiting = list(ends)
    while waiting:
        number = waiting.pop()
        if number in needed:
            continue
        needed.add(number)
        waiting += _needs(operations[number])
    missing = {number: len(_needs(operations[number])) for number in needed}
    readers: dict[int, list[int]] = {}
    for number in needed:
        for before in _needs(operations[number]):
            readers.setdefault(before, []).append(number)
    ready = [number for number, count in missing.items() if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        number = heapq.heappop(ready)
        order.append(number)
        for reader in readers.get(number, ()):
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(needed):
        raise ArgumentError("target is a TensorFlow graph with a cycle.")
    return tuple(order)


def _needs(operation: Operation) -> set[int]:
    return {number for number, _ in operation.inputs} | set(operation.control)


def _attributes(attributes: Any) -> dict[str, Any]:
    return {name: _attribute(value) for name, value in attributes.items()}


def _attribute(value: Any) -> Any:
    """An `AttrValue` message as a Python value; types stay TensorFlow's numbers."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    content = getattr(value, kind)
    if kind == "list":
        for name in ("s", "i", "f", "b", "type", "shape", "func"):
            items = getattr(content, name)
            if items:
                return [_plain(name, item) for item in items]
        return []
    return _plain(kind, content)


def _plain(kind: str, content: Any) -> Any:
    if kind == "s":
        return content.decode(errors="replace")
    if kind == "shape":
        return None if content.unknown_rank else tuple(dim.size for dim in content.dim)
    if kind == "func":
        return content.name
    if kind == "tensor":
        return from_array(bridge.tensorflow().make_ndarray(content))
    return content
