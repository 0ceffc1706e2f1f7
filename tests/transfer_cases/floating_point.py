"""Sign, parts, neighbours, membership."""

import torch
from transfer_cases.harness import Arg, Case, N

X = Arg((N, 3))
ROW = Arg((3,))
COUNT = Arg((N, 3), low=-4, high=5, dtype=torch.int64)

CASES = [
    Case("copysign", {"x": X, "other": ROW}),
    Case("copysign", {"x": X, "other": -2.0}),
    *[Case(op, {"x": X, "other": ROW}) for op in ("fmax", "fmin", "nextafter")],
    *[Case(op, {"x": X, "other": COUNT}) for op in ("fmax", "fmin")],
    Case("frac", {"x": X}),
    Case("frexp", {"x": X}),
    Case("ldexp", {"x": X, "other": COUNT}),
    Case("ldexp", {"x": X, "other": ROW}),
    Case("heaviside", {"x": X, "values": ROW}),
    Case("angle", {"x": X}),
    Case("signbit", {"x": X}),
    Case("signbit", {"x": COUNT}),
    *[Case(op, {"x": X}) for op in ("isposinf", "isneginf")],
    Case("isin", {"elements": X, "test_elements": ROW}),
]
