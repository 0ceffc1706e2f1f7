"""`keras.applications` on TensorFlow, compiled with cross entropy of class numbers."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.clean.case import Case, add
from ranum.analysis import analyze
from ranum.analysis.result import Analysis

_CLASSES = 10
_BATCH = 2


@dataclass(frozen=True, slots=True)
class KerasWorkload:
    """A compiled model and one batch for it.

    Attributes:
        architecture: Name in `keras.applications`.
        size: Height and width of the images.
        model: With random weights.
    """

    architecture: str
    size: int
    model: Any = None

    def to(self, dtype: torch.dtype) -> KerasWorkload:
        """The model with weights and arithmetic in one type."""
        import keras
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(str(dtype).removeprefix("torch."))
        made = getattr(keras.applications, self.architecture)
        model = made(weights=None, input_shape=(self.size, self.size, 3), classes=_CLASSES)
        model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy")
        return replace(self, model=model)

    @property
    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(int(weight.shape.num_elements()) for weight in self.model.trainable_weights)

    def _batch(self) -> tuple[Any, Any]:
        import numpy as np

        generator = np.random.default_rng(0)
        images = generator.random((_BATCH, self.size, self.size, 3), dtype=np.float32)
        return images, generator.integers(0, _CLASSES, (_BATCH,))

    def forward_seconds(self) -> float:
        """CPU time of one compiled forward pass, the first not counted."""
        images, _ = self._batch()
        self.model.predict_on_batch(images)
        started = time.process_time()
        self.model.predict_on_batch(images)
        return time.process_time() - started

    def analyse(self, level: str) -> Analysis:
        """The analysis of one step with weights of one level."""
        return analyze(self.model, *self._batch(), weights=level)  # type: ignore[arg-type]


_SIZES = {
    "MobileNet": 32, "MobileNetV2": 32, "MobileNetV3Small": 32, "ResNet50": 32, "ResNet50V2": 32,
    "DenseNet121": 32, "EfficientNetB0": 32, "EfficientNetV2B0": 32, "ConvNeXtTiny": 32,
    "VGG16": 32, "Xception": 71, "InceptionV3": 75, "NASNetMobile": 32,
}  # fmt: skip

for _name, _size in _SIZES.items():
    add(Case(f"keras {_name}", lambda n=_name, s=_size: KerasWorkload(n, s)))
