"""Cases of the gradients of convolutions."""

from __future__ import annotations

from transfer_cases.backward._common import MIXED
from transfer_cases.harness import Arg, Case


def _conv(x, w, out, *, stride=1, padding=0, transposed=False, groups=1, mask=(True,) * 3):
    spatial = len(x) - 2
    return Case(
        "convolution_backward",
        {
            "grad_output": Arg(out),
            "input": Arg(x),
            "weight": Arg(w),
            "bias_sizes": [out[1]],
            "stride": [stride] * spatial,
            "padding": [padding] * spatial,
            "dilation": [1] * spatial,
            "transposed": transposed,
            "output_padding": [0] * spatial,
            "groups": groups,
            "output_mask": list(mask),
        },
        dtypes=MIXED,
    )


CASES = [
    _conv((2, 3, 5, 5), (4, 3, 3, 3), (2, 4, 5, 5), padding=1),
    _conv((2, 4, 6), (4, 2, 3), (2, 4, 2), stride=2, groups=2, mask=(True, True, False)),
    _conv((2, 4, 3, 3), (4, 3, 2, 2), (2, 6, 6, 6), stride=2, transposed=True, groups=2),
]
