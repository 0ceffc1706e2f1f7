"""What the guard of Keras' `fit` reads of layers; with KERAS_BACKEND=torch too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from callbacks.test_keras_callback import (  # noqa: E402
    BACKEND,
    BATCH,
    BATCHES,
    OwnStep,
    data,
    fit,
    guard,
    same,
    small,
)

from ranum.errors import RanumWarning  # noqa: E402

pytestmark = [
    pytest.mark.skipif(BACKEND not in ("tensorflow", "torch"), reason="no guard for it"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")
layers, ops = keras.layers, keras.ops
CLASSES = 4


def compiled(model: Any, optimizer: Any = None, **options: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, optimizer=optimizer or keras.optimizers.Adam(1e-3), **options)
    return model


def pictures(batches: int = BATCHES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, BATCH * batches)
    x = rng.normal(size=(len(y), 8, 8, 1)).astype("f")
    x[np.arange(len(y)), y, y] += 4
    return x, y


def mixed() -> Any:
    """Convolution, rectifiers of three kinds, a bounded activation, a model in the model."""
    inputs = keras.Input((8, 8, 1))
    found = layers.Conv2D(6, 3, activation="relu", name="conv")(inputs)
    found = layers.MaxPooling2D()(found)
    found = layers.Conv2D(5, 2, name="plain")(found)
    found = layers.ReLU(name="rectified")(found)
    found = layers.Flatten()(found)
    inner = keras.Sequential([keras.Input((20,)), layers.Dense(12, name="a")], name="inner")
    found = ops.relu(inner(found))
    found = layers.Dense(7, activation="tanh", name="bounded")(found)
    return keras.Model(inputs, layers.Dense(CLASSES, name="last")(found))


def test_what_is_read_is_what_the_layers_put_out(tmp_path):
    """Against a forward pass of Keras' own on the same batch."""
    keras.utils.set_random_seed(0)
    model = compiled(mixed())
    nodes = {one.name: one.output for one in model.operations if one.name != "inner"}
    probe = keras.Model(model.input, {**nodes, "inner/a": model.get_layer("inner").output})
    x, y = pictures()
    x[:, 0, 0] += 3  # not the same scale everywhere
    expected = {name: np.asarray(one) for name, one in probe.predict(x[:BATCH], verbose=0).items()}
    callback = guard(tmp_path)
    fit(model, (x, y), callback)
    reading = callback.history.readings[0]
    wanted = {"conv", "rectified", "relu", "bounded", "last"}
    if BACKEND == "torch":  # on TensorFlow what one operator alone reads is left to be fused
        wanted |= {"plain", "inner/a"}
    assert set(reading.activations) == wanted
    for name, seen in reading.activations.items():
        values = expected[name]
        assert seen.lower == pytest.approx(values.min(), abs=1e-5), name
        assert seen.upper == pytest.approx(values.max(), abs=1e-5), name
        assert seen.spread == pytest.approx(np.ptp(values, 0).max(), abs=1e-5), name
        dead = (values.reshape(-1, values.shape[-1]).max(0) <= 0).mean()
        is_rectifier = name in ("conv", "rectified", "relu")
        assert seen.dead == (pytest.approx(dead, abs=1e-6) if is_rectifier else None), name
        ends = (np.abs(values) > 0.98).mean()
        assert seen.saturated == (pytest.approx(ends) if name == "bounded" else None), name
    given = reading.inputs
    assert given.where == "conv"
    batch = x[:BATCH]
    assert (given.lower, given.upper) == (batch.min(), batch.max())
    assert given.mean == pytest.approx(batch.mean(), abs=1e-5)
    assert given.deviation == pytest.approx(batch.std(), abs=1e-4)
    assert given.spread == pytest.approx(np.ptp(batch, 0).max(), abs=1e-5)
    others = [one for one in callback.history.readings if one.step % 10]
    assert not any(one.activations or one.inputs for one in others)
    assert all("call" not in vars(one) for one in model.operations)


def dense(activation: str = "relu", optimizer: Any = None, **options: Any) -> Any:
    keras.utils.set_random_seed(0)
    kinds = [layers.Dense(16, activation=activation, name=f"d{i}", **options) for i in range(3)]
    model = keras.Sequential([keras.Input((6,)), *kinds, layers.Dense(3, name="last")])
    return compiled(model, optimizer)


def named(model: Any, tmp_path: Any, xy: Any = None, epochs: int = 5) -> dict[str, str]:
    """Codes of what was found, and where."""
    callback = guard(tmp_path)
    fit(model, data() if xy is None else xy, callback, epochs=epochs)
    return {one.code: one.where for one in callback.history.findings}


def test_dying_rectifiers_are_told(tmp_path):
    dead = keras.initializers.Constant(-10.0)
    found = named(dense(bias_initializer=dead), tmp_path)
    assert found["RN204"].endswith("d0")


def test_a_healthy_run_has_no_symptoms(tmp_path):
    keras.utils.set_random_seed(0)
    assert not named(compiled(mixed()), tmp_path, pictures(20))


@pytest.mark.slow
def test_saturated_activations_are_told(tmp_path):
    wide = keras.initializers.RandomNormal(stddev=30.0)
    assert "RN209" in named(dense("tanh", kernel_initializer=wide), tmp_path)


@pytest.mark.slow
def test_a_wide_initialisation_is_told(tmp_path):
    wide = keras.initializers.RandomNormal(stddev=10.0)
    assert "RN211" in named(dense(kernel_initializer=wide), tmp_path, epochs=1)


@pytest.mark.slow
def test_inputs_out_of_scale_are_told(tmp_path):
    x, y = pictures()
    keras.utils.set_random_seed(0)
    assert "RN301" in named(compiled(mixed()), tmp_path, (255 * x, y), epochs=1)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), mixed()])
    assert "RN301" not in named(compiled(model), tmp_path, (255 * x, y), epochs=1)


# --- nothing else is changed ------------------------------------------------------------------


def residual() -> Any:
    inputs = keras.Input((8, 8, 1))
    found = layers.Conv2D(8, 3, padding="same")(inputs)
    for _ in range(2):
        inner = layers.Conv2D(8, 3, padding="same", use_bias=False)(found)
        inner = layers.ReLU()(layers.BatchNormalization()(inner))
        inner = layers.Conv2D(8, 3, padding="same")(inner)
        found = layers.Activation("relu")(layers.Add()([found, inner]))
    found = layers.Dropout(0.2, seed=3)(layers.GlobalAveragePooling2D()(found))
    return keras.Model(inputs, layers.Dense(CLASSES)(found))


def attention() -> Any:
    inputs = keras.Input((8, 8, 1))
    found = layers.Dense(16)(layers.Reshape((8, 8))(inputs))
    inner = layers.MultiHeadAttention(2, 8)(layers.LayerNormalization()(found), found)
    found = layers.Add()([found, inner])
    inner = layers.Dense(32, activation="gelu")(layers.LayerNormalization()(found))
    found = layers.Add()([found, layers.Dense(16)(inner)])
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(found)))


def recurrent() -> Any:
    inputs = keras.Input((8, 8, 1))
    found = layers.LSTM(8, return_sequences=True)(layers.Reshape((8, 8))(inputs))
    found = layers.Bidirectional(layers.GRU(6))(layers.TimeDistributed(layers.Dense(8))(found))
    found = layers.Dense(8, activation="sigmoid")(found)
    return keras.Model(inputs, layers.Dense(CLASSES)(found))


class Twice(keras.Model):
    """A model of one's own, which runs a layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = layers.Flatten()
        self.first, self.again = layers.Dense(8), layers.Dense(8, activation="relu", name="again")
        self.last = layers.Dense(CLASSES)

    def call(self, x: Any) -> Any:
        return self.last(ops.tanh(self.again(self.again(self.first(self.flat(x))))))


KINDS: dict[str, Callable[[], Any]] = {
    "mixed": mixed,
    "residual": residual,
    "attention": attention,
    "recurrent": recurrent,
    "own": Twice,
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one != "residual")) for one in KINDS]
)
def test_reading_every_step_changes_no_bit(name, tmp_path):
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        models.append(compiled(KINDS[name]()))
    callback = guard(tmp_path, sample_every=1)
    fit(models[0], pictures())
    fit(models[1], pictures(), callback)
    same(*models)
    assert all(one.activations for one in callback.history.readings)
    assert not callback.history.incidents


@pytest.mark.slow
def test_of_several_runs_of_a_layer_the_worst_counts(tmp_path):
    keras.utils.set_random_seed(0)
    model = compiled(Twice())
    x, y = pictures()
    model(x[:1])
    found = model.first(model.flat(x[:BATCH]))
    runs = [ops.convert_to_numpy(found := model.again(found)) for _ in range(2)]
    callback = guard(tmp_path)
    fit(model, (x, y), callback)
    seen = next(
        one for where, one in callback.history.readings[0].activations.items() if "again" in where
    )
    assert seen.upper == pytest.approx(max(one.max() for one in runs), rel=1e-5)
    assert seen.dead == pytest.approx(max((one.max(0) <= 0).mean() for one in runs))


WAYS = {
    "executions": {"steps_per_execution": 4},
    "compiled": {"jit_compile": True},
    "eager": {"run_eagerly": True},
    "own step": {"kind": OwnStep, "metrics": None},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_train_is_read(name, tmp_path):
    if name in ("executions", "compiled") and BACKEND != "tensorflow":
        pytest.skip("TensorFlow's own")
    model, plain = small(**WAYS[name]), small(**WAYS[name])
    callback = guard(tmp_path, sample_every=3)
    fit(model, data(), callback, epochs=2)
    fit(plain, data(), epochs=2)
    with_layers = [one.step for one in callback.history.readings if one.activations]
    assert with_layers == list(range(0, 2 * BATCHES, 3))
    assert callback.history.readings[0].activations["first"].dead is not None
    if name != "compiled":  # XLA rounds otherwise when somebody reads along
        same(model, plain)


@pytest.mark.slow
def test_the_second_run_is_sampled_from_its_own_beginning(tmp_path):
    model = small()
    callback = guard(tmp_path)
    for _ in range(2):
        fit(model, data(), callback)
        first = [one for one in callback.history.readings if one.activations]
        assert [one.step for one in first] == [0, 10]
        assert first[0].activations["first"].spread is not None


@pytest.mark.slow
def test_what_cannot_be_measured_is_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    from ranum.callbacks._keras.activations import LayerWatch

    def broken(*args: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setattr(LayerWatch, "numbers", broken)
    callback, alone, guarded = guard(tmp_path), small(), small()
    fit(alone, data())
    with pytest.warns(RanumWarning, match="activation statistics are switched off: .*ours") as told:
        fit(guarded, data(), callback)
    assert sum(issubclass(one.category, RanumWarning) for one in told) == 1
    same(alone, guarded)
    assert len(callback.history.readings) == BATCHES
    assert callback.history.readings[0].grad_norms
    assert not callback.history.readings[0].activations


def deep() -> Any:
    """Fourteen sigmoids: each passes on a quarter of a gradient at most."""
    keras.utils.set_random_seed(0)
    kinds = [layers.Dense(16, activation="sigmoid") for _ in range(14)]
    return compiled(keras.Sequential([keras.Input((6,)), *kinds, layers.Dense(3)]))


FIVE: dict[str, Callable[[], Any]] = {
    "RN203": deep,
    "RN204": lambda: dense(bias_initializer=keras.initializers.Constant(-10.0)),
    "RN205": lambda: dense("tanh", keras.optimizers.SGD(20.0)),
    "RN206": lambda: dense(optimizer=keras.optimizers.SGD(1e-6)),
}
"""AutoTrainer's symptoms; the exploding gradient is a fault, see `test_keras_clipping.py`."""


@pytest.mark.slow
@pytest.mark.parametrize("code", FIVE)
def test_the_symptoms_of_autotrainer_are_told(code, tmp_path):
    callback = guard(tmp_path, on_fault=())
    fit(FIVE[code](), data(), callback, epochs=46)
    assert code in {one.code for one in callback.history.findings}
