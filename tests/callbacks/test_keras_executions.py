"""Several steps in one call of TensorFlow's graph: the fault of one of them is traced back."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from callbacks.test_keras_callback import (  # noqa: E402
    BACKEND,
    BAD,
    BATCH,
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
    pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
layers, ops = keras.layers, keras.ops


@pytest.mark.slow
def test_the_batch_is_named_and_the_rest_of_the_call_is_trained_on(tmp_path):
    clean, guarded = (small(steps_per_execution=4) for _ in range(2))
    callback = guard(tmp_path)
    fit(clean, without_bad())
    fit(guarded, data(np.nan), callback)
    (incident,) = callback.history.incidents
    assert (incident.step, incident.action) == (BAD, "skip")
    assert (incident.culprit.cause, incident.culprit.name) == ("data", "batch['x']")
    assert incident.detail.endswith("it was training step 2 of 4 in one execution")
    same(clean, guarded)


class Log(layers.Layer):
    """The logarithm of what may be negative: by the data, and by weights that move."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x: Any) -> Any:
        shifted = self.scale + 0.3 * x
        return ops.log(shifted)


def logged(**options: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), Log(name="log"), layers.Dense(3, name="last")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, optimizer=adam(), **options)
    return model


def test_an_operator_is_found_with_the_weights_of_its_own_step(tmp_path):
    """Later steps of the call have moved the weights on; the finding is that of single steps."""
    x, y = data()
    x = np.tanh(x)
    x[BAD * BATCH + 3, 2] = -4
    found = []
    for executions in (1, 4):
        model = logged(steps_per_execution=executions)
        callback = guard(tmp_path / str(executions), on_fault=("rollback",))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RanumWarning)
            fit(model, (x, y), callback)
        found.append((callback.history.incidents[0], model))
    (single, _), (several, model) = found
    assert several.step == single.step == BAD
    assert several.culprit.op == "log"
    assert "ops.log(shifted)" in several.culprit.source.expression
    assert several.culprit == single.culprit  # with the extremes of its operand
    operand = several.culprit.operands[0]
    assert operand.lower < 0
    weights = ops.convert_to_numpy(model.get_layer("log").scale)
    now = weights + 0.3 * x[BAD * BATCH : (BAD + 1) * BATCH]
    assert operand.upper != now.max()  # which the replay did not use
    assert several.file


@pytest.mark.slow
def test_of_two_faults_in_a_call_the_first_is_traced_back(tmp_path):
    x, y = data()
    for bad in (5, 7, 10):
        x[bad * BATCH, 2] = np.nan
    model = small(steps_per_execution=4)
    callback = guard(tmp_path)
    fit(model, (x, y), callback)
    assert [one.step for one in callback.history.incidents][:2] == [5, 7]
    causes = {one.step: one.culprit and one.culprit.cause for one in callback.history.incidents}
    assert causes[5] == "data"
    assert causes[7] is None
    if 10 in causes:
        assert causes[10] == "data"
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.mark.slow
def test_under_xla_the_step_is_withheld_without_a_culprit(tmp_path):
    model = small(steps_per_execution=4, jit_compile=True)
    callback = guard(tmp_path)
    fit(model, data(np.nan), callback)
    (incident,) = callback.history.incidents
    assert (incident.step, incident.action, incident.culprit) == (BAD, "skip", None)
