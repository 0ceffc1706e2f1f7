"""Training runs into defects of TensorFlow programs, trained again in TensorFlow."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import ranum
from ranum.analysis.confirm.training.twins import twin
from ranum.errors import ArgumentError

BATCH = (
    tf.constant(np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4)),
    tf.constant(np.eye(3, dtype=np.float32)[:2]),
)


def regression():
    weight = tf.Variable(tf.zeros((4, 3)), name="weight")

    def loss(x, y):
        return -tf.reduce_mean(y * tf.math.log(tf.nn.softmax(x @ weight)))

    return loss, weight


def ordinary(loss, weight, run, optimizer):
    """Losses of an ordinary loop in TensorFlow."""
    losses = []
    for number in run.order:
        batch = dict(zip("xy", BATCH, strict=True))
        batch |= {name: tf.constant(x.numpy()) for name, x in run.batches[number].items()}
        with tf.GradientTape() as tape:
            value = loss(**batch)
        losses.append(float(value))
        optimizer.apply(tape.gradient(value, [weight]), [weight])
    return np.asarray(losses)


@pytest.mark.parametrize(
    "make", [lambda: keras.optimizers.SGD(9.0), lambda: keras.optimizers.Adam(0.5)]
)
def test_an_ordinary_loop_in_tensorflow_fails_at_the_last_step(make):
    loss, weight = regression()
    (defect,) = ranum.analyze(loss, *BATCH, inputs={"x": (0, 9)}, weights="anything").defects
    given = make()
    run = ranum.confirm_training(defect, given, seconds=30)
    assert run is not None
    assert not weight.numpy().any()
    assert not given.built
    losses = ordinary(loss, weight, run, make())
    assert np.isfinite(losses[:-1]).all()
    assert not np.isfinite(losses[-1])


def test_a_run_that_tensorflow_does_not_confirm_does_not_count(monkeypatch):
    from ranum.analysis.capture.tensorflow.origin import TensorFlowOrigin

    asked = []
    monkeypatch.setattr(
        TensorFlowOrigin, "fails_after", lambda *args, **options: bool(asked.append(args))
    )
    loss, _ = regression()
    (defect,) = ranum.analyze(loss, *BATCH, inputs={"x": (0, 9)}, weights="anything").defects
    assert ranum.confirm_training(defect, keras.optimizers.SGD(9.0), seconds=2) is None
    assert asked


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        keras.optimizers.Adam(0.1),
        keras.optimizers.AdamW(0.1, weight_decay=0.1),
        keras.optimizers.RMSprop(0.1, momentum=0.5),
        keras.optimizers.Adagrad(0.1),
    ],
    ids=lambda one: type(one).__name__,
)
def test_twins_step_as_keras_does(optimizer):
    make, words = twin(optimizer)
    assert words.startswith(type(optimizer).__name__)
    fresh = type(optimizer).from_config(optimizer.get_config())
    theirs = tf.Variable([1.0, -2.0, 3.0])
    ours = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    copy = make([ours])
    generator = np.random.default_rng(0)
    for _ in range(7):
        slope = generator.normal(size=3).astype(np.float32)
        fresh.apply([tf.constant(slope)], [theirs])
        ours.grad = torch.from_numpy(slope)
        copy.step()
    np.testing.assert_allclose(ours.detach().numpy(), theirs.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (keras.optimizers.Ftrl(0.1), "got Ftrl"),
        (keras.optimizers.Adam(0.1, clipnorm=1.0), "with clipnorm"),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1), "must be a Keras optimizer"),
        (None, "must be given"),
    ],
)
def test_what_cannot_be_followed_is_said(optimizer, message):
    loss, _ = regression()
    (defect,) = ranum.analyze(loss, *BATCH, inputs={"x": (0, 9)}, weights="anything").defects
    with pytest.raises(ArgumentError, match=message):
        ranum.confirm_training(defect, optimizer)


def test_a_compiled_model_brings_its_optimizer():
    @keras.saving.register_keras_serializable()
    def entropy(y_true, y_pred):
        return -tf.reduce_sum(y_true * tf.math.log(tf.nn.softmax(y_pred)), 1)

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(optimizer=keras.optimizers.SGD(5.0), loss=entropy)
    x, y = (one.numpy() for one in BATCH)
    defect = next(
        one
        for one in ranum.analyze(model, x, y, inputs={"x": (0, 9)}, weights="anything").defects
        if one.op == "log"
    )
    before = [weight.numpy() for weight in model.weights]
    run = ranum.confirm_training(defect, seconds=30)
    assert run is not None
    assert run.optimizer == "SGD(learning_rate=5)"
    for weight, value in zip(model.weights, before, strict=True):
        assert np.array_equal(weight.numpy(), value)
