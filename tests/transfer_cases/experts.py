"""Grouped products and counts."""

import torch
from transfer_cases.harness import Arg, Case

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ROWS = Arg((8, 8))
EXPERTS = Arg((2, 8, 8))
ENDS = Arg((2,), low=3, high=3, dtype=torch.int32, exact=True)


def grouped(x, mat2, offs=None, bias=None, out_dtype=None):
    """Groups that end at 3 and at the last row, whatever was drawn."""
    if offs is not None:
        size = x.shape[-1] if x.dim() == mat2.dim() else max(x.shape[-2], mat2.shape[-1])
        offs = torch.tensor([3, size], dtype=torch.int32)
    return torch.ops.aten._grouped_mm(x, mat2, offs, bias, out_dtype)


def routed(x, bins, min, max):
    return torch.histc(x, bins, min, max)


CASES = [
    *(
        Case("_grouped_mm", {"x": x, "mat2": mat2, "offs": offs}, oracle=grouped, dtypes=FLOATS)
        for x, mat2, offs in (
            (ROWS, EXPERTS, ENDS),
            (EXPERTS, ROWS, ENDS),
            (ROWS, ROWS, ENDS),
            (EXPERTS, EXPERTS, None),
        )
    ),
    Case("histc", {"x": Arg((5, 3)), "bins": 4, "min": -4, "max": 4}, oracle=routed, wild=False),
]
