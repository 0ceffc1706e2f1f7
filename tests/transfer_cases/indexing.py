"""Reading and writing by index."""

import torch
from transfer_cases.harness import Arg, Case, N

CUBE = Arg((N, 3, 4))
ROW = Arg((3,))
SCALAR = Arg(())


def known(*shape, high):
    """Indices whose data the rule sees."""
    return Arg(shape, low=0, high=high, dtype=torch.int64, exact=True)


def unknown(*shape, high):
    """Indices of which the rule knows the range only."""
    return Arg(shape, low=0, high=high, dtype=torch.int64)


KNOWN_MASK = Arg((4, 3), dtype=torch.bool, exact=True)
TABLE = Arg((5, 4))
BLOCK = Arg((3, 4, 5))

READS = [
    Case("index", {"x": TABLE, "indices": [known(N, 2, high=4)]}),
    Case("index", {"x": TABLE, "indices": [unknown(N, 2, high=4)]}),
    Case("index", {"x": TABLE, "indices": [None, known(3, high=3)]}),
    Case("index", {"x": BLOCK, "indices": [known(2, high=2), None, known(2, high=4)]}),
    Case(
        "index", {"x": Arg((3, 4, 5)), "indices": [None, unknown(2, 1, high=3), known(3, high=4)]}
    ),
    Case("index", {"x": Arg((4, 3, 2)), "indices": [KNOWN_MASK]}),
    Case("index", {"x": Arg((2, 3)), "indices": [None, Arg((3,), dtype=torch.bool, exact=True)]}),
    Case(
        "masked_scatter",
        {"x": Arg((2, 3)), "mask": Arg((2, 3), dtype=torch.bool, exact=True), "source": Arg((6,))},
    ),
    Case(  # both broadcast
        "masked_scatter",
        {"x": Arg((3,)), "mask": Arg((2, 3), dtype=torch.bool, exact=True), "source": Arg((6,))},
    ),
    Case("index_select", {"x": TABLE, "dim": -1, "index": known(3, high=3)}),
    Case("index_select", {"x": TABLE, "dim": 0, "index": unknown(6, high=4)}),
    Case("gather", {"x": TABLE, "dim": 1, "index": known(3, 6, high=3)}),
    Case("gather", {"x": TABLE, "dim": 0, "index": unknown(2, 3, high=4)}),
    Case("gather", {"x": SCALAR, "dim": 0, "index": known(high=0)}),
    Case("embedding", {"weight": TABLE, "indices": known(N, 3, high=4), "padding_idx": 1}),
    Case("embedding", {"weight": TABLE, "indices": unknown(N, 3, high=4)}),
    Case("masked_select", {"x": Arg((4, 3)), "mask": KNOWN_MASK}),
    Case("masked_select", {"x": ROW, "mask": KNOWN_MASK}),
]

WRITES = [
    Case("slice_scatter", {"x": CUBE, "src": Arg((N, 2, 4)), "dim": 1, "start": 1, "end": 3}),
    Case("select_scatter", {"x": CUBE, "src": Arg((N, 4)), "dim": 1, "index": -1}),
    Case("scatter", {"x": TABLE, "dim": 1, "index": known(3, 2, high=3), "value": 1}),
    Case("scatter", {"x": TABLE, "dim": 1, "index": unknown(3, 2, high=3), "value": 2.5}),
    Case("scatter", {"x": TABLE, "dim": 0, "index": known(3, 2, high=4), "src": Arg((3, 4))}),
    Case("scatter", {"x": TABLE, "dim": 0, "index": unknown(3, 2, high=4), "src": Arg((3, 4))}),
    Case("scatter", {"x": Arg((2, 3), low=-2, high=2, dtype=torch.int64), "dim": 1,
                     "index": known(1, 2, high=2), "value": 9}),
    Case("scatter", {"x": Arg((2, 3), dtype=torch.bool), "dim": 1, "index": known(1, 2, high=2),
                     "src": Arg((2, 3), dtype=torch.bool)}),
    Case("scatter", {"x": TABLE, "dim": 0, "index": known(3, 2, high=4), "src": Arg((3, 4)),
                     "reduce": "add"}),
    Case("scatter_add", {"x": TABLE, "dim": 0, "index": known(9, 2, high=4), "src": Arg((9, 4))}),
    Case("scatter_add", {"x": TABLE, "dim": 0, "index": unknown(9, 2, high=4), "src": Arg((9, 4))}),
    Case("scatter_add", {"x": TABLE, "dim": 1, "index": known(0, 2, high=3), "src": Arg((9, 4))}),
    Case("index_add", {"x": TABLE, "dim": 0, "index": known(9, high=4), "source": Arg((9, 4))}),
    Case("index_add", {"x": TABLE, "dim": 1, "index": unknown(3, high=3), "source": Arg((5, 3))}),
    *[
        Case("index_put", {"x": TABLE, "indices": indices, "values": values, "accumulate": add})
        for add in (False, True)
        for indices, values in (
            ([known(3, high=4)], Arg((3, 4))),
            ([unknown(3, high=4)], Arg((3, 4))),
            ([None, known(6, high=3)], SCALAR),
            ([Arg((5, 4), dtype=torch.bool, exact=True)], SCALAR),
        )
    ],
    Case("_unsafe_index_put", {"x": TABLE, "indices": [known(9, high=4)], "values": Arg((9, 4)),
                               "accumulate": True}),
]  # fmt: skip

CASES = [*READS, *WRITES]
