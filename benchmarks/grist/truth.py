"""Tests the truth table itself: every flaw has a witness, and a search finds no other flaw.

    python -m benchmarks.grist.truth [case ...]

A witness sets weights and inputs inside their documented ranges; then the operator must fail
when the program runs. The search draws weights of many sizes up to 256 and inputs from their
ranges, and lets no operator fail on operands of at most 256 that the table does not name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from benchmarks.grist.case import Built, Case, Flaw, load
from benchmarks.grist.watch import Ran, apply, gradients, watcher

LARGEST = 256.0


def proof(case: Case, flaw: Flaw, seed: int = 0) -> str:
    """What went wrong with the proof of a flaw; "" if it holds."""
    built = apply(case.build(seed), flaw.witness)
    outside = out_of_range(case, built, flaw)
    if outside:
        return outside
    if flaw.compiled:
        return "" if fails_compiled(built) else "it holds in the compiled program as well"
    if flaw.gradient:
        loss, finite = gradients(case, built)
        return "" if np.isfinite(loss) and not finite else f"loss {loss}, gradients are finite"
    named = [ran for ran in watcher(case, built)(built.inputs) if is_named((flaw,), ran)]
    if not named:
        return "no such operator ran"
    if any(ran.has_failed for ran in named):
        return ""
    return f"it gave {[ran.result for ran in named]} for {[ran.operands for ran in named]}"


def fails_compiled(built: Built) -> bool:
    """True if the loss is finite eagerly, and not once TensorFlow has optimised the graph."""
    import tensorflow as tf

    inputs = list(built.inputs.values())
    eager = float(built.target(*inputs))
    compiled = float(tf.function(built.target)(*inputs))
    return bool(np.isfinite(eager) and not np.isfinite(compiled))


def is_named(flaws: Iterable[Flaw], ran: Ran) -> bool:
    """True if one of the flaws is this operator."""
    return any(flaw.op == ran.op and flaw.text in ran.text for flaw in flaws)


def out_of_range(case: Case, built: Built, flaw: Flaw) -> str:
    """Which input or weight of a witness leaves its documented range; "" if none does."""
    weight_ranges = dict(built.weight_ranges)
    if flaw in case.beyond:
        weight_ranges |= case.outside
    limits = {
        **dict.fromkeys(built.weights, (-LARGEST, LARGEST)),
        **weight_ranges,
        **built.ranges,
    }
    for name, (low, high) in limits.items():
        array = _array(built.inputs[name] if name in built.inputs else built.weights[name])
        if array.min() < low or array.max() > high:
            return f"{name} leaves [{low:g}, {high:g}]"
    return ""


def search(case: Case, draws: int, seed: int = 0) -> list[str]:
    """Operators that failed in a random run and are not in the table."""
    random = np.random.default_rng(seed)
    built = case.build(seed)
    run = watcher(case, built)
    found: dict[str, None] = {}
    for _ in range(draws):
        for ran in run(_drawn(built, random)):
            if ran.has_failed and ran.is_ordinary and not is_named(case.flaws, ran):
                found[f"{ran.op} `{ran.text}` of {ran.operands}"] = None
    return list(found)


def _drawn(built: Built, random: Any) -> dict[str, Any]:
    """Inputs; the weights are set in place."""
    size = LARGEST * 10.0 ** random.uniform(-4, 0)
    for name, weight in built.weights.items():
        low, high = built.weight_ranges.get(name, (-size, size))
        array = _between(random, low, high, tuple(weight.shape))
        if isinstance(weight, torch.Tensor):
            weight.data = torch.from_numpy(array)
        else:
            weight.assign(array)
    inputs = dict(built.inputs)
    for name, (low, high) in built.ranges.items():
        array = _between(random, low, high, tuple(inputs[name].shape))
        if name in ("y", "label"):  # one-hot as it is
            continue
        inputs[name] = torch.from_numpy(array) if _is_torch(inputs[name]) else array
    return inputs


def _between(random: Any, low: float, high: float, shape: tuple[int, ...]) -> Any:
    """Uniform; in some draws the same everywhere, or only the ends."""
    kind = random.integers(4)
    values = random.uniform(low, high, () if kind == 0 else shape)
    if kind == 1:
        values = random.choice([low, high], shape)
    return np.broadcast_to(np.asarray(values, np.float32), shape).copy()


def _array(tensor: Any) -> Any:
    return tensor.detach().numpy() if _is_torch(tensor) else np.asarray(tensor)


def _is_torch(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grist.truth", description=__doc__)
    parser.add_argument("names", nargs="*", help="cases; all by default")
    parser.add_argument("--draws", type=int, default=20, help="random runs per case")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = load()
    bad = proofs = 0
    for name in arguments.names or cases:
        case = cases[name]
        for flaw in case.flaws + case.beyond:
            proofs += 1
            problem = proof(case, flaw)
            if problem:
                bad += 1
                print(f"{name}: {flaw.op} `{flaw.text}` is not proved: {problem}", flush=True)
        for line in search(case, arguments.draws):
            bad += 1
            print(f"{name}: not in the table, and fails: {line}", flush=True)
    print(f"{proofs} flaws with a witness, {arguments.draws} random runs each, {bad} problems.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
