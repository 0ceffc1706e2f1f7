"""torch's own operator database as an oracle for the transfer functions.

Every sample of an `OpInfo` becomes a recorded step with its backward pass. From boxes
around the sample's inputs, intervals are propagated; on draws from the boxes the recorded
operators are run again, and each result has to lie in its interval.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch
from oracles.boxes import MODES, Mode, box, draw
from oracles.replay import replay
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ranum.analysis.capture.recorder import record
from ranum.analysis.graph import Graph, Node, Value
from ranum.analysis.interval import Interval
from ranum.analysis.propagate import Propagation, propagate, step_of

LARGEST_SAMPLE = 1 << 16
"""Samples with more elements than this are left out."""

UNORDERED = (torch.uint16, torch.uint32, torch.uint64)
"""Dtypes that torch does not compare."""

STATUSES = {
    "covered": "every operator has a rule that says something, and was run again",
    "unseen": "the same, but some operator could not be run again",
    "silent": "every operator has a rule, but some result can be anything, whatever the box",
    "partial": "some operator has no rule for what it got",
    "unknown": "no operator has",
    "nothing to bound": "no result to compare: integers only, samples refused, or no operator",
    "violated": "a result outside its interval, or a rule that raised",
}

NOT_ON_A_CPU = ("jiterator", "_scaled_mm", "flash_attention_forward", "efficient_attention")


@dataclass(frozen=True)
class Violation:
    """A result outside its interval."""

    entry: str
    op: str
    dtype: torch.dtype
    sample: int
    mode: str
    detail: str

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.op} in {self.entry}[{self.sample}] {name}, {self.mode}: {self.detail}"


@dataclass
class Outcome:
    """What came of one entry.

    Attributes:
        entry: Name of the OpInfo and its variant.
        samples: Samples recorded.
        nodes: Operators in their graphs.
        results: Tensors compared.
        elements: Numbers compared.
        unknown: Operators without a transfer function.
        faults: Transfer functions that raised.
        skipped: Samples torch, or the recorder's step, refused; with the reason.
        violations: Results outside their interval.
        ops: All canonical operators met.
        said: For each operator's output that was compared, whether an interval ever said
            something of it.
        seen: Operators that were run again on a draw.
        unseen_nodes: How many nodes were never run again, so never compared.
    """

    entry: str
    samples: int = 0
    nodes: int = 0
    results: int = 0
    elements: int = 0
    unknown: set[str] = field(default_factory=set)
    faults: set[str] = field(default_factory=set)
    skipped: list[str] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    ops: set[str] = field(default_factory=set)
    said: dict[tuple[str, int], bool] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    unseen_nodes: int = 0

    @property
    def silent(self) -> set[str]:
        """Operators with an output of which no interval ever said anything."""
        return {op for (op, _), said in self.said.items() if not said}

    @property
    def status(self) -> str:
        """One of `STATUSES`."""
        if self.violations or self.faults:
            return "violated"
        if not self.results:
            return "nothing to bound"
        if self.unknown:
            return "partial" if self.ops - self.unknown else "unknown"
        return "silent" if self.silent else "unseen" if self.ops - self.seen else "covered"


@cache
def entries() -> tuple[Any, ...]:
    """The database, without entries that need a GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return tuple(op for op in op_db if not any(word in op.name for word in NOT_ON_A_CPU))


def name_of(op: Any) -> str:
    """Name and variant."""
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def judge(
    op: Any,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    samples: int | None = None,
    modes: Callable[[int], Iterable[Mode]] = lambda number: MODES,
    seed: int = 0,
) -> Outcome:
    """Checks one entry.

    Args:
        op: An `OpInfo`.
        dtypes: Those it does not support are left out.
        samples: At most so many, spread over the entry's list; None for all.
        modes: The boxes for the sample of a number.
        seed: Of all draws.
    """
    outcome = Outcome(name_of(op))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in dtypes:
            if dtype not in op.supported_dtypes("cpu"):
                continue
            backward = op.supports_autograd and dtype in op.supported_backward_dtypes("cpu")
            for number, sample in _samples(op, dtype, backward, samples, outcome):
                torch.manual_seed(seed)
                try:
                    _judge_sample(op, sample, dtype, number, backward, modes(number), seed, outcome)
                except Refused as reason:
                    outcome.skipped.append(f"{dtype} {number}: {reason}")
    return outcome


def _samples(
    op: Any, dtype: torch.dtype, backward: bool, count: int | None, outcome: Outcome
) -> Iterator[tuple[int, Any]]:
    from torch.testing._internal import common_utils

    torch.manual_seed(0)
    try:
        # It looks for a unittest on the stack, which takes longer than all the rest.
        with patch.object(common_utils, "extract_test_fn", lambda: None):
            found = list(islice(op.sample_inputs("cpu", dtype, requires_grad=backward), 200))
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        outcome.skipped.append(f"{dtype} samples: {str(error).splitlines()[0]}")
        return
    step = 1 if count is None else max(1, -(-len(found) // count))
    for number in range(0, len(found), step):
        yield number, found[number]


class Refused(Exception):
    """Torch does not run this sample, or the recorder cannot see it."""


def _judge_sample(
    op: Any,
    sample: Any,
    dtype: torch.dtype,
    number: int,
    backward: bool,
    modes: Iterable[Mode],
    seed: int,
    outcome: Outcome,
) -> None:
    graph = recorded(op, sample, backward)
    outcome.samples += 1
    outcome.nodes += len(graph.nodes)
    outcome.ops |= {node.op for node in graph.nodes}
    unseen = {node.index for node in graph.nodes}
    for place, mode in enumerate(modes):
        generator = torch.Generator().manual_seed(seed + 1000 * number + place)
        start = start_of(graph, mode, generator)
        found = propagate(graph, start, blocks=not mode.merged)
        outcome.unknown |= {
            node.op for node in found.unknown if not _has_rule(graph, node)
        } - _blamed(found)
        outcome.faults |= {f"{outcome.entry} {dtype} {mode.name}: {line}" for line in found.faults}
        for count in range(mode.draws):
            leaves = {
                value.index: draw(start[value.index], generator, count + place)
                for value in graph.leaves("input", "parameter")
            }
            for node, results in replay(graph, leaves, generator):
                unseen.discard(node.index)
                outcome.seen.add(node.op)
                for fault in faults_of(graph, node, results, found, outcome):
                    outcome.violations.append(
                        Violation(outcome.entry, node.op, dtype, number, mode.name, fault)
                    )
    outcome.unseen_nodes += len(unseen)


def _has_rule(graph: Graph, node: Node) -> bool:
    step = step_of(graph, node)
    return step.rule is not None or step.magnitude is not None


def _blamed(found: Propagation) -> set[str]:
    """Operators that are unknown because their rule raised."""
    return {line.split()[3] for line in found.faults}


def recorded(op: Any, sample: Any, backward: bool) -> Graph:
    """The graph of one sample; its loss is the sum of all floating results."""
    taken: dict[str, Tensor] = {}

    def take(tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided:
            raise Refused("a sparse input")
        fresh = tensor.detach().requires_grad_(tensor.requires_grad)
        if tensor.is_floating_point():
            taken[f"input_{len(taken)}"] = fresh
        return fresh

    arguments = tree_map_only(Tensor, take, (sample.input, tuple(sample.args), sample.kwargs))
    if sum(tensor.numel() for tensor in taken.values()) > LARGEST_SAMPLE:
        raise Refused("too large")

    def step() -> Tensor | None:
        result = op(arguments[0], *arguments[1], **arguments[2])
        floats = [
            leaf
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided and leaf.requires_grad
        ]
        return torch.stack([_sum(leaf) for leaf in floats]).sum() if floats else None

    try:
        return record(step, inputs=taken, backward=backward)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError) as error:
        raise Refused(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _sum(tensor: Tensor) -> Tensor:
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real.sum().double()


def start_of(graph: Graph, mode: Mode, generator: torch.Generator) -> dict[int, Interval]:
    """Boxes for inputs; constants are known."""
    start: dict[int, Interval] = {}
    for value in graph.leaves("input", "parameter", "buffer"):
        assert value.data is not None
        start[value.index] = box(value.data, mode, generator)
    for value in graph.leaves("constant"):
        start[value.index] = _constant(value)
    return start


def _constant(value: Value) -> Interval:
    data = value.data
    if data is None or tuple(data.shape) != value.shape:
        return Interval.top(value.shape, value.dtype)
    return Interval.point(data)


def faults_of(
    graph: Graph,
    node: Node,
    results: Sequence[Tensor | None],
    found: Propagation,
    outcome: Outcome,
) -> Iterator[str]:
    """What is wrong with a node's results, one line each."""
    for position, (number, drawn) in enumerate(zip(node.outputs, results, strict=False)):
        if number is None or drawn is None or drawn.layout != torch.strided:
            continue
        # Of complex numbers the size is bounded.
        result = drawn.to(torch.complex128).abs() if drawn.is_complex() else drawn
        if result.dtype in UNORDERED:
            continue
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and (
            result.dtype == torch.uint8
        ):
            continue
        interval = found.intervals[number]
        outcome.results += 1
        outcome.elements += result.numel()
        if result.numel():
            key = node.op, position
            outcome.said[key] = outcome.said.get(key, False) or says_something(interval)
        if not interval.contains(result):
            yield f"output {position}: {_described(interval, result)}"


def says_something(interval: Interval) -> bool:
    """False if every number of the dtype is possible, for all elements."""
    if interval.dtype == torch.bool:
        return True
    most = Interval.top(interval.shape, interval.dtype)
    if interval.dtype.is_floating_point and not interval.may_nan:
        return True
    return bool(((interval.lower > most.low) | (interval.upper < most.high)).any())


def _described(interval: Interval, result: Tensor) -> str:
    low, high = interval.expanded()
    wrong = ~((result >= low) & (result <= high))
    if result.is_floating_point() and interval.may_nan:
        wrong &= ~result.isnan()
    if not bool(wrong.any()):
        return f"{interval!r} does not hold {result.flatten()[:3].tolist()}"
    return (
        f"{result[wrong][0].item()!r} outside [{low[wrong][0].item()!r}, "
        f"{high[wrong][0].item()!r}], {int(wrong.sum())} of {result.numel()}"
    )
