"""Sums, products, quotients, powers."""

import torch
from transfer_cases.harness import Arg, Case, N

X = Arg((N, 3))
ROW = Arg((3,))
COLUMN = Arg((N, 1))
SCALAR = Arg(())
COUNT = Arg((N, 3), low=-5, high=5, dtype=torch.int64)
POSITIVE_COUNT = Arg((N, 3), low=1, high=6, dtype=torch.int64)
BYTE = Arg((N, 3), low=0, high=255, dtype=torch.uint8)
FLAG = Arg((N, 3), dtype=torch.bool)
DOUBLE = Arg((), dtype=torch.float64)
PIXEL = Arg((N, 3), low=0, high=255)

SUMS = [
    Case(op, arguments)
    for op in ("add", "sub")
    for arguments in (
        {"x": X, "other": ROW},
        {"x": COLUMN, "other": X, "alpha": 2},
        {"x": X, "other": X, "alpha": 0.3},
        {"x": X, "other": 1.5, "alpha": -0.1},
        {"x": X, "other": DOUBLE},
        {"x": SCALAR, "other": COUNT},
        {"x": COUNT, "other": COUNT, "alpha": 3},
        {"x": BYTE, "other": BYTE},
    )
]

CASES = [
    Case("floor_divide", {"x": Arg((N, 3)), "other": Arg((3,))}),
    Case("floor_divide", {"x": Arg((N, 3), low=-9, high=9, dtype=torch.int64), "other": 2}),
    *SUMS,
    Case("add", {"x": FLAG, "other": FLAG}),
    Case("rsub", {"x": X, "other": 1}),
    Case("rsub", {"x": X, "other": ROW, "alpha": 0.7}),
    Case("rsub", {"x": COUNT, "other": 7}),
    Case("mul", {"x": X, "other": ROW}),
    Case("mul", {"x": X, "other": 0.0}),
    Case("mul", {"x": COLUMN, "other": -0.1}),
    Case("mul", {"x": X, "other": FLAG}),
    Case("mul", {"x": COUNT, "other": COUNT}),
    Case("mul", {"x": BYTE, "other": BYTE}),
    Case("mul", {"x": FLAG, "other": FLAG}),
    Case("mul", {"x": COUNT, "other": 0.5}),
    Case("div", {"x": X, "other": ROW}),
    Case("div", {"x": X, "other": Arg((3,), low=0.5, high=4)}),
    Case("div", {"x": X, "other": Arg((3,), low=0, high=4, within=(0, torch.inf))}),
    Case("div", {"x": X, "other": 3.0}),
    Case("div", {"x": X, "other": 0.0}),
    Case("div", {"x": COUNT, "other": COUNT}),
    *[
        Case("div", {"x": x, "other": other, "rounding_mode": mode})
        for mode in ("floor", "trunc")
        for x, other in ((X, ROW), (X, 0.3), (COUNT, POSITIVE_COUNT), (COUNT, 2))
    ],
    Case("reciprocal", {"x": X}),
    Case("reciprocal", {"x": Arg((N, 3), low=0.1)}),
    Case("reciprocal", {"x": COUNT}),
    Case("addcmul", {"x": X, "tensor1": ROW, "tensor2": COLUMN}),
    Case("addcmul", {"x": X, "tensor1": X, "tensor2": ROW, "value": -0.3}),
    Case("addcdiv", {"x": X, "tensor1": ROW, "tensor2": COLUMN}),
    Case("addcdiv", {"x": X, "tensor1": X, "tensor2": Arg((3,), low=0.5), "value": -0.01}),
    Case("lerp", {"x": X, "end": ROW, "weight": 0.3}),
    Case("lerp", {"x": X, "end": ROW, "weight": 0.9}),
    Case("lerp", {"x": X, "end": X, "weight": -2.5}),
    Case("lerp", {"x": X, "end": X, "weight": Arg((N, 3), low=0, high=1)}),
    Case("remainder", {"x": X, "other": ROW}),
    Case("remainder", {"x": X, "other": -1.5}),
    Case("remainder", {"x": 7, "other": X}),
    Case("remainder", {"x": COUNT, "other": POSITIVE_COUNT}),
    Case("fmod", {"x": X, "other": ROW}),
    Case("fmod", {"x": X, "other": 1.5}),
    Case("fmod", {"x": COUNT, "other": 3}),
    *[Case(op, {"x": x}) for op in ("neg", "abs", "sign", "sgn") for x in (X, COUNT)],
    Case("neg", {"x": BYTE}),
    Case("sign", {"x": FLAG}),
    Case("sqrt", {"x": X}),
    Case("sqrt", {"x": COUNT}),
    Case("rsqrt", {"x": X}),
    Case("rsqrt", {"x": Arg((N, 3), low=0.01)}),
    Case("square", {"x": X}),
    Case("square", {"x": PIXEL}),
    *[
        Case("pow", {"x": x, "exponent": exponent})
        for exponent in (0, 1, 2, 3, 4, 5, -1, -2, -3, -4, 0.5, -0.5, 1.5, 1 / 3, -0.3, 2.5)
        for x in (X, Arg((N, 3), low=0.1, high=3))
    ],
    Case("pow", {"x": X, "exponent": torch.inf}),
    Case("pow", {"x": COUNT, "exponent": 3}),
    Case("pow", {"x": COUNT, "exponent": 0.5}),
    Case("pow", {"x": BYTE, "exponent": 2}),
    Case("pow", {"x": 2.0, "exponent": X}),
    Case("pow", {"x": 0.5, "exponent": X}),
    Case("pow", {"x": 0.0, "exponent": X}),
    Case("pow", {"x": -2, "exponent": X}),
    Case("pow", {"x": X, "exponent": ROW}),
    Case("pow", {"x": Arg((N, 3), low=0.5, high=2), "exponent": ROW}),
    Case("pow", {"x": Arg((N, 3), low=0, high=2, within=(0, torch.inf)), "exponent": X}),
    Case("pow", {"x": X, "exponent": Arg((), low=2, high=3, dtype=torch.int64, exact=True)}),
]
