"""Twins of transfer functions for the ordinary case: one pair of bounds per tensor.

Most values of a network are bounded by one pair of numbers, and for those the tensor
arithmetic of a transfer function costs a hundred times what the numbers need. A twin takes
the same arguments after the outputs' `Value`s (shapes and dtypes), computes with Python
floats, and gives one (lower, upper) per output; what calls it rounds them outward. Operands
are finite unless it is registered as `wide`; then it may add whether NaN can occur. Whatever
is not ordinary raises `Unsure` and is left to the transfer function, which stays the
definition: the contract test runs both on the same cases.
"""

from __future__ import annotations

from ranum.analysis.transfer.uniform import (
    activation,
    attention,
    comparison,
    contraction,
    elementwise,
    layout,
    loss,
    normalization,
    pooling,
    reduction,
)
from ranum.analysis.transfer.uniform._scalar import Lost, Pair, Unsure

__all__ = [
    "Lost",
    "Pair",
    "Unsure",
    "activation",
    "attention",
    "comparison",
    "contraction",
    "elementwise",
    "layout",
    "loss",
    "normalization",
    "pooling",
    "reduction",
]
