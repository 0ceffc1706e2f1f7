"""`limit_gradients` and `clip_gradients` in Keras' `fit`; with KERAS_BACKEND=torch too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from callbacks.test_keras_callback import BACKEND, BATCH, fit, guard, same, small  # noqa: E402

pytestmark = [
    pytest.mark.skipif(BACKEND not in ("tensorflow", "torch"), reason="no guard for it"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
layers, ops = keras.layers, keras.ops
BATCHES, FIRST, STEPS, EXPLODES = 26, 8, 5, 20


class Clipped(keras.optimizers.SGD):
    """What is asked for, in the user's own words: clips in some steps, and then trains."""

    def __init__(self, level: float, first: int, steps: int, **options: Any) -> None:
        super().__init__(0.02, momentum=0.9, **options)
        self.level, self.first, self.steps = level, first, steps

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        step = ops.convert_to_tensor(self._iterations)
        norm = ops.sqrt(self.total([ops.sum(ops.square(grad)) for grad in grads]))
        is_on = ops.logical_and(step >= self.first, step < self.first + self.steps)
        factor = ops.where(is_on, self.level / ops.maximum(norm, self.level), 1.0)
        super().apply([grad * factor for grad in grads], trainable_variables)

    def total(self, squares: list[Any]) -> Any:
        return sum(squares)


def sgd(**options: Any) -> Any:
    return keras.optimizers.SGD(0.02, momentum=0.9, **options)


def scaled(optimizer: Any) -> Any:
    return keras.optimizers.LossScaleOptimizer(optimizer)


def frozen(**options: Any) -> Any:
    """With statistics that do not tame a large batch."""
    model = small(**options)
    model.get_layer("norm").trainable = False
    return model


def data(factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * BATCHES, 6)).astype("f")
    y = (x[:, 0] > 0).astype("int32") + (x[:, 1] > 0)
    x[EXPLODES * BATCH : (EXPLODES + 1) * BATCH] *= factor
    return x, y


class Limit(keras.callbacks.Callback):
    """Asks the guard for a limit."""

    def __init__(self, callback: Any, level: float) -> None:
        super().__init__()
        self.callback, self.level = callback, level

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == FIRST:
            self.callback._guard.limit_gradients(self.level, steps=STEPS)


WAYS = {
    "plain": ({}, {}),
    "accumulation": ({"gradient_accumulation_steps": 3}, {}),
    "own clipping": ({"global_clipnorm": 0.2}, {}),
    "eager": ({}, {"run_eagerly": True}),
    "compiled": ({}, {"jit_compile": True}),
    "loss scale": ({}, {}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one != "plain")) for one in WAYS]
)
def test_gradients_are_limited_as_one_would_do_it_oneself(name, tmp_path):
    if name == "compiled" and BACKEND != "tensorflow":
        pytest.skip("TensorFlow's own")
    options, compiled = WAYS[name]
    wrap = scaled if name == "loss scale" else (lambda one: one)
    level = 0.05
    expected = frozen(optimizer=wrap(Clipped(level, FIRST, STEPS, **options)), **compiled)
    limited, free = (frozen(optimizer=wrap(sgd(**options)), **compiled) for _ in range(2))
    callback = guard(tmp_path)
    fit(expected, data())
    fit(limited, data(), Limit(callback, level), callback)
    fit(free, data())
    assert not callback.history.incidents
    norms = [one.grad_norm for one in callback.history.readings[FIRST : FIRST + STEPS]]
    assert min(norms) > 2 * level  # readings are of the gradients as they were
    for ours, theirs, plain in zip(
        limited.get_weights(), expected.get_weights(), free.get_weights(), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        assert np.abs(plain - theirs).max() > 1e-3 or not plain.any() or (plain == 1).all()


def test_a_gradient_that_explodes_is_clipped_and_its_batch_trained_on(tmp_path):
    model = frozen(optimizer=sgd())
    callback = guard(tmp_path, on_fault=("clip_gradients",))
    history = fit(model, data(1e5), callback)
    (incident,) = callback.history.incidents
    assert (incident.step, incident.action) == (EXPLODES, "clip_gradients")
    assert incident.detail.endswith("the batch comes again")
    assert len(callback.history.readings) == BATCHES + 1
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == BATCHES
    level = callback._guard._clip_to
    assert 0 < level < 1e3
    expected = frozen(optimizer=Clipped(level, EXPLODES, 200))
    other = fit(expected, data(1e5))
    for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(history.history["loss"], other.history["loss"], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")
def test_where_the_batch_cannot_come_again_it_is_left_out(tmp_path):
    clean, guarded = (frozen(optimizer=sgd(), steps_per_execution=2) for _ in range(2))
    x, y = data()
    rows = np.r_[EXPLODES * BATCH : (EXPLODES + 1) * BATCH]
    callback = guard(tmp_path, on_fault=("clip_gradients",))
    fit(clean, (np.delete(x, rows, 0), np.delete(y, rows, 0)), guard(tmp_path))
    fit(guarded, data(1e5), callback)
    (incident,) = callback.history.incidents
    assert (incident.step, incident.action) == (EXPLODES, "clip_gradients")
    assert incident.detail.endswith("the batch is left out")
    same(clean, guarded)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_guarded_run_that_needs_no_limit_is_left_alone(tmp_path):
    """Gradients pass the limit as they are: with sparse ones, and some that are None."""

    def model() -> Any:
        keras.utils.set_random_seed(0)
        tokens = keras.Input((4,), dtype="int32")
        found = layers.Flatten()(layers.Embedding(50, 8)(tokens))
        unused = layers.Dense(2, name="unused")(found)
        made = keras.Model(tokens, [layers.Dense(3, name="last")(found), unused])
        made.compile(
            loss=[keras.losses.SparseCategoricalCrossentropy(from_logits=True), None],
            optimizer=keras.optimizers.Adam(1e-2),
        )
        return made

    rng = np.random.default_rng(0)
    xy = rng.integers(0, 50, (BATCH * 10, 4)), rng.integers(0, 3, BATCH * 10)
    alone, guarded, limited = model(), model(), model()
    callback = guard(tmp_path)
    fit(alone, xy)
    fit(guarded, xy, callback)
    fit(limited, xy, Limit(other := guard(tmp_path), 1e-3), other)
    same(alone, guarded)
    assert not callback.history.incidents
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(alone.get_weights(), limited.get_weights(), strict=True)
    )
