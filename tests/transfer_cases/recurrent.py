"""Cases of the recurrent layers and cells.

The fused CUDA cells have no CPU kernel; they are compared with the same formulas in torch.
"""

from __future__ import annotations

import torch
from transfer_cases.harness import Arg, Case, N

T, D, H = 3, 4, 2


def lstm_cell(input_gates, hidden_gates, cx, input_bias=None, hidden_bias=None):
    gates = input_gates + hidden_gates
    if input_bias is not None:
        gates = gates + input_bias + hidden_bias
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat([i, f, g, o], 1)


def gru_cell(input_gates, hidden_gates, hx, input_bias=None, hidden_bias=None):
    if input_bias is not None:
        input_gates, hidden_gates = input_gates + input_bias, hidden_gates + hidden_bias
    ir, iz, inn = input_gates.chunk(3, 1)
    hr, hz, hn = hidden_gates.chunk(3, 1)
    r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
    n = (inn + r * hn).tanh()
    return n + z * (hx - n), torch.cat([r, z, n, hx, hn], 1)


def _cudnn(input, weight, hx, cx, mode, **_):
    if mode == 2:
        out, hy, cy = torch.ops.aten.lstm(input, [hx, cx], weight, True, 1, 0.0, True, False, False)
        return out, hy, cy, None, None
    run = {0: torch.ops.aten.rnn_relu, 1: torch.ops.aten.rnn_tanh, 3: torch.ops.aten.gru}[mode]
    out, hy = run(input, hx, weight, True, 1, 0.0, True, False, False)
    return out, hy, None, None, None


MKLDNN = {
    "input": Arg((T, 2, D)),
    "weight0": Arg((4 * H, D)),
    "weight1": Arg((4 * H, H)),
    "weight2": Arg((4 * H,)),
    "weight3": Arg((4 * H,)),
    "hx_": Arg((2, H)),
    "cx_": Arg((2, H)),
    "reverse": False,
    "batch_sizes": [],
    "mode": 2,
    "hidden_size": H,
    "num_layers": 1,
    "has_biases": True,
    "bidirectional": False,
    "batch_first": False,
    "train": True,
}


def _cudnn_case(mode, gates):
    return Case(
        "_cudnn_rnn",
        {
            "input": Arg((T, 2, D)),
            "weight": [
                Arg((gates * H, D)),
                Arg((gates * H, H)),
                Arg((gates * H,)),
                Arg((gates * H,)),
            ],
            "weight_stride0": 4,
            "weight_buf": None,
            "hx": Arg((1, 2, H)),
            "cx": Arg((1, 2, H)) if mode == 2 else None,
            "mode": mode,
            "hidden_size": H,
            "proj_size": 0,
            "num_layers": 1,
            "batch_first": False,
            "dropout": 0.0,
            "train": True,
            "bidirectional": False,
            "batch_sizes": [],
            "dropout_state": None,
        },
        _cudnn,
        dtypes=(torch.float32,),
    )


CASES = [
    Case("mkldnn_rnn_layer", MKLDNN, dtypes=(torch.float32,), ignore=(3,)),
    Case("mkldnn_rnn_layer", MKLDNN | {"reverse": True}, dtypes=(torch.float32,), ignore=(3,)),
    *(_cudnn_case(mode, gates) for mode, gates in ((0, 1), (1, 1), (2, 4), (3, 3))),
    *(
        Case(
            "_thnn_fused_lstm_cell",
            {
                "input_gates": Arg((N, 4 * H)),
                "hidden_gates": Arg((N, 4 * H)),
                "cx": Arg((N, H)),
                "input_bias": bias,
                "hidden_bias": bias,
            },
            lstm_cell,
        )
        for bias in (None, Arg((4 * H,)))
    ),
    Case(
        "_thnn_fused_gru_cell",
        {
            "input_gates": Arg((N, 3 * H)),
            "hidden_gates": Arg((N, 3 * H)),
            "hx": Arg((N, H)),
            "input_bias": Arg((3 * H,)),
            "hidden_bias": Arg((3 * H,)),
        },
        gru_cell,
    ),
]
