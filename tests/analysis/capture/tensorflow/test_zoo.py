"""Keras' own layers, losses and applications: TensorFlow's loss and gradients, all known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ranum.analysis import analyze

from .steps import assert_same_step, keras_step
from .zoo import (
    ACTIVATIONS,
    APPLICATIONS,
    LAYERS,
    LOSSES,
    activation_model,
    application,
    layer_model,
    loss_model,
)

QUICK = {"batch_norm", "conv2d_strided", "max_pool_same", "selu", "sparse", "cosine", "generalized"}


def grown(model: Any, factor: float) -> None:
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() * factor)


def turned_away(model: Any) -> None:
    """A kernel that takes the estimate of its largest singular vector to 0."""
    layer = model.layers[2]
    kernel, vector = np.zeros(layer.kernel.shape), np.zeros(layer.vector_u.shape)
    kernel[0, 1] = vector[0, 0] = 1.0
    layer.kernel.assign(kernel)
    layer.vector_u.assign(vector)


DEFECTS = {
    "spectral_norm": turned_away,
    "exponential": lambda model: grown(model, 50),
    "generalized": lambda model: grown(model, 1000),
}
"""What is reported within the training envelope, with weights that make TensorFlow fail."""


def some(names: Any) -> list[Any]:
    """All names; those that are not quick are slow (105 s together)."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def check(name: str, model: Any, x: Any, y: Any) -> None:
    assert_same_step(model, x, y)
    analysis = analyze(model, x, y)
    assert analysis.unknowns == ()
    assert (analysis.defects != ()) == (name in DEFECTS), analysis.defects
    if name in DEFECTS:
        DEFECTS[name](model)
        loss, gradients = keras_step(model, x, y)
        assert not all(np.isfinite(one).all() for one in (loss, *gradients.values()))


@pytest.mark.parametrize("name", some(LAYERS))
def test_layer(name):
    check(name, *layer_model(name))


@pytest.mark.parametrize("name", some(ACTIVATIONS))
def test_activation(name):
    check(name, *activation_model(name))


@pytest.mark.parametrize("name", some(LOSSES))
def test_loss(name):
    check(name, *loss_model(name))


@pytest.mark.slow  # 10 minutes
@pytest.mark.parametrize("name", APPLICATIONS)
def test_application(name):
    assert_same_step(*application(name))
