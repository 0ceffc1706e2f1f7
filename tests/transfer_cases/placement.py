"""Values put at places; reductions by index; positions and counts."""

import torch
from transfer_cases.harness import FLOATS, Arg, Case, N

X = Arg((4, 3))
SRC = Arg((4, 3))
VECTOR = Arg((3,))
MASK = Arg((4, 3), dtype=torch.bool, exact=True)
ROWS = Arg((4,), low=0, high=3, dtype=torch.int64, exact=True)
PLACES = Arg((4, 3), low=0, high=3, dtype=torch.int64, exact=True)
FLAT = Arg((2, 2), low=0, high=11, dtype=torch.int64, exact=True)
GRAD = Arg((4, 3), low=-1, high=1)
UNBOUNDED = (
    *("as_strided_copy", "nonzero", "nonzero_static", "_unique2", "unique_consecutive"),
    *("segment_reduce", "_segment_reduce_backward", "hash_tensor", "histogram"),
    *("_histogramdd_bin_edges", "_histogramdd_from_bin_cts"),
)


def fractional(x, kernel_size, output_size, random_samples):
    samples = torch.rand_like(random_samples)
    dims = len(output_size)
    return getattr(torch.ops.aten, f"fractional_max_pool{dims}d")(
        x.nan_to_num(), kernel_size, output_size, samples
    )


def fractional_backward(grad_output, x, kernel_size, output_size, indices):
    dims = len(output_size)
    samples = torch.rand(*x.shape[:2], dims, dtype=x.dtype)
    x = x.nan_to_num()
    op = getattr(torch.ops.aten, f"fractional_max_pool{dims}d")
    _, found = op(x, kernel_size, output_size, samples)
    back = getattr(torch.ops.aten, f"fractional_max_pool{dims}d_backward")
    return back(grad_output, x, kernel_size, output_size, found)


def unpooled(x, indices, output_size):
    places = torch.arange(4).expand(x.shape[0], x.shape[1], 4).reshape(x.shape)
    return torch.ops.aten.max_unpool2d(x, places, output_size)


def volume_unpooled(x, indices, output_size, stride, padding):
    places = torch.arange(8).expand(x.shape[0], x.shape[1], 8).reshape(x.shape)
    return torch.ops.aten.max_unpool3d(x, places, output_size, stride, padding)


def _fractional(dims):
    size, image = (5,) * dims, {"kernel_size": [2] * dims, "output_size": [2] * dims}
    x = Arg((2, 2, *size))
    grad = Arg((2, 2, *(2,) * dims), low=-1, high=1)
    samples = Arg((2, 2, dims), low=0, high=1, within=(0, 1), nan=False)
    places = Arg((2, 2, *(2,) * dims), low=0, high=1, dtype=torch.int64)
    kinds = (torch.float32, torch.float64)
    return [
        Case(
            f"fractional_max_pool{dims}d",
            {"x": x, **image, "random_samples": samples},
            oracle=fractional,
            ignore=(1,),
            dtypes=kinds,
            wild=False,
        ),
        Case(
            f"fractional_max_pool{dims}d_backward",
            {"grad_output": grad, "x": x, **image, "indices": places},
            oracle=fractional_backward,
            dtypes=kinds,
            wild=False,
        ),
    ]


REDUCTIONS = ("sum", "mean", "amax", "amin", "prod")

CASES = [
    Case("diag_embed", {"x": Arg((N, 3))}),
    Case("diag_embed", {"x": Arg((N, 3)), "offset": 1, "dim1": 0, "dim2": 2}),
    Case("diagonal_scatter", {"x": X, "src": VECTOR}),
    Case("diagonal_scatter", {"x": X, "src": Arg((2,)), "offset": 1}),
    Case("block_diag", {"tensors": [X, VECTOR, Arg(())]}),
    Case("narrow_copy", {"x": X, "dim": 0, "start": 1, "length": 2}),
    Case("unfold_copy", {"x": X, "dimension": 0, "size": 2, "step": 2}),
    Case("rot90", {"x": X, "k": 1, "dims": [0, 1]}),
    Case(
        "as_strided_scatter",
        {"x": X, "src": Arg((2, 2)), "size": [2, 2], "stride": [3, 1]},
    ),
    Case("take", {"x": X, "index": FLAT}),
    Case("put", {"x": X, "index": FLAT, "source": Arg((2, 2))}),
    Case("put", {"x": X, "index": FLAT, "source": Arg((2, 2)), "accumulate": True}),
    Case("index_fill", {"x": X, "dim": 0, "index": ROWS, "value": 2.5}),
    Case("index_fill", {"x": X, "dim": 0, "index": ROWS, "value": Arg(())}),
    Case("index_copy", {"x": X, "dim": 0, "index": ROWS, "source": SRC}),
    Case("masked_scatter_backward", {"grad_output": GRAD, "mask": MASK, "sizes": [5, 3]}),
    Case(
        "_unsafe_masked_index",
        {"x": X, "mask": MASK, "indices": [PLACES, Arg((4, 3), low=0, high=2, dtype=torch.long)]}
        | {"fill": 7},
        wild=False,
    ),
    Case(
        "_unsafe_masked_index_put_accumulate",
        {"x": X, "mask": MASK, "indices": [PLACES, Arg((4, 3), low=0, high=2, dtype=torch.long)]}
        | {"values": GRAD},
        wild=False,
    ),
    *[
        Case(
            "scatter_reduce",
            {"x": X, "dim": 0, "index": PLACES, "src": SRC, "reduce": reduce}
            | {"include_self": include},
            unbounded=reduce in ("prod", "mean"),
        )
        for reduce in REDUCTIONS
        for include in (True, False)
    ],
    *[
        Case(
            "index_reduce",
            {"x": X, "dim": 0, "index": ROWS, "source": SRC, "reduce": reduce}
            | {"include_self": include},
            unbounded=reduce in ("prod", "mean"),
        )
        for reduce in REDUCTIONS[1:]
        for include in (True, False)
    ],
    Case("searchsorted", {"x": X, "sorted_sequence": VECTOR}),
    Case("bucketize", {"x": X, "boundaries": VECTOR, "out_int32": True}),
    Case(
        "max_unpool2d",
        {"x": Arg((2, 2, 2, 2)), "indices": Arg((2, 2, 2, 2), dtype=torch.int64, low=0, high=3)}
        | {"output_size": [4, 4]},
        oracle=unpooled,
    ),
    Case(
        "max_unpool3d",
        {"x": Arg((1, 2, 2, 2, 2)), "indices": Arg((1, 2, 2, 2, 2), dtype=torch.int64, low=0)}
        | {"output_size": [4, 4, 4], "stride": [2, 2, 2], "padding": [0, 0, 0]},
        oracle=volume_unpooled,
    ),
    Case("randint_like", {"x": X, "high": 5}, dtypes=FLOATS[:2]),
    *[Case(op, {"x": X}) for op in ("exponential", "log_normal", "cauchy")],
    Case("geometric", {"x": X, "p": 0.3}),
    *_fractional(2),
    *_fractional(3),
    *[Case(op, {}, unbounded=True) for op in UNBOUNDED if op != "as_strided_copy"],
    Case("as_strided_copy", {"x": X, "size": [2], "stride": [1]}, unbounded=True),
]
