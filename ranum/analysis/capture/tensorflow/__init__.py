"""The way in from TensorFlow: Keras models, functions of TensorFlow tensors, SavedModels.

Their graphs are carried out operator by operator with torch, under the recorder. Importing
this package imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ranum.analysis.capture.program import Program
from ranum.analysis.capture.tensorflow.target import is_keras_model, is_tensorflow_function
from ranum.errors import ArgumentError


def tensorflow_program(
    target: Any,
    arguments: tuple[Any, ...],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    backward: bool = True,
) -> Program | None:
    """The program of a target that is Keras' or TensorFlow's; None for any other.

    Raises:
        ArgumentError: If the target cannot be run with the arguments.
        MissingExtraError: If TensorFlow is needed and not installed.
    """
    if isinstance(target, (str, Path)) and Path(target).is_dir():
        from ranum.analysis.capture.tensorflow.saved import saved_model_program

        return saved_model_program(target, arguments, loss=loss, backward=backward)
    if is_keras_model(target):
        from ranum.analysis.capture.tensorflow.models import keras_program

        return keras_program(target, arguments, loss=loss, backward=backward)
    if is_tensorflow_function(target, arguments):
        from ranum.analysis.capture.tensorflow.trace import function_program

        if loss is not None:
            raise ArgumentError("loss must be None for a function; let the function return it.")
        return function_program(target, arguments, backward=backward)
    return None
