"""Resampling at places that are data, and with wide kernels."""

import torch
from transfer_cases.harness import Arg, Case

FULL = (torch.float32, torch.float64)
# Torch itself reads outside the image's memory where a grid is infinite or very large.
IMAGE = Arg((2, 2, 4, 5))
VOLUME = Arg((1, 2, 3, 4, 5))
GRID = Arg((2, 3, 3, 2), low=-1.4, high=1.4)
CUBE = Arg((1, 2, 3, 3, 3), low=-1.4, high=1.4)


def _samples():
    for interpolation in (0, 1, 2):
        for padding in (0, 1, 2):
            for corners in (True, False):
                yield {
                    "interpolation_mode": interpolation,
                    "padding_mode": padding,
                    "align_corners": corners,
                }


CASES = [
    *[
        Case(
            "grid_sampler_2d",
            {"input": IMAGE, "grid": GRID, **how},
            dtypes=FULL,
            unbounded=True,
            wild=False,
        )
        for how in _samples()
    ],
    *[
        Case(
            "grid_sampler_3d",
            {"input": VOLUME, "grid": CUBE, **how},
            dtypes=FULL,
            unbounded=True,
            wild=False,
        )
        for how in _samples()
        if how["interpolation_mode"] < 2
    ],
    *[
        Case(
            "grid_sampler_2d_backward",
            {"grad_output": Arg((2, 2, 3, 3), low=-1, high=1), "input": IMAGE, "grid": GRID, **how}
            | {"output_mask": [True, True]},
            dtypes=FULL,
            unbounded=True,
            wild=False,
        )
        for how in _samples()
    ],
    *[
        Case(
            "grid_sampler_3d_backward",
            {"grad_output": Arg((1, 2, 2, 3, 3), low=-1, high=1), "input": VOLUME, "grid": CUBE}
            | {**how, "output_mask": [True, True]},
            dtypes=FULL,
            unbounded=True,
            wild=False,
        )
        for how in _samples()
        if how["interpolation_mode"] < 2
    ],
    *[
        Case(op, {"x": IMAGE, "output_size": size, "align_corners": False}, dtypes=FULL)
        for op in ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
        for size in ([2, 2], [7, 9])
    ],
    *[
        Case(
            op,
            {"grad_output": Arg((2, 2, *size), low=-1, high=1), "output_size": size}
            | {"input_size": [2, 2, 4, 5], "align_corners": False},
            dtypes=FULL,
        )
        for op in ("_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward")
        for size in ([2, 2], [7, 9])
    ],
]
