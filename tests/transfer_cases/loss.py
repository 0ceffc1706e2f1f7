"""Cases of the losses."""

from __future__ import annotations

import torch
from transfer_cases.harness import Arg, Case, N

X = Arg((N, 3))
PROBABILITY = {"low": 0.0, "high": 1.0, "within": (0.0, 1.0)}
P = Arg((N, 3), **PROBABILITY, nan=False)  # torch refuses anything else
T = Arg((N, 3), low=0.0, high=1.0)
LABELS = Arg((N,), low=0, high=2, dtype=torch.int64)
KNOWN = Arg((4,), low=-1, high=2, dtype=torch.int64, exact=True)
WEIGHTS = Arg((3,), low=0.5, high=2.0, within=(0.0, torch.inf))
EACH = (0, 1, 2)

CASES = [
    *(
        Case(
            "nll_loss_forward",
            {"x": x, "target": t, "weight": w, "reduction": reduction, "ignore_index": ignore},
        )
        for reduction in EACH
        for x, t, w, ignore in (
            (X, LABELS, None, -100),
            (Arg((3,)), Arg((), low=0, high=2, dtype=torch.int64), WEIGHTS, -100),
            (Arg((4, 3)), KNOWN, WEIGHTS, -1),
            (Arg((4, 3)), Arg((4,), low=-1, high=2, dtype=torch.int64), Arg((3,)), -1),
        )
    ),
    *(
        Case(
            "nll_loss2d_forward",
            {
                "x": Arg((2, 3, 2, 2)),
                "target": Arg((2, 2, 2), low=0, high=2, dtype=torch.int64),
                "weight": w,
                "reduction": reduction,
                "ignore_index": -100,
            },
        )
        for reduction in EACH
        for w in (None, WEIGHTS)
    ),
    *(
        Case(op, {"x": X, "target": X, "reduction": reduction, **options})
        for reduction in EACH
        for op, options in (
            ("mse_loss", {}),
            ("smooth_l1_loss", {"beta": 0.5}),
            ("huber_loss", {"delta": 0.5}),
            ("soft_margin_loss", {}),
        )
    ),
    Case("smooth_l1_loss", {"x": X, "target": X, "reduction": 1, "beta": 0.0}),
    *(
        Case("binary_cross_entropy", {"x": P, "target": P, "weight": w, "reduction": reduction})
        for reduction in EACH
        for w in (None, Arg((N, 3)))
    ),
    *(
        Case(
            "binary_cross_entropy_with_logits",
            {"x": X, "target": t, "weight": w, "pos_weight": p, "reduction": reduction},
        )
        for reduction in (0, 1)
        for t, w, p in ((T, None, None), (T, None, Arg((3,))), (X, X, None))
    ),
    Case(
        "binary_cross_entropy_with_logits",
        {
            "x": Arg((N, 3), dtype=torch.bfloat16),
            "target": Arg((N, 3), dtype=torch.float32),
            "weight": None,
            "pos_weight": None,
            "reduction": 1,
        },
    ),
    *(
        Case(
            "multi_margin_loss",
            {"x": X, "target": LABELS, "p": p, "margin": 1, "weight": w, "reduction": reduction},
        )
        for p, w, reduction in ((1, None, 1), (2, Arg((3,)), 0))
    ),
]
