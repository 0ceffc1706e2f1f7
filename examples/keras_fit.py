"""Keras' `fit` under guard: one callback more, and a bad record does no harm.

    pip install '.[keras]' tensorflow
    python examples/keras_fit.py

A small network learns which of four waves a noisy series holds. One record is broken:
its sensor wrote NaN. Without the callback (`--without`) the first batch with it ruins the weights,
and TensorFlow's fused ReLU turns the NaN into 0 on the way, so that the loss stays a healthy number
while the model guesses. With the callback every tenth step also tells what the layers put out; the
last such reading is printed. With `KERAS_BACKEND=torch` the same runs on torch.
"""

from __future__ import annotations

import argparse

import keras
import numpy as np
from keras import layers

from ranum.callbacks.keras import RanumCallback

LENGTH, CLASSES, RECORDS, BROKEN = 32, 4, 1024, 123


def waves() -> tuple[np.ndarray, np.ndarray]:
    """Sine waves of four frequencies under noise; the record number BROKEN is not finite."""
    random = np.random.default_rng(0)
    classes = np.arange(RECORDS) % CLASSES
    time = np.linspace(0, 2 * np.pi, LENGTH)
    series = np.sin((classes[:, None] + 1) * time + random.random((RECORDS, 1)) * 6)
    series += 0.3 * random.normal(size=series.shape)
    series[BROKEN, 7] = np.nan
    return series.astype("float32"), classes


def classifier() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((LENGTH,)),
            layers.Dense(64, activation="relu", name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(64, activation="relu", name="second"),
            layers.Dense(CLASSES, name="scores"),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(3e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without", action="store_true", help="train without the guard")
    parser.add_argument("--output", default="runs/keras", help="where the report goes")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    model = classifier()
    callback = RanumCallback(log_dir=arguments.output)
    model.fit(
        *waves(),
        batch_size=32,
        epochs=3,
        shuffle=False,
        verbose=2,
        callbacks=[] if arguments.without else [callback],
    )
    readings = [one for one in callback.history.readings if one.activations]
    for layer, seen in readings[-1].activations.items() if readings else ():
        dead = "" if seen.dead is None else f", {seen.dead:.0%} of its units dead"
        print(f"step {readings[-1].step}: {layer} in [{seen.lower:.3g}, {seen.upper:.3g}]{dead}")
    is_finite = all(np.isfinite(weight).all() for weight in model.get_weights())
    print(f"weights are {'finite' if is_finite else 'NaN'} at the end")


if __name__ == "__main__":
    main()
