"""Cases of the gradients of recurrent layers and cells."""

from __future__ import annotations

import torch
from transfer_cases.backward._common import SINGLE, derived
from transfer_cases.harness import Arg, Case, N

T, D, H = 3, 4, 2
GATES = (N, 4 * H)


def _mkldnn(
    input,
    weight1,
    weight2,
    weight3,
    weight4,
    hx_,
    cx_tmp,
    grad_output,
    grad_hy,
    grad_cy,
    reverse,
    **_,
):
    """The gradient of the same layer, through autograd."""
    with torch.enable_grad():
        leaves = [
            x.clone().requires_grad_()
            for x in (input, weight1, weight2, weight3, weight4, hx_, cx_tmp)
        ]
        x, w1, w2, b1, b2, hx, cx = leaves
        x = x.flip(0) if reverse else x
        outs, h, c = [], hx, cx
        for step in x:
            i, f, g, o = (step @ w1.T + h @ w2.T + b1 + b2).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outs.append(h)
        out = torch.stack(outs[::-1] if reverse else outs)
        return torch.autograd.grad((out, h, c), leaves, (grad_output, grad_hy, grad_cy))


def _lstm_cell(grad_hy, grad_cy, cx, cy, workspace, has_bias):
    i, f, g, o = workspace.chunk(4, 1)
    tanh = cy.tanh()
    dc = grad_hy * o * (1 - tanh * tanh) + grad_cy
    gates = torch.cat(
        [
            dc * g * (1 - i) * i,
            dc * cx * (1 - f) * f,
            dc * i * (1 - g * g),
            grad_hy * tanh * (1 - o) * o,
        ],
        1,
    )
    return gates, dc * f, gates.sum(0) if has_bias else None


def _both(**arguments):
    gates, to_c, bias = _lstm_cell(**arguments)
    return gates, gates, to_c, bias, bias


def _lstm_workspace(a):
    i, f, g, o = a["workspace"].chunk(4, 1)
    return torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], 1)


def _gru_cell(grad_hy, workspace, has_bias):
    r, z, n, h, hn = workspace.chunk(5, 1)
    dn = grad_hy * (1 - z) * (1 - n * n)
    dz = grad_hy * (h - n) * (1 - z) * z
    dr = dn * hn * (1 - r) * r
    to_input, to_hidden = torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1)
    return to_input, to_hidden, grad_hy * z, to_input.sum(0), to_hidden.sum(0)


def _gru_workspace(a):
    r, z, n, h, hn = a["workspace"].chunk(5, 1)
    return torch.cat([r.sigmoid(), z.sigmoid(), n.tanh(), h, hn], 1)


CELL = {
    "grad_hy": Arg((N, H)),
    "grad_cy": Arg((N, H)),
    "cx": Arg((N, H)),
    "cy": Arg((N, H)),
    "workspace": Arg(GATES),
    "has_bias": True,
}

CASES = [
    *(
        Case(
            "mkldnn_rnn_layer_backward",
            {
                "input": Arg((T, 2, D)),
                "weight1": Arg((4 * H, D)),
                "weight2": Arg((4 * H, H)),
                "weight3": Arg((4 * H,)),
                "weight4": Arg((4 * H,)),
                "hx_": Arg((2, H)),
                "cx_tmp": Arg((2, H)),
                "output": Arg((T, 2, H)),
                "hy_": Arg((2, H)),
                "cy_": Arg((2, H)),
                "grad_output": Arg((T, 2, H)),
                "grad_hy": Arg((2, H)),
                "grad_cy": Arg((2, H)),
                "reverse": reverse,
                "mode": 2,
                "hidden_size": H,
                "num_layers": 1,
                "has_biases": True,
                "train": True,
                "bidirectional": False,
                "batch_sizes": [],
                "batch_first": False,
                "workspace": Arg((0,), low=0, high=255, dtype=torch.uint8),
            },
            _mkldnn,
            dtypes=SINGLE,
        )
        for reverse in (False, True)
    ),
    Case(
        "_thnn_fused_lstm_cell_backward_impl",
        CELL,
        _lstm_cell,
        constrain=derived(workspace=_lstm_workspace),
    ),
    Case(
        "_thnn_fused_lstm_cell_backward", CELL, _both, constrain=derived(workspace=_lstm_workspace)
    ),
    Case(
        "_thnn_fused_gru_cell_backward",
        {"grad_hy": Arg((N, H)), "workspace": Arg((N, 5 * H)), "has_bias": True},
        _gru_cell,
        constrain=derived(workspace=_gru_workspace),
    ),
]
