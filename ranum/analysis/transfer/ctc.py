"""Connectionist temporal classification.

Axes: T time, N batch, C classes, S length of the target. The loss is -log of the sum, over
the alignments of the target with the time steps, of exp(sum of log_probs along the alignment).

References:
    A. Graves et al., Connectionist Temporal Classification, ICML 2006.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ranum.analysis.interval import Interval, unit_roundoff
from ranum.analysis.transfer._common import Box, unknown
from ranum.analysis.transfer.registry import transfer

_BRANCHES = 3
"""A state of the alignment is reached from at most three: itself, the one or two before."""

Lengths = Sequence[int] | Interval


def _lengths(lengths: Lengths) -> tuple[int, int]:
    if isinstance(lengths, Interval):
        return int(lengths.low), int(lengths.high)
    return min(lengths, default=0), max(lengths, default=0)


def _always_fits(targets: Interval, steps: Lengths, labels: Lengths) -> bool:
    """True if every target has an alignment: a repeated label needs a blank between."""
    shortest, longest = _lengths(steps)[0], _lengths(labels)[1]
    if shortest >= max(2 * longest - 1, 1):
        return True
    if isinstance(steps, Interval) or isinstance(labels, Interval) or not targets.is_point:
        return False
    start = 0
    for row, (time, length) in enumerate(zip(steps, labels, strict=True)):
        if len(targets.shape) == 2:
            label = targets.lower[row, :length]
        else:
            label = targets.lower[start : start + length]
            start += length
        repeats = int((label[1:] == label[:-1]).sum())
        if time < max(length + repeats, 1):
            return False
    return True


def _slack(steps: int, size: float, box: Box) -> float:
    """Rounding of `steps` log-sum-exps of numbers up to `size`."""
    return 16 * unit_roundoff(box.dtype) * (steps + 1) * (size + math.log(_BRANCHES) + 1)


@transfer("_ctc_loss")
def _ctc_loss(
    log_probs: Interval,
    targets: Interval,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    zero_infinity: bool = False,
) -> tuple[Interval, Interval]:
    """Between -T max(log p) - T log 3 and -T min(log p); Inf if a target is too long.

    The second output is scratch for the gradient: not all of it is ever written.
    """
    steps, batch = log_probs.shape[0], (1 if len(log_probs.shape) == 2 else log_probs.shape[1])
    widest = _lengths(target_lengths)[1]
    batched = len(log_probs.shape) == 3
    shape = (batch,) if batched else ()
    scratch = unknown((*shape, steps, 2 * widest + 1), log_probs)
    box = Box.of(log_probs).merged()
    if not box.is_finite or log_probs.is_empty_tensor:
        return unknown(shape, log_probs), scratch
    short, long = _lengths(input_lengths)
    ends = [-t * p for t in (short, long) for p in (box.low, box.high)]
    slack = _slack(long, max(abs(end) for end in ends), box)
    low = min(ends) - long * math.log(_BRANCHES) - slack
    high = max(ends) + slack
    if not _always_fits(targets, input_lengths, target_lengths):
        high = math.inf
    low = min(low, 0.0) if zero_infinity or short == 0 else low
    loss = box.constant(low, high).rounded()
    return loss.interval(shape, log_probs.dtype), scratch


@transfer("_ctc_loss_backward", phase="backward")
def _ctc_loss_backward(
    grad: Interval,
    log_probs: Interval,
    targets: Interval,
    input_lengths: Lengths,
    target_lengths: Lengths,
    neg_log_likelihood: Interval,
    log_alpha: Interval,
    blank: int,
    zero_infinity: bool = False,
) -> Interval:
    """Grad (p - share of the alignments through this label): both within [0, exp(log p)] or 1.

    NaN where the loss is infinite, unless `zero_infinity` asks for 0 there.
    """
    box, upstream = Box.of(log_probs).merged(), Box.of(grad).merged()
    long = _lengths(input_lengths)[1]
    fits = _always_fits(targets, input_lengths, target_lengths) or zero_infinity
    if not (box.is_finite and upstream.is_finite and fits) or log_probs.is_empty_tensor:
        return unknown(log_probs.shape, log_probs)
    size = long * max(abs(box.low), abs(box.high))
    error = 4 * _slack(long, size, box)
    if error > 80 or box.high > 80:
        return unknown(log_probs.shape, log_probs)
    reach = upstream.peak * (math.exp(max(box.high, 0.0)) + math.exp(error)) * 1.01
    return box.constant(-reach, reach).rounded().interval(log_probs.shape, log_probs.dtype)
