"""Linear algebra: factorisations, inverses, eigenvalues, determinants.

Almost nothing bounds these without the smallest singular value, which intervals of elements
do not know: their results are any numbers at all. What has a bound is below them.
"""

from __future__ import annotations

from typing import Any

import torch

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box, like
from ranum.analysis.transfer.contraction import dot
from ranum.analysis.transfer.registry import transfer


@transfer(
    "_linalg_det", "_linalg_eigh", "_linalg_slogdet", "_linalg_solve_ex", "_linalg_svd",
    "cholesky", "cholesky_inverse", "cholesky_solve", "geqrf", "linalg_cholesky_ex",
    "linalg_householder_product", "linalg_inv_ex", "linalg_ldl_factor_ex", "linalg_ldl_solve",
    "linalg_lstsq", "linalg_lu", "linalg_lu_factor_ex", "linalg_lu_solve", "linalg_matrix_exp",
    "linalg_pinv", "linalg_qr", "linalg_solve_triangular", "lu_unpack", "ormqr",
    "triangular_solve",
)  # fmt: skip
def solution(**_: Any) -> None:
    """Solutions and factors of matrices that may be singular: no bound."""


@transfer("_transformer_encoder_layer_fwd")
def transformer_encoder_layer(**_: Any) -> None:
    """A whole layer in one operator, of inference only: no bound; training is recorded in parts."""


@transfer("trace")
def trace(x: Interval) -> Interval:
    """Sum of the diagonal of `[N, M]`."""
    if not x.dtype.is_floating_point:
        return Interval.top((), torch.int64)
    if x.is_empty_tensor:
        return like(0.0, 0.0, (), x)
    total = Box.native(x.merged()).merged().times(min(x.shape))
    return total.interval((), x.dtype)


@transfer("vdot")
def vdot(x: Interval, other: Interval) -> Interval:
    """`[K] . [K]` of real vectors."""
    return dot(x, other)
