"""A small Keras classifier whose loss is written by hand, as the log of a softmax.

    python examples/keras_model.py

Ranum carries the model's own TensorFlow graph out, model and compiled loss, and names the line
and the layer that can fail. The second model uses Keras' own loss and has no defect.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

import ranum


def cross_entropy(target, predicted):
    return -ops.mean(ops.sum(target * ops.log(predicted), axis=-1))


def classifier() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ]
    )


def main() -> None:
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).random((16, 28, 28, 1), "f")
    classes = np.arange(16) % 10

    by_hand = classifier()
    by_hand.compile(loss=cross_entropy)
    print(ranum.analyze(by_hand, images, np.eye(10, dtype="f")[classes], confirm=True))

    by_keras = classifier()
    by_keras.compile(loss=keras.losses.SparseCategoricalCrossentropy())
    print(ranum.analyze(by_keras, images, classes))


if __name__ == "__main__":
    main()
