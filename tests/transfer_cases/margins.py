"""The margin loss of several labels."""

import torch
from transfer_cases.harness import Arg, Case

FULL = (torch.float32, torch.float64)
X = Arg((2, 4))
TARGET = Arg((2, 4), low=-1, high=3, dtype=torch.int64, exact=True)


def backward(grad_output, x, target, reduction, is_target):
    _, flags = torch.ops.aten.multilabel_margin_loss_forward(x, target, reduction)
    return torch.ops.aten.multilabel_margin_loss_backward(grad_output, x, target, reduction, flags)


CASES = [
    *[
        Case(
            "multilabel_margin_loss_forward",
            {"x": X, "target": TARGET, "reduction": reduction},
            dtypes=FULL,
        )
        for reduction in (0, 1, 2)
    ],
    *[
        Case(
            "multilabel_margin_loss_backward",
            {"grad_output": Arg(shape, low=-1, high=1), "x": X, "target": TARGET}
            | {"reduction": reduction, "is_target": Arg((2, 4), low=0, high=1)},
            oracle=backward,
            dtypes=FULL,
        )
        for shape, reduction in (((2,), 0), ((), 1), ((), 2))
    ],
]
