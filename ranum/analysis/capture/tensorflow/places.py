"""Where the operations of a traced graph were made: a user's line, or a node of a layer."""

from __future__ import annotations

import os
from typing import Any

from ranum.analysis.capture.tensorflow import bridge
from ranum.source import UNKNOWN, Source, is_user_file, source_lines

_TRACER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "trace.py")
"""Frames of it are where the tracing of a user's function begins."""


class Places:
    """Places of operations: the user's line where there is one, else the node's name."""

    def __init__(self, graph: Any, owners: dict[tuple[int, str], str], label: str) -> None:
        self._graph = graph
        self._owners = owners
        self._label = label
        self._operations: dict[str, dict[str, Any]] = {}

    def __call__(self, function: str, name: str) -> Source:
        """The place of an operation of a function; "" is the main graph."""
        operation = self._table(function).get(name)
        return UNKNOWN if operation is None else self._place(operation)

    def _table(self, function: str) -> dict[str, Any]:
        if function not in self._operations:
            graph = bridge.function_graph(self._graph, function) if function else self._graph
            operations = [] if graph is None else graph.get_operations()
            self._operations[function] = {one.name: one for one in operations}
        return self._operations[function]

    def _place(self, operation: Any) -> Source:
        own = self._owners.get((id(operation.graph), operation.name))
        scope = operation.name.rpartition("/")[0]
        module = own if own is not None else scope or None
        frame = _user_frame(operation.traceback)
        if frame is None:
            operands = ", ".join(tensor.op.name.rpartition("/")[2] for tensor in operation.inputs)
            return Source(
                file=self._label,
                line=0,
                end_line=0,
                column=-1,
                end_column=-1,
                module=module,
                lines=(f"{operation.type}({operands})",),
                node=operation.name,
            )
        return Source(
            file=os.path.abspath(frame.filename),
            line=frame.lineno,
            end_line=frame.lineno,
            column=-1,
            end_column=-1,
            function=frame.name,
            module=module,
            lines=source_lines(frame.filename, frame.lineno, frame.lineno),
            node=operation.name,
        )


def _user_frame(frames: Any) -> Any | None:
    """The innermost user's frame below the place where the analysis began to trace."""
    for frame in reversed(list(frames or ())):  # what was loaded from a file has none
        if frame.filename == _TRACER:
            return None
        if is_user_file(frame.filename):
            return frame
    return None
