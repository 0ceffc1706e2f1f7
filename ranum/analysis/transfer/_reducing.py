"""What reductions share: conversion first, dimensions dropped last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box, outward, reduced_shape, squeezed

Dim = int | Sequence[int] | None


def of_empty(operator: Callable[..., Any], x: Interval, *arguments: Any, **options: Any) -> Any:
    """The result on a tensor without elements: there is only one, so torch may say it."""
    nothing = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    result = operator(nothing, *arguments, **options)
    if isinstance(result, Tensor):
        return Interval.point(result)
    return tuple(Interval.point(item) for item in result)


def in_dtype(x: Interval, dtype: torch.dtype | None) -> Interval:
    """Converted first, as reductions with a `dtype` do."""
    if dtype is None or dtype == x.dtype:
        return x
    lower, upper = x.lower.to(dtype), x.upper.to(dtype)
    return Interval(lower, upper, x.shape, dtype, x.may_nan)


def packed(
    box: Box, x: Interval, dims: Sequence[int], keepdim: bool, dtype: torch.dtype
) -> Interval:
    """A box with size 1 along `dims` as the result of a reduction."""
    lower, upper = squeezed(box.lower, dims, keepdim), squeezed(box.upper, dims, keepdim)
    return outward(lower, upper, reduced_shape(x.shape, dims, keepdim), dtype, box.may_nan)
