"""Keras models: one training step, forward and compiled loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from ranum.analysis.capture.program import Program
from ranum.analysis.capture.tensorflow import bridge
from ranum.analysis.capture.tensorflow.trace import as_constant, called, traced
from ranum.analysis.capture.tensorflow.values import as_torch
from ranum.errors import ArgumentError


def keras_program(
    model: Any,
    arguments: tuple[Any, ...],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    backward: bool = True,
) -> Program:
    """A program of one training step of a Keras model: forward and compiled loss.

    On TensorFlow the model's graph is traced and carried out; on torch the model itself runs.
    A `train_step` of the model's own is followed in the place of `fit`'s, unless `loss` is given;
    its loss is what it takes the gradient of.

    Args:
        model: A model; compiled with a loss, unless `loss` is given.
        arguments: x, y and sample weights, as `fit` takes them; without y if `loss` is given.
        loss: Makes the loss `[]` from the model's output, as torch tensors.
        backward: Whether the backward pass belongs to the step.

    Raises:
        ArgumentError: If the model is not compiled, cannot be called with the arguments, or
            runs on another backend.
    """
    if not (loss or getattr(model, "compiled", False) or bridge.own_train_step(model)):
        raise ArgumentError(
            f"target must be a compiled Keras model; call {model.name}.compile(loss=...) first, "
            "or pass a function that returns the loss."
        )
    if not 1 <= len(arguments) <= 3:
        raise ArgumentError(
            "example_inputs of a Keras model must be x, y and, if any, sample weights; "
            f"got {len(arguments)}."
        )
    backend = bridge.keras_backend()
    if backend not in _WAYS:
        raise ArgumentError(
            f"target runs on Keras' backend {backend!r}; 'tensorflow' and 'torch' can be analysed."
        )
    floatx = bridge.keras().config.floatx()
    as_tensor = partial(as_torch, floatx=floatx)
    fed = tuple(tree_map(as_tensor, one) for one in arguments)
    return replace(_WAYS[backend](model, fed, loss, backward), as_tensor=as_tensor)


def _step(model: Any, *, predicts: bool) -> Callable[..., Any]:
    """What `fit` computes before the gradients; or only what the model predicts."""
    training = {"training": True} if bridge.calls_with_training(model) else {}

    def step(*batch: Any) -> Any:
        x, y, weights = (*batch, None, None)[:3]
        predicted = model(x, **training)
        if predicts:
            return predicted
        return model.compute_loss(x=x, y=y, y_pred=predicted, sample_weight=weights, training=True)

    return step


def _on_tensorflow(
    model: Any, fed: tuple[Any, ...], loss: Callable[[Any], Tensor] | None, backward: bool
) -> Program:
    description = _described(model)
    own = bridge.own_train_step(model) if loss is None else None
    if own is None and not model.built:
        called(description, lambda: model(tree_map(as_constant, fed[0])))
    step = _step(model, predicts=loss is not None)
    return traced(
        step if own is None else bridge.graph_python(lambda *batch: own(bridge.packed(batch))),
        fed,
        _ARGUMENTS[: len(fed)],
        root=model,
        finish=loss,
        backward=backward,
        description=description if own is None else f"{description}.train_step",
    )


def _on_torch(
    model: Any, fed: tuple[Any, ...], loss: Callable[[Any], Tensor] | None, backward: bool
) -> Program:
    if not model.built:
        called(_described(model), lambda: model(fed[0]))
    own = bridge.own_train_step(model) if loss is None else None
    run = _step(model, predicts=loss is not None)

    def step(*batch: Any) -> Tensor | None:
        if own is not None:  # makes its own backward pass
            with bridge.weights_kept(model):
                own(bridge.packed(batch))
            return None
        output = run(*batch)
        result: Tensor = output if loss is None else loss(output)
        return result

    return Program(
        step=step,
        arguments=fed,
        argument_names=_ARGUMENTS[: len(fed)],
        model=model,
        parameters={variable.path: variable.value for variable in model.trainable_variables},
        backward=backward,
        description=_described(model) if own is None else f"{_described(model)}.train_step",
    )


def _described(model: Any) -> str:
    return f"Keras model {model.name}"


_ARGUMENTS = ("x", "y", "sample_weight")
_WAYS = {"tensorflow": _on_tensorflow, "torch": _on_torch}
