"""Cases of the gradients of pooling, resampling and padding."""

from __future__ import annotations

import torch
from transfer_cases.backward._common import MIXED, SINGLE, derived
from transfer_cases.harness import Arg, Case

aten = torch.ops.aten
IMAGE = Arg((2, 2, 4, 4))
VOLUME = Arg((1, 2, 4, 4, 4))


def _winners(op, *names):
    def make(a):
        arguments = [a[name] for name in names]
        if op.startswith("adaptive"):
            arguments = [a["grad_output"].shape[-int(op[-2]) :]]
        return getattr(aten, op)(torch.nan_to_num(a["x"]), *arguments)[1]

    return derived(indices=make)


WINDOW = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def _max_pool(dims, x, out, **window):
    arguments = {
        "kernel_size": [2] * dims,
        "stride": [2] * dims,
        "padding": [0] * dims,
        "dilation": [1] * dims,
        "ceil_mode": False,
    } | window
    op = f"max_pool{dims}d_with_indices"
    return Case(
        f"{op}_backward",
        {
            "grad_output": Arg(out),
            "x": x,
            **arguments,
            "indices": Arg(out, low=0, high=3, dtype=torch.int64, exact=True),
        },
        constrain=_winners(op, *WINDOW),
        dtypes=MIXED,
    )


ADAPTIVE = (
    (2, IMAGE, (2, 2, 3, 2)),
    (3, VOLUME, (1, 2, 3, 1, 2)),
    (3, Arg((2, 5, 4, 5)), (2, 3, 3, 2)),  # a volume without a batch
)

CASES = [
    _max_pool(2, IMAGE, (2, 2, 2, 2)),
    _max_pool(2, IMAGE, (2, 2, 4, 4), kernel_size=[3, 3], stride=[1, 1], padding=[1, 1]),
    _max_pool(3, VOLUME, (1, 2, 2, 2, 2)),
    *(
        Case(
            f"adaptive_max_pool{dims}d_backward",
            {
                "grad_output": Arg(out),
                "x": x,
                "indices": Arg(out, low=0, high=3, dtype=torch.int64, exact=True),
            },
            constrain=_winners(f"adaptive_max_pool{dims}d"),
            dtypes=MIXED,
        )
        for dims, x, out in ADAPTIVE
    ),
    *(
        Case(f"_adaptive_avg_pool{dims}d_backward", {"grad_output": Arg(out), "x": x}, dtypes=MIXED)
        for dims, x, out in ADAPTIVE
    ),
    *(
        Case(
            f"avg_pool{dims}d_backward",
            {
                "grad_output": Arg(out),
                "x": x,
                "kernel_size": [k] * dims,
                "stride": [s] * dims,
                "padding": [p] * dims,
                "ceil_mode": False,
                "count_include_pad": include,
                "divisor_override": divisor,
            },
            dtypes=MIXED,
        )
        for dims, x, out, k, s, p, include, divisor in (
            (2, IMAGE, (2, 2, 2, 2), 2, 2, 0, True, None),
            (2, IMAGE, (2, 2, 4, 4), 3, 1, 1, False, None),
            (2, IMAGE, (2, 2, 2, 2), 3, 1, 0, True, 2),
            (3, VOLUME, (1, 2, 2, 2, 2), 2, 2, 0, True, None),
        )
    ),
    *(
        Case(
            f"{op}_backward",
            {
                "grad_output": Arg((2, 2, *out)),
                "output_size": list(out),
                "input_size": [2, 2, *size],
            },
            dtypes=SINGLE,
        )
        for op, out, size in (
            ("upsample_nearest1d", (9,), (4,)),
            ("upsample_nearest2d", (9, 3), (4, 4)),
            ("upsample_nearest3d", (6, 3, 4), (3, 4, 2)),
            ("_upsample_nearest_exact1d", (9,), (4,)),
            ("_upsample_nearest_exact2d", (9, 3), (4, 4)),
            ("_upsample_nearest_exact3d", (6, 3, 4), (3, 4, 2)),
        )
    ),
    *(
        Case(
            f"{op}_backward",
            {
                "grad_output": Arg((2, 2, *out)),
                "output_size": list(out),
                "input_size": [2, 2, *size],
                "align_corners": corners,
            },
            dtypes=SINGLE,
        )
        for corners in (False, True)
        for op, out, size in (
            ("upsample_linear1d", (9,), (4,)),
            ("upsample_bilinear2d", (9, 3), (4, 4)),
            ("upsample_trilinear3d", (6, 3, 4), (3, 4, 2)),
            ("upsample_bicubic2d", (9, 3), (4, 4)),
        )
    ),
    *(
        Case(
            f"{kind}_pad{dims}d_backward",
            {
                "grad_output": Arg((2, 2, *(s + 3 for s in size))),
                "x": Arg((2, 2, *size)),
                "padding": [1, 2] * dims,
            },
            dtypes=SINGLE,
        )
        for kind in ("reflection", "replication")
        for dims, size in ((1, (4,)), (2, (4, 3)), (3, (3, 4, 3)))
    ),
]
