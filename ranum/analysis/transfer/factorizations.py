"""Factors of matrices `[..., M, N]` that have a bound: orthogonal ones and their partners.

Factors with orthonormal columns have elements within [-1, 1], and what they are multiplied
with to give A is no larger than A in the Frobenius norm.

No rule is written for the others. Inverses, solutions and pseudo-inverses have no bound without
the smallest singular value, which intervals of elements do not know. LU multiplies with the
reciprocal of its pivot, which is infinite for a subnormal one, so that determinants can be NaN.

References:
    N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, section 19.3
    (backward error of QR); N. Higham, Functions of Matrices, 2008, section 10.3 (exponentials).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import Box, largest, like, smallest, unknown
from ranum.analysis.transfer.registry import transfer


def _error(x: Interval) -> float:
    """Relative error of a factor: 64 (M + N) u, well above what is seen and proved for LAPACK."""
    return 64 * sum(x.shape[-2:]) * unit_roundoff(x.dtype)


def _size(x: Interval) -> float:
    """Largest Frobenius norm of a matrix, its rounding included; inf if a step may overflow."""
    size = Box.of(x).peak * math.sqrt(math.prod(x.shape[-2:])) * (1 + _error(x))
    return size if x.is_finite and size < largest(x.dtype) / 64 else math.inf


def _within(bound: float, shape: Sequence[int], x: Interval) -> Interval:
    """Up to `bound` in size, or anything if that is infinite."""
    if not bound < largest(x.dtype):
        return unknown(shape, x)
    bound += smallest(x.dtype)
    return like(-bound, bound, shape, x)


def _orthogonal(shape: Sequence[int], x: Interval) -> Interval:
    return _within(1 + _error(x) if math.isfinite(_size(x)) else math.inf, shape, x)


# --- orthogonal ----------------------------------------------------------------------------


@transfer("_linalg_svd")
def svd(
    A: Interval,  # noqa: N803 - the schema's own names
    full_matrices: bool = False,
    compute_uv: bool = True,
    driver: str | None = None,
) -> tuple[Interval, Interval, Interval]:
    """U and V within [-1, 1]; singular values from 0 to the Frobenius norm."""
    *batch, rows, columns = A.shape
    count, size = min(rows, columns), _size(A)
    values = unknown((*batch, count), A)
    if math.isfinite(size):
        values = like(0.0, size + smallest(A.dtype), values.shape, A)
    if not compute_uv:
        return like(0.0, 0.0, (0,), A), values, like(0.0, 0.0, (0,), A)
    left = (*batch, rows, rows if full_matrices else count)
    right = (*batch, columns if full_matrices else count, columns)
    return _orthogonal(left, A), values, _orthogonal(right, A)


@transfer("_linalg_eigh")
def eigh(
    A: Interval,  # noqa: N803
    UPLO: str = "L",  # noqa: N803
    compute_v: bool = True,
) -> tuple[Interval, Interval]:
    """Vectors within [-1, 1], eigenvalues within the Frobenius norm."""
    values = _within(_size(A), A.shape[:-1], A)
    return values, _orthogonal(A.shape if compute_v else (0,), A)


@transfer("linalg_qr")
def qr(
    A: Interval,  # noqa: N803
    mode: str = "reduced",
) -> tuple[Interval, Interval]:
    """Q within [-1, 1], R within the Frobenius norm."""
    *batch, rows, columns = A.shape
    inner = rows if mode == "complete" else min(rows, columns)
    left = (0,) if mode == "r" else (*batch, rows, inner)
    return _orthogonal(left, A), _within(_size(A), (*batch, inner, columns), A)


@transfer("geqrf")
def geqrf(x: Interval) -> tuple[Interval, Interval]:
    """R and Householder vectors, which are scaled to 1; their factors lie in [0, 2]."""
    size = _size(x)
    reach = max(size, 1.0) * (1 + _error(x))
    factors = (*x.shape[:-2], min(x.shape[-2:]))
    top = 2 * (1 + _error(x))
    factor = like(0.0, top, factors, x) if math.isfinite(size) else unknown(factors, x)
    return _within(reach, x.shape, x), factor


# --- exponentials ------------------------------------------------------------------------


@transfer("linalg_matrix_exp")
def matrix_exp(x: Interval) -> Interval | None:
    """|exp(A)| <= exp(n max |A|); by scaling and squaring, whose error doubles at each square."""
    size = x.shape[-1]
    reach = Box.of(x).peak * size
    if not x.is_finite or reach > 600:
        return None
    error = math.expm1(min(256 * (size + 8) * (reach + 1) * unit_roundoff(x.dtype), 600))
    bound = math.exp(reach) * (1 + error)
    return _within(bound, x.shape, x) if bound * size < largest(x.dtype) / 64 else None
