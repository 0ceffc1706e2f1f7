"""Keras layers, activations, losses and applications, each with a batch it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, losses

Make = Callable[[], Any]


def data(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("f")


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype("f")


# --- layers: name -> (layer, shape of one example) ------------------------------------------

IMAGE, SERIES, VECTOR, VOLUME = (8, 8, 3), (7, 5), (6,), (5, 6, 5, 2)

LAYERS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "dense": (lambda: layers.Dense(4), VECTOR),
    "einsum_dense": (lambda: layers.EinsumDense("abc,cd->abd", (7, 4)), SERIES),
    "conv1d_same": (lambda: layers.Conv1D(4, 3, padding="same"), SERIES),
    "conv1d_causal": (lambda: layers.Conv1D(4, 3, padding="causal", dilation_rate=2), SERIES),
    "conv2d": (lambda: layers.Conv2D(4, 3), IMAGE),
    "conv2d_strided": (lambda: layers.Conv2D(4, 3, strides=2, padding="same"), IMAGE),
    "conv2d_dilated": (lambda: layers.Conv2D(4, 3, dilation_rate=2, padding="same"), IMAGE),
    "conv2d_groups": (lambda: layers.Conv2D(6, 3, groups=3), IMAGE),
    "conv3d": (lambda: layers.Conv3D(3, 2, padding="same"), VOLUME),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), IMAGE),
    "depthwise1d": (lambda: layers.DepthwiseConv1D(3), SERIES),
    "separable": (lambda: layers.SeparableConv2D(4, 3, padding="same"), IMAGE),
    "separable1d": (lambda: layers.SeparableConv1D(4, 3), SERIES),
    "transposed": (lambda: layers.Conv2DTranspose(4, 3, strides=2, padding="same"), IMAGE),
    "transposed_valid": (lambda: layers.Conv2DTranspose(4, 2, strides=2), IMAGE),
    "transposed1d": (lambda: layers.Conv1DTranspose(4, 3, strides=2), SERIES),
    "transposed3d": (lambda: layers.Conv3DTranspose(2, 2, strides=2), VOLUME),
    "max_pool": (lambda: layers.MaxPool2D(2), IMAGE),
    "max_pool_same": (lambda: layers.MaxPool2D(3, strides=2, padding="same"), IMAGE),
    "max_pool1d": (lambda: layers.MaxPool1D(2), SERIES),
    "max_pool3d": (lambda: layers.MaxPool3D(2), VOLUME),
    "average_pool": (lambda: layers.AveragePooling2D(2), IMAGE),
    "average_pool_same": (lambda: layers.AveragePooling2D(3, 2, padding="same"), IMAGE),
    "average_pool1d": (lambda: layers.AveragePooling1D(2), SERIES),
    "global_max": (layers.GlobalMaxPooling2D, IMAGE),
    "global_average": (layers.GlobalAveragePooling2D, IMAGE),
    "global_average1d": (layers.GlobalAveragePooling1D, SERIES),
    "batch_norm": (layers.BatchNormalization, IMAGE),
    "batch_norm_vector": (layers.BatchNormalization, VECTOR),
    "layer_norm": (layers.LayerNormalization, SERIES),
    "layer_norm_axes": (lambda: layers.LayerNormalization(axis=[1, 2]), SERIES),
    "rms_norm": (layers.RMSNormalization, SERIES),
    "group_norm": (lambda: layers.GroupNormalization(3), (4, 4, 6)),
    "unit_norm": (layers.UnitNormalization, VECTOR),
    "spectral_norm": (lambda: layers.SpectralNormalization(layers.Dense(4)), VECTOR),
    "relu": (lambda: layers.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.2), VECTOR),
    "leaky_relu": (layers.LeakyReLU, VECTOR),
    "prelu": (layers.PReLU, VECTOR),
    "elu": (layers.ELU, VECTOR),
    "softmax": (layers.Softmax, VECTOR),
    "flatten": (layers.Flatten, IMAGE),
    "reshape": (lambda: layers.Reshape((-1, 3)), VECTOR),
    "permute": (lambda: layers.Permute((2, 1)), SERIES),
    "repeat": (lambda: layers.RepeatVector(3), VECTOR),
    "cropping": (lambda: layers.Cropping2D(1), IMAGE),
    "zero_padding": (lambda: layers.ZeroPadding2D((1, 2)), IMAGE),
    "zero_padding1d": (lambda: layers.ZeroPadding1D(2), SERIES),
    "upsampling": (lambda: layers.UpSampling2D(2), IMAGE),
    "upsampling_bilinear": (lambda: layers.UpSampling2D(2, interpolation="bilinear"), IMAGE),
    "upsampling1d": (lambda: layers.UpSampling1D(2), SERIES),
    "rescaling": (lambda: layers.Rescaling(0.5, 1.0), VECTOR),
    "lstm": (lambda: layers.LSTM(4), SERIES),
    "lstm_sequences": (lambda: layers.LSTM(4, return_sequences=True, go_backwards=True), SERIES),
    "gru": (lambda: layers.GRU(4, reset_after=False), SERIES),
    "gru_after": (lambda: layers.GRU(4), SERIES),
    "simple_rnn": (lambda: layers.SimpleRNN(4), SERIES),
    "bidirectional": (lambda: layers.Bidirectional(layers.LSTM(3)), SERIES),
    "conv_lstm": (lambda: layers.ConvLSTM1D(2, 2), (3, 5, 2)),
    "time_distributed": (lambda: layers.TimeDistributed(layers.Dense(3)), SERIES),
    "masked_lstm": (
        lambda: keras.Sequential([layers.Masking(0.0), layers.LSTM(3)]),
        SERIES,
    ),
    "attention": (lambda: SelfAttention(layers.Attention(use_scale=True)), SERIES),
    "additive_attention": (lambda: SelfAttention(layers.AdditiveAttention()), SERIES),
    "multi_head_attention": (lambda: SelfAttention(layers.MultiHeadAttention(2, 3)), SERIES),
    "grouped_attention": (
        lambda: SelfAttention(layers.GroupQueryAttention(3, 4, 2)), SERIES,
    ),
    "dropout": (lambda: layers.Dropout(0.4), VECTOR),
    "spatial_dropout": (lambda: layers.SpatialDropout2D(0.4), IMAGE),
    "alpha_dropout": (lambda: layers.AlphaDropout(0.4), VECTOR),
    "gaussian_dropout": (lambda: layers.GaussianDropout(0.4), VECTOR),
    "gaussian_noise": (lambda: layers.GaussianNoise(0.4), VECTOR),
    "activity": (lambda: layers.ActivityRegularization(0.1, 0.2), VECTOR),
    "regularized": (
        lambda: layers.Dense(3, kernel_regularizer=keras.regularizers.L1L2(0.1, 0.1)), VECTOR,
    ),
    "orthogonal": (
        lambda: layers.Dense(3, kernel_regularizer=keras.regularizers.OrthogonalRegularizer()),
        VECTOR,
    ),
}  # fmt: skip
ACTIVATIONS = [
    "celu",
    "elu",
    "exponential",
    "gelu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "log_softmax",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "soft_shrink",
    "softplus",
    "softsign",
    "sparse_plus",
    "sparsemax",
    "squareplus",
    "tanh",
    "tanh_shrink",
]


class SelfAttention(layers.Layer):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def call(self, x: Any) -> Any:
        if isinstance(self.inner, layers.Attention | layers.AdditiveAttention):
            return self.inner([x, x])
        return self.inner(x, x)


def layer_model(name: str) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A layer with a dense layer in front and behind, where its input allows."""
    make, shape = LAYERS[name]
    return _around(make(), shape)


def activation_model(name: str) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    return _around(layers.Activation(name), VECTOR)


def _around(layer: Any, shape: tuple[int, ...]) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    keras.utils.set_random_seed(1)
    inputs = keras.Input(shape)
    hidden = layers.Dense(shape[-1], name="before")(inputs)
    outputs = layers.Dense(2, name="behind")(layers.Flatten()(layer(hidden)))
    model = keras.Model(inputs, outputs)
    model.compile(loss="mse")
    return model, data(3, *shape), data(3, 2, seed=1)


# --- losses: name -> (loss, last activation, targets) ---------------------------------------

ONE_HOT = np.eye(5, dtype="f")[[0, 2, 4, 1]]
CLASSES = np.array([0, 2, 4, 1])
SHARES = unit(4, 5)
BITS = (SHARES > 0.5).astype("f")
SIGNS = (2 * BITS - 1).astype("f")

LOSSES: dict[str, tuple[Make, str | None, np.ndarray]] = {
    "sparse_logits": (
        lambda: losses.SparseCategoricalCrossentropy(from_logits=True), None, CLASSES),
    "sparse": (losses.SparseCategoricalCrossentropy, "softmax", CLASSES),
    "sparse_ignored": (
        lambda: losses.SparseCategoricalCrossentropy(ignore_class=2), "softmax", CLASSES),
    "categorical_logits": (
        lambda: losses.CategoricalCrossentropy(from_logits=True), None, ONE_HOT),
    "categorical": (losses.CategoricalCrossentropy, "softmax", ONE_HOT),
    "categorical_smooth": (
        lambda: losses.CategoricalCrossentropy(label_smoothing=0.1), "softmax", ONE_HOT),
    "categorical_sigmoid": (losses.CategoricalCrossentropy, "sigmoid", ONE_HOT),
    "categorical_focal": (losses.CategoricalFocalCrossentropy, "softmax", ONE_HOT),
    "binary_logits": (lambda: losses.BinaryCrossentropy(from_logits=True), None, BITS),
    "binary": (losses.BinaryCrossentropy, "sigmoid", BITS),
    "binary_tanh": (losses.BinaryCrossentropy, "tanh", BITS),
    "binary_focal": (losses.BinaryFocalCrossentropy, "sigmoid", BITS),
    "mean_squared": (losses.MeanSquaredError, None, SHARES),
    "mean_absolute": (losses.MeanAbsoluteError, None, SHARES),
    "mean_percentage": (losses.MeanAbsolutePercentageError, None, SHARES),
    "mean_logarithmic": (losses.MeanSquaredLogarithmicError, "relu", SHARES),
    "cosine": (losses.CosineSimilarity, None, SHARES),
    "hinge": (losses.Hinge, None, SIGNS),
    "squared_hinge": (losses.SquaredHinge, None, SIGNS),
    "categorical_hinge": (losses.CategoricalHinge, None, ONE_HOT),
    "huber": (losses.Huber, None, SHARES),
    "log_cosh": (losses.LogCosh, None, SHARES),
    "divergence": (
        losses.KLDivergence, "softmax", SHARES / SHARES.sum(1, keepdims=True)),
    "poisson": (losses.Poisson, "softplus", SHARES),
    "dice": (losses.Dice, "sigmoid", BITS),
    "tversky": (losses.Tversky, "sigmoid", BITS),
    "generalized": (losses.CategoricalGeneralizedCrossEntropy, "softmax", CLASSES),
}  # fmt: skip


def loss_model(name: str) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    make, activation, target = LOSSES[name]
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="tanh"),
            layers.Dense(5, activation=activation),
        ]
    )
    model.compile(loss=make())
    return model, data(4, 6), target


# --- applications ---------------------------------------------------------------------------

APPLICATIONS = {
    "ResNet50": 32,
    "ResNet50V2": 32,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "DenseNet121": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 64,
    "ConvNeXtTiny": 32,
    "VGG16": 32,
    "NASNetMobile": 32,
    "Xception": 71,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
}
"""Families, with the smallest images they take."""


def application(name: str) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """In float64: batch statistics of two small images make rounding errors grow."""
    keras.utils.set_random_seed(1)
    size = APPLICATIONS[name]
    usual, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")  # the first model of a process has fixed another
    try:
        model = getattr(keras.applications, name)(
            weights=None, input_shape=(size, size, 3), classes=5, classifier_activation=None
        )
        model.compile(loss=losses.SparseCategoricalCrossentropy(from_logits=True))
    finally:
        keras.config.set_floatx(usual)
        keras.config.set_dtype_policy(policy)
    return model, unit(2, size, size, 3).astype("d"), np.array([1, 3])
