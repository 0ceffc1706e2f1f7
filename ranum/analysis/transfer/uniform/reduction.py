"""Sums and means of one pair of bounds."""

from __future__ import annotations

import math
from typing import Any

import torch

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.transfer.registry import uniform
from ranum.analysis.transfer.uniform._scalar import (
    Bounds,
    Unsure,
    averaged,
    count,
    pair,
    summed,
    working,
)

Outputs = tuple[Value, ...]

_EXACT = 2.0**50
"""Whole numbers up to here are exact in float64, with room to spare."""


def _terms(out: Outputs, x: Interval) -> int:
    results = 1
    for length in out[0].shape:
        results *= length
    if out[0].dtype is not x.dtype or not x.dtype.is_floating_point or results == 0:
        raise Unsure
    return count(x) // results


@uniform("sum", spreads=True, wide=True)
def total(out: Outputs, x: Interval, **_: Any) -> Bounds:
    """N times the bounds, and the error of a sum in any order; whole numbers add up exactly."""
    if out[0].dtype is torch.int64 and not x.dtype.is_floating_point:
        terms = count(x) // max(math.prod(out[0].shape), 1)
        if max(-x.low, x.high) * terms > _EXACT:
            raise Unsure
        return int(x.low) * terms, int(x.high) * terms, False
    low, high, lost = summed(pair(x), _terms(out, x), working(x))
    return low, high, lost or x.may_nan


@uniform("mean", spreads=True, wide=True)
def mean(out: Outputs, x: Interval, **_: Any) -> Bounds:
    """The sum over n."""
    low, high, lost = averaged(pair(x), _terms(out, x), working(x))
    return low, high, lost or x.may_nan
