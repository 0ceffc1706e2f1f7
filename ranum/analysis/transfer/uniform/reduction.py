"""Sums and means of one pair of bounds."""

from __future__ import annotations

from typing import Any

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.transfer.registry import uniform
from ranum.analysis.transfer.uniform._scalar import (
    Pair,
    Unsure,
    average,
    count,
    pair,
    times,
    working,
)

Outputs = tuple[Value, ...]


def _terms(out: Outputs, x: Interval) -> int:
    results = 1
    for length in out[0].shape:
        results *= length
    if out[0].dtype is not x.dtype or not x.dtype.is_floating_point or results == 0:
        raise Unsure
    return count(x) // results


@uniform("sum", spreads=True)
def total(out: Outputs, x: Interval, **_: Any) -> Pair:
    """N times the bounds, and the error of a sum in any order."""
    return times(pair(x), _terms(out, x), working(x))


@uniform("mean", spreads=True)
def mean(out: Outputs, x: Interval, **_: Any) -> Pair:
    """The sum over n."""
    return average(pair(x), _terms(out, x), working(x))
