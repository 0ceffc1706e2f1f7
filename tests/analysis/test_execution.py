"""Flush to zero against the processor's own, TF32 and fused products against emulations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranum.analysis import analyze
from ranum.analysis.execution import Execution
from ranum.analysis.graph import Node
from ranum.analysis.interval import Interval
from ranum.analysis.propagate import propagate
from ranum.errors import ArgumentError

TINY = torch.finfo(torch.float32).tiny


@pytest.fixture
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def tight(analysis, op: str) -> Interval:
    """The bounds of the first result of an operator, one per element."""
    node = next(node for node in analysis.graph.nodes if node.op == op)
    return propagate(analysis.graph, analysis.context.start).intervals[node.outputs[0]]


def codes(analysis) -> list[str]:
    return [defect.code for defect in analysis.defects]


# --- flush to zero -------------------------------------------------------------------------


def gap(x: Tensor) -> Tensor:
    return torch.sqrt(torch.exp(x)).sum()


def test_the_root_of_a_flushed_number_has_no_gradient():
    """exp(-100) is 3.8e-44: its root has a gradient of 2.6e21, unless it is flushed to 0."""
    x = torch.tensor([-100.0, -99.0]).requires_grad_()
    plain = analyze(gap, x, execution=Execution())
    assert plain.defects == ()
    flushed = analyze(gap, x, execution=Execution(flush_to_zero=True))
    assert codes(flushed) == ["RN106"]
    assert any("subnormal numbers may become 0" in note for note in flushed.notes)


def test_flush_to_zero_is_noticed(flushing):
    assert Execution.of_torch().flush_to_zero
    step = lambda x: torch.sqrt(x * 1e-10).sum()  # noqa: E731
    x = torch.tensor([1e-30, 2e-30]).requires_grad_()
    assert codes(analyze(step, x, inputs={"x": (1e-30, 2e-30)})) == ["RN106"]
    assert Execution.of_torch().flush_to_zero  # the analysis has put it back
    step(x).backward()
    assert x.grad.isinf().all()  # which is what happens


def test_plain_arithmetic_is_the_default():
    assert Execution.of_torch().is_plain
    assert analyze(gap, torch.tensor([-100.0])).graph.execution is None


OPERATORS = {
    "mul": lambda x: x * 1e-20,
    "square": lambda x: x * x,
    "div": lambda x: x / 1e20,
    "sum": lambda x: (x * 1e-19).sum(-1),
    "mean": lambda x: (x * x).mean(-1),
    "matmul": lambda x: x @ x.mT,
    "mixed": lambda x: (x - x.mean()) @ (x + 1e-20).mT,
    "norm": lambda x: torch.linalg.vector_norm(x, dim=-1),
    "var": lambda x: x.var(-1),
    "std": lambda x: x.std(-1),
    "prod": lambda x: (x * torch.tensor([1e-15, 1e-15, 1e30, 1e30, 1.0])).prod(-1),
    "softmax": lambda x: torch.softmax(x * 1e21, -1),
    "log_softmax": lambda x: torch.log_softmax(x * 1e21, -1),
    "layer_norm": lambda x: F.layer_norm(x, (5,), eps=1e-12),
    "conv": lambda x: F.conv1d(x[None], x[:, :1, None].expand(4, 4, 1) * 1.0),
    "addcmul": lambda x: torch.addcmul(x, x, x),
    "power": lambda x: x.abs() ** 2 + x.abs().clamp(min=1e-30) ** 0.5,
    "inverse": lambda x: x.abs().clamp(min=1e-19) ** -2.0,
    "exp": lambda x: torch.exp(x * 1e21 - 90),
    "cosine": lambda x: F.cosine_similarity(x, x + 1e-20, dim=-1),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "cumsum": lambda x: (x * 1e-19).cumsum(-1),
    "gelu": lambda x: F.gelu(x * 1e20),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_bounds_hold_for_what_the_processor_flushes(name, flushing):
    """Inputs around 1e-19, whose products are subnormal, by the real instructions."""
    operator = OPERATORS[name]
    torch.manual_seed(0)
    for draw in range(12):
        scale = 10.0 ** (-18 - draw % 4)
        x = torch.randn(4, 5) * scale
        analysis = analyze(
            lambda x: operator(x).sum(), x, inputs={"x": (-4e-17, 4e-17)}, observe=True
        )
        assert not analysis.unknowns
        graph, found = analysis.graph, analysis.intervals
        for node in graph.nodes:
            for number in node.outputs:
                if number is None or graph.values[number].observed is None:
                    continue
                low, high = graph.values[number].observed
                bounds = found[number]
                if bool(low.isnan()):
                    assert bounds.may_nan, node.op
                else:
                    assert bounds.low <= float(low) <= float(high) <= bounds.high, node.op


def test_point_inputs_keep_inside_their_bounds_when_flushed(flushing):
    """Intervals of one point leave no slack but what flushing itself is given."""
    torch.manual_seed(1)
    for operator in OPERATORS.values():
        x = torch.randn(4, 5) * 1e-19
        analysis = analyze(
            lambda x, operator=operator: operator(x).sum(),
            x,
            inputs={"x": Interval.point(x)},
            observe=True,
        )
        for node in analysis.graph.nodes:
            value = analysis.graph.values[node.outputs[0]]
            if value.observed is not None and not bool(value.observed[0].isnan()):
                bounds = analysis.intervals[value.index]
                assert bounds.low <= float(value.observed[0]), node.op
                assert float(value.observed[1]) <= bounds.high, node.op


def test_healthy_models_stay_quiet_when_flushed():
    net = nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 6), nn.Softmax(-1)
    )

    def step(x: Tensor, y: Tensor) -> Tensor:
        p = net(x)
        spread = torch.sqrt(((x - x.mean(-1, keepdim=True)) ** 2).mean() + 1e-6)
        return F.cross_entropy(p, y) + spread + torch.sqrt(p.sum() + 1e-9)

    quiet = analyze(
        step, torch.rand(5, 4), torch.arange(5), execution=Execution(flush_to_zero=True)
    )
    assert quiet.defects == ()


# --- TF32 and bf16 products ----------------------------------------------------------------


def cut(x: Tensor, bits: int, mode: str) -> Tensor:
    """float32 with `bits` bits of mantissa, rounded to nearest or cut off."""
    drop = 23 - bits
    whole = x.view(torch.int32)
    if mode == "nearest":
        whole = whole + (1 << (drop - 1))
    return (whole >> drop << drop).view(torch.float32)


@pytest.mark.parametrize("mode", ["nearest", "cut"])
@pytest.mark.parametrize(("precision", "bits"), [("tf32", 10), ("bf16", 7)])
def test_bounds_hold_for_products_of_shortened_operands(precision, bits, mode):
    generator = torch.Generator().manual_seed(0)
    missed = 0
    for _ in range(30):
        first, second = torch.randn(2, generator=generator)
        x, weight = first.expand(6, 40).clone(), nn.Parameter(second.expand(40, 3).clone())
        step = lambda x, weight=weight: (x @ weight).sum()  # noqa: E731
        got = cut(x, bits, mode) @ cut(weight.detach(), bits, mode)
        ranges: Any = {"inputs": {"x": (float(first), float(first))}, "weights": "initial"}
        wide = analyze(step, x, execution=Execution(matmul=precision), backward=False, **ranges)
        assert tight(wide, "mm").contains(got)
        plain = analyze(step, x, execution=Execution(), backward=False, **ranges)
        missed += not tight(plain, "mm").contains(got)
    assert missed  # plain bounds do not hold for such products


def test_convolutions_have_a_switch_of_their_own():
    layer = nn.Conv1d(2, 3, 1)
    x = torch.ones(1, 2, 4)
    bounds = {
        name: analyze(layer, x, weights="initial", execution=Execution(**options)).bounds["loss"]
        for name, options in {
            "plain": {},
            "matmul": {"matmul": "tf32"},
            "convolution": {"convolution": "tf32"},
        }.items()
    }
    assert bounds["matmul"].high == bounds["plain"].high
    assert bounds["convolution"].high > bounds["plain"].high


def test_the_precision_that_torch_is_set_to():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert Execution.of_torch("cpu").matmul == "tf32"
        assert Execution.of_torch("cuda").matmul == "tf32"
        torch.set_float32_matmul_precision("medium")
        assert Execution.of_torch("cpu").matmul == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)
    assert Execution.of_torch("cuda").convolution == "tf32"  # torch's default on GPUs


# --- fused products ------------------------------------------------------------------------


def test_a_fused_product_can_leave_a_difference_below_zero():
    """x x - x x is 0; fused it is the rounding error of x x, of either sign."""
    x = torch.tensor([1.1, 1.3])

    def step(x: Tensor) -> Tensor:
        square = x * x
        return torch.sqrt(1e-20 + (square - x.detach() * x.detach())).sum()

    plain = analyze(step, x, inputs={"x": (1.0, 1.0)}, execution=Execution())
    fused = analyze(step, x, inputs={"x": (1.0, 1.0)}, execution=Execution(fma=True))
    assert plain.defects == ()
    assert "RN102" in codes(fused)


def test_bounds_hold_for_fused_sums():
    """fma(x, y, z) in float64, rounded once, against float32 bounds of points."""
    torch.manual_seed(0)
    step = lambda x, y, z: (x * y + z).sum()  # noqa: E731
    outside = 0
    for _ in range(30):
        x, y = torch.randn(64), torch.randn(64)
        z = -(x * y)
        fused = (x.double() * y.double() + z.double()).float()
        inputs = {name: Interval.point(each) for name, each in zip("xyz", (x, y, z), strict=True)}
        wide = analyze(step, x, y, z, inputs=inputs, execution=Execution(fma=True))
        assert tight(wide, "add").contains(fused)
        plain = analyze(step, x, y, z, inputs=inputs, execution=Execution())
        outside += not tight(plain, "add").contains(fused)
    assert outside  # plain bounds do not hold for them


# --- arguments -----------------------------------------------------------------------------


def test_options_that_break_the_rule():
    with pytest.raises(ArgumentError, match="matmul must be one of float32, tf32, bf16; got 'fp8'"):
        Execution(matmul="fp8")
    with pytest.raises(ArgumentError, match=r"execution must be a ranum\.Execution or None"):
        analyze(gap, torch.ones(2), execution="fast")


@pytest.mark.parametrize("op", ["mul", "mm", "prod", "tanh_backward", "logsumexp"])
@pytest.mark.parametrize(
    "pair", [(1e-39, 2.0), (-3.0, -1e-40), (1e-40, 1e-39), (0.0, 1.0), (-2.0, 5.0), (1.0, 1.0)]
)
def test_one_pair_of_bounds_is_flushed_as_blocks_are(op: str, pair: tuple[float, float]) -> None:
    low, high = (torch.tensor(end).expand(2, 2).clone() for end in pair)
    execution = Execution(flush_to_zero=True)
    node = Node(index=0, op=op, target=None, arguments={}, outputs=(1,))
    results = []
    for x in (
        Interval.full(*pair, (2, 2), torch.float32),
        Interval.between(low, high, (2, 2), torch.float32),
    ):
        seen = execution.operands(node, {"x": x})
        (out,) = execution.outputs(node, seen, [x])
        results.append([seen["x"].low, seen["x"].high, out.low, out.high])
    assert results[0] == results[1]
