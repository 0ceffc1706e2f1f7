"""A Keras model's training step under guard: bad gradients are not applied, and leave no trace."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import keras

from ranum.callbacks._keras.activations import LayerWatch, Outputs
from ranum.callbacks._keras.parts import assign, copied, parts
from ranum.errors import ArgumentError, RanumWarning
from ranum.guards.readings.keras import RowLayout

_ENGINES = {
    "tensorflow": "ranum.callbacks._keras.tensorflow",
    "torch": "ranum.callbacks._keras.torch",
}


@dataclass(slots=True)
class _Part:
    """What one call of an optimizer has come to.

    Attributes:
        layout: Names of what was measured.
        numbers: Loss, norm, and the norms of single tensors, in a row.
        code: What became of it.
    """

    layout: RowLayout
    numbers: Any
    code: Any


@dataclass(slots=True)
class _Step:
    """One run of the training step, while it goes on.

    Attributes:
        losses: What `compute_loss` has returned.
        targets: What was differentiated, where that can be seen.
        parts: One for every call of an optimizer.
        names: Of the variables that the step changes besides weights.
        statistics: Their norms, from before it.
        batch: What it was given, flat.
        outputs: What its layers have put out; None if nobody asks.
    """

    losses: list[Any] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    parts: list[_Part] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    statistics: Any = None
    batch: list[Any] = field(default_factory=list)
    outputs: Outputs | None = None


class GuardedStep:
    """Stands in for a model's `train_step`, its optimizers' `apply` and its `compute_loss`.

    Inside `installed` the step measures loss, gradients and weights, applies the gradients only if
    all of them are finite and the norm is within the bound, and otherwise puts back what else the
    step has changed: statistics, metrics and random numbers. Nothing of the model is changed
    outside of `installed`.

    Not undone: the first of several calls of the same optimizer in one step, and what a
    `train_step` changes besides Keras' variables.

    Args:
        model: A compiled model.
        sample_every: Steps between two looks at what the layers put out.

    Raises:
        ArgumentError: If Keras runs on another backend than TensorFlow or torch.
    """

    def __init__(self, model: Any, *, sample_every: int = 10) -> None:
        backend = keras.config.backend()
        if backend not in _ENGINES:
            raise ArgumentError(
                f"KERAS_BACKEND must be 'tensorflow' or 'torch' for the guard; got {backend!r}."
            )
        self._module = import_module(_ENGINES[backend])
        self.model = model
        self.engine = self._module.Engine(model, sample_every=sample_every)
        self.layout = RowLayout()
        self._train_step = model.train_step
        found = [getattr(model, "optimizer", None), *vars(model).values()]
        several = {id(one): one for one in found if isinstance(one, keras.optimizers.Optimizer)}
        self._optimizers = list(several.values())
        self._local = threading.local()
        self._watch: LayerWatch | None = None
        self._can_watch = True

    # --- what there is -----------------------------------------------------------------------

    def optimizers(self) -> list[Any]:
        """Of the model, and those that a model of several has among its attributes."""
        return self._optimizers

    def besides(self) -> list[Any]:
        """Variables that a step changes before or without its optimizer."""
        frozen = {
            id(variable)
            for layer in _layers(self.model)
            for variable in getattr(layer, "_trainable_variables", ())
        }
        found = [
            *(one for one in self.model.non_trainable_variables if id(one) not in frozen),
            *(variable for metric in self.model.metrics for variable in metric.variables),
        ]
        return _unique(found)

    def variables(self) -> list[Any]:
        """Everything that makes up the state of training."""
        own = [variable for one in self.optimizers() for variable in one.variables]
        return _unique([*self.model.variables, *self.besides(), *own])

    def learning_rate(self) -> float | None:
        """Of the first optimizer, as a schedule has it now; without the guard's factor."""
        for one in self.optimizers():
            with suppress(TypeError, ValueError):
                return float(keras.ops.convert_to_numpy(one.learning_rate))
        return None

    def is_built(self) -> bool:
        """True once all variables exist."""
        return bool(self.model.built) and all(one.built for one in self.optimizers())

    def forget_layers(self) -> None:
        """The model may have other layers now."""
        self._watch = None

    # --- standing in -------------------------------------------------------------------------

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While the block runs, the model's training step is the guarded one."""
        with ExitStack() as stack:
            swap = stack.enter_context
            swap(_swapped(self.model, "train_step", self.train_step))
            swap(_swapped(self.model, "compute_loss", self._seeing_loss(self.model.compute_loss)))
            for one in self.optimizers():
                swap(_swapped(one, "apply", self._gated(one, one.apply)))
                inner = getattr(one, "inner_optimizer", one)
                rate = getattr(inner, "_get_current_learning_rate", None)
                if rate is not None:
                    swap(_swapped(inner, "_get_current_learning_rate", self._scaled(rate)))
            if self._may_watch:
                swap(self._layers_watched())
            yield

    @property
    def _may_watch(self) -> bool:
        return self._can_watch and self.engine.may_sample()

    def _layers_watched(self) -> AbstractContextManager[None]:
        if self._watch is None:
            self._watch = LayerWatch(
                self.model, self._outputs, measures=self.engine.measures_at_once
            )
        return self._watch.installed()

    def _outputs(self) -> Outputs | None:
        step = self._running
        return None if step is None else step.outputs

    @contextmanager
    def withheld(self) -> Iterator[None]:
        """While the block runs, the model trains as ever, but its optimizers apply nothing."""
        besides = [part for variable in self.besides() for part in parts(variable)]
        copies = [copied(part) for part in besides]
        random = self.engine.random()
        with ExitStack() as stack:
            for one in self.optimizers():
                stack.enter_context(_swapped(one, "apply", self._noting))
            try:
                yield
            finally:
                for part, value in zip(besides, copies, strict=True):
                    assign(part, value)
                self.engine.set_random(random)

    @contextmanager
    def at(self, values: Sequence[Any]) -> Iterator[None]:
        """While the block runs, the variables have these values; none are their own."""
        pairs = list(zip(self.variables(), values, strict=True)) if values else []
        pairs = [(part, value) for variable, value in pairs for part in parts(variable)]
        own = [copied(part) for part, _ in pairs]
        try:
            for part, value in pairs:
                assign(part, value)
            yield
        finally:
            for (part, _), value in zip(pairs, own, strict=True):
                assign(part, value)

    def replay(self, data: Any) -> list[Any]:
        """Runs the model's own step once more and applies nothing.

        Returns:
            Its losses and gradients.
        """
        step = self._local.step = _Step()
        seeing = _swapped(self.model, "compute_loss", self._seeing_loss(self.model.compute_loss))
        try:
            with self.withheld(), seeing, self._module.losses_noted(step.targets):
                self._train_step(data)
        finally:
            self._local.step = None
        return [*step.losses, *step.targets, *step.batch]

    def _noting(self, gradients: Any, trainable_variables: Any = None) -> None:
        if self._running is not None:
            self._running.batch += [one for one in gradients if one is not None]

    def _seeing_loss(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            loss = plain(*args, **kwargs)
            step = self._running
            if step is not None and loss is not None:
                step.losses.append(loss)
            return loss

        return compute_loss

    def _scaled(self, plain: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: self.engine.scaled(plain())

    @property
    def _running(self) -> _Step | None:
        found: _Step | None = getattr(self._local, "step", None)
        return found

    # --- one step ----------------------------------------------------------------------------

    def train_step(self, data: Any) -> Any:
        """The model's own step, in a cover."""
        engine = self.engine
        kept = self.variables() if len(self.optimizers()) > 1 else self.besides()
        copies = engine.copies(kept)
        looked_at = [one for one in self.besides() if keras.backend.is_float_dtype(one.dtype)]
        step = _Step(
            names=[one.path for one in looked_at],
            statistics=engine.norms(looked_at),
            batch=[one for one in keras.tree.flatten(data) if _is_float(one)],
            outputs=Outputs(is_early=engine.is_early()) if self._may_watch else None,
        )
        try:
            return self._covered(data, step, kept, copies)
        except Exception:
            engine.undo(kept, copies)
            raise

    def _covered(self, data: Any, step: _Step, kept: Sequence[Any], copies: Sequence[Any]) -> Any:
        engine = self.engine
        self._local.step = step
        try:
            with self._module.losses_noted(step.targets):
                logs = self._train_step(data)
        finally:
            self._local.step = None
        if not step.parts:
            loss, has_loss = self._loss(step, None)
            row, code = engine.judge(loss, step.statistics)
            layout = RowLayout(statistics=step.names, has_loss=has_loss)
            step.parts.append(_Part(layout, row, code))
        self.layout, row, code = self._joined(step.parts)
        row = engine.joined([row, self._seen(step)])
        return engine.finish(
            row,
            code,
            variables=kept,
            copies=copies,
            logs=logs,
            results=self._results,
            batch=data,
            state=self.variables(),
        )

    def _seen(self, step: _Step) -> Any:
        """What layers have put out, in a row; nothing if nobody asks."""
        outputs, watch = step.outputs, self._watch
        if outputs is not None and watch is not None:
            try:
                return self._measured(outputs, watch)
            except Exception as error:
                self._can_watch = False
                line = f"activation statistics are switched off: {type(error).__name__}: {error}."
                warnings.warn(RanumWarning(f"Ranum: {line} The rest is still read."), stacklevel=2)
                self.layout.outputs, self.layout.given = [], None
        return self.engine.sampled(None, None, [0, 0])

    def _measured(self, outputs: Outputs, watch: LayerWatch) -> Any:
        outputs.seen = [one for one in outputs.seen if self.engine.can_read(one.tensor)]
        self.layout.outputs, self.layout.given = watch.layout(outputs), watch.given_layout(outputs)
        parts = [*self.layout.outputs, *([self.layout.given] if self.layout.given else [])]
        return self.engine.sampled(
            lambda: [*watch.numbers(outputs), *watch.given(outputs)],
            lambda: watch.spreads(outputs),
            [sum(len(one.parts) for one in parts), len(self.layout.outputs)],
        )

    def _results(self) -> dict[str, Any]:
        """What the metrics say now."""
        with suppress(Exception):  # of metrics that a training step of one's own never updates
            return dict(self.model.get_metrics_result())
        return {}

    def _gated(self, optimizer: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
        def apply(gradients: Any, trainable_variables: Any = None) -> Any:
            step = self._running
            gradients = list(gradients)
            variables = (
                list(optimizer._trainable_variables)
                if trainable_variables is None
                else list(trainable_variables)
            )
            if step is None or not gradients:
                return plain(gradients, trainable_variables)
            if not optimizer.built:
                # Not inside a condition: variables are made here.
                with keras.name_scope(optimizer.name):
                    optimizer.build(variables)
                optimizer.built = True
            pairs = list(zip(gradients, variables, strict=True))
            step.parts.append(self._apply(step, optimizer, plain, pairs))
            return None

        return apply

    def _apply(
        self,
        step: _Step,
        optimizer: Any,
        plain: Callable[..., Any],
        pairs: list[tuple[Any, Any]],
    ) -> _Part:
        engine = self.engine
        gradients, variables = [one for one, _ in pairs], [one for _, one in pairs]
        present = [(gradient, one) for gradient, one in pairs if gradient is not None]
        first = not step.parts
        scale = getattr(optimizer, "dynamic_scale", None)
        loss, has_loss = self._loss(step, scale)
        numbers, code = engine.gate(
            loss,
            engine.norms([gradient for gradient, _ in present]),
            engine.joined([engine.norms(variables), *([step.statistics] if first else [])]),
            scale=None if scale is None else engine.number(scale),
            batch=None if scale is None else engine.norms(step.batch),
            apply=lambda updates: plain(list(updates), variables),
            updates=gradients,
            before=None if first else step.parts[-1].code,
        )
        layout = RowLayout(
            gradients=[one.path for _, one in present],
            weights=[one.path for one in variables],
            statistics=list(step.names) if first else [],
            has_loss=has_loss,
        )
        return _Part(layout, numbers, code)

    def _loss(self, step: _Step, scale: Any) -> tuple[Any, bool]:
        """The loss of the batch; 0 if the step does not show it."""
        if step.losses:
            return self.engine.number(step.losses[-1]), True
        if step.targets and scale is None:
            return self.engine.number(step.targets[-1]), True
        return self.engine.number(0.0), False

    def _joined(self, parts: Sequence[_Part]) -> tuple[RowLayout, Any, Any]:
        """One row of all calls of optimizers."""
        if len(parts) == 1:
            return parts[0].layout, parts[0].numbers, parts[0].code
        layout = RowLayout(has_loss=parts[-1].layout.has_loss)
        gradients, weights, statistics = [], [], []
        for part in parts:
            middle = 2 + len(part.layout.gradients)
            end = middle + len(part.layout.weights)
            gradients.append(part.numbers[2:middle])
            weights.append(part.numbers[middle:end])
            statistics.append(part.numbers[end:])
            layout.gradients += part.layout.gradients
            layout.weights += part.layout.weights
            layout.statistics += part.layout.statistics
        total = self.engine.root([part.numbers[1:2] for part in parts])
        row = [parts[-1].numbers[:1], total, *gradients, *weights, *statistics]
        return layout, self.engine.joined(row), parts[-1].code


@contextmanager
def _swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of this object alone, past what Keras does when one is set."""
    own = vars(owner)
    had, former = name in own, own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if had:
            own[name] = former
        else:
            own.pop(name, None)


def _is_float(value: Any) -> bool:
    if not keras.ops.is_tensor(value):
        return False
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype)))


def _layers(model: Any) -> Iterator[Any]:
    yield from model._flatten_layers() if hasattr(model, "_flatten_layers") else model.layers


def _unique(variables: Sequence[Any]) -> list[Any]:
    return list({id(variable): variable for variable in variables}.values())
