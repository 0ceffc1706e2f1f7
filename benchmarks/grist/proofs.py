"""Searches a failing unit test for each published defect, with several seeds.

    python -m benchmarks.grist.proofs                  # ten seeds each
    python -m benchmarks.grist.proofs 11c 28d --seeds 3

A seed chooses the initial weights, the batch, and the random numbers of the search. A proof
counts once its weights and inputs, put into a program that was built anew, make the operator
fail where that program runs in its own framework, and once they lie in the documented ranges.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

import numpy as np
import torch

import ranum
from benchmarks.grist.case import Built, Case, Flaw, load
from benchmarks.grist.score import analyze, matches
from benchmarks.grist.truth import is_named, out_of_range
from benchmarks.grist.watch import gradients, watcher
from benchmarks.measure import heading, table

COLUMNS = ("case", "proofs", "seeds that failed", "median s", "moved", "runs")
ATTEMPTS = 5
"""Runs in TensorFlow, whose random numbers cannot be given; one that fails is enough."""


@dataclass(frozen=True, slots=True)
class Proof:
    """How the search for one defect went, with one seed.

    Attributes:
        seed: Of the program and the search.
        problem: Why there is no proof; "" if there is one.
        seconds: CPU time of the search.
        moved: Names of what the witness changes.
        evaluations: Runs of the graph or the step.
    """

    seed: int
    problem: str
    seconds: float
    moved: tuple[str, ...] = ()
    evaluations: int = 0


def prove(case: Case, seed: int, seconds: float) -> Proof:
    """Searches a witness for the published defect (where there are two, for each)."""
    built = case.build(seed)
    torch.manual_seed(seed)
    outside = bool(case.beyond) and not any(flaw.is_target for flaw in case.flaws)
    analysis = analyze(case, built, outside=outside)
    proofs = []
    for flaw in case.targets:
        defect = next((one for one in analysis.defects if matches(flaw, one)), None)
        if defect is None:
            return Proof(seed, "not reported", 0.0)
        started = time.process_time()
        witness = ranum.confirm(defect, seconds=seconds, seed=seed)
        spent = time.process_time() - started
        if witness is None:
            return Proof(seed, f"no witness for {flaw.text}", spent)
        problem = checked(case, flaw, seed, witness)
        moved = (*witness.inputs, *witness.weights)
        proofs.append(Proof(seed, problem, spent, moved, witness.evaluations))
    bad = next((proof for proof in proofs if proof.problem), None)
    longest = max(proofs, key=lambda proof: proof.seconds)
    return bad or replace(longest, seconds=mean(proof.seconds for proof in proofs))


def checked(case: Case, flaw: Flaw, seed: int, witness: Any) -> str:
    """What is wrong with a witness; "" if the operator fails in a program built anew."""
    built = _with(case, case.build(seed), witness)
    problem = out_of_range(case, built, flaw)
    if problem:
        return problem
    torch.manual_seed(seed)
    for _ in range(1 if case.framework == "torch" else ATTEMPTS):
        if flaw.gradient:
            loss, finite = gradients(case, built)
            failed = bool(np.isfinite(loss)) and not finite
        else:
            ran = watcher(case, built)(built.inputs)
            failed = any(one.has_failed for one in ran if is_named((flaw,), one))
        if failed:
            return ""
    return f"it does not fail in {case.framework}"


def _with(case: Case, built: Built, witness: Any) -> Built:
    inputs: dict[str, Any] = dict(built.inputs)
    for name, tensor in witness.inputs.items():
        inputs[name] = tensor if case.framework == "torch" else tensor.numpy()
    for name, tensor in witness.weights.items():
        weight = built.weights[name]
        if isinstance(weight, torch.Tensor):
            weight.data = tensor
        else:
            weight.assign(tensor.numpy())
    return replace(built, inputs=inputs)


def row(case: Case, proofs: Sequence[Proof]) -> list[str]:
    """The table's row of one case."""
    good = [proof for proof in proofs if not proof.problem]
    bad = [str(proof.seed) for proof in proofs if proof.problem]
    moved = max((proof.moved for proof in good), key=len, default=())
    return [
        case.name,
        f"{len(good)}/{len(proofs)}",
        " ".join(bad),
        f"{median(proof.seconds for proof in proofs):.2f}",
        ", ".join(moved),
        f"{median(proof.evaluations for proof in proofs):.0f}",
    ]


def summary(found: Mapping[str, Sequence[Proof]]) -> str:
    """Totals over all cases."""
    proofs = [proof for each in found.values() for proof in each]
    good = sum(not proof.problem for proof in proofs)
    spent = [proof.seconds for proof in proofs]
    return (
        f"{good} of {len(proofs)} proved; {mean(spent):.2f} s of CPU time on average, "
        f"{median(spent):.2f} s in the middle, {max(spent):.1f} s at most."
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grist.proofs", description=__doc__)
    parser.add_argument("names", nargs="*", help="cases; all 79 by default")
    parser.add_argument("--framework", choices=("torch", "tensorflow"), help="only its cases")
    parser.add_argument("--seeds", type=int, default=10, help="programs per case")
    parser.add_argument("--seconds", type=float, default=20.0, help="wall time per search")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = load(arguments.framework)
    found: dict[str, list[Proof]] = {}
    for name in arguments.names or cases:
        found[name] = []
        for seed in range(arguments.seeds):
            proof = prove(cases[name], seed, arguments.seconds)
            found[name].append(proof)
            if proof.problem:
                print(f"{name}, seed {seed}: {proof.problem}", flush=True)
    rows = [row(cases[name], proofs) for name, proofs in found.items()]
    print(f"\n{heading()}.\n\n{table(COLUMNS, rows)}\n\n{summary(found)}")
    return 0 if all(not proof.problem for each in found.values() for proof in each) else 1


if __name__ == "__main__":
    sys.exit(main())
