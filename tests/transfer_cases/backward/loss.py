"""Cases of the gradients of losses."""

from __future__ import annotations

import math

import torch
from transfer_cases.harness import Arg, Case, N

X = Arg((N, 3))
UNIT = Arg((N, 3), low=0.0, high=1.0, within=(0.0, 1.0))
SCALAR = Arg(())
LABELS = Arg((N,), low=0, high=2, dtype=torch.int64)
WEIGHTS = Arg((3,), low=0.5, high=2.0, within=(0.0, math.inf))
COUNT = Arg((), low=1.0, high=5.0, within=(0.5, math.inf))


def _grad(reduction, shape=(N, 3)):
    return SCALAR if reduction else Arg(shape)


CASES = [
    *(
        Case(op, {"grad_output": _grad(r), "x": X, "target": X, "reduction": r, **options})
        for r in (0, 1, 2)
        for op, options in (
            ("mse_loss_backward", {}),
            ("smooth_l1_loss_backward", {"beta": 0.5}),
            ("huber_loss_backward", {"delta": 0.5}),
            ("soft_margin_loss_backward", {}),
        )
    ),
    *(
        Case(
            "binary_cross_entropy_backward",
            {"grad_output": _grad(r), "x": UNIT, "target": UNIT, "weight": w, "reduction": r},
        )
        for r, w in ((0, None), (1, Arg((N, 3))), (2, None))
    ),
    *(
        Case(
            "nll_loss_backward",
            {
                "grad_output": _grad(r, (N,)),
                "x": X,
                "target": LABELS,
                "weight": w,
                "reduction": r,
                "ignore_index": -100,
                "total_weight": COUNT,
            },
        )
        for r, w in ((0, None), (1, None), (1, WEIGHTS), (2, WEIGHTS))
    ),
    *(
        Case(
            "nll_loss2d_backward",
            {
                "grad_output": _grad(r, (2, 2, 2)),
                "x": Arg((2, 3, 2, 2)),
                "target": Arg((2, 2, 2), low=0, high=2, dtype=torch.int64),
                "weight": w,
                "reduction": r,
                "ignore_index": 1,
                "total_weight": COUNT,
            },
        )
        for r, w in ((0, None), (1, WEIGHTS))
    ),
    *(
        Case(
            "multi_margin_loss_backward",
            {
                "grad_output": SCALAR,
                "x": X,
                "target": LABELS,
                "p": p,
                "margin": 1,
                "weight": w,
                "reduction": 1,
            },
        )
        for p, w in ((1, None), (2, Arg((3,))))
    ),
]
