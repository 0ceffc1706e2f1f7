"""Keras models and TensorFlow functions: same loss, same gradients, defects by name."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ranum.analysis import analyze
from ranum.analysis.capture.tensorflow.function import main_function
from ranum.errors import ArgumentError
from ranum.source import UNKNOWN

from .steps import assert_same_step, program_of, run


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def images(count: int = 4, size: int = 8, channels: int = 1) -> np.ndarray:
    return rng().random((count, size, size, channels), "f")


def cnn(*, from_logits: bool, dropout: float = 0.0) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.MaxPool2D(),
            layers.Dropout(dropout),
            layers.Flatten(),
            layers.Dense(3, activation=None if from_logits else "softmax", name="head"),
        ]
    )
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits))
    return model


LABELS = np.array([0, 1, 2, 1])


@pytest.mark.parametrize("from_logits", [True, False])
def test_cnn_has_tensorflows_loss_and_gradients(from_logits):
    assert_same_step(cnn(from_logits=from_logits), images(), LABELS)


@pytest.mark.parametrize("weights", [pytest.param("initial", marks=pytest.mark.slow), "envelope"])
@pytest.mark.parametrize("from_logits", [True, False])
def test_a_clean_cnn_has_no_defect(from_logits, weights):
    analysis = analyze(cnn(from_logits=from_logits, dropout=0.5), images(), LABELS, weights=weights)
    assert analysis.defects == ()
    assert analysis.unknowns == ()
    assert {"conv", "norm", "head", "loss"} <= set(analysis.bounds)
    names = {name.rpartition("/")[0].rpartition("/")[2] for name in analysis.ranges}
    assert {"conv", "norm", "head"} <= names


def test_analysis_leaves_the_model_as_it_was():
    model = cnn(from_logits=True, dropout=0.5)
    before = [variable.numpy() for variable in model.variables]
    analyze(model, images(), LABELS)
    for variable, old in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)


class Probabilities(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(10, name="head")

    def call(self, x):
        return tf.nn.softmax(self.head(x))


def log_loss(target, predicted):
    return -keras.ops.mean(keras.ops.sum(target * keras.ops.log(predicted), -1))


def wide_batch() -> tuple[np.ndarray, np.ndarray]:
    return rng().random((8, 784), "f"), np.eye(10, dtype="f")[:8]


def test_the_log_of_a_softmax_is_found_at_the_users_line():
    model = Probabilities()
    model.compile(loss=log_loss)
    (defect,) = analyze(model, *wide_batch()).defects
    assert defect.code == "RN101"
    assert defect.source.file == __file__
    assert "keras.ops.log(predicted)" in defect.source.expression
    assert defect.source.module == "compile_loss/log_loss"
    assert defect.source.node == "compile_loss/log_loss/Log"


class Entropy(layers.Layer):
    def call(self, x):
        self.add_loss(-keras.ops.mean(keras.ops.log(keras.ops.softmax(x))))
        return x


def test_a_defect_in_a_layer_names_the_layer():
    inputs = keras.Input((784,))
    model = keras.Model(inputs, Entropy(name="entropy")(layers.Dense(10)(inputs)))
    model.compile(loss="mse")
    (defect,) = analyze(model, *wide_batch()).defects
    assert defect.source.module == "entropy"
    assert "self.add_loss" in defect.source.expression


def test_without_a_users_line_the_node_is_the_place():
    inputs = keras.Input((784,))
    outputs = layers.Activation(keras.ops.log, name="logarithm")(
        layers.Dense(10, activation="softmax")(inputs)
    )
    model = keras.Model(inputs, outputs)
    model.compile(loss="mse")
    (defect,) = analyze(model, *wide_batch()).defects
    assert defect.source.line == 0
    assert defect.source.module == "logarithm"
    assert defect.source.node.endswith("logarithm_1/Log")
    assert defect.source.expression.startswith("Log(")


@pytest.mark.parametrize(
    "make", [lambda: layers.LSTM(4), pytest.param(lambda: layers.GRU(4), marks=pytest.mark.slow)]
)
def test_recurrent_layers(make):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5, 3)), make(), layers.Dense(2)])
    model.compile(loss="mse")
    x, y = rng().random((4, 5, 3), "f"), rng().random((4, 2), "f")
    assert_same_step(model, x, y)
    analysis = analyze(model, x, y)
    assert analysis.defects == ()
    assert analysis.unknowns == ()


def test_attention():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    hidden = layers.MultiHeadAttention(2, 4)(inputs, inputs)
    outputs = layers.Dense(2)(layers.LayerNormalization()(hidden + inputs))
    model = keras.Model(inputs, outputs)
    model.compile(loss="mse")
    x, y = rng().random((4, 6, 8), "f"), rng().random((4, 6, 2), "f")
    assert_same_step(model, x, y)
    assert analyze(model, x, y).defects == ()


# --- functions -----------------------------------------------------------------------------


def regression() -> tuple:
    weight, bias = tf.Variable(tf.zeros((784, 10)), name="W"), tf.Variable(tf.zeros(10), name="b")

    def step(x, y):
        probability = tf.nn.softmax(x @ weight + bias)
        return -tf.reduce_sum(y * tf.math.log(probability))

    return step, weight, bias


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function])
def test_a_function_of_tensors(wrap):
    step, *_ = regression()
    analysis = analyze(wrap(step), *map(tf.constant, wide_batch()))
    assert set(analysis.ranges) == {"x", "y", "W", "b"}
    (defect,) = analysis.defects
    assert (defect.code, defect.source.file) == ("RN101", __file__)
    assert defect.source.expression == "return -tf.reduce_sum(y * tf.math.log(probability))"


def test_a_function_has_tensorflows_gradients():
    step, weight, bias = regression()
    x, y = map(tf.constant, wide_batch())
    with tf.GradientTape() as tape:
        loss = step(x, y)
    expected = tape.gradient(loss, [weight, bias])
    own_loss, own = run(program_of(step, x, y))
    np.testing.assert_allclose(own_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(own["W"], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(own["b"], expected[1], rtol=1e-4, atol=1e-5)


def test_branches_and_loops_are_carried_out():
    scale = tf.Variable([2.0, 3.0])

    @tf.function
    def step(x):
        for _ in tf.range(3):
            x = x * scale
        if tf.reduce_sum(x) > 1e6:
            return tf.reduce_sum(tf.math.log(x))
        return tf.reduce_sum(tf.sqrt(x))

    x = tf.constant([1.0, 2.0])
    loss, _ = run(program_of(step, x))
    np.testing.assert_allclose(loss, step(x), rtol=1e-6)
    analysis = analyze(step, x)
    assert any("tf.reduce_sum(x) > 1e6" in note for note in analysis.notes)
    assert {defect.code for defect in analysis.defects} == {"RN102"}


def test_a_whole_training_step_is_analysed_without_its_optimizer():
    model, optimizer = Probabilities(), keras.optimizers.Adam()
    model(np.zeros((1, 784), "f"))

    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            loss = log_loss(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    before = [variable.numpy() for variable in model.variables]
    analysis = analyze(train_step, *wide_batch())
    assert [defect.code for defect in analysis.defects] == ["RN101"]
    operators = {node.op for node in analysis.graph.nodes if node.phase == "forward"}
    assert "sqrt" not in operators
    for variable, old in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)


def test_a_training_step_that_returns_nothing():
    model, seen = Probabilities(), keras.metrics.Mean()
    model(np.zeros((1, 784), "f"))
    optimizer = keras.optimizers.SGD()

    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.constant(0.0)
            for _ in tf.range(2):
                loss += log_loss(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        seen(loss)

    x, y = wide_batch()
    loss, gradients = run(program_of(train_step, x, y))
    np.testing.assert_allclose(loss, 2 * log_loss(y, model(x)), rtol=1e-5)
    assert all(np.abs(one).max() > 0 for one in gradients.values())
    assert [defect.code for defect in analyze(train_step, x, y).defects] == ["RN101"]
    assert seen.count == 0


class OwnStep(Probabilities):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = log_loss(y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.told.update_state(loss)
        return {"loss": self.told.result()}


@pytest.mark.parametrize("loss", [None, "mse"])
def test_a_models_own_training_step_is_followed(loss):
    model = OwnStep()
    model.told = keras.metrics.Mean()
    model.compile(loss=loss)
    x, y = wide_batch()
    (defect,) = analyze(model, x, y).defects
    assert (defect.code, defect.source.file) == ("RN101", __file__)
    assert "keras.ops.log(predicted)" in defect.source.expression
    own_loss, gradients = run(program_of(model, x, y))
    np.testing.assert_allclose(own_loss, log_loss(y, model(x)), rtol=1e-5)
    assert all(np.abs(one).max() > 0 for one in gradients.values())


class Adversaries(keras.Model):
    """Without `call`; the second loss reads what the first optimizer step left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = keras.Sequential([keras.Input((3,)), layers.Dense(6, name="made")])
        self.judge = keras.Sequential([keras.Input((6,)), layers.Dense(1, name="judged")])

    def compile(self) -> None:
        super().compile()
        self.first, self.second = keras.optimizers.SGD(0.5), keras.optimizers.SGD(0.5)

    def train_step(self, real):
        noise = tf.ones((4, 3))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.softplus(-self.judge(real)))
        variables = self.judge.trainable_variables
        self.first.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        with tf.GradientTape() as tape:
            other = tf.reduce_mean(tf.nn.softplus(-self.judge(self.maker(noise))))
        variables = self.maker.trainable_variables
        self.second.apply_gradients(zip(tape.gradient(other, variables), variables, strict=True))
        return {"judge": loss, "maker": other}


def test_a_step_with_two_optimizers():
    model = Adversaries()
    model.compile()
    x = rng().random((4, 6), "f")
    own_loss, gradients = run(program_of(model, x))
    assert analyze(model, x).is_complete
    losses = model.train_step(tf.constant(x))
    np.testing.assert_allclose(own_loss, losses["judge"] + losses["maker"], rtol=1e-5)
    assert all(np.abs(one).max() > 0 for one in gradients.values())


def test_a_gradient_penalty_of_a_convolutional_network_is_complete():
    critic = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.MaxPool2D(2),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    variables = critic.trainable_variables

    def penalty(x):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                tape.watch(x)
                score = critic(x, training=True)
            loss = tf.reduce_mean(tf.square(tape.gradient(score, x)))
        return loss, outer.gradient(loss, variables)

    x = tf.constant(rng().random((4, 8, 8, 2), "f"))
    loss, expected = penalty(x)
    own_loss, own = run(program_of(lambda x: penalty(x)[0], x))
    np.testing.assert_allclose(own_loss, loss, rtol=1e-4)
    for variable, one in zip(variables, expected, strict=True):
        wanted = np.zeros(variable.shape) if one is None else one
        np.testing.assert_allclose(own[variable.path], wanted, rtol=1e-3, atol=1e-3)
    assert analyze(penalty, x).is_complete


def test_a_gradient_inside_the_loss_is_analysed():
    critic = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="tanh"), layers.Dense(1)]
    )

    def penalty(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            score = critic(x)
        length = tf.norm(tape.gradient(score, x), axis=1)
        return tf.reduce_mean(tf.square(length - 1.0))

    x = tf.constant(rng().random((4, 6), "f"))
    loss, _ = run(program_of(penalty, x))
    np.testing.assert_allclose(loss, penalty(x), rtol=1e-5)
    analysis = analyze(penalty, x)
    assert analysis.unknowns == ()
    assert "length = tf.norm" in {
        defect.source.expression.partition("(")[0] for defect in analysis.defects
    }


@tf.custom_gradient
def clipped_gradient(x):
    return tf.identity(x), lambda upstream: tf.clip_by_value(upstream, -0.1, 0.1)


@tf.custom_gradient
def doubled(x):
    y = tf.exp(x)

    def gradient(upstream):
        return upstream * y * 2.0

    return y, gradient


@tf.custom_gradient
def rounded(x):
    steepness = tf.sigmoid(x)  # nothing but the gradient reads it

    def gradient(upstream):
        return upstream * steepness

    return tf.round(x), gradient


@tf.custom_gradient
def reversed_gradient(x):
    """Its gradient is the function itself, as that of a sum over devices is."""
    return tf.identity(x), lambda upstream: -reversed_gradient(upstream)


GAIN = tf.Variable([0.5, 3.0], trainable=False)


@tf.custom_gradient
def gained(x):
    return tf.identity(x), lambda upstream: upstream * GAIN


CUSTOM = [clipped_gradient, doubled, rounded, reversed_gradient, gained, tf.nn.silu]


@pytest.mark.parametrize("function", CUSTOM)
@pytest.mark.parametrize("wrap", [lambda f: f, tf.function])
def test_custom_gradients_are_followed(function, wrap):
    weight = tf.Variable([1.0, 2.0])

    def step(x):
        return tf.reduce_sum(tf.square(1.5 + wrap(function)(x * weight)))

    x = tf.constant([0.3, -0.4])
    with tf.GradientTape() as tape:
        loss = step(x)
    own_loss, own = run(program_of(wrap(step), x))
    np.testing.assert_allclose(own_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(own["Variable"], tape.gradient(loss, weight), rtol=1e-5)


def test_what_is_assigned_before_is_read_after():
    weight = tf.Variable([2.0, -3.0])

    @tf.function
    def step(x):
        weight.assign(tf.clip_by_value(weight, -1.0, 1.0))
        return tf.reduce_sum(x * weight)

    loss, gradients = run(program_of(step, tf.constant([1.0, 2.0])))
    np.testing.assert_allclose(loss, -1.0)
    np.testing.assert_allclose(gradients["Variable"], [1.0, 2.0])
    np.testing.assert_array_equal(weight, [2.0, -3.0])


# --- what cannot be analysed ---------------------------------------------------------------


def test_a_model_must_be_compiled():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ArgumentError, match=r"compile\(loss=...\) first"):
        analyze(model, np.ones((2, 4), "f"), np.ones((2, 2), "f"))


def test_shapes_must_fit():
    with pytest.raises(
        ArgumentError, match=r"example_inputs must fit Keras model (.|\n)*incompatible"
    ):
        analyze(cnn(from_logits=True), np.ones((2, 5, 5, 3), "f"), LABELS[:2])


def test_a_function_must_return_a_loss():
    variable = tf.Variable(1.0)

    def step(x):
        variable.assign(x)

    with pytest.raises(ArgumentError, match="must return a loss"):
        analyze(step, tf.constant(1.0))


def test_loops_of_tensorflow_1_are_named():
    tf.compat.v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph:
            x = tf.compat.v1.placeholder(tf.float32, [])
            y = tf.compat.v1.while_loop(lambda y: y < 9.0, lambda y: y * 2.0, [x])
    finally:
        tf.compat.v1.enable_control_flow_v2()
    with pytest.raises(ArgumentError, match=r"loop or branch of TensorFlow 1 \(Enter 'while"):
        main_function(graph.as_graph_def().node, [x.op.name], [y.name], lambda *_: UNKNOWN)


def test_an_operator_without_lowering_is_unknown():
    weight = tf.Variable(0.5)

    def step(x):
        return tf.reduce_sum(tf.math.betainc(x, 2.0 * x, weight + 0.0 * x))

    x = tf.constant([0.5, 1.5])
    analysis = analyze(step, x)
    assert "tf.Betainc" in {unknown.op for unknown in analysis.unknowns}
    with tf.GradientTape() as tape:
        loss = step(x)
    own_loss, own = run(program_of(step, x))
    np.testing.assert_allclose(own_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(own["Variable"], tape.gradient(loss, weight), rtol=1e-5)


def test_what_a_lowering_does_not_do_is_unknown():
    weight = tf.Variable(2.0)

    def step(x):
        return tf.reduce_sum(tf.linalg.tensor_diag(x * weight))

    x = tf.constant([[0.5, 1.5], [2.0, 3.0]])
    analysis = analyze(step, x)
    assert {unknown.op for unknown in analysis.unknowns} >= {"tf.Diag"}
    assert not analysis.is_complete
    assert analysis.unknowns[0].source.expression.startswith("return tf.reduce_sum")
    loss, gradients = run(program_of(step, x))
    np.testing.assert_allclose(loss, step(x))
    np.testing.assert_allclose(gradients["Variable"], 7.0)
