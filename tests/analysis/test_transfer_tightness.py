"""Transfer functions must not only be sound: where a bound is easy, it must be met."""

from __future__ import annotations

import math

import pytest
import torch

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.propagate import twin_intervals
from ranum.analysis.transfer import rule_for
from ranum.analysis.transfer.registry import twins

INF = math.inf


def box(low, high, shape=(2, 3)):
    return Interval.full(low, high, shape, torch.float32)


def run(op, **arguments):
    return rule_for(op).function(**arguments)


@pytest.mark.parametrize(
    ("op", "arguments", "low", "high"),
    [
        ("add", {"x": box(-1, 2), "other": box(3, 5)}, 2, 7),
        ("sub", {"x": box(-1, 2), "other": 1}, -2, 1),
        ("rsub", {"x": box(-1, 2), "other": 1}, -1, 2),
        ("mul", {"x": box(-1, 2), "other": box(-3, 5)}, -6, 10),
        ("mul", {"x": box(0, INF), "other": box(1, 2)}, 0, INF),
        ("div", {"x": box(1, 2), "other": box(0.5, 4)}, 0.25, 4),
        ("div", {"x": box(-1, 2), "other": -2.0}, -1, 0.5),
        ("div", {"x": box(1, 2), "other": box(0, 1)}, -INF, INF),
        ("reciprocal", {"x": box(0.5, 2)}, 0.5, 2),
        ("abs", {"x": box(-3, 2)}, 0, 3),
        ("pow", {"x": box(-3, 2), "exponent": 2}, 0, 9),
        ("sqrt", {"x": box(0, 4)}, 0, 2 + 2**-22),
        ("relu", {"x": box(-3, 2)}, 0, 2),
        ("leaky_relu", {"x": box(-4, 2), "negative_slope": 0.25}, -1, 2),
        ("hardtanh", {"x": box(-4, 2)}, -1, 1),
        ("clamp", {"x": box(-4, 2), "min": 1e-3, "max": None}, torch.tensor(1e-3).item(), 2),
        ("maximum", {"x": box(-4, 2), "other": box(0, 1)}, 0, 2),
        ("nan_to_num", {"x": box(-4, 2).with_nan()}, -4, 2),
        ("threshold", {"x": box(-4, 2), "threshold": 0.0, "value": 7.0}, 0, 7),
        ("lt", {"x": box(0, 1), "other": 2.0}, 1, 1),
        ("lt", {"x": box(0, 1), "other": 0.0}, 0, 0),
        ("lt", {"x": box(0, 1), "other": 0.5}, 0, 1),
        ("eq", {"x": box(0, 1), "other": 2.0}, 0, 0),
        ("ne", {"x": box(0, 1), "other": 2.0}, 1, 1),
        ("isfinite", {"x": box(0, 1)}, 1, 1),
        ("isinf", {"x": box(0, 1)}, 0, 0),
        ("slice", {"x": box(0, 1), "dim": 1, "start": 1, "end": 2}, 0, 1),
        ("constant_pad_nd", {"x": box(1, 2), "pad": [1, 1], "value": 0.0}, 0, 2),
        ("cat", {"tensors": [box(0, 1), box(3, 4)], "dim": 0}, 0, 4),
        ("uniform", {"low": 0.0, "high": 1.0, "shape": (2,), "dtype": torch.float32}, 0, 1),
    ],
)
def test_bounds_are_met(op, arguments, low, high):
    result = run(op, **arguments)
    assert (result.low, result.high) == (low, high)


@pytest.mark.parametrize(
    ("op", "arguments", "low", "high"),
    [
        ("exp", {"x": box(-1, 1)}, math.exp(-1), math.e),
        ("log", {"x": box(1, math.e)}, 0, 1),
        ("tanh", {"x": box(-100, 100)}, -1, 1),
        ("sigmoid", {"x": box(-200, 200)}, 0, 1),
        ("softplus", {"x": box(-200, 0)}, 0, math.log(2)),
        ("gelu", {"x": box(-5, 3)}, -0.16997120747990366, 2.9959502),
        ("silu", {"x": box(-5, 0)}, -0.27846454276107380, 0),
        ("sin", {"x": box(0, 2)}, 0, 1),
        ("sin", {"x": box(2, 3)}, math.sin(3), math.sin(2)),
        ("cos", {"x": box(1, 4)}, -1, math.cos(1)),
        ("rsqrt", {"x": box(0.25, 4)}, 0.5, 2),
        ("pow", {"x": box(2, 3), "exponent": -1}, 1 / 3, 0.5),
        ("xlogy", {"x": box(0, 1), "other": box(0.5, 1)}, math.log(0.5), 0),
        ("lerp", {"x": box(0, 1), "end": box(2, 3), "weight": 0.5}, 1, 2),
    ],
)
def test_bounds_are_close(op, arguments, low, high):
    result = run(op, **arguments)
    assert result.low == pytest.approx(low, rel=1e-5, abs=4e-6)
    assert result.high == pytest.approx(high, rel=1e-5, abs=4e-6)
    assert not result.may_nan


DATA = Interval.point(torch.tensor([[1.0, -2.0, 3.0], [4.0, 0.0, -6.0]]))
INDEX = Interval.point(torch.tensor([[0, 2], [1, 1]]))


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("add", {"x": DATA, "other": 1}),
        ("mul", {"x": DATA, "other": DATA}),
        ("div", {"x": DATA, "other": 2.0}),
        ("relu", {"x": DATA}),
        ("clamp", {"x": DATA, "min": 0, "max": 1}),
        ("cast", {"x": DATA, "dtype": torch.float16}),
        ("lt", {"x": DATA, "other": 0.5}),
        ("where", {"condition": Interval.point(DATA.lower > 0), "x": DATA, "other": 0.0}),
        ("identity", {"x": DATA}),
        ("reshape", {"x": DATA, "shape": (3, 2)}),
        ("permute", {"x": DATA, "dims": (1, 0)}),
        ("expand", {"x": DATA, "shape": (4, 2, 3)}),
        ("slice", {"x": DATA, "dim": 1, "start": 1, "end": 3}),
        ("select", {"x": DATA, "dim": 0, "index": 1}),
        ("cat", {"tensors": [DATA, DATA], "dim": 1}),
        ("stack", {"tensors": [DATA, DATA], "dim": 1}),
        ("gather", {"x": DATA, "dim": 1, "index": INDEX}),
        ("index", {"x": DATA, "indices": [None, Interval.point(torch.tensor([2, 0]))]}),
        ("embedding", {"weight": DATA, "indices": Interval.point(torch.tensor([1, 0, 1]))}),
        ("scatter", {"x": DATA, "dim": 1, "index": INDEX, "value": 1.0}),
        ("full", {"value": 0.5, "shape": (2, 2), "dtype": torch.float32}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_exact_data_stays_exact(op, arguments):
    assert run(op, **arguments).is_point


@pytest.mark.parametrize(
    ("shape", "blocks", "target", "expected"),
    [
        ((2, 6), (1, 1), (2, 2, 3), (1, 1, 1)),
        ((2, 6), (1, 6), (2, 2, 3), (1, 2, 3)),
        ((2, 3, 4, 4), (1, 3, 1, 1), (2, 48), (1, 48)),
        ((2, 3, 4), (1, 1, 4), (6, 4), (1, 4)),
        ((2, 3), (1, 3), (2, 1, 3), (1, 1, 3)),
        ((512, 512), (512, 1), (512 * 512,), (1,)),
    ],
)
def test_reshape_keeps_blocks_apart(shape, blocks, target, expected):
    low = torch.arange(math.prod(blocks), dtype=torch.float32).reshape(blocks)
    result = run("reshape", x=Interval.between(low, low + 1, shape, torch.float32), shape=target)
    assert tuple(result.lower.shape) == expected
    assert (result.low, result.high) == (0, math.prod(blocks))


@pytest.mark.parametrize(
    ("op", "arguments", "may_nan"),
    [
        ("add", {"x": box(0, INF), "other": box(0, INF)}, False),
        ("add", {"x": box(0, INF), "other": box(-INF, 0)}, True),
        ("mul", {"x": box(1, INF), "other": box(1, INF)}, False),
        ("mul", {"x": box(0, 1), "other": box(1, INF)}, True),
        ("div", {"x": box(1, 2), "other": box(0, 1)}, False),
        ("div", {"x": box(0, 2), "other": box(0, 1)}, True),
        ("log", {"x": box(0, 1)}, False),
        ("log", {"x": box(-0.1, 1)}, True),
        ("sqrt", {"x": box(-1e-30, 1)}, True),
        ("where", {"condition": Interval.point(torch.ones(2, 3) > 0), "x": box(0, 1),
                   "other": box(0, 1).with_nan()}, False),
        ("maximum", {"x": box(0, 1), "other": box(0, 1).with_nan()}, True),
        ("nan_to_num", {"x": box(0, 1).with_nan()}, False),
        ("eq", {"x": box(0, 1).with_nan(), "other": 1.0}, False),
        ("pow", {"x": box(-1, 1), "exponent": 0.5}, True),
        ("pow", {"x": box(-1, 1), "exponent": 3}, False),
        ("gelu", {"x": box(-1, 1)}, False),
        ("gelu", {"x": box(-1, INF)}, True),  # oneDNN's kernel for AVX-512
        ("gelu", {"x": box(-1, INF), "approximate": "tanh"}, False),
        ("gelu", {"x": box(-INF, 1)}, True),
    ],
)  # fmt: skip
def test_nan_is_announced_only_where_it_can_arise(op, arguments, may_nan):
    assert run(op, **arguments).may_nan is may_nan


def test_bounds_are_differentiable():
    low = torch.tensor([[0.5]], requires_grad=True)
    bounded = Interval(low, low + 1, (2, 3), torch.float32)
    result = run("log", x=run("mul", x=run("clamp", x=bounded, min=0.1, max=9.0), other=2.0))
    result.lower.sum().backward()
    assert low.grad.item() == pytest.approx(2.0, rel=1e-4)


def test_elu_plus_one_is_never_negative():
    result = run("elu", x=box(-90, 3))
    assert run("add", x=result, other=1).low == 0
    assert run("elu", x=box(-90, 3), alpha=1.5).low < -1.5


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("op", ["mm", "linear"])
def test_sums_of_products_of_one_sign_keep_it(op, known):
    x, shape = box(0, 9, (4, 300)), (300, 5) if op == "mm" else (5, 300)
    b = Interval.point(torch.rand(shape)) if known else box(0, 9, shape)
    name = "mat2" if op == "mm" else "weight"
    first = "x" if op == "mm" else "input"
    assert run(op, **{first: x, name: b}).low == 0
    assert run(op, **{first: box(-1e-3, 9, (4, 300)), name: b}).low < 0
    twin = twins()[op]
    value = Value(index=0, shape=(4, 5), dtype=torch.float32)
    (pair,) = twin_intervals(twin, {first: x, name: b}, (value,), whole=False, marks=[])
    assert pair.low == 0
