"""Functions of one number, element by element."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ranum.analysis.capture.onnx.registry import lowering

_PLAIN = {
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


def _register(op: str) -> None:
    function = _PLAIN[op]

    @lowering(op)
    def plain(x: Tensor) -> Tensor:
        result: Tensor = function(x)
        return result


for _op in _PLAIN:
    _register(_op)


@lowering("IsNaN")
def is_nan(x: Tensor) -> Tensor:
    """True for NaN."""
    return x.isnan()


@lowering("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """True for the infinities asked for."""
    if detect_negative and detect_positive:
        return x.isinf()
    if detect_positive:
        return x == math.inf
    return x == -math.inf if detect_negative else torch.zeros_like(x, dtype=torch.bool)
