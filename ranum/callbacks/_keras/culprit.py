"""Finds the operator that made a TensorFlow step go bad, by running it eagerly, watched.

As `ranum.guards.culprit` does for torch: every operator is looked at, forward and backward, and bad
values are followed from operator to operator, so that only one whose values reached the loss or a
gradient is named. All use of private TensorFlow interfaces by the guard is in this file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_callbacks

from ranum.callbacks._keras.parts import parts
from ranum.guards.types import Culprit, Extremes
from ranum.source import UNKNOWN, Source, user_source

_UNINITIALISED = frozenset({"Empty", "EmptyTensorList"})
_SHOWN = {"RealDiv": "div", "MatMul": "matmul", "Conv2D": "conv2d", "BatchMatMulV2": "matmul"}

Origins = frozenset[int]


def find_culprit(
    run: Callable[[], Sequence[Any]],
    *,
    batch: Mapping[str, Any],
    variables: Iterable[tuple[str, Any]],
) -> Culprit | None:
    """The first operator whose non-finite output reached the loss or a gradient.

    Args:
        run: Runs forward, loss and backward eagerly; returns losses and gradients.
        batch: Inputs by name.
        variables: Weights and statistics by path.

    Returns:
        None if the losses and gradients are finite.
    """
    watch = _Watch()
    watch.expect(batch.items(), "data")
    names = {id(part.handle): name for name, variable in variables for part in parts(variable)}
    watch.handles = names
    was_eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    op_callbacks.add_op_callback(watch.see)
    try:
        with _layers_noted(watch.path):
            results = run()
    finally:
        op_callbacks.remove_op_callback(watch.see)
        tf.config.run_functions_eagerly(was_eager)
    return watch.verdict(results)


@dataclass(slots=True)
class _Suspect:
    """Something that made non-finite values; deliberate ones are blamed if nobody else is."""

    culprit: Culprit
    is_deliberate: bool = False


@dataclass(slots=True)
class _Watch:
    """Looks at every operator; knows where every bad tensor comes from."""

    path: list[str] = field(default_factory=list)
    handles: dict[int, str] = field(default_factory=dict)
    suspects: list[_Suspect] = field(default_factory=list)
    origins: dict[int, Origins] = field(default_factory=dict)
    places: dict[int, tuple[str, Source, tuple[Extremes, ...]]] = field(default_factory=dict)

    def expect(self, tensors: Iterable[tuple[str, Any]], cause: Any) -> None:
        """Things from outside that are not finite before anything has run."""
        for name, tensor in tensors:
            seen = _look(name, tensor)
            if seen is not None and _is_bad(seen):
                culprit = Culprit(
                    op="",
                    phase="forward",
                    source=UNKNOWN,
                    output=seen,
                    outcome=_outcome(seen),
                    cause=cause,
                    name=name,
                )
                self._blame(tensor, self._accuse(culprit, is_deliberate=not seen.nan))

    def see(
        self,
        kind: Any,
        inputs: Sequence[Any],
        attributes: Any,
        outputs: Sequence[Any],
        *rest: Any,
        **named: Any,
    ) -> None:
        """Called after every operator."""
        kind = kind.decode() if isinstance(kind, bytes) else kind
        if len(rest) > 1 or named.get("graph") is not None or kind in _UNINITIALISED:
            return
        if kind == "ReadVariableOp":
            name = self.handles.get(id(inputs[0]))
            if name is not None and id(outputs[0]) not in self.origins:
                self.expect([(name, outputs[0])], "weights")
            return
        seen = [look for one in inputs if (look := _look("x", one)) is not None]
        operands = tuple(replace(one, name=_NAMES[min(i, 3)]) for i, one in enumerate(seen))
        backward = _forward_outputs()
        place = self._place(kind, operands, backward)
        if backward is None:
            for output in outputs:
                self.places[_key(output)] = place
        bad_in: set[int] = set()
        for one in inputs:
            bad_in |= self.origins.get(_key(one), frozenset())
        is_bad_in = any(map(_is_bad, seen))
        for output in outputs:
            found = _look("output", output)
            if found is None or not _is_bad(found):
                continue
            if is_bad_in:
                self._meet(bad_in, place)
                self._blame(output, frozenset(bad_in))
                continue
            culprit = Culprit(
                op=place[0],
                phase="forward" if backward is None else "backward",
                source=place[1],
                operands=place[2],
                output=found,
                outcome=_outcome(found),
            )
            self._blame(output, self._accuse(culprit, is_deliberate=not operands))

    def verdict(self, results: Sequence[Any]) -> Culprit | None:
        """Who is to blame for what is not finite in the results."""
        guilty: set[int] = set()
        for result in results:
            values = result.values if isinstance(result, tf.IndexedSlices) else result
            seen = _look("result", values)
            if seen is not None and _is_bad(seen):
                guilty |= self.origins.get(_key(values), frozenset())
        first = sorted(guilty, key=lambda index: (self.suspects[index].is_deliberate, index))
        return self.suspects[first[0]].culprit if first else None

    def _place(
        self, kind: str, operands: tuple[Extremes, ...], backward: Sequence[Any] | None
    ) -> tuple[str, Source, tuple[Extremes, ...]]:
        for output in backward or ():
            if _key(output) in self.places:
                return self.places[_key(output)]
        source = replace(user_source(sys._getframe(2)), module="/".join(self.path))
        return _shown(kind), source, operands

    def _meet(self, origins: Iterable[int], place: tuple[str, Source, Any]) -> None:
        """Says at which operator something from outside came in."""
        for index in origins:
            culprit = self.suspects[index].culprit
            if culprit.cause != "operator" and not culprit.op:
                self.suspects[index].culprit = replace(culprit, op=place[0], source=place[1])

    def _accuse(self, culprit: Culprit, *, is_deliberate: bool) -> Origins:
        self.suspects.append(_Suspect(culprit, is_deliberate))
        return frozenset({len(self.suspects) - 1})

    def _blame(self, tensor: Any, origins: Origins) -> None:
        self.origins[_key(tensor)] = origins


_NAMES = ("x", "y", "z", "more")


def _key(tensor: Any) -> int:
    """TensorFlow's own number of a tensor; numbers do not come again."""
    return int(getattr(tensor, "_id", id(tensor)))


def _look(name: str, tensor: Any) -> Extremes | None:
    dtype = getattr(tensor, "dtype", None)
    if dtype is None or not getattr(dtype, "is_floating", False):
        return None
    array = np.asarray(tensor).astype(np.float64)
    finite = np.isfinite(array)
    if finite.all():
        bounds = (float(array.min()), float(array.max())) if array.size else (None, None)
        return Extremes(name=name, lower=bounds[0], upper=bounds[1], nan=0, inf=0, size=array.size)
    nan = int(np.isnan(array).sum())
    good = array[finite]
    return Extremes(
        name=name,
        lower=float(good.min()) if good.size else None,
        upper=float(good.max()) if good.size else None,
        nan=nan,
        inf=int(array.size - finite.sum()) - nan,
        size=array.size,
    )


def _is_bad(seen: Extremes) -> bool:
    return bool(seen.nan or seen.inf)


def _outcome(seen: Extremes) -> str:
    return "NaN" if seen.nan else "Inf"


def _shown(kind: str) -> str:
    return _SHOWN.get(kind) or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()


def _forward_outputs() -> Sequence[Any] | None:
    """What the forward operator gave whose gradient is being taken; None in the forward pass."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_gradient_function" and "op_name" in frame.f_locals:
            found: Sequence[Any] = frame.f_locals["outputs"] or ()
            return found
        if frame.f_code.co_name == "gradient" and "unconnected_gradients" in frame.f_locals:
            return ()  # of a function with a gradient of its own
        frame = frame.f_back
    return None


@contextmanager
def _layers_noted(path: list[str]) -> Iterator[None]:
    """Keeps the names of the layers that are running."""
    layer = keras.layers.Layer
    plain = layer.__call__

    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_inner = not isinstance(self, keras.Model)
        if is_inner:
            path.append(self.name)
        try:
            return plain(self, *args, **kwargs)
        finally:
            if is_inner:
                path.pop()

    layer.__call__ = noting
    try:
        yield
    finally:
        layer.__call__ = plain
