"""Weights as direction and length, and their gradient."""

import torch
from transfer_cases.harness import Arg, Case

WEIGHT = Arg((3, 4, 5))
BY_FIRST, BY_LAST = Arg((3, 1, 1)), Arg((1, 1, 5))


def saved(arguments):
    """The norms that the forward pass saves."""
    v, dim = arguments["saved_v"], arguments["dim"]
    _, norms = torch.ops.aten._weight_norm_interface(v, arguments["saved_g"], dim)
    return {**arguments, "saved_norms": norms}


CASES = [
    *(
        Case("_weight_norm_interface", {"v": WEIGHT, "g": g, "dim": dim})
        for g, dim in ((BY_FIRST, 0), (BY_LAST, 2))
    ),
    *(
        Case(
            "_weight_norm_interface_backward",
            {"grad_w": WEIGHT, "saved_v": WEIGHT, "saved_g": g, "saved_norms": g, "dim": dim},
            constrain=saved,
            dtypes=(torch.float32, torch.float64),
        )
        for g, dim in ((BY_FIRST, 0), (BY_LAST, 2))
    ),
]
