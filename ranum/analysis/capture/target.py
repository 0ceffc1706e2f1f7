"""What can be analysed, as a type. Keras, TensorFlow and ONNX are described, not imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import nn
from torch.export import ExportedProgram

from ranum.analysis.capture.program import Program


class KerasModel(Protocol):
    """A compiled `keras.Model`, of any backend that is supported."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Trains the model."""


class OnnxModel(Protocol):
    """An `onnx.ModelProto`."""

    graph: Any
    opset_import: Any

    def SerializeToString(self) -> bytes:  # noqa: N802
        """The model as bytes."""


Target: TypeAlias = (
    nn.Module | ExportedProgram | KerasModel | OnnxModel | Callable[..., Any] | Program | str | Path
)
"""A module (a LightningModule too), an exported program, a compiled Keras model, an ONNX model,
a function of torch or TensorFlow tensors (a `tf.function` too), a program; or the path of an
ONNX model, of a `.pt2` file, or of a SavedModel's folder."""
