"""Cases of the gradients of activations and dropout."""

from __future__ import annotations

import torch
from transfer_cases.backward._common import derived
from transfer_cases.harness import Arg, Case, N

G = Arg((N, 3))
X = Arg((N, 3))
UNIT = Arg((N, 3), low=0.0, high=1.0, within=(0.0, 1.0))
SIGNED = Arg((N, 3), low=-1.0, high=1.0, within=(-1.0, 1.0))

CASES = [
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
CASES += [
    Case("hardshrink_backward", {"grad_out": G, "x": X, "lambd": 0.5}),
    Case("sigmoid_backward", {"grad_output": G, "output": UNIT}),
    Case("sigmoid_backward", {"grad_output": G, "output": X}, wild=False),
    Case("tanh_backward", {"grad_output": G, "output": SIGNED}),
    Case(
        "log_sigmoid_backward",
        {"grad_output": G, "x": X, "buffer": UNIT},
        constrain=derived(buffer=lambda a: torch.exp(-a["x"].abs())),
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
