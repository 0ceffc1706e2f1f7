"""Exponentials, logarithms, angles, erf."""

import math

import torch
from transfer_cases.harness import Arg, Case, N

X = Arg((N, 3))
ROW = Arg((3,))
COUNT = Arg((N, 3), low=0, high=5, dtype=torch.int64)
FLAG = Arg((N, 3), dtype=torch.bool)
UNIT = Arg((N, 3), low=-1, high=1)
SHARE = Arg((N, 3), low=0, high=1)
WIDE = Arg((N, 3), low=-100, high=100)
NEAR_ZERO = Arg((N, 3), low=-1e-3, high=1e-3)
NEAR_ONE = Arg((N, 3), low=0.99, high=1.01)
POSITIVE = Arg((N, 3), low=0, high=50, within=(0, math.inf))

ON_THE_LINE = (
    *("exp", "exp2", "expm1", "sin", "cos", "tan", "atan", "sinh", "cosh", "tanh", "asinh"),
    *("erf", "erfc", "deg2rad", "rad2deg"),
)
ON_THE_POSITIVE = ("log", "log2", "log10", "log1p", "acosh")
ON_THE_UNIT = ("asin", "acos", "atanh", "erfinv")

CASES = [
    *[Case(op, {"x": x}) for op in ON_THE_LINE for x in (X, WIDE, NEAR_ZERO)],
    *[Case(op, {"x": x}) for op in ON_THE_POSITIVE for x in (X, POSITIVE, NEAR_ONE)],
    *[Case(op, {"x": x}) for op in ON_THE_UNIT for x in (X, UNIT, NEAR_ZERO)],
    *[Case(op, {"x": x}) for op in ("exp", "log", "sin", "tanh", "erf") for x in (COUNT, FLAG)],
    Case("logaddexp", {"x": X, "other": ROW}),
    Case("logaddexp", {"x": WIDE, "other": WIDE}),
    Case("logit", {"x": SHARE}),
    Case("logit", {"x": X, "eps": 1e-3}),
    Case("xlogy", {"x": X, "other": ROW}),
    Case("xlogy", {"x": SHARE, "other": POSITIVE}),
    Case("xlogy", {"x": X, "other": 0.5}),
    Case("xlogy", {"x": 0, "other": X}),
    Case("xlogy", {"x": 2, "other": POSITIVE}),
    Case("atan2", {"x": X, "other": ROW}),
    Case("atan2", {"x": X, "other": Arg((N, 3), low=0.1)}),
]
