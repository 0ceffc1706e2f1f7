"""Cases of the backward operators.

Where an operator receives what the forward pass made of its input, `constrain` makes it so.
"""

from __future__ import annotations

import math

import torch
from transfer_cases.harness import Arg, Case, N

aten = torch.ops.aten
SINGLE = (torch.float32,)
MIXED = (torch.float32, torch.bfloat16)

G = Arg((N, 3))
X = Arg((N, 3))
UNIT = Arg((N, 3), low=0.0, high=1.0, within=(0.0, 1.0))
SIGNED = Arg((N, 3), low=-1.0, high=1.0, within=(-1.0, 1.0))
SCALAR = Arg(())
LABELS = Arg((N,), low=0, high=2, dtype=torch.int64)
WEIGHTS = Arg((3,), low=0.5, high=2.0, within=(0.0, math.inf))
COUNT = Arg((), low=1.0, high=5.0, within=(0.5, math.inf))


def _set(**makers):
    """Arguments rewritten by functions of the others, in order."""

    def constrain(arguments):
        arguments = dict(arguments)
        for name, make in makers.items():
            arguments[name] = make(arguments).to(arguments[name].dtype)
        return arguments

    return constrain


ACTIVATIONS = [
    Case(op, {"grad_output": G, "x": X, **options})
    for op, options in (
        ("threshold_backward", {"threshold": 0.5}),
        ("hardtanh_backward", {"min_val": -1.0, "max_val": 2.0}),
        ("leaky_relu_backward", {"negative_slope": 0.1, "self_is_result": False}),
        ("leaky_relu_backward", {"negative_slope": -2.0, "self_is_result": False}),
        ("softshrink_backward", {"lambd": 0.5}),
        ("gelu_backward", {"approximate": "none"}),
        ("gelu_backward", {"approximate": "tanh"}),
        ("silu_backward", {}),
        ("mish_backward", {}),
        ("hardswish_backward", {}),
        ("hardsigmoid_backward", {}),
        ("softplus_backward", {"beta": 2.0, "threshold": 20.0}),
        ("logit_backward", {"eps": 0.1}),
        ("logit_backward", {}),
    )
]
ACTIVATIONS += [
    Case("hardshrink_backward", {"grad_out": G, "x": X, "lambd": 0.5}),
    Case("sigmoid_backward", {"grad_output": G, "output": UNIT}),
    Case("sigmoid_backward", {"grad_output": G, "output": X}, wild=False),
    Case("tanh_backward", {"grad_output": G, "output": SIGNED}),
    Case(
        "log_sigmoid_backward",
        {"grad_output": G, "x": X, "buffer": UNIT},
        constrain=_set(buffer=lambda a: torch.exp(-a["x"].abs())),
    ),
    Case("glu_backward", {"grad_output": G, "x": Arg((N, 6)), "dim": 1}),
    Case("_prelu_kernel_backward", {"grad_output": G, "x": X, "weight": Arg((1, 3))}),
    Case(
        "native_dropout_backward",
        {"grad_output": G, "mask": Arg((N, 3), dtype=torch.bool), "scale": 1.25},
    ),
    *(
        Case(
            "rrelu_with_noise_backward",
            {
                "grad_output": G,
                "x": X,
                "noise": UNIT,
                "lower": 0.1,
                "upper": 0.3,
                "training": training,
                "self_is_result": False,
            },
        )
        for training in (True, False)
    ),
    *(
        Case(
            "elu_backward",
            {
                "grad_output": G,
                "alpha": 1.5,
                "scale": 2.0,
                "input_scale": 1.0,
                "is_result": is_result,
                "self_or_result": X,
            },
        )
        for is_result in (False, True)
    ),
]

# --- softmax and losses --------------------------------------------------------------------


def _softmax_cases():
    for x, dim in ((G, 1), (Arg((3, N)), 0), (Arg((2, 200)), -1)):
        shape = Arg(x.shape, low=-8.0, high=8.0)
        yield Case(
            "_softmax_backward_data",
            {"grad_output": x, "output": shape, "dim": dim, "input_dtype": "DTYPE"},
            constrain=_set(output=lambda a: a["output"].softmax(a["dim"])),
        )
        yield Case(
            "_log_softmax_backward_data",
            {"grad_output": x, "output": shape, "dim": dim, "input_dtype": "DTYPE"},
            constrain=_set(output=lambda a: a["output"].log_softmax(a["dim"])),
        )


def _grad(reduction, shape=(N, 3)):
    return SCALAR if reduction else Arg(shape)


LOSSES = [
    *(
        Case(op, {"grad_output": _grad(r), "x": X, "target": X, "reduction": r, **options})
        for r in (0, 1, 2)
        for op, options in (
            ("mse_loss_backward", {}),
            ("smooth_l1_loss_backward", {"beta": 0.5}),
            ("huber_loss_backward", {"delta": 0.5}),
            ("soft_margin_loss_backward", {}),
        )
    ),
    *(
        Case(
            "binary_cross_entropy_backward",
            {"grad_output": _grad(r), "x": UNIT, "target": UNIT, "weight": w, "reduction": r},
        )
        for r, w in ((0, None), (1, Arg((N, 3))), (2, None))
    ),
    *(
        Case(
            "nll_loss_backward",
            {
                "grad_output": _grad(r, (N,)),
                "x": X,
                "target": LABELS,
                "weight": w,
                "reduction": r,
                "ignore_index": -100,
                "total_weight": COUNT,
            },
        )
        for r, w in ((0, None), (1, None), (1, WEIGHTS), (2, WEIGHTS))
    ),
    *(
        Case(
            "nll_loss2d_backward",
            {
                "grad_output": _grad(r, (2, 2, 2)),
                "x": Arg((2, 3, 2, 2)),
                "target": Arg((2, 2, 2), low=0, high=2, dtype=torch.int64),
                "weight": w,
                "reduction": r,
                "ignore_index": 1,
                "total_weight": COUNT,
            },
        )
        for r, w in ((0, None), (1, WEIGHTS))
    ),
    *(
        Case(
            "multi_margin_loss_backward",
            {
                "grad_output": SCALAR,
                "x": X,
                "target": LABELS,
                "p": p,
                "margin": 1,
                "weight": w,
                "reduction": 1,
            },
        )
        for p, w in ((1, None), (2, Arg((3,))))
    ),
]

# --- normalisation -------------------------------------------------------------------------

EVERY = [True, True, True]
VARIANCE = Arg((3,), low=0.1, high=4.0, within=(0.0, math.inf))


def _layer_stats(a):
    return aten.native_layer_norm(a["input"], a["normalized_shape"], None, None, 1e-5)


def _group_stats(a):
    sizes = a["N"], a["C"], a["HxW"], a["group"]
    return aten.native_group_norm(a["input"], None, None, *sizes, 1e-5)


def _batch_stats(a):
    return aten.native_batch_norm(a["input"], None, None, None, None, True, 0.1, 1e-5)


def _rms(a):
    return (a["input"].square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def _rms_backward(grad_out, input, normalized_shape, rstd, weight, output_mask):
    with torch.enable_grad():
        x = input.clone().requires_grad_()
        w = torch.ones(normalized_shape) if weight is None else weight.clone()
        w.requires_grad_()
        out = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * w
        return torch.autograd.grad(out, (x, w), grad_out)


def _cudnn_norm(input, grad_output, weight, save_mean, save_var, epsilon, **_):
    return aten.native_batch_norm_backward(
        grad_output, input, weight, None, None, save_mean, save_var, True, epsilon, EVERY
    )


def _batch_norm(grad_out, input, weight, save_mean, save_var, update, eps, output_mask, **_):
    return aten.native_batch_norm_backward(
        grad_out, input, weight, None, None, save_mean, save_var, update, eps, output_mask
    )


BATCH = {
    "input": Arg((4, 3, 5)),
    "weight": Arg((3,)),
    "running_mean": Arg((3,)),
    "running_var": VARIANCE,
    "save_mean": Arg((3,)),
}
_saved = {"save_mean": lambda a: _batch_stats(a)[1]}
RESERVE = Arg((0,), low=0, high=255, dtype=torch.uint8)

NORMS = [
    *(
        Case(
            "native_layer_norm_backward",
            {
                "grad_out": Arg(x.shape),
                "input": x,
                "normalized_shape": [x.shape[-1]],
                "mean": Arg((N, 1)),
                "rstd": Arg((N, 1)),
                "weight": w,
                "bias": w,
                "output_mask": [True, w is not None, w is not None],
            },
            constrain=_set(mean=lambda a: _layer_stats(a)[1], rstd=lambda a: _layer_stats(a)[2]),
        )
        for x, w in (
            (Arg((N, 6)), Arg((6,))),
            (Arg((N, 40), low=90.0, high=110.0), None),
        )
    ),
    Case(
        "native_group_norm_backward",
        {
            "grad_out": Arg((2, 4, 3)),
            "input": Arg((2, 4, 3)),
            "mean": Arg((2, 2)),
            "rstd": Arg((2, 2)),
            "weight": Arg((4,)),
            "N": 2,
            "C": 4,
            "HxW": 3,
            "group": 2,
            "output_mask": EVERY,
        },
        constrain=_set(mean=lambda a: _group_stats(a)[1], rstd=lambda a: _group_stats(a)[2]),
    ),
    Case(
        "_fused_rms_norm_backward",
        {
            "grad_out": Arg((N, 6)),
            "input": Arg((N, 6)),
            "normalized_shape": [6],
            "rstd": Arg((N, 1)),
            "weight": Arg((6,)),
            "output_mask": [True, True],
        },
        _rms_backward,
        constrain=_set(rstd=_rms),
        dtypes=SINGLE,
    ),
    Case(
        "native_batch_norm_backward",
        {
            "grad_out": Arg((4, 3, 5)),
            **BATCH,
            "save_invstd": Arg((3,)),
            "train": True,
            "eps": 1e-5,
            "output_mask": EVERY,
        },
        constrain=_set(**_saved, save_invstd=lambda a: _batch_stats(a)[2]),
    ),
    Case(
        "native_batch_norm_backward",
        {
            "grad_out": Arg((4, 3, 5)),
            **BATCH,
            "save_mean": None,
            "save_invstd": None,
            "train": False,
            "eps": 1e-5,
            "output_mask": EVERY,
        },
    ),
    Case(
        "native_batch_norm_backward",
        {
            "grad_out": Arg((4, 3, 5)),
            **BATCH,
            "weight": None,
            "save_mean": None,
            "save_invstd": None,
            "train": False,
            "eps": 1e-5,
            "output_mask": [True, False, False],
        },
    ),
    Case(
        "cudnn_batch_norm_backward",
        {
            **BATCH,
            "grad_output": Arg((4, 3, 5)),
            "save_var": Arg((3,)),
            "epsilon": 1e-5,
            "reserveSpace": RESERVE,
        },
        _cudnn_norm,
        constrain=_set(**_saved, save_var=lambda a: _batch_stats(a)[2]),
        dtypes=SINGLE,
    ),
    Case(
        "batch_norm_backward",
        {
            **BATCH,
            "grad_out": Arg((4, 3, 5)),
            "save_var": Arg((3,)),
            "update": True,
            "eps": 1e-5,
            "output_mask": EVERY,
            "reserve": RESERVE,
        },
        _batch_norm,
        constrain=_set(**_saved, save_var=lambda a: _batch_stats(a)[2]),
        dtypes=SINGLE,
    ),
]

# --- contractions, pooling, selections -----------------------------------------------------


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


IMAGE = Arg((2, 2, 4, 4))
VOLUME = Arg((1, 2, 4, 4, 4))


def _winners(op, *names):
    def make(a):
        arguments = [a[name] for name in names]
        if op.startswith("adaptive"):
            arguments = [a["grad_output"].shape[-(a["x"].dim() - 2) :]]
        return getattr(aten, op)(torch.nan_to_num(a["x"]), *arguments)[1]

    return _set(indices=make)


WINDOW = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def _max_pool(dims, x, out, **window):
    arguments = {
        "kernel_size": [2] * dims,
        "stride": [2] * dims,
        "padding": [0] * dims,
        "dilation": [1] * dims,
        "ceil_mode": False,
    } | window
    op = f"max_pool{dims}d_with_indices"
    return Case(
        f"{op}_backward",
        {
            "grad_output": Arg(out),
            "x": x,
            **arguments,
            "indices": Arg(out, low=0, high=3, dtype=torch.int64, exact=True),
        },
        constrain=_winners(op, *WINDOW),
        dtypes=MIXED,
    )


WINDOWS = [
    _max_pool(2, IMAGE, (2, 2, 2, 2)),
    _max_pool(2, IMAGE, (2, 2, 4, 4), kernel_size=[3, 3], stride=[1, 1], padding=[1, 1]),
    _max_pool(3, VOLUME, (1, 2, 2, 2, 2)),
    *(
        Case(
            f"adaptive_max_pool{dims}d_backward",
            {
                "grad_output": Arg(out),
                "x": x,
                "indices": Arg(out, low=0, high=3, dtype=torch.int64, exact=True),
            },
            constrain=_winners(f"adaptive_max_pool{dims}d"),
            dtypes=MIXED,
        )
        for dims, x, out in ((2, IMAGE, (2, 2, 3, 2)), (3, VOLUME, (1, 2, 3, 1, 2)))
    ),
    *(
        Case(f"_adaptive_avg_pool{dims}d_backward", {"grad_output": Arg(out), "x": x}, dtypes=MIXED)
        for dims, x, out in ((2, IMAGE, (2, 2, 3, 2)), (3, VOLUME, (1, 2, 3, 1, 2)))
    ),
    *(
        Case(
            f"avg_pool{dims}d_backward",
            {
                "grad_output": Arg(out),
                "x": x,
                "kernel_size": [k] * dims,
                "stride": [s] * dims,
                "padding": [p] * dims,
                "ceil_mode": False,
                "count_include_pad": include,
                "divisor_override": divisor,
            },
            dtypes=MIXED,
        )
        for dims, x, out, k, s, p, include, divisor in (
            (2, IMAGE, (2, 2, 2, 2), 2, 2, 0, True, None),
            (2, IMAGE, (2, 2, 4, 4), 3, 1, 1, False, None),
            (2, IMAGE, (2, 2, 2, 2), 3, 1, 0, True, 2),
            (3, VOLUME, (1, 2, 2, 2, 2), 2, 2, 0, True, None),
        )
    ),
    *(
        Case(
            f"{op}_backward",
            {
                "grad_output": Arg((2, 2, *out)),
                "output_size": list(out),
                "input_size": [2, 2, *size],
            },
            dtypes=SINGLE,
        )
        for op, out, size in (
            ("upsample_nearest1d", (9,), (4,)),
            ("upsample_nearest2d", (9, 3), (4, 4)),
            ("upsample_nearest3d", (6, 3, 4), (3, 4, 2)),
            ("_upsample_nearest_exact1d", (9,), (4,)),
            ("_upsample_nearest_exact2d", (9, 3), (4, 4)),
            ("_upsample_nearest_exact3d", (6, 3, 4), (3, 4, 2)),
        )
    ),
    *(
        Case(
            f"{op}_backward",
            {
                "grad_output": Arg((2, 2, *out)),
                "output_size": list(out),
                "input_size": [2, 2, *size],
                "align_corners": corners,
            },
            dtypes=SINGLE,
        )
        for corners in (False, True)
        for op, out, size in (
            ("upsample_linear1d", (9,), (4,)),
            ("upsample_bilinear2d", (9, 3), (4, 4)),
            ("upsample_trilinear3d", (6, 3, 4), (3, 4, 2)),
            ("upsample_bicubic2d", (9, 3), (4, 4)),
        )
    ),
    *(
        Case(
            f"{kind}_pad{dims}d_backward",
            {
                "grad_output": Arg((2, 2, *(s + 3 for s in size))),
                "x": Arg((2, 2, *size)),
                "padding": [1, 2] * dims,
            },
            dtypes=SINGLE,
        )
        for kind in ("reflection", "replication")
        for dims, size in ((1, (4,)), (2, (4, 3)), (3, (3, 4, 3)))
    ),
]

SELECTIONS = [
    *(
        Case(
            "embedding_dense_backward",
            {
                "grad_output": Arg((N, 3, 4)),
                "indices": Arg((N, 3), low=0, high=4, dtype=torch.int64),
                "num_weights": 5,
                "padding_idx": pad,
                "scale_grad_by_freq": False,
            },
        )
        for pad in (-1, 2)
    ),
    Case(
        "slice_backward",
        {
            "grad_output": Arg((N, 2)),
            "input_sizes": [N, 5],
            "dim": 1,
            "start": 1,
            "end": 5,
            "step": 2,
        },
    ),
    Case(
        "slice_backward",
        {
            "grad_output": Arg((2, 3)),
            "input_sizes": [2, 3],
            "dim": 0,
            "start": 0,
            "end": 9,
            "step": 1,
        },
    ),
    Case(
        "select_backward",
        {"grad_output": Arg((N, 3)), "input_sizes": [N, 4, 3], "dim": 1, "index": -1},
    ),
    Case(
        "unfold_backward",
        {"grad_in": Arg((4, 3)), "input_sizes": [6], "dim": 0, "size": 3, "step": 1},
    ),
]

# --- attention and recurrent layers --------------------------------------------------------

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


_forward = _set(out=lambda a: _attended(a, 0), logsumexp=lambda a: _attended(a, 1))


def _flash_backward(grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, **_):
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, query, key, value, out, logsumexp, dropout_p, is_causal
    )


def _efficient_backward(grad_out_, grad_input_mask, **arguments):
    return (*_flash_backward(grad_out_, **arguments), None)


ATTENTIONS = [
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

RECURRENT = [
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
        constrain=_set(workspace=_lstm_workspace),
    ),
    Case("_thnn_fused_lstm_cell_backward", CELL, _both, constrain=_set(workspace=_lstm_workspace)),
    Case(
        "_thnn_fused_gru_cell_backward",
        {"grad_hy": Arg((N, H)), "workspace": Arg((N, 5 * H)), "has_bias": True},
        _gru_cell,
        constrain=_set(workspace=_gru_workspace),
    ),
]

CASES = [
    *ACTIVATIONS,
    *_softmax_cases(),
    *LOSSES,
    *NORMS,
    _conv((2, 3, 5, 5), (4, 3, 3, 3), (2, 4, 5, 5), padding=1),
    _conv((2, 4, 6), (4, 2, 3), (2, 4, 2), stride=2, groups=2, mask=(True, True, False)),
    _conv((2, 4, 3, 3), (4, 3, 2, 2), (2, 6, 6, 6), stride=2, transposed=True, groups=2),
    *WINDOWS,
    *SELECTIONS,
    *ATTENTIONS,
    *RECURRENT,
]
