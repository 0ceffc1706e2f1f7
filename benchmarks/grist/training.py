"""Searches a failing training run for each published defect, with several seeds.

    python -m benchmarks.grist.training                # ten seeds each
    python -m benchmarks.grist.training 11c 28d --seeds 3
    python -m benchmarks.grist.training --as-ranum     # one step of SGD, learning rate 1
    python -m benchmarks.grist.training --as-ranum --wide    # and data anywhere in [-50, 50]

A seed chooses the initial weights, the example batch, and the random numbers of search and run. A
run counts once the program, built anew, has been trained on the found data in its own framework
with its own optimizer and learning rate, once a published operator has then failed in it, and
once all data lie in the documented ranges, with labels one-hot that were so.

Where a case was published for two operators, a run into either counts: it ends at its first
failure. In six cases the only tensor of the program is the one that it optimises; what that
tensor holds at first is then the data, as it was in the study.
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

from benchmarks.grist.case import Built, Case, Flaw, Training, load
from benchmarks.grist.score import analyze, matches
from benchmarks.grist.truth import is_named, out_of_range
from benchmarks.grist.watch import gradients, watcher
from benchmarks.measure import heading, table
from ranum.analysis.confirm.training import train_into

COLUMNS = ("case", "trained", "runs", "seeds that failed", "median s", "steps", "batches")
SHORT = (0.5, 2.0)
"""Seconds for each of several operators in turn before any gets all of the time."""
STEPS = 100_000
WIDE = (-50.0, 50.0)
DATA = {"4": "x", "5": "scores", "23": "z", "27": "z", "46": "z", "57": "z"}
"""Cases whose only tensor is optimised: its initial values are the data."""


@dataclass(frozen=True, slots=True)
class Run:
    """How the search for one case went, with one seed.

    Attributes:
        seed: Of program, search and run.
        problem: Why there is no run; "" if there is one.
        seconds: CPU time of the search.
        steps: Steps before the one that fails.
        batches: Distinct batches.
    """

    seed: int
    problem: str
    seconds: float
    steps: int = 0
    batches: int = 0


def train(case: Case, seed: int, seconds: float, steps: int = STEPS) -> Run:
    """Searches a run into a published defect."""
    built = case.build(seed)
    torch.manual_seed(seed)
    outside = bool(case.beyond) and not any(flaw.is_target for flaw in case.flaws)
    analysis = analyze(case, built, outside=outside)
    spent = 0.0
    problem = "not reported"
    budgets = [*SHORT, seconds] if len(case.targets) > 1 else [seconds]
    for budget in budgets:
        for flaw in case.targets:
            defect = next((one for one in analysis.defects if matches(flaw, one)), None)
            if defect is None:
                continue
            started = time.process_time()
            witness, effort = train_into(
                defect,
                optimizer(case.training, case.framework),
                steps=steps,
                seconds=budget,
                seed=seed,
                free=[DATA[case.name]] if case.name in DATA else (),
                clock=time.process_time,
            )
            spent += time.process_time() - started
            if witness is None:
                problem = f"none in {effort.steps} steps, {effort.runs} runs"
                continue
            problem = checked(case, flaw, seed, witness)
            if not problem:
                return Run(seed, "", spent, witness.steps, len(witness.batches))
    return Run(seed, problem, spent)


def as_ranum(case: Case) -> Case:
    """The case as RANUM's system tests train it: plain SGD with a learning rate of 1."""
    return replace(case, training=replace(case.training, optimizer="SGD", rate=1.0))


def widened(case: Case) -> Case:
    """The case with inputs and labels anywhere in [-50, 50], as in RANUM's system tests.

    Integers, and numbers that are no tensors (probabilities of dropout), stay as documented.
    """

    def build(seed: int) -> Built:
        built, draw = case.build(seed), np.random.default_rng(seed)
        inputs, ranges = dict(built.inputs), dict(built.ranges)
        for name, given in built.inputs.items():
            example = np.asarray(given)
            if example.dtype.kind == "f" and example.ndim:
                values = torch.from_numpy(draw.uniform(-1, 1, example.shape).astype(example.dtype))
                inputs[name] = values if case.framework == "torch" else _constant(values)
                ranges[name] = WIDE
        return replace(built, inputs=inputs, ranges=ranges)

    return replace(case, build=build)


def optimizer(training: Training, framework: str) -> Any:
    """The case's own optimizer, as that of its framework; TensorFlow's defaults are version 1's."""
    rate = training.rate
    if framework == "torch":
        kind = torch.optim.Adam if training.optimizer == "Adam" else torch.optim.SGD
        return lambda parameters: kind(parameters, lr=rate)
    import keras

    makers: dict[str, Any] = {
        "SGD": lambda: keras.optimizers.SGD(rate),
        "Momentum": lambda: keras.optimizers.SGD(rate, momentum=0.2),
        "Adam": lambda: keras.optimizers.Adam(rate, epsilon=1e-8),
        "Adagrad": lambda: keras.optimizers.Adagrad(rate, initial_accumulator_value=0.1),
        "RMSProp": lambda: keras.optimizers.RMSprop(rate, rho=0.9, epsilon=1e-10),
    }
    return makers[training.optimizer]()


def checked(case: Case, flaw: Flaw, seed: int, witness: Any) -> str:
    """What is wrong with a run; "" if the operator fails in a program built and trained anew."""
    built = case.build(seed)
    for name, tensor in witness.start.items():
        built.weights[name].data.copy_(tensor)
    batches = [_fed(case, built, batch) for batch in witness.batches]
    for inputs in batches:
        problem = _illegal(case, built, inputs, flaw)
        if problem:
            return problem
    torch.manual_seed(witness.seed)
    if built.weights:
        steps = _torch_steps if case.framework == "torch" else _tensorflow_steps
        steps(case, built, [list(batches[number].values()) for number in witness.order[:-1]])
    last = replace(built, inputs=batches[witness.order[-1]])
    for _ in range(1 if case.framework == "torch" else 5):
        if flaw.gradient:
            loss, finite = gradients(case, last)
            failed = bool(np.isfinite(loss)) and not finite
        else:
            failed = any(
                one.has_failed for one in watcher(case, last)(last.inputs) if is_named((flaw,), one)
            )
        if failed:
            return ""
    return f"it does not fail in {case.framework} after {witness.steps} steps"


def _fed(case: Case, built: Built, batch: Mapping[str, Any]) -> dict[str, Any]:
    inputs = dict(built.inputs)
    for name, tensor in batch.items():
        inputs[name] = tensor if case.framework == "torch" else _constant(tensor)
    return inputs


def _constant(tensor: Any) -> Any:
    import tensorflow as tf

    return tf.constant(tensor.numpy())


def _illegal(case: Case, built: Built, inputs: Mapping[str, Any], flaw: Flaw) -> str:
    """Which input is none of its kind; weights may go wherever training takes them."""
    problem = out_of_range(case, replace(built, inputs=inputs, weights={}, weight_ranges={}), flaw)
    if problem:
        return problem
    for name, given in built.inputs.items():
        example, found = np.asarray(given), np.asarray(inputs[name])
        if _is_one_hot(example) and not _is_one_hot(found):
            return f"{name} is not one-hot"
        if example.dtype.kind in "iu" and not (
            example.min() <= found.min() and found.max() <= example.max()
        ):
            return f"{name} leaves the integers of the example"
    return ""


def _is_one_hot(rows: Any) -> bool:
    is_wide = rows.ndim > 1 and rows.shape[-1] > 1
    return is_wide and set(np.unique(rows)) <= {0, 1} and bool((rows.sum(-1) == 1).all())


def _torch_steps(case: Case, built: Built, batches: Sequence[Any]) -> None:
    taken = optimizer(case.training, "torch")(built.weights.values())
    for batch in batches:
        taken.zero_grad()
        built.target(*batch).backward()
        taken.step()


def _tensorflow_steps(case: Case, built: Built, batches: Sequence[Any]) -> None:
    import tensorflow as tf

    taken = optimizer(case.training, "tensorflow")
    variables = list(built.weights.values())
    taken.build(variables)

    @tf.function(autograph=False)
    def step(*batch: Any) -> None:
        with tf.GradientTape() as tape:
            found = built.target(*batch)
            parts = list(found.values()) if isinstance(found, dict) else [found]
            loss = tf.add_n([tf.reduce_sum(part) for part in parts])
        taken.apply(tape.gradient(loss, variables, unconnected_gradients="zero"), variables)

    for batch in batches:
        step(*map(tf.constant, batch))


def row(case: Case, runs: Sequence[Run]) -> list[str]:
    """The table's row of one case."""
    good = [run for run in runs if not run.problem]
    bad = [str(run.seed) for run in runs if run.problem]
    return [
        case.name,
        f"{case.training.optimizer} {case.training.rate:g}",
        f"{len(good)}/{len(runs)}",
        " ".join(bad),
        f"{median(run.seconds for run in runs):.2f}",
        f"{median(run.steps for run in good):.0f}" if good else "",
        f"{median(run.batches for run in good):.0f}" if good else "",
    ]


def summary(found: Mapping[str, Sequence[Run]]) -> str:
    """Totals over all cases."""
    runs = [run for each in found.values() for run in each]
    good = [run for run in runs if not run.problem]
    spent = [run.seconds for run in runs]
    data = sum(not run.problem for name in found if name in DATA for run in found[name])
    return (
        f"{len(good)} of {len(runs)} trained into the defect, {data} of them by the initial values "
        f"of what is optimised; {mean(spent):.2f} s of CPU time on average, "
        f"{median(spent):.2f} s in the middle, {max(spent):.1f} s at most"
        + (f"; {mean(run.seconds for run in good):.2f} s where one was found." if good else ".")
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grist.training", description=__doc__
    )
    parser.add_argument("names", nargs="*", help="cases; all 79 by default")
    parser.add_argument("--framework", choices=("torch", "tensorflow"), help="only its cases")
    parser.add_argument("--seeds", type=int, default=10, help="programs per case")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time per search")
    parser.add_argument(
        "--as-ranum", action="store_true", help="one step of SGD with a learning rate of 1"
    )
    parser.add_argument("--wide", action="store_true", help="data anywhere in [-50, 50]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = load(arguments.framework)
    unknown = sorted(set(arguments.names) - set(cases))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are: {', '.join(cases)}")
    steps = STEPS
    if arguments.as_ranum:
        cases, steps = {name: as_ranum(case) for name, case in cases.items()}, 1
    if arguments.wide:
        cases = {name: widened(case) for name, case in cases.items()}
    found: dict[str, list[Run]] = {}
    for name in arguments.names or cases:
        found[name] = []
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            run = train(cases[name], seed, arguments.seconds, steps)
            found[name].append(run)
            told = run.problem or f"{run.steps} steps, {run.batches} batches"
            print(f"{name}, seed {seed}: {told}; {run.seconds:.2f} s", file=sys.stderr, flush=True)
    rows = [row(cases[name], runs) for name, runs in found.items()]
    print(f"\n{heading()}.\n\n{table(COLUMNS, rows)}\n\n{summary(found)}")
    return 0 if all(not run.problem for each in found.values() for run in each) else 1


if __name__ == "__main__":
    sys.exit(main())
