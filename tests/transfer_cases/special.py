"""Special functions."""

import torch
from transfer_cases.harness import Arg, Case, N

FULL = (torch.float32, torch.float64)
X = Arg((N, 3))
ROW = Arg((3,))
WIDE = Arg((N, 3), low=-100, high=100)
POSITIVE = Arg((N, 3), low=0.01, high=30, within=(1e-3, 1e4), nan=False)
SHARE = Arg((N, 3), low=0, high=1)

LINE = (
    *("lgamma", "digamma", "i0", "sinc", "special_bessel_j0", "special_bessel_j1"),
    *("special_airy_ai", "special_i1", "special_i0e", "special_i1e", "special_erfcx"),
    *("special_modified_bessel_i0", "special_modified_bessel_i1", "special_log_ndtr"),
    *("special_modified_bessel_k0", "special_modified_bessel_k1", "special_entr"),
    *("special_scaled_modified_bessel_k0", "special_scaled_modified_bessel_k1"),
    *("special_bessel_y0", "special_bessel_y1", "special_spherical_bessel_j0"),
)
UNBOUNDED = (
    *("mvlgamma", "special_zeta"),
    *(f"special_{shift}chebyshev_polynomial_{k}" for shift in ("", "shifted_") for k in "tuvw"),
    *("special_hermite_polynomial_h", "special_hermite_polynomial_he"),
    *("special_laguerre_polynomial_l", "special_legendre_polynomial_p"),
)

NAMED_X = {
    "special_airy_ai": torch.special.airy_ai,
    "special_spherical_bessel_j0": torch.special.spherical_bessel_j0,
    "special_scaled_modified_bessel_k0": torch.special.scaled_modified_bessel_k0,
    "special_scaled_modified_bessel_k1": torch.special.scaled_modified_bessel_k1,
}
"""Operators whose schema says x itself."""

CASES = [
    *[Case(op, {"x": x}, oracle=NAMED_X.get(op)) for op in LINE for x in (X, WIDE)],
    *[Case(op, {"x": POSITIVE}) for op in ("lgamma", "digamma", "special_entr")],
    Case("special_ndtri", {"x": SHARE}),
    Case("special_ndtri", {"x": X}),
    Case("polygamma", {"n": 0, "x": X}),
    *[Case("polygamma", {"n": n, "x": POSITIVE}, dtypes=FULL, wild=False) for n in (1, 2)],
    Case("polygamma", {"n": 1, "x": X}, unbounded=True),
    Case("special_xlog1py", {"x": X, "other": ROW}),
    Case("special_xlog1py", {"x": SHARE, "other": POSITIVE}),
    Case("special_xlog1py", {"x": X, "other": 0.5}),
    Case("special_xlog1py", {"x": 2, "other": POSITIVE}),
    Case("logaddexp2", {"x": X, "other": ROW}),
    Case("logaddexp2", {"x": WIDE, "other": WIDE}),
    Case("hypot", {"x": X, "other": ROW}),
    *[
        Case(op, {"x": x, "other": other})
        for op in ("igamma", "igammac")
        for x, other in ((POSITIVE, POSITIVE), (X, ROW), (SHARE, SHARE))
    ],
    *[Case(op, {}, unbounded=True) for op in UNBOUNDED],
]
