"""Cases of the gradients of normalisation layers and softmax."""

from __future__ import annotations

import math

import torch
from transfer_cases.backward._common import SINGLE, derived
from transfer_cases.harness import Arg, Case, N

aten = torch.ops.aten
EVERY = [True, True, True]
VARIANCE = Arg((3,), low=0.1, high=4.0, within=(0.0, math.inf))
RESERVE = Arg((0,), low=0, high=255, dtype=torch.uint8)


def _softmax_cases():
    for x, dim in ((Arg((N, 3)), 1), (Arg((3, N)), 0), (Arg((2, 200)), -1)):
        shape = Arg(x.shape, low=-8.0, high=8.0)
        shares = Arg(x.shape, low=0.0, high=1.0, within=(0.0, 1.0), nan=False)
        yield Case(
            "_softmax_backward_data",
            {"grad_output": x, "output": shares, "dim": dim, "input_dtype": "DTYPE"},
            constrain=derived(output=lambda a: (16 * a["output"] - 8).softmax(a["dim"])),
        )
        yield Case(  # called by name, on what is no softmax
            "_softmax_backward_data",
            {"grad_output": x, "output": shape, "dim": dim, "input_dtype": "DTYPE"},
        )
        yield Case(
            "_log_softmax_backward_data",
            {"grad_output": x, "output": shape, "dim": dim, "input_dtype": "DTYPE"},
            constrain=derived(output=lambda a: a["output"].log_softmax(a["dim"])),
        )


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

CASES = [
    *_softmax_cases(),
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
            constrain=derived(mean=lambda a: _layer_stats(a)[1], rstd=lambda a: _layer_stats(a)[2]),
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
        constrain=derived(mean=lambda a: _group_stats(a)[1], rstd=lambda a: _group_stats(a)[2]),
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
        constrain=derived(rstd=_rms),
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
        constrain=derived(**_saved, save_invstd=lambda a: _batch_stats(a)[2]),
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
        constrain=derived(**_saved, save_var=lambda a: _batch_stats(a)[2]),
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
        constrain=derived(**_saved, save_var=lambda a: _batch_stats(a)[2]),
        dtypes=SINGLE,
    ),
]
