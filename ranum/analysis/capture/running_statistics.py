"""Running statistics of batch norms, which the operator writes though its schema hides it.

The write is remembered, and a node "running_statistics" is made of it only if somebody
reads the buffers later: in most steps nobody does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ranum.analysis.capture.canonical import Canonical
from ranum.analysis.capture.internals import storage_key
from ranum.analysis.capture.overload import Overload
from ranum.analysis.capture.trace import Trace
from ranum.analysis.graph import Ref
from ranum.source import user_source

_WRITERS = frozenset({"native_batch_norm", "cudnn_batch_norm"})
_BACKWARD = frozenset(
    {"native_batch_norm_backward", "cudnn_batch_norm_backward", "miopen_batch_norm_backward",
     "batch_norm_backward"}
)  # fmt: skip


def forget_unread(known: Overload, bound: dict[str, Any]) -> None:
    """Drops running statistics from a backward pass in training, which does not read them."""
    if known.name in _BACKWARD and bound.get("train", True):
        bound["running_mean"] = bound["running_var"] = None


class StatisticsWrite:
    """One batch norm that writes its running statistics."""

    def __init__(self, trace: Trace, bound: Mapping[str, Any]) -> None:
        """Notes what is there before it runs."""
        self._trace = trace
        self._mean: Tensor = bound["running_mean"]
        self._variance: Tensor = bound["running_var"]
        self._arguments: dict[str, Any] = {
            "running_mean": Ref(self._before(self._mean)),
            "running_var": Ref(self._before(self._variance)),
            "momentum": bound.get("momentum", bound.get("exponential_average_factor")),
        }

    @classmethod
    def of(cls, trace: Trace, known: Overload, bound: Mapping[str, Any]) -> StatisticsWrite | None:
        """The write of an operator about to run; None if it writes no such buffers."""
        if known.name not in _WRITERS or not bound["training"]:
            return None
        if bound["running_mean"] is None or bound["running_var"] is None:
            return None
        return cls(trace, bound)

    @property
    def known(self) -> dict[int, int]:
        """Values of the buffers from before, by the tensors' `id`."""
        return {
            id(self._mean): self._arguments["running_mean"].value,
            id(self._variance): self._arguments["running_var"].value,
        }

    def remember(self, bound: Mapping[str, Any]) -> None:
        """Waits, now that the operator has run, for somebody to read the buffers."""
        self._arguments = {"input": Ref(self._trace.value_of(bound["input"])), **self._arguments}
        self._mark = {"source": user_source(), "phase": "forward"}
        for buffer in (self._mean, self._variance):
            self._trace.pending[storage_key(buffer)] = self._settle

    def _settle(self) -> None:
        """Makes the node."""
        buffers = (self._mean, self._variance)
        for buffer in buffers:
            self._trace.pending.pop(storage_key(buffer), None)
        node = Canonical("running_statistics", None, self._arguments)
        self._trace.add(node, buffers, self._mark, written=buffers)

    def _before(self, buffer: Tensor) -> int:
        found = self._trace.find(buffer)
        if found is None:
            return self._trace.constant(buffer.detach().clone())
        return self._trace.settled(buffer, found)
