"""Recurrent layers and cells, kept whole.

Gates lie in [0, 1], so whatever input and weights are: |h| <= 1 in an LSTM or tanh RNN, its
cell grows by at most 1 a step, |c_T| <= |c_0| + T, and a GRU's h, a convex combination, stays
within max(1, |h_0|). NaN needs a preactivation that is not finite on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ranum.analysis.interval import Interval
from ranum.analysis.transfer._common import Box, accumulator, largest, sum_error
from ranum.analysis.transfer.registry import transfer

RELU, TANH, LSTM, GRU = range(4)
"""ATen's numbers of the recurrent modes."""


def _may_overflow(sizes: Sequence[float], *operands: Interval | None) -> bool:
    """True if a preactivation that sums these magnitudes can be infinite or NaN."""
    given = [x for x in operands if x is not None]
    total = sum(sizes)
    limit = min(largest(x.dtype) for x in given)
    return any(not x.is_finite for x in given) or not total < limit / 2


def _within(bound: float, x: Interval, shape: Sequence[int], dtype: torch.dtype) -> Interval:
    box = Box.of(x)
    return box.constant(-bound, bound).rounded(32).interval(shape, dtype)


def hidden_bound(
    mode: int, steps: int, state: float, cell: float, projection: float | None = None
) -> tuple[float, float]:
    """Largest |h| after a step and |c| after `steps` of one layer, rounding left out.

    Args:
        mode: RELU, TANH, LSTM or GRU; nothing is known of RELU.
        steps: Number of steps.
        state: Largest |h_0|.
        cell: Largest |c_0|.
        projection: Largest row sum of |W_hr| in an LSTM with projections.
    """
    if mode == RELU:
        return math.inf, 0.0
    if mode == LSTM:
        return 1.0 if projection is None else projection, cell + steps
    return (1.0 if mode == TANH else max(1.0, state)), 0.0


@transfer("mkldnn_rnn_layer")
def mkldnn_rnn_layer(
    input: Interval,
    weight0: Interval,
    weight1: Interval,
    weight2: Interval,
    weight3: Interval,
    hx_: Interval,
    cx_: Interval,
    reverse: bool,
    batch_sizes: Sequence[int],
    mode: int,
    hidden_size: int,
    num_layers: int,
    has_biases: bool,
    bidirectional: bool,
    batch_first: bool,
    train: bool,
) -> tuple[Interval, Interval, Interval, Interval]:
    """One layer, one direction: `[T, N, D]` to `[T, N, H]`, with h, c and a workspace."""
    steps, batch = input.shape[0], input.shape[1]
    start, cell = Box.of(hx_).peak, Box.of(cx_).peak
    hidden, cells = hidden_bound(mode, steps, start, cell)
    width = input.shape[-1]
    sizes = (
        width * Box.of(input).peak * Box.of(weight0).peak,
        hidden_size * max(hidden, start) * Box.of(weight1).peak,
        Box.of(weight2).peak,
        Box.of(weight3).peak,
        cells,
    )
    may_nan = _may_overflow(sizes, input, weight0, weight1, weight2, weight3, hx_, cx_)
    slack = 1 + sum_error(4 * steps, accumulator(input.dtype))
    last = hidden if steps else start
    out = _within(hidden * slack, input, (steps, batch, hidden_size), input.dtype)
    hy = _within(last * slack, hx_, hx_.shape, hx_.dtype)
    cy = _within(cells * slack, cx_, cx_.shape, cx_.dtype)
    workspace = Interval.full(0, 255, (0,), torch.uint8, input.device)
    return out.with_nan(may_nan), hy.with_nan(may_nan), cy.with_nan(may_nan), workspace


@transfer("_cudnn_rnn")
def _cudnn_rnn(
    input: Interval,
    weight: Sequence[Interval],
    weight_stride0: int,
    weight_buf: Interval | None,
    hx: Interval,
    cx: Interval | None,
    mode: int,
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    batch_first: bool,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    dropout_state: Interval | None,
) -> tuple[Interval, ...]:
    """All layers and directions: `[T, N, D]` to `[T, N, H directions]`.

    Outputs: result, h, c, and two buffers that nobody else reads.
    """
    steps = len(batch_sizes) if batch_sizes else input.shape[1 if batch_first else 0]
    start = Box.of(hx).peak
    cell = 0.0 if cx is None else Box.of(cx).peak
    largest_weight = max((Box.of(w).peak for w in weight), default=0.0)
    projection = hidden_size * largest_weight if proj_size else None
    hidden, cells = hidden_bound(mode, steps, start, cell, projection)
    directions = 2 if bidirectional else 1
    between = max(hidden, start) / (1 - dropout) if dropout < 1 else math.inf
    size = max(Box.of(input).peak, between) * (input.shape[-1] + 4 * hidden_size) * largest_weight
    may_nan = _may_overflow((size, cells), input, hx, cx, *weight)
    slack = 1 + sum_error(4 * steps + hidden_size, accumulator(input.dtype))
    width = (proj_size or hidden_size) * directions
    out = _within(hidden * slack, input, (*input.shape[:-1], width), input.dtype)
    hy = _within(max(hidden, start) * slack, hx, hx.shape, hx.dtype)
    buffer = Interval.full(0, 255, (0,), torch.uint8, input.device)
    if cx is None:
        cy = Interval.full(0, 0, (0,), input.dtype, input.device)
    else:
        cy = _within(cells * slack, cx, cx.shape, cx.dtype)
    return out.with_nan(may_nan), hy.with_nan(may_nan), cy.with_nan(may_nan), buffer, buffer


@transfer("_thnn_fused_lstm_cell")
def _thnn_fused_lstm_cell(
    input_gates: Interval,
    hidden_gates: Interval,
    cx: Interval,
    input_bias: Interval | None = None,
    hidden_bias: Interval | None = None,
) -> tuple[Interval, Interval, Interval]:
    """C = f c_0 + i g, h = o tanh(c), and the four gates, from their preactivations."""
    gates = (input_gates, hidden_gates, input_bias, hidden_bias)
    sizes = [Box.of(x).peak for x in gates if x is not None]
    may_nan = _may_overflow([*sizes, Box.of(cx).peak], *gates, cx)
    hy = _within(1.0, cx, cx.shape, cx.dtype).with_nan(may_nan)
    cell = Box.of(cx).with_zero() + Box.of(cx).constant(-1.0, 1.0)
    cy = cell.rounded().with_nan(may_nan).interval(cx.shape, cx.dtype)
    workspace = _within(1.0, input_gates, input_gates.shape, input_gates.dtype)
    return hy, cy, workspace.with_nan(may_nan)


@transfer("_thnn_fused_gru_cell")
def _thnn_fused_gru_cell(
    input_gates: Interval,
    hidden_gates: Interval,
    hx: Interval,
    input_bias: Interval | None = None,
    hidden_bias: Interval | None = None,
) -> tuple[Interval, Interval]:
    """H = (1 - z) n + z h_0, and what the backward pass needs: gates, h_0, a preactivation."""
    gates = (input_gates, hidden_gates, input_bias, hidden_bias)
    sizes = [Box.of(x).peak for x in gates if x is not None]
    start = Box.of(hx).peak
    may_nan = _may_overflow([*sizes, start], *gates, hx)
    hy = _within(max(1.0, start), hx, hx.shape, hx.dtype).with_nan(may_nan)
    kept = max(1.0, start, sum(sizes))
    shape = (hx.shape[0], 5 * hx.shape[1])
    return hy, _within(kept, hx, shape, hx.dtype).with_nan(may_nan)
