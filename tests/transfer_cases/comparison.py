"""Comparisons, logic, tests, any and all."""

import torch
from transfer_cases.harness import Arg, Case, N

X = Arg((N, 3))
ROW = Arg((3,))
COUNT = Arg((N, 3), low=-2, high=2, dtype=torch.int64)
BITS = Arg((N, 3), low=0, high=100, dtype=torch.int32)
BYTE = Arg((N, 3), low=0, high=255, dtype=torch.uint8)
FLAG = Arg((N, 3), dtype=torch.bool)
FLAG_ROW = Arg((3,), dtype=torch.bool)

CASES = [
    *[
        Case(op, arguments)
        for op in ("eq", "ne", "lt", "le", "gt", "ge")
        for arguments in (
            {"x": X, "other": ROW},
            {"x": X, "other": 0.3},
            {"x": COUNT, "other": COUNT},
            {"x": COUNT, "other": X},
            {"x": COUNT, "other": 1},
        )
    ],
    Case("logical_not", {"x": X}),
    Case("logical_not", {"x": COUNT}),
    *[
        Case(op, {"x": x, "other": other})
        for op in ("logical_and", "logical_or", "logical_xor")
        for x, other in ((FLAG, FLAG_ROW), (X, FLAG), (COUNT, ROW))
    ],
    *[Case("bitwise_not", {"x": x}) for x in (FLAG, COUNT, BYTE)],
    *[
        Case(op, {"x": x, "other": other})
        for op in ("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__")
        for x, other in ((FLAG, FLAG_ROW), (BITS, BITS), (COUNT, BITS), (BYTE, 12))
    ],
    *[Case(op, {"x": x}) for op in ("isnan", "isinf", "isfinite") for x in (X, COUNT)],
    *[
        Case(op, {"x": x, **over})
        for op in ("any", "all")
        for x in (FLAG, X, BYTE)
        for over in ({}, {"dim": 1}, {"dim": 0, "keepdim": True}, {"dim": [0, 1], "keepdim": False})
    ],
]
