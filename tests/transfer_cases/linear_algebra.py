"""Linear algebra: sums, and factors of matrices."""

import torch
from transfer_cases.harness import Arg, Case

DTYPES = (torch.float32, torch.float64)
SHAPES = ((4, 4), (3, 5), (5, 3), (2, 3, 3), (2, 1, 4), (1, 1))
SQUARE = ((4, 4), (2, 3, 3), (1, 1), (6, 6))


def _factor(op, shape, **options):
    name = "x" if op in ("geqrf", "linalg_matrix_exp") else "A"
    arguments = {name: Arg(shape, nan=False, within=(-1e12, 1e12)), **options}
    return Case(op, arguments, dtypes=DTYPES, unbounded=True)


CASES = [
    Case("trace", {"x": Arg((3, 4))}),
    Case("trace", {"x": Arg((3, 0))}),
    Case("trace", {"x": Arg((3, 4), low=0, high=5, dtype=torch.int64)}),
    Case("vdot", {"x": Arg((5,)), "other": Arg((5,))}),
    *[_factor("_linalg_svd", shape) for shape in SHAPES],
    _factor("_linalg_svd", (3, 5), full_matrices=True),
    _factor("_linalg_svd", (3, 5), compute_uv=False),
    *[_factor("linalg_qr", shape) for shape in SHAPES],
    _factor("linalg_qr", (5, 3), mode="complete"),
    _factor("linalg_qr", (5, 3), mode="r"),
    *[_factor("geqrf", shape) for shape in SHAPES],
    *[_factor("_linalg_eigh", shape) for shape in SQUARE],
    _factor("_linalg_eigh", (4, 4), UPLO="U", compute_v=False),
    *[_factor("linalg_matrix_exp", shape) for shape in SQUARE],
]
