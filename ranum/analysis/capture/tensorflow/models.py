"""Keras models: one training step, forward and compiled loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from ranum.analysis.capture.program import Program
from ranum.analysis.capture.tensorflow import bridge
from ranum.analysis.capture.tensorflow.trace import as_constant, as_torch, called, traced
from ranum.errors import ArgumentError


def keras_program(
    model: Any,
    arguments: tuple[Any, ...],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    backward: bool = True,
) -> Program:
    """A program of one training step of a Keras model on TensorFlow: forward and loss.

    Args:
        model: A model; compiled with a loss, unless `loss` is given.
        arguments: x, y and sample weights, as `fit` takes them; without y if `loss` is given.
        loss: Makes the loss `[]` from the model's output, as torch tensors.
        backward: Whether the backward pass belongs to the step.

    Raises:
        ArgumentError: If the model is not compiled, or cannot be called with the arguments.
    """
    if loss is None and not getattr(model, "compiled", False):
        raise ArgumentError(
            f"target must be a compiled Keras model; call {model.name}.compile(loss=...) first, "
            "or pass a function that returns the loss."
        )
    if not 1 <= len(arguments) <= 3:
        raise ArgumentError(
            "example_inputs of a Keras model must be x, y and, if any, sample weights; "
            f"got {len(arguments)}."
        )
    floatx = bridge.keras().config.floatx()
    fed = tuple(tree_map(lambda leaf: as_torch(leaf, floatx), one) for one in arguments)
    training = {"training": True} if bridge.calls_with_training(model) else {}
    if not model.built:
        called(f"Keras model {model.name}", lambda: model(tree_map(as_constant, fed[0])))

    def step(*batch: Any) -> Any:
        x, y, weights = (*batch, None, None)[:3]
        predicted = model(x, **training)
        if loss is not None:
            return predicted
        return model.compute_loss(x=x, y=y, y_pred=predicted, sample_weight=weights, training=True)

    names = ("x", "y", "sample_weight")[: len(arguments)]
    trained = {id(variable.value): variable.path for variable in model.trainable_variables}
    others = {id(variable.value): variable.path for variable in model.variables}
    return traced(
        step,
        fed,
        names,
        root=model,
        paths={**others, **trained},
        trained=set(trained),
        finish=loss,
        backward=backward,
        description=f"Keras model {model.name}",
    )
