"""Cases of the gradients of attention."""

from __future__ import annotations

import torch
from transfer_cases.backward._common import MIXED, SINGLE, derived
from transfer_cases.harness import Arg, Case

aten = torch.ops.aten
FLASH = "_scaled_dot_product_flash_attention_for_cpu"
Q, K = Arg((1, 2, 3, 4)), Arg((1, 2, 5, 4))
ATTENTION = {
    "grad_out": Q,
    "query": Q,
    "key": K,
    "value": K,
    "out": Q,
    "logsumexp": Arg((1, 2, 3), dtype=torch.float32),
}
STATE = {"cum_seq_q": None, "cum_seq_k": None, "max_q": 3, "max_k": 5}
RANDOM = {"philox_seed": None, "philox_offset": None}


def _attended(a, index):
    return getattr(aten, FLASH)(
        a["query"], a["key"], a["value"], 0.0, a["is_causal"], attn_mask=a.get("attn_mask")
    )[index]


_forward = derived(out=lambda a: _attended(a, 0), logsumexp=lambda a: _attended(a, 1))


def _flash_backward(grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, **_):
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, query, key, value, out, logsumexp, dropout_p, is_causal
    )


def _efficient_backward(grad_out_, grad_input_mask, **arguments):
    return (*_flash_backward(grad_out_, **arguments), None)


CASES = [
    Case(
        f"{FLASH}_backward",
        ATTENTION | {"dropout_p": 0.0, "is_causal": False},
        constrain=_forward,
        dtypes=MIXED,
    ),
    Case(
        f"{FLASH}_backward",
        ATTENTION | {"dropout_p": 0.0, "is_causal": False, "attn_mask": Arg((3, 5))},
        constrain=_forward,
        dtypes=SINGLE,
    ),
    Case(
        "_scaled_dot_product_flash_attention_backward",
        ATTENTION | STATE | RANDOM | {"dropout_p": 0.0, "is_causal": False},
        _flash_backward,
        constrain=_forward,
        dtypes=SINGLE,
    ),
    Case(
        "_scaled_dot_product_cudnn_attention_backward",
        ATTENTION | STATE | RANDOM | {"attn_bias": None, "dropout_p": 0.0, "is_causal": False},
        _flash_backward,
        constrain=_forward,
        dtypes=SINGLE,
    ),
    Case(
        "_scaled_dot_product_efficient_attention_backward",
        {"grad_out_": Q}
        | {k: v for k, v in ATTENTION.items() if k != "grad_out"}
        | RANDOM
        | {
            "attn_bias": None,
            "dropout_p": 0.0,
            "is_causal": False,
            "grad_input_mask": [True, True, True, False],
        },
        _efficient_backward,
        constrain=_forward,
        dtypes=SINGLE,
    ),
]
