"""Distances, products of three tensors, sums without NaN."""

import math

import torch
from transfer_cases.harness import Arg, Case, N

FULL = (torch.float32, torch.float64)
X = Arg((4, 3))
ROW = Arg((3,))
NORMS = (0.0, 0.5, 1.0, 2.0, 3.0, math.inf)


def pdist_backward(grad, x, p, pdist):
    return torch.ops.aten._pdist_backward(grad, x, p, torch.ops.aten._pdist_forward(x, p))


def cdist_backward(grad, x1, x2, p, cdist):
    distance = torch.ops.aten._cdist_forward(x1, x2, p, None)
    return torch.ops.aten._cdist_backward(grad, x1, x2, p, distance)


CASES = [
    *[Case("_pdist_forward", {"x": X, "p": p}, dtypes=FULL) for p in NORMS],
    *[
        Case(
            "_pdist_backward",
            {"grad": Arg((6,), low=-1, high=1), "x": X, "p": p, "pdist": Arg((6,))},
            oracle=pdist_backward,
            dtypes=FULL,
            unbounded=True,
        )
        for p in NORMS[2:]
    ],
    *[
        Case(
            "_cdist_backward",
            {"grad": Arg((4, 2), low=-1, high=1), "x1": X, "x2": Arg((2, 3)), "p": p}
            | {"cdist": Arg((4, 2))},
            oracle=cdist_backward,
            dtypes=FULL,
            unbounded=True,
        )
        for p in NORMS[2:]
    ],
    Case(
        "_cdist_backward",
        {"grad": Arg((2, 4, 2), low=-1, high=1), "x1": X, "x2": Arg((2, 2, 3)), "p": 2.0}
        | {"cdist": Arg((2, 4, 2))},
        oracle=cdist_backward,
        dtypes=FULL,
        unbounded=True,
    ),
    *[Case("dist", {"x": X, "other": ROW, "p": p}) for p in (1.0, 2.0, 3.0, math.inf)],
    Case(
        "_trilinear",
        {"i1": Arg((4, 2)), "i2": Arg((3, 2, 5)), "i3": Arg((4, 5))}
        | {"expand1": [1, 3], "expand2": [0], "expand3": [1, 2], "sumdim": [2, 3]},
    ),
    Case("linalg_cross", {"x": Arg((4, 3)), "other": Arg((4, 3))}),
    Case("linalg_cross", {"x": Arg((3, 2)), "other": Arg((3, 1)), "dim": 0}),
    Case("nansum", {"x": Arg((N, 3))}),
    Case("nansum", {"x": Arg((N, 3)), "dim": [1], "keepdim": True}),
    *[Case("renorm", {"x": X, "p": p, "dim": 0, "maxnorm": 1.0}) for p in (1.0, 2.0, math.inf)],
]
