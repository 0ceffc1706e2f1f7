"""The same training under Keras' `fit`, on TensorFlow, in the graph."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.faults.training import SNAPSHOT_EVERY, Batch, Fault
from ranum.guards import Retry, Rollback


def keras_fit(listed: Sequence[Batch], fault: Fault | None) -> tuple[list[Tensor], Any]:
    """`fit` with the callback."""
    import keras
    import tensorflow as tf

    from ranum.callbacks._keras.guard import SkipWithheld
    from ranum.callbacks.keras import RanumCallback

    # Not of the model, so that nobody puts them back: a fault comes once.
    bad_loss = tf.Variable(0.0, trainable=False)
    bad_gradient = tf.Variable(0.0, trainable=False)

    @tf.custom_gradient
    def spoiled(kernel: Any) -> Any:
        def slope(upstream: Any) -> Any:
            value = tf.identity(bad_gradient)
            with tf.control_dependencies([value]):
                bad_gradient.assign(0.0)
            # Added at one place: 0, NaN or an infinity.
            return tf.tensor_scatter_nd_add(upstream, [[1, 2]], [value])

        return tf.identity(kernel), slope

    class Spoiled(keras.layers.Dense):  # type: ignore[misc, unused-ignore]
        def call(self, x: Any) -> Any:
            return x @ spoiled(self.kernel.value) + self.bias

    def loss(labels: Any, scores: Any) -> Any:
        classes = tf.cast(tf.reshape(labels, [-1]), tf.int32)
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, scores)
        found = tf.reduce_mean(each)
        value = tf.identity(bad_loss)
        with tf.control_dependencies([value]):
            bad_loss.assign(0.0)
        return tf.where(tf.math.is_nan(value), found * value, found)

    class Injecting(keras.callbacks.Callback):  # type: ignore[misc, unused-ignore]
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if fault is None or batch != fault.step:
                return
            model = self.model
            if fault.kind == "loss":
                bad_loss.assign(float("nan"))
            elif fault.kind == "gradient":
                bad_gradient.assign(fault.value)
            elif fault.kind == "weight":
                _put(model.get_layer("first").kernel, (1, 2), fault.value)
            elif fault.kind == "buffer":
                _put(model.get_layer("norm").moving_mean, (3,), fault.value)
            elif fault.kind == "moment":
                moments = [v for v in model.optimizer.variables if "last_kernel_mom" in v.path]
                _put(moments[0], (1, 2), fault.value)

    class Callback(RanumCallback):  # type: ignore[misc, unused-ignore]
        def _make(self, model: Any) -> None:
            super()._make(model)
            assert self._guard is not None
            self._guard._ladder._active = [Retry(), SkipWithheld(), Rollback(1.0)]

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            Spoiled(16, name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(4, name="last"),
        ]
    )
    model.compile(loss=loss, optimizer=keras.optimizers.AdamW(0.01), metrics=["accuracy"])
    x = torch.cat([batch["x"] for batch in listed]).numpy()
    y = torch.cat([batch["labels"] for batch in listed]).numpy()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callback = Callback("off", verbose=False, snapshot_every=SNAPSHOT_EVERY, log_dir=folder)
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[Injecting(), callback])
    state = [
        torch.as_tensor(variable.numpy())
        for variable in (*model.variables, *model.optimizer.variables, *_metrics(model))
        if variable.dtype != "uint32"
    ]
    seeds = [v.numpy().astype("int64") for v in model.variables if v.dtype == "uint32"]
    return [*state, *map(torch.as_tensor, seeds)], callback.history


def _metrics(model: Any) -> list[Any]:
    return [variable for metric in model.metrics for variable in metric.variables]


def _put(variable: Any, place: tuple[int, ...], value: float) -> None:
    values = variable.numpy().copy()
    values[place] = value
    variable.assign(values)
