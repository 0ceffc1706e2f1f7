"""Backward operators: what ATen calls to differentiate the others.

The incoming gradient is an operand like any other. Bounds are kept loose and cheap, one per
feature at most: what counts is where a gradient stops being finite. Operators that receive
both an input and something the forward pass made of it (a mean, a softmax, a log sum exp)
rely on the two belonging together.
"""

from __future__ import annotations

from ranum.analysis.transfer.backward import (
    activations,
    attention,
    contraction,
    indexing,
    loss,
    normalization,
    pooling,
    recurrent,
)

__all__ = [
    "activations",
    "attention",
    "contraction",
    "indexing",
    "loss",
    "normalization",
    "pooling",
    "recurrent",
]
