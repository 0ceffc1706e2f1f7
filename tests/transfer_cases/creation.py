"""Constants, random numbers, dropout, joins."""

import torch
from transfer_cases.harness import DTYPE, Arg, Case, N

X = Arg((N, 3))
SCALAR = Arg(())
SIZE = (N, 40)


def full(value, shape, dtype):
    return torch.empty(shape, dtype=dtype).fill_(value)


def uniform(low, high, shape, dtype):
    return torch.empty(shape, dtype=dtype).uniform_(low, high)


def normal(mean, std, shape=None, dtype=None):
    if shape is None:
        return torch.normal(mean, std)
    return torch.empty(shape, dtype=dtype).normal_(mean, std)


def bernoulli(shape, dtype):
    return torch.empty(shape, dtype=dtype).bernoulli_(0.5)


def arange(end, start=0, step=1, dtype=None):
    return torch.arange(start, end, step, dtype=dtype)


def join(values, shape, dtype):
    picks = torch.arange(len(values)).repeat(shape[0] * shape[1])[: shape[0] * shape[1]]
    whole = torch.stack([value.to(dtype).reshape(-1)[:1].expand(shape) if value.shape != shape
                         else value.to(dtype) for value in values])  # fmt: skip
    return whole.gather(0, picks.reshape(1, *shape))[0]


POSITIVE = Arg((N, 3), low=0.1, high=2, within=(0.01, 99), nan=False)

CASES = [
    Case("full", {"value": 0.1, "shape": SIZE, "dtype": DTYPE}, oracle=full),
    Case("full", {"value": SCALAR, "shape": SIZE, "dtype": torch.float32}, oracle=full),
    Case("full", {"value": -torch.inf, "shape": (), "dtype": DTYPE}, oracle=full),
    Case("full", {"value": 3, "shape": (2, 2), "dtype": torch.int64}, oracle=full),
    Case("full", {"value": True, "shape": (2, 2), "dtype": torch.bool}, oracle=full),
    Case("arange", {"end": 7}, oracle=arange),
    Case("arange", {"start": 0.5, "end": 3, "step": 0.1, "dtype": DTYPE}, oracle=arange),
    Case("linspace", {"start": -1, "end": 1, "steps": 7, "dtype": DTYPE}),
    Case("uniform", {"low": 0.0, "high": 1.0, "shape": SIZE, "dtype": DTYPE}, oracle=uniform),
    Case("uniform", {"low": -0.1, "high": 0.3, "shape": SIZE, "dtype": DTYPE}, oracle=uniform),
    Case("normal", {"mean": 0.0, "std": 1.0, "shape": SIZE, "dtype": DTYPE}, oracle=normal),
    Case("normal", {"mean": -7.3, "std": 0.02, "shape": SIZE, "dtype": DTYPE}, oracle=normal),
    Case("normal", {"mean": X, "std": POSITIVE}, oracle=normal, wild=False),
    Case("bernoulli", {"shape": SIZE, "dtype": DTYPE}, oracle=bernoulli),
    Case("randint", {"low": -2, "high": 5, "size": SIZE}),
    Case("randint", {"high": 5, "size": SIZE}),
    Case("randperm", {"n": 9}),
    Case("multinomial", {"x": POSITIVE, "num_samples": 2}, wild=False, dtypes=(torch.float32,)),
    *[
        Case("native_dropout", {"input": X, "p": p, "train": train})
        for p, train in ((0.5, True), (0.1, True), (0.0, True), (1.0, True), (0.3, False))
    ],
    Case("join", {"values": [X, Arg((3,)), X], "shape": (N, 3), "dtype": DTYPE}, oracle=join),
    Case("join", {"values": [X, SCALAR], "shape": (N, 3), "dtype": torch.float32}, oracle=join),
]
