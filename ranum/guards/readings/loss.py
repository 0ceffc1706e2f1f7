"""What loss a step computes, and on what: read from the loss' autograd graph.

The graph holds what the loss function really was given, however the step is written: as a module,
as a function, inside the model or outside. It has to be read before the backward pass, which frees
the saved targets. Compiled steps and losses written out by hand show nothing here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ranum.guards.types import LossReading

_LIMIT = 64
"""Nodes looked at from the loss on; a sum of terms takes two for each."""
_VIEWS = 16
"""Views and casts between an activation and a loss."""
_TERMS = 8
"""Loss functions described of one step."""
_MARGIN = 0.01
"""How far outside a range a target has to lie: labels may be smoothed or rounded."""

_KINDS = {
    "NllLossBackward0": "negative log likelihood",
    "NllLoss2DBackward0": "negative log likelihood",
    "BinaryCrossEntropyBackward0": "binary cross entropy",
    "BinaryCrossEntropyWithLogitsBackward0": "binary cross entropy with logits",
    "MseLossBackward0": "squared error",
    "SmoothL1LossBackward0": "Huber",
    "HuberLossBackward0": "Huber",
}
_ACTIVATIONS = {
    "SoftmaxBackward0": "softmax",
    "SigmoidBackward0": "sigmoid",
    "TanhBackward0": "tanh",
    "ReluBackward0": "relu",
}
_RANGES = {
    "softmax": (0.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "relu": (0.0, float("inf")),
}
_SAME_VALUES = (
    "View",
    "UnsafeView",
    "ReshapeAlias",
    "AsStrided",
    "Transpose",
    "Permute",
    "T",
    "Squeeze",
    "Unsqueeze",
    "Select",
    "Slice",
    "Split",
    "Unbind",
    "Movedim",
    "Expand",
    "Clone",
    "ToCopy",
    "Alias",
)


@dataclass(frozen=True, slots=True)
class Term:
    """A loss function, with its numbers still on the device.

    Attributes:
        kind: As in `LossReading`.
        activation: As in `LossReading`.
        count: Number of targets.
        numbers: 0-d float tensors: lower, upper, ignored, outside, and peak if there is one.
    """

    kind: str
    activation: str = ""
    count: int = 0
    numbers: tuple[Tensor, ...] = ()

    def reading(self, values: Sequence[float]) -> LossReading:
        """The term, with its numbers read."""
        numbers = dict(zip(("lower", "upper", "ignored", "outside", "peak"), values, strict=False))
        return LossReading(kind=self.kind, activation=self.activation, count=self.count, **numbers)


@torch.no_grad()
def terms(loss: Tensor) -> list[Term]:
    """The loss functions nearest to the loss, at most eight; none if it has no graph.

    Args:
        loss: Of the step, before `backward`.
    """
    return [_term(node) for node, _ in zip(_nodes(loss.grad_fn), range(_TERMS), strict=False)]


def _nodes(root: Any) -> Iterator[Any]:
    """Loss functions, breadth first, not looking beyond one."""
    queue, seen = deque([root]), {root}
    for _ in range(_LIMIT):
        if not queue:
            return
        node = queue.popleft()
        if node is None:
            continue
        name = node.name()
        if name in _KINDS or name == "LogSoftmaxBackward0":
            yield node
            continue
        for after, _ in node.next_functions:
            if after not in seen:
                seen.add(after)
                queue.append(after)


def _term(node: Any) -> Term:
    name = node.name()
    given, expected = ("_saved_self", "_saved_target")
    source = _source(node, 0)
    if name == "LogSoftmaxBackward0":
        # Part of a cross entropy against probabilities.
        return Term("cross entropy", _activation(source))
    if source is None and len(node.next_functions) > 1:
        # Written with its arguments in the other order, which such losses do not mind.
        source, given, expected = _source(node, 1), expected, given
    kind = _KINDS[name]
    if source is not None and source.name() == "LogSoftmaxBackward0":
        kind, source = "cross entropy", _source(source, 0)
    activation = _activation(source)
    target = getattr(node, expected).detach()
    if not target.numel():
        return Term(kind, activation)
    if name.startswith("NllLoss"):
        numbers = _classes(target, node._saved_ignore_index)
        is_logarithm = source is not None and source.name() == "LogBackward0"
        if kind != "cross entropy" and not is_logarithm:
            numbers += (getattr(node, given).detach().amax().float(),)
    else:
        bounds = (0.0, 1.0) if kind.startswith("binary") else _RANGES.get(activation)
        numbers = _amounts(target, bounds)
    return Term(kind, activation, target.numel(), numbers)


def _source(node: Any, argument: int) -> Any:
    """The node that computed an argument, beyond views of it."""
    source = node.next_functions[argument][0]
    for _ in range(_VIEWS):
        if source is None or not _is_view(source):
            return source
        source = source.next_functions[0][0]
    return source


def _is_view(node: Any) -> bool:
    """True if the node rearranges its input and leaves the values alone."""
    return node.name().partition("Backward")[0] in _SAME_VALUES


def _activation(node: Any) -> str:
    return "" if node is None else _ACTIVATIONS.get(node.name(), "")


def _classes(target: Tensor, ignore_index: int) -> tuple[Tensor, ...]:
    target = target.long()
    ignored = target == ignore_index
    lower = target.masked_fill(ignored, torch.iinfo(torch.int32).max).amin()
    upper = target.masked_fill(ignored, torch.iinfo(torch.int32).min).amax()
    share = ignored.float().mean()
    return lower.float(), upper.float(), share, torch.zeros_like(share)


def _amounts(target: Tensor, bounds: tuple[float, float] | None) -> tuple[Tensor, ...]:
    lower, upper = torch.aminmax(target.float())
    outside = none = torch.zeros_like(lower)
    if bounds is not None:
        beyond = (target < bounds[0] - _MARGIN) | (target > bounds[1] + _MARGIN)
        outside = beyond.float().mean()
    return lower, upper, none, outside
