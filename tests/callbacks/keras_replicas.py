"""Trains under a MirroredStrategy of two replicas, with a bad batch and without; a program.

Says "same" if all that there is on every replica is the same after both runs.
"""

from __future__ import annotations

import sys

import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)

import keras  # noqa: E402
from callbacks import test_keras_clipping as clipping  # noqa: E402
from callbacks import test_keras_executions as executions  # noqa: E402
from callbacks.test_keras_callback import adam, data, fit, guard, small, without_bad  # noqa: E402

from ranum.callbacks.keras import RanumCallback  # noqa: E402


def values(model: keras.Model) -> list[np.ndarray]:
    found = [
        *model.variables,
        *model.optimizer.variables,
        *(variable for metric in model.metrics for variable in metric.variables),
    ]
    parts = [getattr(one.value, "values", None) or [one.value] for one in found]
    assert max(map(len, parts)) == 2
    return [part.numpy() for some in parts for part in some]


class Clipped(clipping.Clipped):
    """By the norm over the gradients of all replicas, as they are before they are added up."""

    def total(self, squares: list[tf.Tensor]) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, sum(squares))


def limited(strategy: tf.distribute.Strategy, folder: str) -> None:
    """Gradients are limited on all replicas alike."""
    level, first, steps = 0.05, clipping.FIRST, clipping.STEPS
    with strategy.scope():
        expected = clipping.frozen(optimizer=Clipped(level, first, steps))
        guarded, free = (clipping.frozen(optimizer=clipping.sgd()) for _ in range(2))
    callback: RanumCallback = guard(folder)
    fit(expected, clipping.data())
    fit(guarded, clipping.data(), clipping.Limit(callback, level), callback)
    fit(free, clipping.data())
    assert not callback.history.incidents
    for one, other in zip(values(guarded), values(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    pairs = zip(free.get_weights(), expected.get_weights(), strict=True)
    assert max(np.abs(one - other).max() for one, other in pairs) > 0.01


def traced_back(strategy: tf.distribute.Strategy, folder: str) -> None:
    """An operator that fails on the second replica only.

    (Several steps per execution do not run with replicas in Keras 3.15, guarded or not.)
    """
    x, y = data()
    x = np.tanh(x)
    x[executions.BAD * executions.BATCH + 6, 2] = -4
    with strategy.scope():
        model = executions.logged()
    callback: RanumCallback = guard(folder, on_fault=("rollback",))
    fit(model, (x, y), callback)
    incident = callback.history.incidents[0]
    assert incident.step == executions.BAD
    assert "ops.log(shifted)" in incident.culprit.source.expression
    assert incident.culprit.operands[0].lower < 0
    assert incident.detail.endswith("replica 2 failed")


def main(folder: str) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    limited(strategy, folder)
    traced_back(strategy, folder)
    for scaled in (False, True):
        models = []
        for _ in range(2):
            with strategy.scope():
                optimizer = adam()
                if scaled:
                    optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
                models.append(small(optimizer=optimizer))
        clean, guarded = models
        callback: RanumCallback = guard(folder)
        expected = fit(clean, without_bad())
        got = fit(guarded, data(np.nan), callback)
        (incident,) = callback.history.incidents
        assert incident.action == "skip"
        assert (incident.culprit.cause, incident.culprit.name) == ("data", "batch['x']")
        assert incident.detail.endswith("replica 1 failed")
        assert expected.history == got.history
        for one, other in zip(values(clean), values(guarded), strict=True):
            assert np.array_equal(one, other)
    print("same")


if __name__ == "__main__":
    from pathlib import Path

    main(Path(sys.argv[1]))
