"""Linear algebra."""

import torch
from transfer_cases.harness import Arg, Case

UNBOUNDED = (
    *("_linalg_det", "_linalg_eigh", "_linalg_slogdet", "_linalg_solve_ex", "_linalg_svd"),
    *("cholesky", "cholesky_inverse", "cholesky_solve", "geqrf", "linalg_cholesky_ex"),
    *("linalg_householder_product", "linalg_inv_ex", "linalg_ldl_factor_ex", "linalg_ldl_solve"),
    *("linalg_lstsq", "linalg_lu", "linalg_lu_factor_ex", "linalg_lu_solve", "linalg_matrix_exp"),
    *("linalg_pinv", "linalg_qr", "linalg_solve_triangular", "lu_unpack", "ormqr"),
    *("triangular_solve", "_transformer_encoder_layer_fwd"),
)

CASES = [
    *[Case(op, {}, unbounded=True) for op in UNBOUNDED],
    Case("trace", {"x": Arg((3, 4))}),
    Case("trace", {"x": Arg((3, 0))}),
    Case("trace", {"x": Arg((3, 4), low=0, high=5, dtype=torch.int64)}),
    Case("vdot", {"x": Arg((5,)), "other": Arg((5,))}),
]
