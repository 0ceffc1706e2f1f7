"""Keras' other ways to train under guard: several optimizers, loss scales, replicas, streams."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from callbacks.test_keras_callback import (  # noqa: E402
    BACKEND,
    BAD,
    BATCH,
    BATCHES,
    adam,
    data,
    fit,
    guard,
    same,
    small,
    without_bad,
)

from ranum.errors import RanumWarning  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BACKEND not in ("tensorflow", "torch"), reason="no guard for it"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")
layers, ops = keras.layers, keras.ops


class Pair(keras.Model):
    """Two networks with an optimizer each, stepped one after the other, as in a GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dense(6)])
        self.judge = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dense(1)])
        self.seen = keras.metrics.Mean(name="seen")

    def compile(self) -> None:
        super().compile()
        self.first, self.second = adam(), keras.optimizers.SGD(0.05, momentum=0.9)

    @property
    def metrics(self) -> list[Any]:
        return [self.seen]

    def call(self, x):
        return self.judge(self.maker(x))

    def _slopes(self, loss: Any, part: Any, optimizer: Any) -> Any:
        weights = part.trainable_weights
        if BACKEND == "torch":
            self.zero_grad()
            value = loss()
            value.backward()
            optimizer.apply([one.value.grad for one in weights], weights)
            return value.detach()
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss()
        optimizer.apply(tape.gradient(value, weights), weights)
        return value

    def train_step(self, batch):
        x, y = batch
        self._slopes(
            lambda: ops.mean(ops.square(self.judge(ops.relu(x)) - 1.0)), self.judge, self.first
        )
        # Only the second optimizer sees what is bad: the first has stepped by then.
        weight = ops.cast(ops.expand_dims(y, -1), "float32")
        value = self._slopes(
            lambda: ops.mean(ops.square(self.maker(x) * weight)), self.maker, self.second
        )
        self.seen.update_state(value)
        return {"seen": self.seen.result()}


def pair() -> Any:
    keras.utils.set_random_seed(0)
    model = Pair()
    model.compile()
    model.first.build(model.judge.trainable_weights)
    model.second.build(model.maker.trainable_weights)
    return model


def pair_data(bad: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = data()
    y = y.astype("f")
    if not bad:
        rows = np.r_[BAD * BATCH : (BAD + 1) * BATCH]
        return np.delete(x, rows, 0), np.delete(y, rows, 0)
    y[BAD * BATCH] = np.nan
    return x, y


def test_of_several_optimizers_all_are_undone(tmp_path):
    clean, guarded = pair(), pair()
    expected = fit(clean, pair_data(False), guard(tmp_path))
    callback = guard(tmp_path)
    got = fit(guarded, pair_data(True), callback)
    assert [one.action for one in callback.history.incidents] == ["skip"]
    same(clean, guarded)
    assert got.history == expected.history


class Unbuilt(keras.Model):
    """Makes its layers when it is called first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = layers.BatchNormalization()
        self.last = layers.Dense(3)

    def call(self, x, training=False):
        return self.last(self.norm(x, training=training))


@pytest.mark.parametrize("executions", [1, 3])
def test_a_model_that_is_not_built_yet(executions, tmp_path):
    if executions > 1 and BACKEND != "tensorflow":
        pytest.skip("TensorFlow's own")
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        model = Unbuilt()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(
            loss=loss, optimizer=adam(), metrics=["accuracy"], steps_per_execution=executions
        )
        models.append(model)
    clean, guarded = models
    callback = guard(tmp_path)
    fit(clean, without_bad())
    fit(guarded, data(np.nan), callback)
    assert [one.step for one in callback.history.incidents] == [BAD]
    same(clean, guarded)


@contextmanager
def policy(name: str) -> Iterator[None]:
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(former)


def test_half_precision_looks_for_its_scale_undisturbed(tmp_path):
    """The first scales overflow: no fault. A bad batch is one."""
    models = []
    for _ in range(2):
        with policy("mixed_float16"):
            optimizer = keras.optimizers.LossScaleOptimizer(adam(), initial_scale=2.0**24)
            models.append(small(optimizer=optimizer))
    clean, guarded = models
    callback = guard(tmp_path)
    fit(clean, without_bad())
    fit(guarded, data(np.nan), callback)
    scale = float(keras.ops.convert_to_numpy(guarded.optimizer.dynamic_scale))
    assert scale < 2.0**24
    assert [one.step for one in callback.history.incidents] == [BAD]
    same(clean, guarded)


@pytest.mark.parametrize("executions", [1, 4])
def test_a_stream_of_unknown_length(executions, tmp_path):
    if executions > 1 and BACKEND != "tensorflow":
        pytest.skip("TensorFlow's own")
    x, y = data(np.nan)

    def stream():
        for start in range(0, len(x), BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]

    model = small(steps_per_execution=executions)
    callback = guard(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Your input ran out of data")
        model.fit(stream(), verbose=0, shuffle=False, callbacks=[callback])
    assert [one.step for one in callback.history.readings] == list(range(BATCHES))
    assert [one.step for one in callback.history.incidents] == [BAD]
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == BATCHES - 1


def test_a_fault_that_does_not_come_again_is_run_again(tmp_path):
    """A gradient is read wrongly once: the rest is the run without that."""

    class Flip(keras.callbacks.Callback):
        """The norms of the gradients, the second that a step asks for, are bad in one step."""

        def on_train_batch_begin(self, batch, logs=None):
            if batch != BAD:
                return
            engine = callback._step.engine
            norms, asked = engine.norms, []

            def flipped(tensors):
                asked.append(tensors)
                if len(asked) < 2:
                    return norms(tensors)
                engine.norms = norms
                found = norms(tensors)
                return (
                    [one * np.nan for one in found] if isinstance(found, list) else found * np.nan
                )

            engine.norms = flipped

    alone, guarded = small(run_eagerly=True), small(run_eagerly=True)
    callback = guard(tmp_path)
    expected = fit(alone, data())
    got = fit(guarded, data(), Flip(), callback)
    assert [one.action for one in callback.history.incidents] == ["retry"]
    same(alone, guarded)
    assert got.history == expected.history


@pytest.mark.parametrize("executions", [1, 4])
def test_a_step_that_cannot_be_guarded_is_keras_own(executions, tmp_path):
    if executions > 1 and BACKEND != "tensorflow":
        pytest.skip("TensorFlow's own")

    def broken(*args, **kwargs):
        raise RuntimeError("ours")

    alone, guarded = (small(steps_per_execution=executions) for _ in range(2))
    callback = guard(tmp_path, strict=False)
    make = callback._make

    def making(model):
        make(model)
        callback._step.engine.gate = broken

    callback._make = making
    fit(alone, data())
    with pytest.warns(RanumWarning, match="could not be guarded: RuntimeError: .*ours"):
        fit(guarded, data(), callback)
    same(alone, guarded)


@on_tensorflow
def test_unknown_strategies_are_left_alone(tmp_path, monkeypatch):
    class Unknown:
        num_replicas_in_sync = 8

    model = small()
    monkeypatch.setattr(type(model), "distribute_strategy", Unknown())
    callback = guard(tmp_path, strict=False)
    callback.set_model(model)
    with pytest.warns(RanumWarning, match="Unknown is not known.*not guarded"):
        callback.on_train_begin()
    assert model.train_function is None


@on_tensorflow
def test_replicas_decide_alike(tmp_path):
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "keras_replicas.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), str(here.parent)])},
        check=False,
    )
    assert done.stdout.endswith("same\n"), done.stderr[-3000:]
