"""Keras models as people write them: clean, not clean, and what cannot be followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ranum
from ranum.analysis import analyze
from ranum.errors import ArgumentError

RNG = np.random.default_rng(0)
LABELS = np.array([0, 1, 2, 1])
Case = tuple[Any, ...]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype("f")


def sequential(*parts: Any, loss: Any = "mse", **options: Any) -> keras.Model:
    model = keras.Sequential(list(parts))
    model.compile("adam", loss, **options)
    return model


def sparse() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def several_inputs_and_outputs() -> Case:
    first, second = keras.Input((8,), name="first"), keras.Input((5,), name="second")
    hidden = layers.Concatenate()([layers.Dense(6, "relu")(first), layers.Dense(4)(second)])
    outputs = {"cls": layers.Dense(3)(hidden), "reg": layers.Dense(1)(hidden)}
    model = keras.Model([first, second], outputs)
    weights = {"cls": 1.0, "reg": 0.5}
    model.compile("adam", {"cls": sparse(), "reg": "mse"}, loss_weights=weights, metrics=[[], []])
    return model, [normal(4, 8), normal(4, 5)], {"cls": LABELS, "reg": normal(4, 1)}


def sample_weights() -> Case:
    model = sequential(
        keras.Input((8,)), layers.Dense(3, "softmax"), loss="sparse_categorical_crossentropy"
    )
    return model, normal(4, 8), LABELS, np.array([1.0, 0, 2, 0.5])


def binary_labels() -> Case:
    model = sequential(
        keras.Input((8,)), layers.Dense(1, "sigmoid"), loss="binary_crossentropy", metrics=["AUC"]
    )
    return model, 20 * normal(4, 8), np.array([0, 1, 1, 0])


def masked_sequences() -> Case:
    model = sequential(
        keras.Input((4,), dtype="int32"),
        layers.Embedding(50, 8, mask_zero=True),
        layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        layers.GRU(5),
        layers.Dense(1, "sigmoid"),
        loss="binary_crossentropy",
    )
    tokens = RNG.integers(1, 50, (4, 4))
    tokens[:, 3:] = 0
    return model, tokens, np.array([[0.0], [1], [1], [0]], "f")


def masked_attention() -> Case:
    tokens = keras.Input((6,), dtype="int32")
    hidden = layers.Embedding(30, 16, mask_zero=True)(tokens)
    hidden = layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(2, 8)(hidden, hidden))
    model = keras.Model(tokens, layers.Dense(1)(hidden))
    model.compile("adam", "mse")
    x = RNG.integers(1, 30, (2, 6))
    x[:, 4:] = 0
    return model, x, normal(2, 1)


def bytes_of_images() -> Case:
    model = sequential(
        keras.Input((8, 8, 3)),
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3),
        layers.Flatten(),
        layers.Dense(3),
        loss=sparse(),
    )
    return model, RNG.integers(0, 255, (4, 8, 8, 3)).astype("uint8"), LABELS


def preprocessing() -> Case:
    known = layers.Normalization()
    known.adapt(normal(100, 8))
    return sequential(keras.Input((8,)), known, layers.Dense(3)), normal(4, 8), normal(4, 3)


def mixed_bfloat16() -> Case:
    policy = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        model = sequential(
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10),
            layers.Activation("softmax", dtype="float32"),
            loss="sparse_categorical_crossentropy",
        )
    finally:
        keras.mixed_precision.set_dtype_policy(policy)
    return model, normal(4, 8, 8, 3), LABELS


def loss_scaled_and_compiled() -> Case:
    model = keras.Sequential([keras.Input((8,)), layers.Dense(3)])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    model.compile(optimizer, "mse", jit_compile=True)
    return model, normal(4, 8).astype("f8"), tf.constant(normal(4, 3))


def bound_train_step() -> Case:
    model = sequential(keras.Input((8,)), layers.Dense(3))
    model.build((None, 8))
    return model.train_step, (tf.constant(normal(4, 8)), tf.constant(normal(4, 3)))


CLEAN: list[Callable[[], Case]] = [
    several_inputs_and_outputs,
    sample_weights,
    binary_labels,
    masked_sequences,
    masked_attention,
    bytes_of_images,
    preprocessing,
    mixed_bfloat16,
    loss_scaled_and_compiled,
    bound_train_step,
]


@pytest.mark.parametrize("make", CLEAN)
def test_a_sound_model_raises_no_alarm(make):
    keras.utils.set_random_seed(0)
    target, *batch = make()
    analysis = analyze(target, *batch)
    assert analysis.is_complete
    assert analysis.defects == ()


class Sampling(layers.Layer):
    """Draws from a normal distribution; nothing keeps the log of its variance in bounds."""

    def call(self, moments):
        mean, logarithm = moments
        self.add_loss(-0.5 * keras.ops.mean(1 + logarithm - mean**2 - keras.ops.exp(logarithm)))
        return mean + keras.ops.exp(0.5 * logarithm) * keras.random.normal((4, 2), seed=1)


def test_the_variance_of_an_autoencoder_overflows_and_a_witness_shows_it():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((20,))
    drawn = Sampling(name="sampling")([layers.Dense(2)(inputs), layers.Dense(2)(inputs)])
    model = keras.Model(inputs, layers.Dense(20, "sigmoid")(drawn))
    model.compile("adam", "mse")
    x = RNG.random((4, 20)).astype("f")
    defects = analyze(model, x, x).defects
    assert {(one.code, one.source.module, one.source.file) for one in defects} == {
        ("RN104", "sampling", __file__)
    }
    first = min(defects, key=lambda one: one.source.line)
    witness = ranum.confirm(first)
    assert witness is not None
    assert witness.outcome == "Inf"


@pytest.mark.parametrize(
    ("layer", "kind", "x"),
    [
        (lambda: layers.IntegerLookup(vocabulary=[3, 5]), "int64", np.array([[3, 5]] * 4)),
        (lambda: layers.StringLookup(vocabulary=["a"]), "string", np.array([["a", "b"]] * 4)),
    ],
)
def test_tables_are_refused_with_the_operators_name(layer, kind, x):
    inputs = keras.Input((2,), dtype=kind)
    hidden = layers.Flatten()(layers.Embedding(5, 4)(layer()(inputs)))
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile("adam", "mse")
    with pytest.raises(ArgumentError, match=r"LookupTableFind.*tables.*no numbers"):
        analyze(model, x, normal(4, 1))


def test_augmentation_that_is_not_lowered_is_listed():
    model = sequential(
        keras.Input((8, 8, 1)), layers.RandomRotation(0.1), layers.Flatten(), layers.Dense(1)
    )
    analysis = analyze(model, RNG.random((2, 8, 8, 1)).astype("f"), normal(2, 1))
    assert [one.op for one in analysis.unknowns] == ["tf.ImageProjectiveTransformV3"]
    assert not analysis.is_complete
