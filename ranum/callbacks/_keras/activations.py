"""What the layers of a Keras model put out in a step: their range, dead and saturated units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import activations, layers, ops

from ranum.guards.readings.keras import INPUT_PARTS, LayerPart

NEAR = 0.01
"""Of an activation's range: how near to its end an element is saturated."""
RUNS = 8
"""Runs of one layer in a step that are looked at."""

_WITH_ACTIVATION = tuple(
    getattr(layers, name)
    for name in (
        "Activation",
        "Dense",
        "EinsumDense",
        *(f"Conv{n}D" for n in (1, 2, 3)),
        *(f"Conv{n}DTranspose" for n in (1, 2, 3)),
        *(f"{kind}Conv{n}D" for kind in ("Depthwise", "Separable") for n in (1, 2)),
    )
)
_RECTIFIERS = (activations.relu, activations.relu6)
_BOUNDED = (
    (activations.sigmoid, (0.0, 1.0)),
    (activations.tanh, (-1.0, 1.0)),
    (activations.softsign, (-1.0, 1.0)),
    (activations.hard_tanh, (-1.0, 1.0)),
    (activations.hard_sigmoid, (0.0, 1.0)),
)
_OPERATIONS = {
    "Relu": activations.relu,
    "Relu6": activations.relu6,
    "Sigmoid": activations.sigmoid,
    "Tanh": activations.tanh,
    "Softsign": activations.softsign,
    "HardTanh": activations.hard_tanh,
    "HardSigmoid": activations.hard_sigmoid,
}
"""Functions of Keras that a functional model has called, by the class of their node."""
_NORMALIZATIONS = (
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.GroupNormalization,
    layers.UnitNormalization,
    layers.Normalization,
)
_RNN = layers.RNN
_PASSING = (
    *("core.input_layer", "core.identity", "core.masking"),
    *("reshaping.", "regularization.", "pooling.", "preprocessing."),
)
"""Keras' modules of layers that change no value or leave some out, or that prepare the data."""


@dataclass(slots=True)
class Output:
    """What one layer has put out in one run of it.

    Attributes:
        layer: Its place among the watched ones.
        tensor: The output, `[N, ...]`; None once it has been measured.
        units: Axis of its units.
        numbers: What was measured.
        spread: Largest range of an element over the examples; -1 where it was not measured.
    """

    layer: int
    tensor: Any
    units: int = -1
    numbers: list[Any] = field(default_factory=list)
    spread: Any = -1.0


@dataclass(slots=True)
class Outputs:
    """What all layers have put out in a step, in the order in which they ran.

    Attributes:
        seen: Of the layers.
        given: What the first of them was given; None if that was no tensor of numbers.
        first: Its place among the watched ones; None if none has run.
        channels_first: Units are on axis 1, as the last layer had it that says so.
        is_early: The run has just begun: how outputs differ between examples is of interest.
    """

    seen: list[Output] = field(default_factory=list)
    given: Any = None
    first: int | None = None
    channels_first: bool = False
    is_early: bool = True


@dataclass(frozen=True, slots=True)
class Watched:
    """A layer, or an operation of a functional model.

    Attributes:
        where: Its path, as in the paths of its weights.
        layer: It.
        is_rectifier: It puts out zero for half of the numbers.
        bounds: Ends of the range of what it puts out; None if it has none.
    """

    where: str
    layer: Any
    is_rectifier: bool = False
    bounds: tuple[float, float] | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the numbers that are measured of it."""
        found = ["lower", "upper"]
        found += ["dead"] * self.is_rectifier + ["saturated"] * (self.bounds is not None)
        return tuple(found)


class LayerWatch:
    """Sees what the layers of a model put out, while it is installed.

    Layers without layers inside them are watched, and calls of Keras' activations in functional
    models. Not seen: `ops.relu` and the like in a `call` of one's own; what runs inside a loop, a
    recomputation or another `tf.function` than the step.

    Args:
        model: The model.
        running: The outputs of the step that runs now; None if they are not wanted.
        measures: Measure an output at once, rather than keep it.
    """

    def __init__(
        self, model: Any, running: Callable[[], Outputs | None], *, measures: bool
    ) -> None:
        self.watched = list(_watched(model))
        self._running = running
        self._measures = measures
        self._calls = [
            (vars(one.layer), self._seeing(place, one.layer))
            for place, one in enumerate(self.watched)
        ]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While the block runs, outputs are seen."""
        for own, call in self._calls:
            own["call"] = call
        try:
            yield
        finally:
            for own, _ in self._calls:
                own.pop("call", None)

    def _seeing(self, place: int, layer: Any) -> Callable[..., Any]:
        plain = layer.call

        def call(*args: Any, **kwargs: Any) -> Any:
            output = plain(*args, **kwargs)
            outputs = self._running()
            if outputs is not None:
                with suppress(Exception):  # a layer of an unknown kind: then it is not seen
                    self._see(place, outputs, (args, kwargs), output)
            return output

        return call

    def _see(self, place: int, outputs: Outputs, given: Any, output: Any) -> None:
        watched = self.watched[place]
        tensor = _first_tensor(output)
        if tensor is None:
            return
        if outputs.first is None:
            outputs.first, outputs.given = place, _first_tensor(given, is_float=False)
            if self._measures and outputs.given is not None:
                outputs.given = [*self._scale(outputs.given), _spread(outputs.given)]
        if "Conv" in type(watched.layer).__name__ or "Norm" in type(watched.layer).__name__:
            outputs.channels_first = _is_channels_first(watched.layer)
        elif getattr(watched.layer, "kernel", None) is not None:
            outputs.channels_first = False
        if sum(one.layer == place for one in outputs.seen) >= RUNS:
            return
        rank = len(tensor.shape)
        units = 1 if outputs.channels_first and rank > 2 else rank - 1
        found = Output(place, tensor, units)
        if self._measures:
            found.numbers = self._numbers(found)
            found.spread = _spread(tensor) if outputs.is_early else -1.0
            found.tensor = None
        outputs.seen.append(found)

    # --- what is measured -------------------------------------------------------------------

    def layout(self, outputs: Outputs) -> list[LayerPart]:
        """Names of what `numbers` gives, and the layers of `spreads`."""
        return [
            LayerPart(self.watched[place].where, self.watched[place].parts)
            for place in self._places(outputs)
        ]

    def numbers(self, outputs: Outputs) -> list[Any]:
        """Range, dead and saturated shares of each layer, `[]` each; worst of several runs."""
        found: list[Any] = []
        for place in self._places(outputs):
            runs = [one.numbers or self._numbers(one) for one in outputs.seen if one.layer == place]
            lower, *others = zip(*runs, strict=True)
            found.append(_least(lower))
            found += [_largest(one) for one in others]
        return found

    def spreads(self, outputs: Outputs) -> list[Any]:
        """Largest range of an element over the examples, `[]` each; -1 for a single example."""
        return [
            _largest(
                [
                    _spread(one.tensor) if one.tensor is not None else one.spread
                    for one in outputs.seen
                    if one.layer == place
                ]
            )
            for place in self._places(outputs)
        ]

    def given_layout(self, outputs: Outputs) -> LayerPart | None:
        """Names of what `given` gives; None if it gives nothing."""
        if outputs.given is None or outputs.first is None:
            return None
        first = self.watched[outputs.first]
        return LayerPart(
            first.where, INPUT_PARTS, is_normalized=isinstance(first.layer, _NORMALIZATIONS)
        )

    def given(self, outputs: Outputs) -> list[Any]:
        """Range, mean, deviation and spread of what the first layer was given, `[]` each."""
        if outputs.given is None or isinstance(outputs.given, list):
            return outputs.given or []
        return [*self._scale(outputs.given), _spread(outputs.given)]

    @staticmethod
    def _scale(tensor: Any) -> list[Any]:
        """Range, mean and deviation; the latter two are 0 for integers."""
        tensor = ops.stop_gradient(tensor)
        ends = [ops.cast(ops.min(tensor), "float32"), ops.cast(ops.max(tensor), "float32")]
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype)):
            return [*ends, 0.0, 0.0]
        tensor = ops.cast(tensor, "float32")
        return [*ends, ops.mean(tensor), ops.std(tensor)]

    @staticmethod
    def _places(outputs: Outputs) -> list[int]:
        return list(dict.fromkeys(one.layer for one in outputs.seen))

    def _numbers(self, output: Output) -> list[Any]:
        watched, tensor = self.watched[output.layer], ops.stop_gradient(output.tensor)
        found = [ops.min(tensor), ops.max(tensor)]
        if watched.is_rectifier:
            axes = [axis for axis in range(len(tensor.shape)) if axis != output.units]
            alive = ops.max(tensor, axis=axes) > 0 if axes else tensor > 0
            found.append(1.0 - ops.mean(ops.cast(alive, "float32")))
        if watched.bounds is not None:
            lower, upper = watched.bounds
            near = NEAR * (upper - lower)
            ends = ops.logical_or(tensor < lower + near, tensor > upper - near)
            found.append(ops.mean(ops.cast(ends, "float32")))
        return [ops.cast(one, "float32") for one in found]


def _watched(model: Any) -> Iterator[Watched]:
    """Layers without layers inside, and activations that a functional model calls."""
    names: dict[str, int] = {}
    flat = list(model._flatten_layers()) if hasattr(model, "_flatten_layers") else []
    # What is inside a recurrent layer runs in its loop, step by step.
    inside = [one._flatten_layers(include_self=False) for one in flat if isinstance(one, _RNN)]
    seen = {id(one) for some in inside for one in some}
    nodes = [node for one in flat for node in getattr(one, "operations", ())]
    for one in [*flat, *nodes]:
        if id(one) in seen:
            continue
        seen.add(id(one))
        is_layer = isinstance(one, layers.Layer)
        function = None if is_layer else _OPERATIONS.get(type(one).__name__)
        if function is None and not (is_layer and _is_of_interest(one)):
            continue
        where = getattr(one, "path", None) or one.name
        names[where] = names.get(where, 0) + 1
        if names[where] > 1:
            where = f"{where} ({names[where]})"
        if function is None:
            function = _function(one)
        yield Watched(
            where,
            one,
            is_rectifier=any(function is known for known in _RECTIFIERS),
            bounds=next((ends for known, ends in _BOUNDED if function is known), None),
        )


def _is_of_interest(layer: Any) -> bool:
    has_layers = bool(getattr(layer, "_layers", ())) and not isinstance(layer, _RNN)
    if isinstance(layer, keras.Model) or has_layers:
        return False
    _, _, module = type(layer).__module__.partition("keras.src.layers.")
    return not module.startswith(_PASSING) and "call" not in vars(layer)


def _function(layer: Any) -> Any:
    """The activation that a layer ends with, as Keras' function."""
    if isinstance(layer, layers.ReLU):
        is_plain = not layer.negative_slope and not layer.threshold
        return activations.relu if is_plain else None
    return layer.activation if isinstance(layer, _WITH_ACTIVATION) else None


def _first_tensor(values: Any, *, is_float: bool = True) -> Any:
    for value in keras.tree.flatten(values):
        if not ops.is_tensor(value) or not hasattr(value, "ndim"):
            continue  # not sparse and ragged ones either
        dtype = keras.backend.standardize_dtype(value.dtype)
        if keras.backend.is_float_dtype(dtype) or (not is_float and "int" in dtype):
            return value
    return None


def _is_channels_first(layer: Any) -> bool:
    form = getattr(layer, "data_format", None)
    return form == "channels_first" or getattr(layer, "axis", None) == 1


def _spread(tensor: Any) -> Any:
    """Largest range of an element over the first axis, `[]`; -1 for a single example."""
    tensor = ops.stop_gradient(tensor)
    if not len(tensor.shape) or tensor.shape[0] == 1:
        return ops.cast(-1.0, "float32")
    widest = ops.cast(ops.max(ops.max(tensor, axis=0) - ops.min(tensor, axis=0)), "float32")
    return ops.where(ops.shape(tensor)[0] > 1, widest, -1.0)


def _least(values: Sequence[Any]) -> Any:
    found, *others = values
    for other in others:
        found = ops.minimum(found, other)
    return found


def _largest(values: Sequence[Any]) -> Any:
    found, *others = values
    for other in others:
        found = ops.maximum(found, other)
    return found
