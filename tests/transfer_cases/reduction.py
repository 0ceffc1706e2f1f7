"""Cases of the reductions."""

from __future__ import annotations

import math

import torch
from transfer_cases.harness import Arg, Case, N

X = Arg((N, 3))
FILLED = Arg((2, 3))
CUBE = Arg((N, 3, 2))
WHOLE = Arg((N, 3), low=-9, high=9, dtype=torch.int64)
FLAGS = Arg((N, 3), dtype=torch.bool)
LONG = Arg((2, 300))

CASES = [
    *(
        Case("_cdist_forward", {"x1": x, "x2": FILLED, "p": p, "compute_mode": mode})
        for x in (Arg((4, 3)), Arg((N, 2, 3)))
        for p, mode in ((1.0, None), (2.0, 1), (2.0, 2), (math.inf, None), (3.0, None))
    ),
    *(
        Case(op, {"x": x, **options})
        for op in ("sum", "mean")
        for x, options in (
            (X, {}),
            (Arg(()), {}),
            (X, {"dim": [1], "keepdim": True}),
            (X, {"dim": [0]}),
            (CUBE, {"dim": [0, -1]}),
            (LONG, {"dim": [1]}),
        )
    ),
    Case("sum", {"x": WHOLE}),
    Case("sum", {"x": FLAGS, "dim": [1]}),
    Case("sum", {"x": Arg((N, 3), dtype=torch.float16), "dtype": torch.float32}),
    *(
        Case(op, {"x": FILLED, "dim": dim, "keepdim": keepdim})
        for op in ("amax", "amin")
        for dim, keepdim in (([], False), ([1], True), ([0], False))
    ),
    Case("amax", {"x": CUBE, "dim": [1]}),
    Case("amin", {"x": CUBE, "dim": [1, 2]}),
    *(Case(op, {"x": FILLED}) for op in ("max", "min", "aminmax", "median", "nanmedian")),
    *(
        Case(op, {"x": X, "dim": 1, "keepdim": keepdim})
        for op in ("max", "min", "aminmax", "median", "nanmedian", "mode", "argmax", "argmin")
        for keepdim in (False, True)
    ),
    Case("argmax", {"x": FILLED}),
    Case("argmin", {"x": FILLED}),
    Case("kthvalue", {"x": X, "k": 2, "dim": 1}),
    *(Case(op, {"x": x, "dim": 1}) for op in ("cummax", "cummin") for x in (X, CUBE)),
    Case("sort", {"x": X}),
    Case("sort", {"x": CUBE, "dim": 1, "descending": True}),
    Case("sort", {"x": Arg(())}),
    Case("topk", {"x": X, "k": 2}),
    Case("topk", {"x": CUBE, "k": 2, "dim": 1, "largest": False}),
    Case("topk", {"x": X, "k": 2, "sorted": False}),
    Case("count_nonzero", {"x": X}),
    Case("count_nonzero", {"x": X, "dim": [1]}),
    *(
        Case(op, {"x": x, "dim": dim})
        for op in ("cumsum", "cumprod", "logcumsumexp")
        for x, dim in ((X, 1), (CUBE, 0), (CUBE, -1))
    ),
    Case("cumsum", {"x": WHOLE, "dim": 1}),
    Case("cumprod", {"x": WHOLE, "dim": 1}),
    Case("prod", {"x": X}),
    Case("prod", {"x": CUBE, "dim": 1, "keepdim": True}),
    Case("prod", {"x": WHOLE, "dim": 1}),
    *(
        Case(op, {"x": x, **options})
        for op in ("var", "std", "var_mean", "std_mean")
        for x, options in (
            (X, {}),
            (X, {"dim": [1], "correction": 0}),
            (CUBE, {"dim": [0, 2], "keepdim": True}),
            (Arg((2, 1)), {"dim": [1]}),
            (Arg((4, 50), low=999.0, high=1001.0), {"dim": [1], "correction": 1}),
        )
    ),
    *(
        Case("linalg_vector_norm", {"x": x, "ord": ord, "dim": dim, "keepdim": keepdim})
        for ord in (0, 0.5, 1, 2, 3, 2.5)
        for x, dim, keepdim in ((X, None, False), (X, [1], True), (CUBE, [0, 2], False))
    ),
    *(
        Case("linalg_vector_norm", {"x": FILLED, "ord": ord, "dim": [1]})
        for ord in (math.inf, -math.inf, -1)
    ),
    Case("linalg_vector_norm", {"x": LONG, "ord": 2, "dim": [1]}),
    Case("linalg_vector_norm", {"x": Arg((N, 1)), "ord": 2, "dim": [1]}),
    Case("norm", {"x": X, "p": 2}),
    Case("norm", {"x": X, "p": 3, "dim": [1], "keepdim": True}),
    Case("logsumexp", {"x": X, "dim": [1]}),
    Case("logsumexp", {"x": CUBE, "dim": [0, 2], "keepdim": True}),
    Case("logsumexp", {"x": LONG, "dim": [1]}),
]
