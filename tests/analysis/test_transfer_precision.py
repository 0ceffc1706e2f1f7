"""Bounds that have to be tight enough to be of use; the contract test asks only for soundness."""

from __future__ import annotations

import math

import pytest
import torch

from ranum.analysis.interval import Interval
from ranum.analysis.transfer import rule_for

INF = math.inf


def _between(lower, upper, *shape, dtype=torch.float32):
    return Interval.full(lower, upper, shape, dtype)


def _apply(op, **arguments):
    return rule_for(op).function(**arguments)


def _softmax(low, high, classes=10, dtype=torch.float32, op="_softmax"):
    return _apply(op, x=_between(low, high, 4, classes, dtype=dtype), dim=1, half_to_float=False)


# --- sums ----------------------------------------------------------------------------------


def test_a_merged_dimension_counts_in_full():
    total = _apply("sum", x=_between(-1.0, 2.0, 5, 100), dim=[1])
    assert total.shape == (5,)
    assert total.low == pytest.approx(-100, rel=1e-3)
    assert total.high == pytest.approx(200, rel=1e-3)


def test_a_sum_of_numbers_that_are_not_negative_is_not_negative():
    assert _apply("sum", x=_between(0.0, 1.0, 1000)).low == 0.0
    assert _apply("sum", x=_between(0.0, INF, 1000)).low == 0.0
    assert not _apply("sum", x=_between(0.0, INF, 1000)).may_nan


def test_a_long_sum_stays_finite():
    assert _apply("mean", x=_between(-1.0, 1.0, 1 << 26)).high < 1e3


def test_a_mean_keeps_its_range():
    mean = _apply("mean", x=_between(-3.0, 5.0, 64, 50), dim=[0])
    assert mean.low == pytest.approx(-3, rel=1e-4)
    assert mean.high == pytest.approx(5, rel=1e-4)


def test_the_variance_is_at_most_a_quarter_of_the_squared_width():
    variance = _apply("var", x=_between(-2.0, 2.0, 1000), correction=0)
    assert variance.low == 0.0
    assert variance.high == pytest.approx(4.0, rel=1e-2)


# --- products ------------------------------------------------------------------------------


def test_known_data_times_known_weights_is_all_but_exact():
    torch.manual_seed(0)
    x, weight = torch.randn(4, 300), torch.randn(300, 5)
    result = _apply("mm", x=Interval.point(x), mat2=Interval.point(weight))
    assert result.contains(x @ weight)
    assert float((result.upper - result.lower).max()) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_box_times_known_weights_is_the_sum_of_their_sizes(dtype):
    torch.manual_seed(0)
    weight = torch.randn(512, 8).to(dtype)
    result = _apply("mm", x=_between(-1.0, 1.0, 64, 512, dtype=dtype), mat2=Interval.point(weight))
    exact = weight.double().abs().sum(0)
    assert result.lower.shape == (1, 8)
    assert bool((result.upper.double()[0] <= exact * 1.4).all())


def test_a_convolution_keeps_its_channels():
    weight = torch.tensor([[[[1.0]]], [[[10.0]]]])
    result = _apply(
        "convolution",
        input=_between(0.0, 1.0, 1, 1, 4, 4),
        weight=Interval.point(weight),
        bias=None,
        stride=[1, 1],
        padding=[0, 0],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
    )
    assert result.upper.flatten().tolist() == pytest.approx([1.0, 10.0], rel=1e-3)


# --- normalisation -------------------------------------------------------------------------


@pytest.mark.parametrize("peak", [1.0, 100.0, 1e4])
def test_layer_norm_forgets_how_large_its_input_was(peak):
    out, _, rstd = _apply(
        "native_layer_norm",
        input=_between(-peak, peak, 8, 64),
        normalized_shape=[64],
        weight=None,
        bias=None,
        eps=1e-5,
    )
    assert out.high < 1.5 * math.sqrt(63)
    assert rstd.high < 317


def test_layer_norm_of_numbers_whose_squares_overflow_can_be_nan():
    out, *_ = _apply(
        "native_layer_norm",
        input=_between(-1e30, 1e30, 8, 64),
        normalized_shape=[64],
        weight=None,
        bias=None,
        eps=1e-5,
    )
    assert out.may_nan


# --- softmax -------------------------------------------------------------------------------


def test_softmax_is_positive_until_the_gap_underflows():
    assert _softmax(-40, 40).low > 0
    assert _softmax(-60, 60).low == 0
    assert _softmax(-4, 4, dtype=torch.float16).low > 0
    assert _softmax(-10, 10, dtype=torch.float16).low == 0


def test_softmax_of_finite_logits_is_a_probability():
    bounds = _softmax(-1e30, 1e30)
    assert not bounds.may_nan
    assert bounds.low == 0.0
    assert 1.0 <= bounds.high < 1.00001


def test_softmax_can_be_nan_only_if_a_whole_row_is_masked():
    logits = torch.tensor([[0.0, -INF, 1.0]])
    arguments = {"dim": 1, "half_to_float": False}
    assert not _apply("_softmax", x=Interval.point(logits), **arguments).may_nan
    assert _apply("_softmax", x=Interval.point(logits - INF), **arguments).may_nan
    assert not _apply("_safe_softmax", x=Interval.point(logits - INF), dim=1).may_nan


def test_log_softmax_is_at_least_minus_gap_minus_log_n():
    bounds = _softmax(-500, 500, op="_log_softmax")
    assert bounds.low == pytest.approx(-1000 - math.log(10), rel=1e-3)
    assert bounds.high < 0.01


# --- losses, attention, recurrent layers ---------------------------------------------------


def test_cross_entropy_reads_any_class_but_the_ignored_positions():
    logs = Interval.point(torch.tensor([[-1.0, -7.0], [-2.0, -3.0]]))
    arguments = {"x": logs, "weight": None, "reduction": 1, "ignore_index": -100}
    labels = Interval.point(torch.tensor([0, 0]))
    loss, _ = _apply("nll_loss_forward", target=labels, **arguments)
    assert loss.low == pytest.approx(1.0, rel=1e-3)
    assert loss.high == pytest.approx(7.0, rel=1e-3)
    assert not loss.may_nan
    nothing = Interval.point(torch.tensor([-100, -100]))
    assert _apply("nll_loss_forward", target=nothing, **arguments)[0].may_nan


def test_binary_cross_entropy_is_at_most_100():
    loss = _apply(
        "binary_cross_entropy", x=_between(0.0, 1.0, 8), target=_between(0.0, 1.0, 8), reduction=0
    )
    assert loss.high == pytest.approx(100, rel=1e-3)
    assert not loss.may_nan


def test_attention_stays_between_the_values():
    query, value = _between(-5.0, 5.0, 1, 2, 6, 8), _between(-2.0, 3.0, 1, 2, 6, 8)
    out, _ = _apply(
        "_scaled_dot_product_flash_attention_for_cpu", query=query, key=query, value=value
    )
    assert out.low == pytest.approx(-2, rel=1e-3)
    assert out.high == pytest.approx(3, rel=1e-3)
    assert not out.may_nan


def test_an_lstm_is_bounded_by_its_gates():
    out, hidden, cell, _ = _apply(
        "mkldnn_rnn_layer",
        input=_between(-1e6, 1e6, 12, 4, 5),
        weight0=_between(-9.0, 9.0, 12, 5),
        weight1=_between(-9.0, 9.0, 12, 3),
        weight2=_between(-9.0, 9.0, 12),
        weight3=_between(-9.0, 9.0, 12),
        hx_=_between(0.0, 0.0, 4, 3),
        cx_=_between(0.0, 0.0, 4, 3),
        reverse=False,
        batch_sizes=[],
        mode=2,
        hidden_size=3,
        num_layers=1,
        has_biases=True,
        bidirectional=False,
        batch_first=False,
        train=True,
    )
    assert out.high == pytest.approx(1, rel=1e-4)
    assert hidden.low == pytest.approx(-1, rel=1e-4)
    assert cell.high == pytest.approx(12, rel=1e-4)
    assert not out.may_nan


# --- backward ------------------------------------------------------------------------------


def test_a_closed_gate_passes_no_gradient():
    grad = _between(-INF, INF, 3)
    closed = _apply("threshold_backward", grad_output=grad, x=_between(-2, -1, 3), threshold=0)
    assert (closed.low, closed.high) == (0.0, 0.0)
    assert not closed.may_nan


def test_the_gradient_of_cross_entropy_is_small():
    logs = _between(-1e4, 0.0, 8, 5)
    grad = _apply(
        "nll_loss_backward",
        grad_output=_between(1.0, 1.0),
        x=logs,
        target=Interval.full(0, 4, (8,), torch.int64),
        weight=None,
        reduction=1,
        ignore_index=-100,
        total_weight=_between(8.0, 8.0),
    )
    assert grad.low == pytest.approx(-1 / 8, rel=1e-4)
    assert grad.high == 0.0


def test_the_gradient_of_a_norm_layer_is_bounded_by_rstd():
    rstd = _between(0.5, 2.0, 8, 1)
    to_x, to_weight, to_bias = _apply(
        "native_layer_norm_backward",
        grad_out=_between(-1.0, 1.0, 8, 64),
        input=_between(-3.0, 3.0, 8, 64),
        normalized_shape=[64],
        mean=_between(-3.0, 3.0, 8, 1),
        rstd=rstd,
        weight=None,
        bias=None,
        output_mask=[True, True, False],
    )
    assert to_x.high < 2.0 * (2 + 3 * math.sqrt(64)) * 1.01
    assert to_weight.high < 8 * 1.1 * math.sqrt(64)
    assert to_bias is None
