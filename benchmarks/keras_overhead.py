"""What `RanumCallback` costs per step of Keras' `fit` on TensorFlow: CPU time with over without."""

from __future__ import annotations

import argparse
import tempfile
import threading
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
BATCH, WARM_UP = 64, 20


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


class Turn(keras.callbacks.Callback):
    """Lets one `fit` run at a time, and each a step at a time; notes the CPU time of every step.

    Attributes:
        seconds: CPU time of each step, from one `on_train_batch_begin` to the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mine = threading.Semaphore(0)
        self.following: Turn = self
        self.seconds: list[float] = []
        self._started: float | None = None

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """The step before has ended: it is the next one's turn."""
        if self._started is not None:
            self.seconds.append(time.process_time() - self._started)
            self.following.mine.release()
        self.mine.acquire()
        self._started = time.process_time()

    def on_train_end(self, logs: Any = None) -> None:
        """The others go on without this one."""
        self.following.mine.release()


def variants(folder: str) -> dict[str, list[Any]]:
    """Callbacks by name."""

    def ranum(**options: int) -> list[Any]:
        return [RanumCallback("off", verbose=False, log_dir=folder, **options)]

    return {
        "without": [],
        "without, again": [],
        "TerminateOnNaN": [keras.callbacks.TerminateOnNaN()],
        "RanumCallback, every step only": ranum(sample_every=NEVER, snapshot_every=NEVER),
        "RanumCallback, and layers": ranum(snapshot_every=NEVER),
        "RanumCallback": ranum(),
        "enable_check_numerics": [],
    }


def measure(steps: int, folder: str, turn: int) -> dict[str, float]:
    """CPU seconds of a step by variant; the variants take turns, step by step.

    Args:
        steps: Counted, of each variant.
        folder: For reports.
        turn: Variants are made and run in another order in each turn: where their memory lies, and
            who ran before, makes more of a difference than what is measured.
    """
    random = np.random.default_rng(turn)
    x = random.random((BATCH * (WARM_UP + steps), 28, 28, 1), "float32")
    y = random.integers(0, 10, len(x))
    callbacks = variants(folder)
    names = list(callbacks)
    random.shuffle(names)
    models = {name: cnn() for name in names}
    turns = {name: Turn() for name in models}
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        turns[name].following = turns[following]

    def train(name: str) -> None:
        if name == "enable_check_numerics":  # of this thread only
            tf.debugging.enable_check_numerics()
        models[name].fit(
            x,
            y,
            batch_size=BATCH,
            shuffle=False,
            verbose=0,
            callbacks=[turns[name], *callbacks[name]],
        )

    threads = [threading.Thread(target=train, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    turns[names[0]].mine.release()
    for thread in threads:
        thread.join()
    bare, *others = (model.get_weights() for model in models.values())
    for other in others:
        if not all(map(np.array_equal, bare, other)):
            raise RuntimeError("a callback changed the training; the times say nothing")
    return {name: sum(turns[name].seconds[WARM_UP:]) / (steps - 1) for name in callbacks}


def rows(turns: Sequence[dict[str, float]]) -> list[Sequence[str]]:
    """The table."""
    found = []
    for name in turns[0]:
        ratios = [seconds[name] / seconds["without"] for seconds in turns]
        lower, middle, upper = quartiles(ratios)
        _, step, _ = quartiles([1e3 * seconds[name] for seconds in turns])
        found.append((name, f"{step:.2f}", f"{middle:.3f}", f"{lower:.3f} - {upper:.3f}"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=101, help="counted, per round")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        turns = [measure(arguments.steps, folder, turn) for turn in range(arguments.rounds)]
    print(f"{heading()}; {arguments.rounds} rounds of {arguments.steps} steps.\n")
    columns = ("callback", "ms per step", "ratio", "quartiles")
    print(table(columns, rows(turns)))


if __name__ == "__main__":
    main()
