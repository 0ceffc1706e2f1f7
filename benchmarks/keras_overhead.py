"""What `RanumCallback` costs per step of Keras' `fit` on TensorFlow: CPU time with over without."""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from measure import heading, quartiles, table

from ranum.callbacks.keras import RanumCallback

NEVER = 10**9
BATCH, WARM_UP = 64, 10


def cnn() -> keras.Model:
    """57 k parameters with BatchNorm and dropout, for images of 28 x 28."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, optimizer=keras.optimizers.Adam(1e-3), jit_compile=False)
    return model


class Clock(keras.callbacks.Callback):
    """CPU seconds of an epoch, from its eleventh step on."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Starts the clock."""
        if batch == WARM_UP:
            self._started = time.process_time()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stops it."""
        self.seconds.append(time.process_time() - self._started)


def variants(folder: str) -> dict[str, list[Any]]:
    """Callbacks by name."""

    def ranum(**options: int) -> list[Any]:
        return [RanumCallback("off", verbose=False, log_dir=folder, **options)]

    return {
        "without": [],
        "without, again": [],
        "TerminateOnNaN": [keras.callbacks.TerminateOnNaN()],
        "RanumCallback, every step only": ranum(sample_every=NEVER, snapshot_every=NEVER),
        "RanumCallback": ranum(),
        "enable_check_numerics": [],
    }


def measure(rounds: int, steps: int, folder: str) -> dict[str, list[float]]:
    """CPU seconds of each round by variant; the variants take turns, epoch by epoch."""
    random = np.random.default_rng(0)
    x = random.random((BATCH * (WARM_UP + steps), 28, 28, 1), "float32")
    y = random.integers(0, 10, len(x))
    models = {name: cnn() for name in variants(folder)}
    callbacks = variants(folder)
    clocks = {name: Clock() for name in models}

    def train(name: str) -> None:
        models[name].fit(
            x,
            y,
            batch_size=BATCH,
            shuffle=False,
            verbose=0,
            callbacks=[clocks[name], *callbacks[name]],
        )

    for name in models:  # traced, and not counted
        if name == "enable_check_numerics":
            tf.debugging.enable_check_numerics()
        train(name)
    tf.debugging.disable_check_numerics()
    names = list(models)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            train(name)
    bare, *others = (model.get_weights() for model in models.values())
    for other in others:
        if not all(map(np.array_equal, bare, other)):
            raise RuntimeError("a callback changed the training; the times say nothing")
    return {name: clock.seconds[1:] for name, clock in clocks.items()}


def rows(seconds: dict[str, list[float]], steps: int) -> list[Sequence[str]]:
    """The table."""
    found = []
    for name, values in seconds.items():
        ratios = [one / base for one, base in zip(values, seconds["without"], strict=True)]
        lower, middle, upper = quartiles(ratios)
        _, step, _ = quartiles([1e3 * value / steps for value in values])
        found.append((name, f"{step:.2f}", f"{middle:.3f}", f"{lower:.3f} - {upper:.3f}"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=50, help="counted, per round")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(arguments.rounds, arguments.steps, folder)
    print(f"{heading()}; {arguments.rounds} rounds of {arguments.steps} steps.\n")
    columns = ("callback", "ms per step", "ratio", "quartiles")
    print(table(columns, rows(seconds, arguments.steps)))


if __name__ == "__main__":
    main()
