"""The adapter's contract for Keras' `fit`; run with KERAS_BACKEND=torch as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from ranum.callbacks.keras import RanumCallback  # noqa: E402
from ranum.errors import ArgumentError, RanumWarning  # noqa: E402

BACKEND = keras.config.backend()
pytestmark = [
    pytest.mark.skipif(BACKEND not in ("tensorflow", "torch"), reason="no guard for it"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")

layers, ops = keras.layers, keras.ops
BATCH, BATCHES, BAD = 8, 12, 5


def data(poison: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * BATCHES, 6)).astype("f")
    y = (x[:, 0] > 0).astype("int32") + (x[:, 1] > 0)
    if poison is not None:
        x[BAD * BATCH + 3, 2] = poison
    return x, y


def without_bad() -> tuple[np.ndarray, np.ndarray]:
    x, y = data()
    rows = np.r_[BAD * BATCH : (BAD + 1) * BATCH]
    return np.delete(x, rows, 0), np.delete(y, rows, 0)


def small(kind: Any = keras.Sequential, optimizer: Any = None, **compiled: Any) -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    found = layers.Dense(8, activation="relu", name="first")(inputs)
    found = layers.BatchNormalization(name="norm")(found)
    found = layers.Dropout(0.3, seed=7)(found)
    outputs = layers.Dense(3, name="last")(found)
    model = keras.Model(inputs, outputs) if kind is keras.Sequential else kind(inputs, outputs)
    compiled = {"metrics": ["accuracy"], **compiled}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, optimizer=optimizer or keras.optimizers.Adam(1e-2), **compiled)
    return model


def guard(tmp_path: Any, **options: Any) -> RanumCallback:
    options = {"analyze": "off", "strict": True, "verbose": False, **options}
    return RanumCallback(log_dir=tmp_path / "report", **options)


def fit(model: Any, xy: Any, *callbacks: Any, epochs: int = 1, **options: Any) -> Any:
    options = {"shuffle": False, "verbose": 0, "batch_size": BATCH, **options}
    return model.fit(*xy, epochs=epochs, callbacks=list(callbacks), **options)


def state(model: Any) -> dict[str, np.ndarray]:
    optimizers = [v for v in vars(model).values() if isinstance(v, keras.optimizers.Optimizer)]
    several = {id(one): one for one in [model.optimizer, *optimizers] if one is not None}
    found = [
        *model.variables,
        *(v for one in several.values() for v in one.variables),
        *(v for metric in model.metrics for v in metric.variables),
    ]
    return {f"{i} {v.path}": keras.ops.convert_to_numpy(v).copy() for i, v in enumerate(found)}


def same(one: Any, other: Any) -> None:
    one, other = state(one), state(other)
    assert len(one) == len(other)
    different = [
        name
        for (name, a), b in zip(one.items(), other.values(), strict=True)
        if not np.array_equal(a, b)
    ]
    assert not different


# --- a batch that is left out -----------------------------------------------------------------


class OwnStep(keras.Model):
    """A training step of the user's own, on either backend."""

    def train_step(self, batch):
        x, y = batch
        if BACKEND == "torch":
            self.zero_grad()
            loss = self.compute_loss(x, y, self(x, training=True))
            loss.backward()
            weights = self.trainable_weights
            self.optimizer.apply([w.value.grad for w in weights], weights)
        else:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


def adam(**options: Any) -> Any:
    return keras.optimizers.Adam(1e-2, **options)


SKIPPED = {
    "plain": dict,
    "eager": lambda: {"run_eagerly": True},
    "compiled": lambda: {"jit_compile": True},
    "executions": lambda: {"steps_per_execution": 4},
    "accumulation": lambda: {"optimizer": adam(gradient_accumulation_steps=3)},
    "clipping and average": lambda: {"optimizer": adam(global_clipnorm=1.0, use_ema=True)},
    "schedule": lambda: {
        "optimizer": keras.optimizers.SGD(
            keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5), momentum=0.9
        )
    },
    "loss scale": lambda: {"optimizer": keras.optimizers.LossScaleOptimizer(adam())},
    "own step": lambda: {"kind": OwnStep, "metrics": None},
}
TENSORFLOW_ONLY = {"executions", "compiled"}
ROUNDED = {"compiled", "schedule"} if BACKEND == "tensorflow" else set()
"""TensorFlow puts multiplications by constants (SGD) and fused averages (XLA) in another order when
somebody else reads a gradient, which changes last bits: there both runs have a guard."""
SLOW = set(SKIPPED) - {"plain", "executions"}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in SKIPPED]
)
def test_a_bad_batch_leaves_no_trace(name, tmp_path):
    if name in TENSORFLOW_ONLY and BACKEND != "tensorflow":
        pytest.skip("TensorFlow's own")
    clean, guarded = small(**SKIPPED[name]()), small(**SKIPPED[name]())
    callback = guard(tmp_path)
    others = [guard(tmp_path)] if name in ROUNDED else []
    expected = fit(clean, without_bad(), *others)
    got = fit(guarded, data(np.nan), callback)
    (incident,) = callback.history.incidents
    assert (incident.step, incident.action) == (BAD, "skip")
    same(clean, guarded)
    if name != "own step":  # whose log is its last loss
        assert got.history == expected.history


@pytest.mark.parametrize("name", ["plain", pytest.param("loss scale", marks=pytest.mark.slow)])
def test_a_healthy_run_is_left_alone(name, tmp_path):
    alone, guarded = small(**SKIPPED[name]()), small(**SKIPPED[name]())
    callback = guard(tmp_path)
    fit(alone, data(), epochs=2)
    fit(guarded, data(), callback, epochs=2)
    assert not callback.history.incidents
    assert len(callback.history.readings) == 2 * BATCHES
    same(alone, guarded)


def test_weights_that_are_damaged_are_restored_and_batches_trained_again(tmp_path):
    """A bit flips at rest: what the rest of the run gives is that of a run without it."""

    class Damage(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 8:
                kernel = self.model.get_layer("first").kernel
                value = keras.ops.convert_to_numpy(kernel).copy()
                value[2, 3] = np.nan
                kernel.assign(value)

    alone, guarded = small(), small()
    callback = guard(tmp_path, snapshot_every=3)
    expected = fit(alone, data())
    got = fit(guarded, data(), Damage(), callback)
    (incident,) = callback.history.incidents
    assert incident.culprit.cause == "weights"
    assert incident.culprit.name == "first/kernel"
    assert (incident.step, incident.action) == (8, "rollback")
    assert 0 < incident.back_to < 8
    same(alone, guarded)
    assert got.history == expected.history


class Root(layers.Layer):
    """The root of a feature's square: its gradient is infinite where that is 0."""

    def call(self, x):
        masked = x[:, :1] * ops.cast(x[:, :1] > 0, "float32")
        return ops.concatenate([x, ops.sqrt(ops.square(masked))], -1)


def rooted() -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(6, name="first"), Root(), layers.Dense(3, name="last")]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, optimizer=adam())
    return model


def test_an_operator_is_named_with_its_line(tmp_path):
    callback = guard(tmp_path, on_fault=("rollback",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RanumWarning)
        fit(rooted(), data(), callback)
    culprit = callback.history.incidents[0].culprit
    assert culprit.cause == "operator"
    assert culprit.phase == "backward"
    assert culprit.op == "sqrt"
    assert "ops.sqrt(ops.square(masked))" in culprit.source.expression
    assert culprit.source.module == "root"


def test_when_nothing_helps_training_stops_in_a_good_state(tmp_path):
    model = small()
    weights = model.get_weights()
    x, y = data()
    x[3] = np.nan
    callback = guard(tmp_path, on_fault=())
    history = fit(model, (x, y), callback, epochs=3)
    assert [one.action for one in callback.history.incidents] == ["stop"]
    assert history.history["loss"] == [0.0]
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 0


@pytest.mark.slow
def test_an_exploding_gradient_is_not_applied(tmp_path):
    x, y = data()
    x[BAD * BATCH : (BAD + 1) * BATCH] *= 1e9
    clean, guarded = small(), small()
    for model in (clean, guarded):
        model.get_layer("norm").trainable = False  # whose statistics would tame it
    callback = guard(tmp_path)
    fit(clean, without_bad())
    fit(guarded, (x, y), callback)
    (incident,) = callback.history.incidents
    assert incident.finding.code == "RN202"
    same(clean, guarded)


# --- learning rates ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lowered_rate_lasts_under_a_schedule(tmp_path):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1000, 0.5)
    model = small(optimizer=keras.optimizers.SGD(schedule))

    class Damage(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch in (4, 8):
                self.model.get_layer("last").bias.assign([np.nan, 0, 0])

    callback = guard(tmp_path, sample_every=1, snapshot_every=2)
    fit(model, data(), Damage(), callback)
    first, *_, last = callback.history.readings
    assert [one.action for one in callback.history.incidents] == ["rollback", "rollback"]
    assert first.learning_rate == pytest.approx(0.1, rel=0.01)
    assert last.learning_rate == pytest.approx(0.1 * 10**-0.5, rel=0.02)
    assert model.optimizer._learning_rate is schedule


# --- the model is given back ------------------------------------------------------------------


@pytest.mark.slow
def test_the_model_is_given_back(tmp_path):
    model = small()
    callback = guard(tmp_path)
    fit(model, data(), callback)
    assert not {"train_step", "compute_loss"} & set(vars(model))
    assert not {"apply", "_get_current_learning_rate"} & set(vars(model.optimizer))
    assert getattr(model.train_function, "__self__", None) is None
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.models.load_model(path)
    x, _ = data()
    assert np.array_equal(model.predict(x, verbose=0), again.predict(x, verbose=0))
    fit(model, data(np.nan))
    assert len(callback.history.readings) == BATCHES


@pytest.mark.slow
def test_the_model_is_given_back_after_an_exception(tmp_path):
    class Broken(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                raise KeyError("user's own")

    model = small()
    with pytest.raises(KeyError, match="user's own"):
        fit(model, data(), guard(tmp_path), Broken())
    other = small()
    other.set_weights(model.get_weights())
    fit(model, data())
    assert getattr(model.train_function, "__self__", None) is None
    assert "train_step" not in vars(model)


@pytest.mark.slow
def test_a_second_fit_traces_nothing_anew(tmp_path):
    model = small()
    callback = guard(tmp_path)
    fit(model, data(), callback)
    inner = callback._inner
    traced = callback._step.layout
    fit(model, data(np.nan), callback, epochs=4, initial_epoch=3)
    assert callback._inner is inner
    if BACKEND == "tensorflow":
        assert callback._step.layout is traced
    (incident,) = callback.history.incidents
    assert (incident.step, incident.epoch) == (BAD, 3)


def test_two_at_once_are_refused(tmp_path):
    model = small()
    with pytest.raises(ArgumentError, match="one RanumCallback"):
        fit(model, data(), guard(tmp_path), guard(tmp_path))
    assert getattr(model.train_function, "__self__", None) is None
    callback = guard(tmp_path)
    fit(model, data(), callback)
    assert len(callback.history.readings) == BATCHES


# --- others -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_checkpoints_hold_no_bad_state(tmp_path):
    """Keras' own callbacks, before and after ours in the list."""
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "{batch}.weights.h5", save_freq=1, save_weights_only=True
    )
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=1)
    model = small()
    fit(model, data(np.nan), checkpoint, guard(tmp_path), backup)
    files = sorted(tmp_path.glob("*.weights.h5"))
    assert len(files) == BATCHES
    for file in files:
        model.load_weights(file)
        assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.mark.slow
def test_what_was_found_is_written_down(tmp_path):
    callback = guard(tmp_path)
    fit(small(), data(np.nan), callback, epochs=2, validation_data=data())
    lines = (tmp_path / "report" / "incidents.jsonl").read_text().splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["skip", "skip"]
    assert "NonFinite" in (tmp_path / "report" / "report.html").read_text()
    assert (tmp_path / "report" / "incidents" / f"step-{BAD}.pt").exists()
    sampled = [one for one in callback.history.readings if one.is_sampled]
    assert [one.step for one in sampled] == [0, 10, 20]
    validated = [one for one in callback.history.readings if one.validation_loss is not None]
    assert [one.step for one in validated] == [BATCHES]
    assert set(sampled[0].grad_norms) >= {"first/kernel", "norm/gamma", "last/bias"}
    assert all(one.loss is not None for one in callback.history.readings)


def test_our_own_fault_is_told_once_and_training_goes_on(tmp_path, monkeypatch):
    from ranum.callbacks._keras.guard import KerasGuard

    def broken(*args, **kwargs):
        raise RuntimeError("ours")

    monkeypatch.setattr(KerasGuard, "_decide", broken)
    model = small()
    with pytest.warns(RanumWarning, match="ours") as told:
        fit(model, data(), guard(tmp_path, strict=False), epochs=2)
    assert sum(issubclass(one.category, RanumWarning) for one in told) == 1
    assert (
        int(
            model.optimizer.iterations.numpy()
            if BACKEND == "tensorflow"
            else model.optimizer.iterations.value
        )
        == 2 * BATCHES
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("analyze", "yes"), ("on_fault", ("repair",)), ("sample_every", 0), ("symptoms", [1])],
)
def test_options_are_checked(name, value):
    with pytest.raises(ArgumentError, match=name):
        RanumCallback(**{name: value})


@pytest.mark.slow  # another process imports Keras
@pytest.mark.skipif(BACKEND != "tensorflow", reason="this is that process")
def test_all_of_it_on_torch():
    files = sorted(map(str, Path(__file__).parent.glob("test_keras_*.py")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "torch"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
