"""Gradients of recurrent layers and cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box, largest, sum_error
from ranum.analysis.transfer.recurrent import LSTM
from ranum.analysis.transfer.registry import transfer


def _backward_through_time(
    steps: int, width: float, grads: Sequence[float], cell: float
) -> tuple[float, float, float, float]:
    """Largest sums of |gate gradients| per step and unit of an LSTM, going backwards.

    With |o|, |f|, |i|, |g|, |tanh c| <= 1, s' <= 1/4 and t' <= 1, each step has
    dc += dh; di, df <= dc |.| / 4; dg <= dc; do <= dh / 4; dh = grad + `width` (di+df+dg+do),
    where `width` is H times the largest recurrent weight.

    Returns:
        The largest and the summed gate gradients, and those of h_0 and c_0.
    """
    grad, grad_h, grad_c = grads
    dh, dc, top, total = grad_h + grad, grad_c, 0.0, 0.0
    for step in range(steps):
        dc = dc + dh
        gates = dc / 4 + dc * (cell + steps - step) / 4 + dc + dh / 4
        top, total = max(top, gates), total + gates
        dh = width * gates + (grad if step < steps - 1 else 0.0)
        if not math.isfinite(gates) or gates > 1e300:
            return math.inf, math.inf, math.inf, math.inf
    return top, total, dh, dc


@transfer("mkldnn_rnn_layer_backward", phase="backward")
def mkldnn_rnn_layer_backward(
    input: Interval,
    weight1: Interval,
    weight2: Interval,
    weight3: Interval,
    weight4: Interval,
    hx_: Interval,
    cx_tmp: Interval,
    output: Interval,
    hy_: Interval,
    cy_: Interval,
    grad_output: Interval | None,
    grad_hy: Interval | None,
    grad_cy: Interval | None,
    reverse: bool,
    mode: int,
    hidden_size: int,
    num_layers: int,
    has_biases: bool,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    batch_first: bool,
    workspace: Interval,
) -> tuple[Interval, ...]:
    """Gradients of input, weights, biases, h_0 and c_0 by the recursion of an LSTM's steps."""
    operands = (input, weight1, weight2, weight3, weight4, hx_, cx_tmp)
    box = Box.of(input)
    given = [x for x in (grad_output, grad_hy, grad_cy) if x is not None]
    sizes = [0.0 if x is None else Box.of(x).peak for x in (grad_output, grad_hy, grad_cy)]
    steps, batch = input.shape[0], input.shape[1]
    start = max(1.0, Box.of(hx_).peak)
    recurrent = hidden_size * Box.of(weight2).peak
    slack = 1.001 + sum_error(64 * (hidden_size + steps), box.dtype)
    top, total, to_h, to_c = _backward_through_time(
        steps, recurrent * slack, sizes, Box.of(cx_tmp).peak
    )
    gates = batch * total * (1 + sum_error(batch * steps + 64, box.dtype))
    bounds = (
        top * hidden_size * Box.of(weight1).peak,
        gates * Box.of(input).peak,
        gates * start,
        gates,
        gates,
        to_h,
        to_c,
    )
    finite = all(x.is_finite for x in (*operands, *given))
    lost = not finite or mode != LSTM or not max(bounds) * slack**2 < largest(box.dtype) / 4
    boxes = [
        box.constant(-math.inf, math.inf).with_nan()
        if lost
        else box.constant(-bound, bound).rounded(absolute=bound * (slack**2 - 1))
        for bound in bounds
    ]
    return tuple(b.interval(x.shape, x.dtype) for b, x in zip(boxes, operands, strict=True))


@transfer("_thnn_fused_lstm_cell_backward_impl", phase="backward")
def _thnn_fused_lstm_cell_backward_impl(
    grad_hy: Interval | None,
    grad_cy: Interval | None,
    cx: Interval,
    cy: Interval,
    workspace: Interval,
    has_bias: bool,
) -> tuple[Interval | None, ...]:
    """Gradients of the four preactivations, of c_0, and of the bias: theirs summed."""
    box = Box.native(cx.merged()).merged()
    zero = box.constant(0.0)
    dh = zero if grad_hy is None else Box.native(grad_hy.merged()).merged()
    dc = zero if grad_cy is None else Box.native(grad_cy.merged()).merged()
    both = (dh * box.constant(-1.0, 1.0)).hull(zero) + dc
    c = box * box.constant(-0.25, 0.25)
    unit = both * box.constant(-1.0, 1.0)
    gates = unit.hull(both * c).hull(dh * box.constant(-0.25, 0.25)).rounded(64)
    # Kernels multiply dc by c before the two factors that make it small.
    lost = not ((both * box).is_finite and gates.is_finite)
    lost = lost or not (cx.is_finite and cy.is_finite and workspace.is_finite)
    gates = box.constant(-math.inf, math.inf).with_nan() if lost else gates
    to_c = box.constant(-math.inf, math.inf).with_nan() if lost else unit.rounded(64)
    width = workspace.shape[1]
    bias = gates.times(cx.shape[0]).interval((width,), workspace.dtype) if has_bias else None
    return (
        gates.interval(workspace.shape, workspace.dtype),
        to_c.interval(cx.shape, cx.dtype),
        bias,
    )


@transfer("_thnn_fused_lstm_cell_backward", phase="backward")
def _thnn_fused_lstm_cell_backward(
    grad_hy: Interval | None,
    grad_cy: Interval | None,
    cx: Interval,
    cy: Interval,
    workspace: Interval,
    has_bias: bool,
) -> tuple[Interval | None, ...]:
    """As the implementation, with the shared gradients given for both of their operands."""
    gates, to_c, bias = _thnn_fused_lstm_cell_backward_impl(
        grad_hy, grad_cy, cx, cy, workspace, has_bias
    )
    return gates, gates, to_c, bias, bias


@transfer("_thnn_fused_gru_cell_backward", phase="backward")
def _thnn_fused_gru_cell_backward(
    grad_hy: Interval, workspace: Interval, has_bias: bool
) -> tuple[Interval | None, ...]:
    """Gradients of the preactivations from both sides, of h_0, and of the biases."""
    grad = Box.native(grad_hy.merged()).merged()
    kept = Box.native(workspace.merged()).merged().peak  # gates, h_0, n's preactivation
    size = max(1.0, (1 + kept) / 4, kept / 4)
    gates = (grad * grad.constant(-1.0, 1.0) * (1.0 + size)).rounded(64)
    lost = not (workspace.is_finite and grad.peak * (1 + kept) < largest(grad.dtype) / 8)
    gates = grad.constant(-math.inf, math.inf).with_nan() if lost else gates
    rows, hidden = grad_hy.shape
    shape = (rows, 3 * hidden)
    both = gates.interval(shape, grad_hy.dtype)
    to_h = (grad * grad.constant(-1.0, 1.0)).rounded(64).with_nan(lost)
    bias = gates.times(rows).interval((3 * hidden,), grad_hy.dtype) if has_bias else None
    return both, both, to_h.interval(grad_hy.shape, grad_hy.dtype), bias, bias
