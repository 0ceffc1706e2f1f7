"""Cases of scaled dot product attention.

The CUDA kernels are compared with the CPU's, in the layout of their outputs.
"""

from __future__ import annotations

import math

import torch
from transfer_cases.harness import Arg, Case, N

FLASH = "_scaled_dot_product_flash_attention_for_cpu"
Q = Arg((2, 2, 3, 4))
K = Arg((2, 2, 5, 4))
FEW = Arg((2, 1, 5, 4))
MASK = Arg((3, 5), low=-1.0, high=1.0)
ALLOWED = Arg((2, 2, 3, 5), dtype=torch.bool)
OPERANDS = {"query": Q, "key": K, "value": K}
SINGLE = (torch.float32, torch.bfloat16)


def _flash(**arguments):
    return getattr(torch.ops.aten, FLASH)(**arguments)


def _cuda_flash(return_debug_mask=False, **arguments):
    return (*_flash(**arguments), None, None, None, None, None, None, None)


def _efficient(compute_log_sumexp, attn_bias=None, **arguments):
    out, lse = _flash(attn_mask=attn_bias, **arguments)
    return out, torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=math.inf), None, None


def _cudnn(compute_log_sumexp, **arguments):
    out, lse = _efficient(compute_log_sumexp, **arguments)[:2]
    return (out, lse[..., : out.shape[-2], None], *(None,) * 7)


CASES = [
    Case(FLASH, OPERANDS, dtypes=SINGLE),
    Case(FLASH, {"query": Q, "key": Q, "value": Q, "is_causal": True}, dtypes=SINGLE),
    Case(FLASH, OPERANDS | {"attn_mask": MASK, "scale": 0.3}, dtypes=(torch.float32,)),
    Case(FLASH, {"query": Q, "key": FEW, "value": FEW}, dtypes=SINGLE),
    Case("_scaled_dot_product_flash_attention", OPERANDS, _cuda_flash, dtypes=SINGLE),
    Case(
        "_scaled_dot_product_efficient_attention",
        OPERANDS | {"attn_bias": MASK, "compute_log_sumexp": True},
        _efficient,
        dtypes=(torch.float32,),
    ),
    *(
        Case(op, OPERANDS | {"compute_log_sumexp": True}, _cudnn, dtypes=SINGLE)
        for op in (
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        )
    ),
    Case("_scaled_dot_product_attention_math", OPERANDS, dtypes=SINGLE),
    Case(
        "_scaled_dot_product_attention_math",
        OPERANDS | {"attn_mask": ALLOWED, "dropout_p": 0.5},
        dtypes=SINGLE,
    ),
    Case(
        "_scaled_dot_product_attention_math",
        {
            "query": Arg((N, 2, 3, 4)),
            "key": Arg((N, 2, 3, 4)),
            "value": Arg((N, 2, 3, 4)),
            "is_causal": True,
        },
        dtypes=(torch.float32,),
    ),
]
