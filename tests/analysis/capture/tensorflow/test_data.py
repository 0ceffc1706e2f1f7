"""Data as Keras' `fit` takes it: its extremes are the ranges, its first batch the example."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers
from torch.utils.data import DataLoader, TensorDataset

from ranum.analysis import analyze
from ranum.errors import ArgumentError

ROWS = 70
RNG = np.random.default_rng(0)
X, Y = RNG.random((ROWS, 4)), RNG.random((ROWS, 1)).astype("f")
X[65, 3] = 55.0


class Ordered(keras.utils.PyDataset):
    def __len__(self):
        return ROWS // 10

    def __getitem__(self, number):
        rows = slice(10 * number, 10 * number + 10)
        return X[rows], Y[rows]


def dataset() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(10)


def loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.tensor(X), torch.tensor(Y)), 10)


def model() -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile(loss="mse")
    return model


def assert_all_was_read(analysis, batches: int, rows: int) -> None:
    (example,) = (value for value in analysis.graph.leaves("input") if value.name == "x")
    assert example.shape == (rows, 4)
    assert analysis.ranges["x"].high == pytest.approx(60.5, abs=0.1)
    assert analysis.ranges["x"].dtype == torch.float32
    assert f"input ranges come from the example and {batches} batches of data" in analysis.notes


@pytest.mark.parametrize("make", [dataset, Ordered, loader])
def test_a_dataset_in_the_place_of_a_batch(make):
    assert_all_was_read(analyze(model(), make()), 7, 10)


@pytest.mark.parametrize("make", [dataset, Ordered, loader])
def test_a_dataset_beside_an_example(make):
    assert_all_was_read(analyze(model(), X[:4], Y[:4], data=make()), 7, 4)


def test_whole_arrays_are_cut_as_fit_does():
    assert_all_was_read(analyze(model(), data=(X, Y)), 2, 32)
    few = analyze(model(), data=(X[:4], Y[:4]))
    assert "input ranges come from the example and 1 batches of data" in few.notes


def test_a_list_holds_batches():
    assert_all_was_read(analyze(model(), data=[(X[:32], Y[:32]), (X, Y)]), 2, 32)


def test_weights_and_inputs_by_name():
    first, second = keras.Input((4,), name="first"), keras.Input((1,), name="second")
    both = keras.Model([first, second], layers.Dense(1)(layers.Concatenate()([first, second])))
    both.compile(loss="mse")
    batches = tf.data.Dataset.from_tensor_slices(
        ({"first": X, "second": Y}, Y, np.linspace(0, 3, ROWS))
    ).batch(10)
    analysis = analyze(both, batches)
    assert analysis.ranges["x['first']"].high > 60
    assert analysis.ranges["sample_weight"].high == pytest.approx(3.3)


def test_a_tf_function_takes_its_arguments_from_the_data():
    step = tf.function(lambda x, y: tf.reduce_sum(tf.exp(x) * tf.cast(y, x.dtype)))
    narrow, wide = analyze(step, X[:4] * 16, Y[:4]), analyze(step, X[:4], Y[:4], data=[(X * 16, Y)])
    assert narrow.defects == ()
    assert [defect.code for defect in wide.defects] == ["RN104"]


@pytest.mark.parametrize(
    "pass_it", [lambda it: analyze(model(), it), lambda it: analyze(model(), data=it)]
)
def test_what_can_be_read_once_is_refused(pass_it):
    with pytest.raises(ArgumentError, match="data must be something that can be read again"):
        pass_it(iter(dataset()))
