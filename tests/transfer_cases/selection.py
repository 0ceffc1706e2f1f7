"""Limits, rounding, choosing, casts."""

import torch
from transfer_cases.harness import Arg, Case, N

X = Arg((N, 3))
ROW = Arg((3,))
SCALAR = Arg(())
COUNT = Arg((N, 3), low=-5, high=5, dtype=torch.int64)
FLAG = Arg((N, 3), dtype=torch.bool)
FLAG_ROW = Arg((3,), dtype=torch.bool)
KNOWN_FLAG = Arg((N, 3), dtype=torch.bool, exact=True)
DOUBLE = Arg((), dtype=torch.float64)


def cast(x, dtype):
    return x.to(dtype)


CASES = [
    Case("clamp", {"x": X, "min": -0.1, "max": 1}),
    Case("clamp", {"x": X, "min": 2.0, "max": -1.0}),
    Case("clamp", {"x": X, "min": None, "max": 0.3}),
    Case("clamp", {"x": X, "min": 1e-7, "max": None}),
    Case("clamp", {"x": X, "min": ROW, "max": X}),
    Case("clamp", {"x": X, "min": ROW, "max": None}),
    Case("clamp", {"x": COUNT, "min": 0, "max": 3}),
    Case("clamp", {"x": COUNT, "min": 0.5}),
    Case("clip", {"x": X, "min": -0.1, "max": 1}),
    Case("clamp_min", {"x": X, "min": 0.2}),
    Case("clamp_min", {"x": X, "min": ROW}),
    Case("clamp_max", {"x": X, "max": 0.2}),
    Case("clamp_max", {"x": X, "max": ROW}),
    Case("maximum", {"x": X, "other": ROW}),
    Case("maximum", {"x": COUNT, "other": SCALAR}),
    Case("minimum", {"x": X, "other": ROW}),
    Case("minimum", {"x": FLAG, "other": FLAG}),
    Case("nan_to_num", {"x": X}),
    Case("nan_to_num", {"x": X, "nan": 9.0, "posinf": -1.0, "neginf": 7.0}),
    Case("nan_to_num", {"x": X, "posinf": torch.inf}),
    Case("nan_to_num", {"x": COUNT}),
    *[Case(op, {"x": x}) for op in ("floor", "ceil", "trunc", "fix", "round") for x in (X, COUNT)],
    Case("round", {"x": X, "decimals": 2}),
    Case("round", {"x": Arg((N, 3), low=-900, high=900), "decimals": -2}),
    Case("where", {"condition": FLAG, "x": X, "other": ROW}),
    Case("where", {"condition": KNOWN_FLAG, "x": X, "other": Arg((N, 1))}),
    Case("where", {"condition": FLAG_ROW, "x": X, "other": SCALAR}),
    Case("where", {"condition": FLAG, "x": X, "other": DOUBLE}),
    Case("where", {"condition": FLAG, "x": X, "other": -torch.inf}),
    Case("where", {"condition": KNOWN_FLAG, "x": COUNT, "other": COUNT}),
    Case("masked_fill", {"x": X, "mask": FLAG, "value": -torch.inf}),
    Case("masked_fill", {"x": X, "mask": FLAG_ROW, "value": 3}),
    Case("masked_fill", {"x": X, "mask": KNOWN_FLAG, "value": SCALAR}),
    Case("masked_fill", {"x": COUNT, "mask": FLAG, "value": 3}),
    Case("identity", {"x": X}, oracle=lambda x: x.clone()),
    Case("copy", {"x": X, "src": ROW}, oracle=lambda x, src: x.clone().copy_(src)),
    Case("copy", {"x": X, "src": DOUBLE}, oracle=lambda x, src: x.clone().copy_(src)),
    Case("copy", {"x": X, "src": COUNT}, oracle=lambda x, src: x.clone().copy_(src)),
    *[
        Case("cast", {"x": X, "dtype": dtype}, oracle=cast)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool)
    ],
    Case("cast", {"x": COUNT, "dtype": torch.float16}, oracle=cast),
    Case("cast", {"x": COUNT, "dtype": torch.int32}, oracle=cast),
    Case("cast", {"x": COUNT, "dtype": torch.bool}, oracle=cast),
    Case("cast", {"x": COUNT, "dtype": torch.uint8}, oracle=cast),
    Case("cast", {"x": FLAG, "dtype": torch.float32}, oracle=cast),
    Case("cast", {"x": X, "dtype": torch.int64}, oracle=cast),
]
