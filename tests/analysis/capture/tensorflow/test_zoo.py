"""Keras' own layers, losses and applications: TensorFlow's loss and gradients, all known."""

from __future__ import annotations

from typing import Any

import pytest

from ranum.analysis import analyze

from .steps import assert_same_step
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

QUICK = {"batch_norm", "conv2d_strided", "max_pool_same", "selu", "sparse"}

NEEDS_A_LOOK = {
    "unit_norm": "rsqrt of 0 under a minimum: the gradient at a zero vector is NaN",
    "cosine": "the same",
    "spectral_norm": "the same, and division by a norm",
    "orthogonal": "the same",
    "exponential": "exp of an unbounded number",
    "sparsemax": "the size of the support is not known to be positive",
    "generalized": "a power below one of a probability that may be 0",
}
"""What is reported within the training envelope, and why."""


def some(names: Any) -> list[Any]:
    """All names; those that are not quick are slow (105 s together)."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def check(name: str, model: Any, x: Any, y: Any) -> None:
    assert_same_step(model, x, y)
    analysis = analyze(model, x, y)
    assert analysis.unknowns == ()
    assert (analysis.defects != ()) == (name in NEEDS_A_LOOK), analysis.defects


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
