"""ONNX models as programs: read, checked, and carried out operator by operator in torch.

Only what tells an ONNX model from other targets is loaded with the package itself; the
`onnx` package is imported when there is a model to read.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ranum.errors import MissingExtraError

if TYPE_CHECKING:
    from ranum.analysis.capture.program import Program


def is_onnx_model(target: Any) -> bool:
    """True for an `onnx.ModelProto` and for a path that is no folder and no `.pt2` file."""
    if isinstance(target, (str, os.PathLike)):
        return not (os.path.isdir(target) or os.fspath(target).endswith(".pt2"))
    kind = type(target)
    return kind.__name__ == "ModelProto" and kind.__module__.startswith("onnx")


def onnx_program(target: Any, example_inputs: tuple[Any, ...] = (), **options: Any) -> Program:
    """A program that carries out an ONNX model; see `program.onnx_program` for the options.

    Raises:
        MissingExtraError: If the `onnx` package is not installed.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx", "Analysing an ONNX model") from error
    from ranum.analysis.capture.onnx import program

    return program.onnx_program(target, example_inputs, **options)
