"""Cases of the normalisation layers and of softmax."""

from __future__ import annotations

import math

import torch
from transfer_cases.harness import Arg, Case, N

INF = math.inf
VARIANCE = {"low": 0.1, "high": 4.0, "within": (0.0, INF)}
FAR = {"low": 9990.0, "high": 10010.0}


def _batch_norm(op, x, *, training=None, affine=True, stats=True, momentum=0.1, **options):
    channels = x.shape[1]
    arguments = {
        "input": x,
        "weight": Arg((channels,)) if affine else None,
        "bias": Arg((channels,)) if affine else None,
    }
    if stats is not None:
        arguments["running_mean"] = Arg((channels,)) if stats else None
        arguments["running_var"] = Arg((channels,), **VARIANCE) if stats else None
    if training is not None:
        arguments["training"] = training
    return Case(op, arguments | {"momentum": momentum, "eps": 1e-5}, **options)


def _keep_statistics(op):
    """The operator without its habit of writing the new statistics into its arguments."""

    def oracle(running_mean, running_var, **arguments):
        statistics = {
            "running_mean": None if running_mean is None else running_mean.clone(),
            "running_var": None if running_var is None else running_var.clone(),
        }
        return getattr(torch.ops.aten, op)(**arguments, **statistics)

    return oracle


def _running(input, running_mean, running_var, momentum):
    """What a batch leaves in the statistics."""
    statistics = running_mean.clone(), running_var.clone()
    torch.ops.aten.native_batch_norm(input, None, None, *statistics, True, momentum, 1e-5)
    return statistics


def _cudnn(epsilon, exponential_average_factor, **arguments):
    out = _keep_statistics("native_batch_norm")(
        **arguments, eps=epsilon, momentum=exponential_average_factor
    )
    return (*out, None)


IMAGE = Arg((2, 3, 4))
SOFT = Arg((N, 5))

CASES = [
    *(
        Case(
            "running_statistics",
            {
                "input": x,
                "running_mean": Arg((x.shape[1],)),
                "running_var": Arg((x.shape[1],), low=0.1, high=4.0, within=(0.0, math.inf)),
                "momentum": momentum,
            },
            oracle=_running,
            dtypes=(torch.float32, torch.float64),
        )
        for x, momentum in ((IMAGE, 0.1), (Arg((64, 2), **FAR), 0.5), (Arg((1, 3, 2)), 1.0))
    ),
    *(
        Case(
            "native_layer_norm",
            {"input": x, "normalized_shape": shape, "weight": w, "bias": b, "eps": 1e-5},
        )
        for x, shape, w, b in (
            (Arg((N, 4)), [4], Arg((4,)), Arg((4,))),
            (Arg((N, 3, 4)), [3, 4], Arg((3, 4)), None),
            (Arg((N, 1)), [1], None, None),
            (Arg((2, 64), **FAR), [64], None, None),
        )
    ),
    Case(
        "native_layer_norm",
        {"input": Arg((2, 3)), "normalized_shape": [3], "weight": None, "bias": None, "eps": 0.0},
    ),
    *(
        Case(
            "native_group_norm",
            {
                "input": Arg((N, 4, 3), **at),
                "weight": w,
                "bias": w,
                "N": N,
                "C": 4,
                "HxW": 3,
                "group": group,
                "eps": 1e-5,
            },
        )
        for group, w, at in ((2, Arg((4,)), {}), (1, None, FAR), (4, Arg((4,)), {}))
    ),
    *(
        Case(
            "_fused_rms_norm",
            {"input": Arg((N, 4)), "normalized_shape": [4], "weight": w, "eps": eps},
            oracle=lambda input, normalized_shape, weight, eps: (
                torch.rms_norm(input, normalized_shape, weight, eps),
                (
                    input.float().square().mean(-1, keepdim=True)
                    + (torch.finfo(input.dtype).eps if eps is None else eps)
                ).rsqrt(),
            ),
            dtypes=(torch.float32,),
        )
        for w, eps in ((Arg((4,)), 1e-6), (None, None))
    ),
    *(
        _batch_norm(
            "native_batch_norm",
            x,
            training=training,
            affine=affine,
            stats=stats,
            oracle=_keep_statistics("native_batch_norm"),
        )
        for x, training, affine, stats in (
            (IMAGE, True, True, True),
            (IMAGE, True, False, False),
            (Arg((64, 2), **FAR), True, True, False),
            (IMAGE, False, True, True),
            (Arg((3, 2, 2, 2)), False, False, True),
        )
    ),
    _batch_norm("_native_batch_norm_legit", IMAGE, training=True, stats=None),
    _batch_norm("_native_batch_norm_legit_no_training", IMAGE),
    _batch_norm("_native_batch_norm_legit_functional", IMAGE, training=True),
    _batch_norm("_native_batch_norm_legit_functional", IMAGE, training=False),
    _batch_norm(
        "_batch_norm_with_update",
        IMAGE,
        oracle=_keep_statistics("_batch_norm_with_update"),
        ignore=(3,),
    ),
    _batch_norm("_batch_norm_no_update", IMAGE, ignore=(3,)),
    Case(
        "cudnn_batch_norm",
        {
            "input": IMAGE,
            "weight": Arg((3,)),
            "bias": Arg((3,)),
            "running_mean": Arg((3,)),
            "running_var": Arg((3,), **VARIANCE),
            "training": True,
            "exponential_average_factor": 0.1,
            "epsilon": 1e-5,
        },
        oracle=_cudnn,
    ),
    *(
        Case(op, {"x": x, "dim": dim, "half_to_float": False})
        for op in ("_softmax", "_log_softmax")
        for x, dim in (
            (SOFT, 1),
            (Arg((3, N), low=-60.0, high=60.0), 0),
            (Arg((2, 300)), -1),
            (Arg(()), 0),
            (Arg((2, 4), low=9000.0, high=9001.0), 1),
            (Arg((3, 5), low=-6e4, high=6e4), 1),
        )
    ),
    *(
        Case("_safe_softmax", {"x": x, "dim": dim})
        for x, dim in ((SOFT, 1), (Arg((3, N), low=-60.0, high=60.0), 0))
    ),
]
