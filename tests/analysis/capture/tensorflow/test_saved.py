"""SavedModels: the same numbers as TensorFlow, and nothing run but arithmetic."""

from __future__ import annotations

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from ranum.analysis import analyze
from ranum.cli import main
from ranum.errors import ArgumentError
from ranum.repair.clipping import fix

from .steps import program_of, run

X = np.random.default_rng(0).standard_normal((3, 6)).astype("f")
SPECIFICATION_2 = [tf.TensorSpec((2,), tf.float32, name="x")]
SPECIFICATION = [tf.TensorSpec((None, 6), tf.float32, name="x")]


class LogSoftmax(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.ones((6, 3)), name="weight")
        self.scale = tf.Variable(2.0, trainable=False)
        self.offset = tf.constant([1.0, 2.0, 3.0])

    @tf.function(input_signature=SPECIFICATION)
    def __call__(self, x):
        for _ in tf.range(2):
            x = x * self.scale
        return tf.math.log(tf.nn.softmax(x @ self.weight)) + self.offset


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    tf.saved_model.save(LogSoftmax(), str(folder))
    return folder


def test_a_module_has_the_same_output(saved):
    program = program_of(saved, X, backward=False)
    (expected,) = (
        tf.saved_model.load(str(saved)).signatures["serving_default"](x=tf.constant(X)).values()
    )
    with torch.no_grad():
        np.testing.assert_allclose(program.step(*program.arguments), expected, rtol=1e-5)
    assert set(program.parameters) == {"weight"}
    assert set(program.inputs) == {"x"}


def test_a_keras_export_has_the_same_output(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(4, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.export(str(tmp_path / "model"), verbose=False)
    program = program_of(str(tmp_path / "model"), X)
    with torch.no_grad():
        found = program.step(*program.arguments)
    np.testing.assert_allclose(found, model(X), rtol=1e-5)
    assert len(program.parameters) == 6
    assert analyze(str(tmp_path / "model")).defects == ()


def test_a_defect_names_folder_and_node(saved):
    (defect,) = analyze(str(saved), X).defects
    assert (defect.code, defect.source.file) == ("RN101", str(saved))
    assert defect.source.node == "Log"


def test_a_loss_may_be_given(saved):
    analysis = analyze(saved, X, loss=lambda output: output.square().mean())
    assert analysis.graph.loss is not None
    assert analysis.graph.values[analysis.graph.loss].shape == ()


def test_inputs_are_made_up_where_none_are_given(saved):
    assert program_of(saved).arguments[0].shape == (2, 6)


# --- nothing but arithmetic ----------------------------------------------------------------


def save(folder, function) -> str:
    module = tf.Module()
    module.run = tf.function(function, input_signature=SPECIFICATION)
    tf.saved_model.save(module, str(folder / "model"), signatures={"serving_default": module.run})
    return str(folder / "model")


def test_a_model_that_writes_files_is_refused(tmp_path):
    target = tmp_path / "written"

    def run(x):
        tf.io.write_file(str(target), "x")
        return x

    folder = save(tmp_path, run)
    target.unlink(missing_ok=True)
    with pytest.raises(ArgumentError, match="not run from a file: WriteFile"):
        analyze(folder)
    assert not target.exists()


def test_a_model_that_reads_files_is_refused(tmp_path):
    (tmp_path / "secret").write_text("1")

    def run(x):
        return x + tf.strings.to_number(tf.io.read_file(str(tmp_path / "secret")))

    with pytest.raises(ArgumentError, match=r"ReadFile.*StringToNumber"):
        analyze(save(tmp_path, run))


def test_a_model_that_calls_python_is_refused_also_in_a_branch(tmp_path):
    def run(x):
        return tf.cond(tf.reduce_sum(x) > 1e9, lambda: tf.py_function(abs, [x], x.dtype), lambda: x)

    with pytest.raises(ArgumentError, match="EagerPyFunc"):
        analyze(save(tmp_path, run))


def test_numeric_operators_without_lowering_are_computed_and_unknown(tmp_path):
    folder = save(tmp_path, lambda x: tf.math.betainc(x * x, x * x, tf.nn.sigmoid(x)))
    analysis = analyze(folder, X + 2.0)
    assert [unknown.op for unknown in analysis.unknowns] == ["tf.Betainc"]


# --- bad files and arguments ---------------------------------------------------------------


@tf.custom_gradient
def straight_through(x):
    return tf.round(x), lambda upstream: upstream


class Rounded(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable([1.0, 2.0], name="weight")

    @tf.function(input_signature=[tf.TensorSpec((2,), tf.float32, name="x")])
    def __call__(self, x):
        return tf.reduce_sum(tf.square(straight_through(self.weight * x)))


def test_a_custom_gradient_that_the_file_lacks_leaves_the_analysis_incomplete(tmp_path):
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(Rounded(), str(tmp_path), options=options)
    x = np.array([1.3, 2.3], "f")
    analysis = analyze(tmp_path, x)
    assert [unknown.op for unknown in analysis.unknowns] == ["tf.custom_gradient"]
    assert analysis.unknowns[0].source.file == str(tmp_path)
    assert analyze(tmp_path, x, backward=False).is_complete


WITH_GRADIENTS = tf.saved_model.SaveOptions(experimental_custom_gradients=True)


@tf.custom_gradient
def steepened(x):
    steepness = tf.sigmoid(x)  # what the gradient alone reads

    def gradient(upstream):
        return upstream * steepness * tf.constant([1.0, 3.0])

    return tf.round(x), gradient


class Steep(Rounded):
    @tf.function(input_signature=[tf.TensorSpec((2,), tf.float32, name="x")])
    def __call__(self, x):
        return tf.reduce_sum(tf.nn.silu(steepened(self.weight * x)) + straight_through(x))


@pytest.mark.parametrize("make", [Rounded, Steep])
def test_a_custom_gradient_that_the_file_holds_is_followed(tmp_path, make):
    module = make()
    tf.saved_model.save(module, str(tmp_path), options=WITH_GRADIENTS)
    x = tf.constant([1.3, 2.3])
    with tf.GradientTape() as tape:
        loss = module(x)
    own_loss, own = run(program_of(str(tmp_path), x))
    np.testing.assert_allclose(own_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(own["weight"], tape.gradient(loss, module.weight), rtol=1e-6)
    assert own["weight"].all()
    assert analyze(tmp_path, x).is_complete


def test_a_gradient_that_writes_files_is_refused(tmp_path):
    target = tmp_path / "written"

    @tf.custom_gradient
    def writing(x):
        def gradient(upstream):
            with tf.control_dependencies([tf.io.write_file(str(target), "x")]):
                return tf.identity(upstream)

        return tf.identity(x), gradient

    module = Rounded()
    module.run = tf.function(lambda x: writing(x * module.weight), input_signature=SPECIFICATION_2)
    signatures = {"serving_default": module.run}
    tf.saved_model.save(module, str(tmp_path / "m"), signatures, options=WITH_GRADIENTS)
    target.unlink(missing_ok=True)
    with pytest.raises(ArgumentError, match=r"not run from a file: .*WriteFile"):
        analyze(str(tmp_path / "m"))
    assert not target.exists()


def test_a_loaded_custom_gradient_is_followed(tmp_path):
    tf.saved_model.save(Rounded(), str(tmp_path), options=WITH_GRADIENTS)
    loaded = tf.saved_model.load(str(tmp_path))
    x = tf.constant([1.3, 2.3])
    with tf.GradientTape() as tape:
        loss = loaded(x)
    own_loss, own = run(program_of(loaded.__call__, x))
    np.testing.assert_allclose(own_loss, loss)
    np.testing.assert_allclose(own["weight"], tape.gradient(loss, loaded.weight), rtol=1e-6)
    assert own["weight"].all()


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ArgumentError, match=r"holds no saved_model\.pb"):
        analyze(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\xff\xff\xff\xff\x0f"])
def test_a_file_that_is_no_model(tmp_path, content):
    (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(ArgumentError, match=r"saved_model\.pb"):
        analyze(str(tmp_path))


def test_truncated_files(saved, tmp_path):
    whole = (saved / "saved_model.pb").read_bytes()
    for share in (0.2, 0.5, 0.9):
        shutil.copytree(saved, tmp_path / str(share))
        (tmp_path / str(share) / "saved_model.pb").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ArgumentError):
            analyze(str(tmp_path / str(share)), X)


def test_missing_and_broken_variables(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "variables")
    with pytest.raises(ArgumentError, match="no value for the variable"):
        analyze(str(tmp_path / "a"), X)
    shutil.copytree(saved, tmp_path / "b")
    (tmp_path / "b" / "variables" / "variables.index").write_bytes(b"nothing")
    with pytest.raises(ArgumentError, match="checkpoint that cannot be read"):
        analyze(str(tmp_path / "b"), X)


@pytest.mark.parametrize(
    "batch", [(X[0],), (X[:, :5],), (X.astype("i4"),), (X, X)], ids=["rank", "size", "type", "two"]
)
def test_arguments_must_fit_the_signature(saved, batch):
    with pytest.raises(ArgumentError, match="example_inputs"):
        analyze(str(saved), *batch)


def test_the_command_takes_a_folder(saved, capsys):
    assert main(["analyze", str(saved), "--no-confirm"]) == 0
    assert "RN101" in capsys.readouterr().out


def test_a_graph_is_not_patched_as_if_it_were_torch_code(saved):
    (clip,) = fix(analyze(saved, X)).clips
    assert clip.edit is None
    assert clip.lower is not None
    assert "belongs to a graph" in clip.reason
