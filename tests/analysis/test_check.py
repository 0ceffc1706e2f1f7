"""Every recorded value lies in its interval: the steps of the examples and of small models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ranum.analysis import propagate as engine
from ranum.analysis.capture.program import Program
from ranum.analysis.capture.torch import function_program, module_program
from ranum.analysis.check import disagreements
from ranum.analysis.interval import Interval
from ranum.analysis.propagate import Propagation, propagate
from ranum.analysis.transfer.registry import Rule, rule_for


def _start(program: Program, radius: float):
    graph = program.capture()
    start = {}
    for value in graph.leaves("input", "parameter", "buffer", "constant"):
        data = value.data
        if data is None or tuple(data.shape) != value.shape:
            start[value.index] = Interval.top(value.shape, value.dtype)
        elif value.kind == "constant" or radius == 0 or not data.is_floating_point():
            start[value.index] = Interval.point(data)
        else:
            reach = radius * (1 + data.abs())
            start[value.index] = Interval.between(
                data - reach, data + reach, value.shape, value.dtype
            ).merged()
    return graph, start


def _transformer():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)
    return nn.Sequential(nn.Linear(6, 16), layer, nn.Linear(16, 3)), torch.randn(3, 5, 6)


def _convolution():
    return (
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(36, 8), nn.LayerNorm(8), nn.Dropout(0.2), nn.Linear(8, 3),
        ),
        torch.rand(4, 1, 8, 8),
    )  # fmt: skip


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.GRU(6, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x)[0].logsumexp(-1)


def _digits():
    """The model of examples/digits.py and examples/plain_loop.py, without the data."""
    return (
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), nn.Softmax(dim=1)),
        torch.rand(16, 64),
    )


MODELS = {
    "transformer": _transformer,
    "convolution": _convolution,
    "recurrent": lambda: (_Recurrent(), torch.randn(4, 7, 6)),
    "digits": _digits,
}


def _loss(output: Tensor) -> Tensor:
    return (output.double() ** 2).mean().float() + torch.log(output.abs() + 1e-3).mean()


@pytest.mark.parametrize("radius", [0.0, 0.01])
@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_recorded_values_lie_in_their_intervals(name, blocks, radius):
    model, batch = MODELS[name]()
    graph, start = _start(module_program(model, (batch,), loss=_loss), radius)
    found = propagate(graph, start, blocks=blocks)
    assert not found.faults
    assert list(disagreements(graph, found)) == []
    assert sum(value.observed is not None for value in graph.values.values()) > 10


def test_autocast():
    model, batch = _transformer()

    def step(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return _loss(model(x))

    graph, start = _start(function_program(step, (batch,)), 0.0)
    assert list(disagreements(graph, propagate(graph, start))) == []


def _wrong(monkeypatch, op, function):
    rule = Rule(op, function, "all", "forward")
    monkeypatch.setattr(engine, "rule_for", lambda name: rule if name == op else rule_for(name))


def _found(step) -> tuple[object, Propagation]:
    graph, start = _start(function_program(step, (torch.full((2, 3), 2.0),)), 0.0)
    return graph, propagate(graph, start)


def test_a_wrong_transfer_function_is_noticed(monkeypatch):
    _wrong(monkeypatch, "exp", lambda x: Interval.full(0, 1, x.shape, x.dtype))
    (line,) = disagreements(*_found(lambda x: torch.exp(x)))  # noqa: PLW0108
    assert line.startswith("exp gave [7.38")
    assert "test_check.py" in line


def test_nan_that_was_not_allowed_for_is_noticed(monkeypatch):
    _wrong(monkeypatch, "log", lambda x: Interval.full(-1e30, 1e30, x.shape, x.dtype))
    lines = list(disagreements(*_found(lambda x: torch.log(x - 5))))
    assert len(lines) == 1
    assert lines[0].startswith("log gave [nan, nan]")
