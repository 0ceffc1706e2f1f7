"""Cases of the matrix products and convolutions."""

from __future__ import annotations

import torch
from transfer_cases.harness import Arg, Case, N

LONG = Arg((2, 200))


def _conv(
    x,
    weight,
    bias=None,
    *,
    stride=1,
    padding=0,
    dilation=1,
    transposed=False,
    output_padding=0,
    groups=1,
    **options,
):
    spatial = len(x) - 2
    return Case(
        "convolution",
        {
            "input": Arg(x),
            "weight": Arg(weight),
            "bias": None if bias is None else Arg((bias,)),
            "stride": [stride] * spatial,
            "padding": [padding] * spatial,
            "dilation": [dilation] * spatial,
            "transposed": transposed,
            "output_padding": [output_padding] * spatial,
            "groups": groups,
        },
        **options,
    )


SINGLE = {"dtypes": (torch.float32, torch.bfloat16)}

CASES = [
    Case("mm", {"x": Arg((N, 3)), "mat2": Arg((3, 4))}),
    Case("mm", {"x": Arg((3, N)), "mat2": Arg((N, 2))}),
    Case("mm", {"x": LONG, "mat2": Arg((200, 3))}),
    Case("mm", {"x": Arg((300, 70)), "mat2": Arg((70, 80))}, dtypes=(torch.float32,)),
    Case("bmm", {"x": Arg((N, 3, 4)), "mat2": Arg((N, 4, 2))}),
    Case("addmm", {"x": Arg((4,)), "mat1": Arg((N, 3)), "mat2": Arg((3, 4))}),
    Case(
        "addmm",
        {"x": Arg((2, 4)), "mat1": LONG, "mat2": Arg((200, 4)), "beta": 0.5, "alpha": -2},
    ),
    Case("addmm", {"x": Arg((4,)), "mat1": Arg((N, 3)), "mat2": Arg((3, 4)), "beta": 0}),
    Case("baddbmm", {"x": Arg((N, 3, 2)), "batch1": Arg((N, 3, 4)), "batch2": Arg((N, 4, 2))}),
    Case("addbmm", {"x": Arg((3, 2)), "batch1": Arg((N, 3, 4)), "batch2": Arg((N, 4, 2))}),
    Case("mv", {"x": Arg((N, 3)), "vec": Arg((3,))}),
    Case("addmv", {"x": Arg((N,)), "mat": Arg((N, 3)), "vec": Arg((3,)), "alpha": 3}),
    Case("dot", {"x": Arg((3,)), "tensor": Arg((3,))}),
    Case("dot", {"x": Arg((N,)), "tensor": Arg((N,))}),
    Case("addr", {"x": Arg((N, 3)), "vec1": Arg((N,)), "vec2": Arg((3,)), "beta": 2}),
    Case("linear", {"input": Arg((N, 2, 3)), "weight": Arg((4, 3)), "bias": Arg((4,))}),
    Case("linear", {"input": Arg((N, 3)), "weight": Arg((4, 3)), "bias": None}),
    Case("linear", {"input": Arg((3,)), "weight": Arg((4, 3)), "bias": Arg((4,))}),
    _conv((N, 3, 5, 5), (4, 3, 3, 3), 4, padding=1),
    _conv((2, 4, 6, 6), (4, 2, 3, 3), 4, stride=2, dilation=2, padding=2, groups=2),
    _conv((2, 4, 7), (6, 2, 3), groups=2),
    _conv((2, 4, 3, 3), (4, 3, 2, 2), 6, stride=2, transposed=True, groups=2, **SINGLE),
    _conv((1, 2, 3, 4, 3), (2, 2, 2, 2, 2), **SINGLE),
    _conv((2, 3, 4), (3, 2, 3), 2, stride=2, output_padding=1, transposed=True, **SINGLE),
]
