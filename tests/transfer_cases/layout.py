"""Views, joins, pads."""

import torch
from transfer_cases.harness import Arg, Case, N

X = Arg((N, 3))
CUBE = Arg((N, 3, 4))
IMAGE = Arg((N, 2, 4, 5))
ROW = Arg((3,))
SCALAR = Arg(())
COUNT = Arg((N, 3), low=-2, high=2, dtype=torch.int64)
FLAG = Arg((N, 3), dtype=torch.bool)
SQUARE = Arg((4, 4))


def expand(x, shape):
    return x.expand(shape)


VIEWS = [
    *[
        Case("reshape", {"x": x, "shape": shape})
        for x, shape in (
            (CUBE, (N, 12)),
            (CUBE, (N, 3, 2, 2)),
            (CUBE, (1, N, 3, 1, 4)),
            (Arg((N, 3, 1)), (N, 3)),
            (Arg((2, 3, 4)), (24,)),
            (Arg((2, 3, 4)), (3, 8)),
            (Arg((2, 3, 4)), (4, 6)),
            (Arg((2, 3, 4)), (6, 1, 2, 2)),
            (Arg((1,)), ()),
            (SCALAR, (1, 1)),
        )
    ],
    Case("permute", {"x": CUBE, "dims": (2, 0, 1)}),
    Case("expand", {"x": ROW, "shape": (N, 3)}, oracle=expand),
    Case("expand", {"x": Arg((2, 1, 3)), "shape": (5, 2, 4, 3)}, oracle=expand),
    Case("slice", {"x": CUBE, "dim": 1, "start": 1, "end": 3, "step": 1}),
    Case("slice", {"x": CUBE, "dim": 2, "start": -3, "end": 9223372036854775807, "step": 2}),
    Case("slice", {"x": X, "dim": 1, "start": None, "end": None}),
    Case("slice", {"x": X, "dim": 1, "start": 2, "end": 1}),
    Case("select", {"x": CUBE, "dim": 1, "index": -1}),
    Case("select", {"x": CUBE, "dim": -1, "index": 2}),
    Case("diagonal", {"x": CUBE, "offset": 1, "dim1": 1, "dim2": -1}),
    Case("diagonal", {"x": SQUARE}),
    Case("diagonal_copy", {"x": CUBE, "offset": -1, "dim1": 1, "dim2": 2}),
    Case(
        "diagonal_backward",
        {"grad_output": Arg((2, 3)), "input_sizes": (2, 3, 4), "offset": 1, "dim1": 1, "dim2": 2},
    ),
    Case("unfold", {"x": CUBE, "dimension": 2, "size": 2, "step": 1}),
    Case("as_strided", {"x": SQUARE, "size": (2, 3), "stride": (1, 4), "storage_offset": 1}),
]

JOINS = [
    Case("cat", {"tensors": [X, X, Arg((N, 1))], "dim": 1}),
    Case("cat", {"tensors": [X, COUNT], "dim": -1}),
    Case("cat", {"tensors": [CUBE, Arg((1, 3, 4))], "dim": 0}),
    Case("cat", {"tensors": [Arg((0,)), X], "dim": 1}),
    Case("stack", {"tensors": [X, X], "dim": 1}),
    Case("stack", {"tensors": [SCALAR, SCALAR]}),
    Case("stack", {"tensors": [X, X, X], "dim": -1}),
    Case("repeat", {"x": X, "repeats": (2, 1, 3)}),
    Case("repeat", {"x": X, "repeats": (0, 3)}),
    Case("flip", {"x": CUBE, "dims": [0, 2]}),
    Case("roll", {"x": CUBE, "shifts": [1, -1], "dims": [1, 2]}),
    Case("roll", {"x": CUBE, "shifts": [2], "dims": []}),
    Case("tril", {"x": CUBE}),
    Case("tril", {"x": SQUARE, "diagonal": -1}),
    Case("triu", {"x": CUBE, "diagonal": 1}),
]

PADS = [
    Case("constant_pad_nd", {"x": X, "pad": [1, 2], "value": -7.0}),
    Case("constant_pad_nd", {"x": IMAGE, "pad": [1, 0, 0, 2], "value": 0}),
    Case("constant_pad_nd", {"x": IMAGE, "pad": [-1, 2, 0, -1, 1, 0], "value": 0.1}),
    Case("constant_pad_nd", {"x": FLAG, "pad": [1, 1], "value": 1}),
    *[
        Case(f"{kind}_pad{rank}d", {"x": Arg((2, 3, 4, 4, 4)[: rank + 2]), "padding": pad})
        for kind in ("reflection", "replication")
        for rank, pad in ((1, [1, 2]), (2, [1, 0, 2, 1]), (3, [1, 0, 2, 1, 1, 1]))
    ],
    *[
        Case(
            "im2col",
            {
                "x": x,
                "kernel_size": [2, 2],
                "dilation": [1, 1],
                "padding": padding,
                "stride": [1, 2],
            },
        )
        for x in (Arg((2, 3, 4, 5)), Arg((2, 1, 4, 5)), Arg((3, 4, 5)))
        for padding in ([0, 0], [1, 0])
    ],
]

CASES = [*VIEWS, *JOINS, *PADS]
