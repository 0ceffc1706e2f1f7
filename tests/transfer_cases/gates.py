"""Activations with a gate, a dead zone or a random slope."""

import torch
from transfer_cases.harness import Arg, Case, N

X = Arg((N, 4))


def rrelu(x, noise, lower, upper, training):
    drawn = noise.clone()
    result = torch.ops.aten.rrelu_with_noise(x, drawn, lower, upper, training)
    return result, drawn


CASES = [
    Case("celu", {"x": X}),
    Case("celu", {"x": X, "alpha": 0.3}),
    Case("celu", {"x": X, "alpha": -1.5}),
    Case("softshrink", {"x": X}),
    Case("softshrink", {"x": X, "lambd": 2.0}),
    Case("hardshrink", {"x": X}),
    Case("hardshrink", {"x": X, "lambd": 2.0}),
    *[
        Case(
            "rrelu_with_noise",
            {"x": X, "noise": Arg((N, 4), low=0, high=1), "lower": 0.1, "upper": 0.4}
            | {"training": training},
            oracle=rrelu,
        )
        for training in (True, False)
    ],
    Case("glu", {"x": X, "dim": -1}),
    Case("glu", {"x": Arg((4, 3)), "dim": 0}),
]
