"""One training step, by TensorFlow and by the program that the analysis records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from ranum.analysis.capture.program import Program
from ranum.analysis.capture.tensorflow import tensorflow_program
from ranum.analysis.capture.tensorflow.bridge import run_operator
from ranum.analysis.capture.tensorflow.lowerings import LOWERINGS

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


@contextmanager
def tensorflows_draws() -> Iterator[None]:
    """Random numbers by TensorFlow, from the same seeds, to compare steps that draw some."""

    def draw(call: Any, *operands: torch.Tensor) -> Any:
        given = [tf.constant(operand.numpy()) for operand in operands]
        attributes = dict(call.operation.attributes)
        results = run_operator(call.operation.type, attributes, given)
        found = [
            torch.from_numpy(one.numpy().astype("i8" if one.dtype == tf.uint64 else one.dtype.name))
            for one in results
        ]
        return tuple(found)

    def key_and_counter(call: Any, seed: torch.Tensor) -> Any:
        results = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed.numpy())
        return tuple(torch.from_numpy(one.numpy()) for one in results)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOWERINGS, "StatelessRandomGetKeyCounter", key_and_counter)
        for name in ("Uniform", "Normal"):
            patch.setitem(LOWERINGS, f"StatelessRandom{name}V2", draw)
        yield


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
    with tensorflows_draws():
        own_loss, own = run(program_of(model, x, y))
    loss, gradients = keras_step(model, x, y)  # may change the model's state
    np.testing.assert_allclose(own_loss, loss, RELATIVE, ABSOLUTE)
    assert set(own) == set(gradients)
    for name, expected in gradients.items():
        reach = max(float(np.abs(expected).max(initial=0.0)), 1e-3)
        np.testing.assert_allclose(
            own[name], expected, RELATIVE, RELATIVE * reach + ABSOLUTE, err_msg=name
        )
