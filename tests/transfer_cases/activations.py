"""Activations."""

import torch
from transfer_cases.harness import Arg, Case, N

X = Arg((N, 3))
WIDE = Arg((N, 3), low=-100, high=100)
NEAR_ZERO = Arg((N, 3), low=-1e-3, high=1e-3)
LEFT = Arg((N, 3), low=-12, high=0)
COUNT = Arg((N, 3), low=-9, high=9, dtype=torch.int64)

PLAIN = (
    *("sigmoid", "log_sigmoid_forward", "softplus", "relu", "relu6", "hardtanh", "hardsigmoid"),
    *("hardswish", "leaky_relu", "elu", "gelu", "silu", "mish"),
)


def relu6(x):
    return torch.nn.functional.relu6(x)


CASES = [
    *[
        Case(op, {"x": x}, oracle=relu6 if op == "relu6" else None)
        for op in PLAIN
        for x in (X, WIDE, NEAR_ZERO, LEFT)
    ],
    Case("relu", {"x": COUNT}),
    Case("sigmoid", {"x": COUNT}),
    Case("gelu", {"x": X, "approximate": "tanh"}),
    Case("gelu", {"x": WIDE, "approximate": "tanh"}),
    Case("softplus", {"x": X, "beta": 3, "threshold": 1}),
    Case("softplus", {"x": X, "beta": -2, "threshold": 1}),
    Case("softplus", {"x": WIDE, "beta": 0.1, "threshold": -2}),
    Case("hardtanh", {"x": X, "min_val": -0.1, "max_val": 2.5}),
    Case("leaky_relu", {"x": X, "negative_slope": -0.3}),
    Case("leaky_relu", {"x": X, "negative_slope": 0.0}),
    Case("elu", {"x": X, "alpha": 1.6732632423543772, "scale": 1.0507009873554805}),
    Case("elu", {"x": X, "alpha": -0.5, "scale": 1, "input_scale": 2}),
    Case("elu", {"x": X, "alpha": 0.0, "scale": 1}),
    Case("_prelu_kernel", {"x": X, "weight": Arg((1, 3))}),
    Case("_prelu_kernel", {"x": X, "weight": Arg((1, 1), low=0, high=0.3)}),
    Case("threshold", {"x": X, "threshold": 0.3, "value": -2}),
    Case("threshold", {"x": X, "threshold": 0, "value": 20.0}),
]
