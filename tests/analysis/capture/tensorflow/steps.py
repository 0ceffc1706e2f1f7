"""One training step, by TensorFlow and by the program that the analysis records."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import torch

from ranum.analysis.capture.program import Program
from ranum.analysis.capture.tensorflow import tensorflow_program

RELATIVE, ABSOLUTE = 1e-4, 1e-5


def program_of(target: Any, *arguments: Any, **options: Any) -> Program:
    program = tensorflow_program(target, arguments, **options)
    assert program is not None
    return program


def run(program: Program) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Loss and gradients of the recorded program."""
    torch.manual_seed(0)
    for parameter in program.parameters.values():
        parameter.grad = None
    loss = program.step(*program.arguments)
    assert loss is not None
    loss.sum().backward()
    gradients = {
        name: np.zeros(tuple(parameter.shape), "f")
        if parameter.grad is None
        else parameter.grad.numpy()
        for name, parameter in program.parameters.items()
    }
    return loss.detach().numpy(), gradients


def keras_step(model: Any, x: Any, y: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Loss and gradients by TensorFlow."""
    with tf.GradientTape() as tape:
        predicted = model(x, training=True)
        loss = model.compute_loss(x=x, y=y, y_pred=predicted, training=True)
    variables = model.trainable_variables
    found = tape.gradient(loss, [variable.value for variable in variables])
    return loss.numpy(), {
        variable.path: np.zeros(variable.shape, "f")
        if one is None
        else tf.convert_to_tensor(one).numpy()
        for variable, one in zip(variables, found, strict=True)
    }


def assert_same_step(model: Any, x: Any, y: Any) -> None:
    """The program of a compiled Keras model computes TensorFlow's loss and gradients."""
    loss, gradients = keras_step(model, x, y)
    own_loss, own = run(program_of(model, x, y))
    np.testing.assert_allclose(own_loss, loss, RELATIVE, ABSOLUTE)
    assert set(own) == set(gradients)
    for name, expected in gradients.items():
        reach = max(float(np.abs(expected).max(initial=0.0)), 1e-3)
        np.testing.assert_allclose(
            own[name], expected, RELATIVE, RELATIVE * reach + ABSOLUTE, err_msg=name
        )
