"""The cure of an operator that failed, written into the running `fit`; with torch too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from callbacks.test_keras_callback import BACKEND, BATCH, BATCHES, data, fit, guard  # noqa: E402
from keras import layers, ops  # noqa: E402

from ranum.callbacks._session import Session  # noqa: E402
from ranum.errors import RanumWarning  # noqa: E402
from ranum.repair.patch import rewrite_edit  # noqa: E402

pytestmark = [
    pytest.mark.skipif(BACKEND not in ("tensorflow", "torch"), reason="no guard for it"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ranum.errors.RanumWarning"),
]


class Level(layers.Layer):
    """The logarithm of a sum that is zero for an empty record."""

    def call(self, x: Any) -> Any:
        total = ops.sum(ops.square(x), axis=-1, keepdims=True)
        return ops.concatenate([x, ops.log(total)], axis=-1)


def leveled(**options: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), Level(name="level"), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, optimizer=keras.optimizers.SGD(0.01), **options)
    return model


def empty() -> tuple[np.ndarray, np.ndarray]:
    """Every batch from the sixth on has a record of zeros."""
    x, y = data()
    x[5 * BATCH :: BATCH] = 0
    return x, y


def cured(tmp_path: Any, **options: Any) -> Any:
    return guard(tmp_path, analyze="step", confirm_seconds=0, on_fault=("clip", "rollback"))


def test_the_cure_is_inserted_and_training_goes_on(tmp_path):
    model = leveled()
    callback = cured(tmp_path)
    fit(model, empty(), callback, epochs=2, validation_data=empty())
    (incident,) = callback.history.incidents
    assert (incident.step, incident.action) == (5, "clip")
    assert incident.culprit.op == "log"
    assert "ops.log(total)" in incident.culprit.source.expression
    assert "ops.log(total)" in incident.patch.split("+++")[1]
    assert incident.back_to == 0
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 2 * BATCHES
    losses = [one.loss for one in callback.history.readings if one.step > 5]
    assert np.isfinite(losses).all()
    # Validation has the cure too while training runs, and nothing has it afterwards.
    validated = [one.validation_loss for one in callback.history.readings]
    assert all(one is None or np.isfinite(one) for one in validated)
    assert any(one is not None for one in validated)
    assert not np.isfinite(model.predict(empty()[0], verbose=0)).all()
    assert not np.isfinite(fit(model, empty()).history["loss"]).all()


@pytest.mark.slow
def test_a_second_fit_is_guarded_as_the_first_was(tmp_path):
    callback = cured(tmp_path)
    for _ in range(2):
        model = leveled()
        for _ in range(2):
            fit(model, empty(), callback)
            assert [one.action for one in callback.history.incidents] == ["clip"]
        assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")
def test_several_steps_in_a_call_are_analysed_when_one_has_failed(tmp_path):
    model = leveled(steps_per_execution=4)
    callback = cured(tmp_path)
    fit(model, empty(), callback, epochs=2)
    (incident,) = callback.history.incidents
    assert (incident.step, incident.action) == (5, "clip")
    assert callback.analysis.defects
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


class Wrong:
    """What stands in for the cure of the analysis: a rewriting of one's own."""

    def __init__(self, source: Any, text: str) -> None:
        self.edit = rewrite_edit(source, text)

    def __str__(self) -> str:
        return "a wrong cure"


@pytest.mark.slow
def test_a_cure_that_does_not_help_is_taken_out(tmp_path, monkeypatch):
    cure = lambda self, culprit: Wrong(culprit.source, "ops.log(1.0 * total)")  # noqa: E731
    monkeypatch.setattr(Session, "cure_for", cure)
    model = leveled()
    callback = cured(tmp_path)
    fit(model, empty(), callback)
    actions = [one.action for one in callback.history.incidents]
    assert actions[:2] == ["clip", "undo"]
    assert "clip" not in actions[2:]
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.mark.slow
def test_a_cure_that_does_not_run_is_taken_out(tmp_path, monkeypatch):
    cure = lambda self, culprit: Wrong(culprit.source, "total.nothing()")  # noqa: E731
    monkeypatch.setattr(Session, "cure_for", cure)
    model = leveled()
    callback = cured(tmp_path)
    with pytest.warns(RanumWarning, match="(?s)live patch was taken out again .*nothing"):
        fit(model, empty(), callback)
    actions = [one.action for one in callback.history.incidents]
    assert actions[0] == "clip"
    assert actions.count("clip") == 1
    assert len(callback.history.readings) > BATCHES - 1
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
