"""Embedding bags."""

import torch
from transfer_cases.harness import Arg, Case

FULL = (torch.float32, torch.float64)
WEIGHT = Arg((5, 4))
INDICES = Arg((6,), low=0, high=4, dtype=torch.int64, exact=True)
SHARES = Arg((6,), low=-2, high=2)


def forward(weight, indices, offsets, mode, per_sample_weights):
    places = torch.tensor([0, 2, 2])
    return torch.ops.aten._embedding_bag(
        weight, indices, places, False, mode, False, per_sample_weights
    )


def backward(
    grad, indices, offset2bag, bag_size, maximum_indices, num_weights, scale_grad_by_freq, mode,
    sparse, per_sample_weights,
):  # fmt: skip
    places = torch.tensor([0, 2, 2])
    table = torch.zeros(num_weights, grad.shape[1], dtype=grad.dtype)
    _, bags, sizes, most = torch.ops.aten._embedding_bag(
        table, indices, places, scale_grad_by_freq, mode, False, per_sample_weights
    )
    return torch.ops.aten._embedding_bag_backward(
        grad, indices, places, bags, sizes, most, num_weights, scale_grad_by_freq, mode, sparse,
        per_sample_weights,
    )  # fmt: skip


def shares_backward(grad, weight, indices, offsets, offset2bag, mode):
    places = torch.tensor([0, 2, 2])
    bags = torch.tensor([0, 0, 2, 2, 2, 2])
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, weight, indices, places, bags, mode
    )


PLACES = Arg((3,), low=0, high=5, dtype=torch.int64)
BAGS = Arg((6,), low=0, high=2, dtype=torch.int64)
GRAD = Arg((3, 4), low=-1, high=1)

CASES = [
    *[
        Case(
            op,
            {"weight": WEIGHT, "indices": INDICES, "offsets": PLACES, "mode": mode}
            | {"per_sample_weights": shares},
            oracle=forward,
            dtypes=FULL,
            unbounded=True,
        )
        for op in ("_embedding_bag", "_embedding_bag_forward_only")
        for mode, shares in ((0, None), (0, SHARES), (1, None), (2, None))
    ],
    *[
        Case(
            op,
            {"grad": GRAD, "indices": INDICES, "offset2bag": BAGS, "bag_size": PLACES}
            | {"maximum_indices": PLACES, "num_weights": 5, "scale_grad_by_freq": scaled}
            | {"mode": mode, "sparse": False, "per_sample_weights": shares},
            oracle=backward,
            dtypes=FULL,
            unbounded=True,
        )
        for op in ("_embedding_bag_backward", "_embedding_bag_dense_backward")
        for mode, shares in ((0, None), (0, SHARES), (1, None), (2, None))
        for scaled in (False, True)
        if not (scaled and mode == 2)
    ],
    Case(
        "_embedding_bag_per_sample_weights_backward",
        {"grad": GRAD, "weight": WEIGHT, "indices": INDICES, "offsets": PLACES}
        | {"offset2bag": BAGS, "mode": 0},
        oracle=shares_backward,
        dtypes=FULL,
        unbounded=True,
    ),
]
