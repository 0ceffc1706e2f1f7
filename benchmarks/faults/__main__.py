"""Puts NaN and infinities into running trainings, and counts what becomes of them.

    python -m benchmarks.faults                       # 200 runs
    python -m benchmarks.faults --runs 20 --adapter plain

A fault is put into data, loss, one gradient, one weight, a BatchNorm statistic or one of Adam's
moments, at a random step, under a random adapter. A run counts as recovered if it ends with the
same bits (weights, statistics, moments, random numbers) as the reference: the same training without
the fault, or without the bad batch where one was left out. It counts as lost if it raises or ends
with a weight that is not finite.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.faults.keras_training import keras_fit
from benchmarks.faults.training import ADAPTERS as TORCH_ADAPTERS
from benchmarks.faults.training import STEPS, Batch, Fault, batches
from benchmarks.measure import heading, table

ADAPTERS = {**TORCH_ADAPTERS, "keras": keras_fit}
KINDS = ("data", "loss", "gradient", "weight", "buffer", "moment")
COLUMNS = ("fault", "runs", "seen", "at once", "same bits", "lost", "actions")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one run.

    Attributes:
        kind: Of the fault.
        adapter: Of the run.
        step: At which it was put in.
        value: What was put in.
        delay: Steps from the fault to the first incident; None if it was not seen.
        actions: What was done, in order.
        is_same: It ended with the reference's bits.
        is_lost: It raised, or ended with weights that are not finite.
        problem: What it raised; "" if it did not.
    """

    kind: str
    adapter: str
    step: int
    value: float
    delay: int | None
    actions: tuple[str, ...]
    is_same: bool
    is_lost: bool
    problem: str = ""


def run(kind: str, adapter: str, step: int, value: float) -> Outcome:
    """Trains with one fault, and compares the end with the reference."""
    listed = batches()
    without = listed
    if kind == "data":
        listed = _spoiled(listed, step, value)
        without = [batch for number, batch in enumerate(listed) if number != step]
    train = ADAPTERS[adapter]
    reference = _reference(adapter, without, None if kind != "data" else step)
    try:
        state, history = train(listed, Fault(kind, value, step))
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        return Outcome(kind, adapter, step, value, None, (), False, True, problem)
    incidents = history.incidents
    floats = [tensor for tensor in state if tensor.is_floating_point()]
    return Outcome(
        kind=kind,
        adapter=adapter,
        step=step,
        value=value,
        delay=incidents[0].step - step if incidents else None,
        actions=tuple(incident.action for incident in incidents),
        is_same=_same(state, reference),
        is_lost=not all(bool(tensor.isfinite().all()) for tensor in floats),
        problem="; ".join(history.internal_faults),
    )


def _spoiled(listed: Sequence[Batch], step: int, value: float) -> list[Batch]:
    spoiled = [dict(batch) for batch in listed]
    spoiled[step]["x"] = spoiled[step]["x"].clone()
    spoiled[step]["x"][2, 3] = value
    return spoiled


_KNOWN: dict[tuple[str, int | None], list[Tensor]] = {}


def _reference(adapter: str, listed: Sequence[Batch], left_out: int | None) -> list[Tensor]:
    if (adapter, left_out) not in _KNOWN:
        _KNOWN[adapter, left_out] = ADAPTERS[adapter](listed, None)[0]
    return _KNOWN[adapter, left_out]


def _same(state: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(state) == len(other) and all(map(torch.equal, state, other))


def row(kind: str, outcomes: Sequence[Outcome]) -> list[str]:
    """The table's row of one kind of fault."""
    own = [outcome for outcome in outcomes if outcome.kind == kind]
    actions = Counter(" ".join(outcome.actions) or "none" for outcome in own)
    return [
        kind,
        str(len(own)),
        str(sum(outcome.delay is not None for outcome in own)),
        str(sum(outcome.delay == 0 for outcome in own)),
        str(sum(outcome.is_same for outcome in own)),
        str(sum(outcome.is_lost for outcome in own)),
        ", ".join(f"{name} {count}" for name, count in actions.most_common(3)),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--adapter", choices=tuple(ADAPTERS), help="only under this one")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    draw = random.Random(arguments.seed)
    names = [arguments.adapter] if arguments.adapter else list(ADAPTERS)
    outcomes: list[Outcome] = []
    for number in range(arguments.runs):
        kind = KINDS[number % len(KINDS)]
        value = draw.choice((math.nan, math.inf, -math.inf))
        outcome = run(kind, draw.choice(names), draw.randrange(1, STEPS - 1), value)
        outcomes.append(outcome)
        if not outcome.is_same or outcome.problem:
            print(outcome, flush=True)
    good = sum(outcome.is_same for outcome in outcomes)
    lost = sum(outcome.is_lost for outcome in outcomes)
    rows = [row(kind, outcomes) for kind in KINDS]
    print(f"\n{heading()}.\n\n{table(COLUMNS, rows)}\n")
    print(f"{good} of {len(outcomes)} runs end with the reference's bits; {lost} are lost.")
    return 0 if good == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
