"""Cases of the gradients of slices, windows and embeddings."""

from __future__ import annotations

import torch
from transfer_cases.harness import Arg, Case, N

CASES = [
    *(
        Case(
            "embedding_dense_backward",
            {
                "grad_output": Arg((N, 3, 4)),
                "indices": Arg((N, 3), low=0, high=4, dtype=torch.int64),
                "num_weights": 5,
                "padding_idx": pad,
                "scale_grad_by_freq": False,
            },
        )
        for pad in (-1, 2)
    ),
    Case(
        "slice_backward",
        {
            "grad_output": Arg((N, 2)),
            "input_sizes": [N, 5],
            "dim": 1,
            "start": 1,
            "end": 5,
            "step": 2,
        },
    ),
    Case(
        "slice_backward",
        {
            "grad_output": Arg((2, 3)),
            "input_sizes": [2, 3],
            "dim": 0,
            "start": 0,
            "end": 9,
            "step": 1,
        },
    ),
    Case(
        "select_backward",
        {"grad_output": Arg((N, 3)), "input_sizes": [N, 4, 3], "dim": 1, "index": -1},
    ),
    Case(
        "unfold_backward",
        {"grad_in": Arg((4, 3)), "input_sizes": [6], "dim": 0, "size": 3, "step": 1},
    ),
]
