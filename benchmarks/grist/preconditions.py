"""Removes the published defects by ranges of inputs, of weights, or of both.

    python -m benchmarks.grist.preconditions --framework torch
    python -m benchmarks.grist.preconditions 12 26 --where weights --ranges ranum --compare

Every range was accepted by the analysis, and is verified once more from end to end: in PyTorch by
the patched program, analysed from the old ranges, in TensorFlow on the graph. "Impossible" is
shown: no path from the place to the operator, or weights with which it fails for every input
(inputs with which it fails for all weights), run in the program itself.

Width kept: of each range that reaches the operator the part that is kept, on a scale that is
linear up to the size the tensor has now and logarithmic beyond (asinh(x / size)), for weights
range over all floats; then the geometric mean over these ranges. One that is given up makes it 0.
Behind it the plain mean.

With `--compare`, two plain descents are run on the same analysis, from the same ranges, for the
same defects (`descents.py`).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

import ranum
from benchmarks.grist.case import Built, Case, load
from benchmarks.grist.descents import Descended, gradient_descent, shares, signed_steps
from benchmarks.grist.score import analyze, matches
from benchmarks.measure import heading, table
from ranum.repair.preconditions import Ranges, loosest_ranges
from ranum.repair.preconditions.places import Place, chosen_places
from ranum.repair.preconditions.trial import Trial, reaching

PLACES = ("weights", "inputs", "all")
DESCENTS = {"descent": gradient_descent, "signed": signed_steps}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one case went at one place.

    Attributes:
        case: Its name.
        where: "weights", "inputs" or "all".
        verdict: "found", "impossible", "not found", "not verified: ...", "no defect".
        how: How impossibility was shown: "no path", "fails anyway".
        widths: What each range keeps.
        seconds: CPU time of the search.
        others: The same of the descents: what each range keeps, if found, and CPU time.
        ranges: In words.
    """

    case: str
    where: str
    verdict: str
    how: str = ""
    widths: tuple[float, ...] = ()
    seconds: float = 0.0
    others: Mapping[str, tuple[tuple[float, ...] | None, float]] | None = None
    ranges: str = ""


def outcomes(case: Case, seed: int, options: argparse.Namespace) -> list[Outcome]:
    """One case at every place that was asked for."""
    built = case.build(seed)
    torch.manual_seed(seed)
    outside = bool(case.beyond) and not any(flaw.is_target for flaw in case.flaws)
    if options.ranges == "ranum":
        analysis = _as_ranum(built)
    else:
        analysis = analyze(case, built, outside=outside)
    targets = [d for d in analysis.defects if any(matches(flaw, d) for flaw in case.targets)]
    if not targets:
        return [Outcome(case.name, where, "no defect") for where in options.where]
    return [_outcome(case.name, analysis, targets, where, options) for where in options.where]


def _outcome(
    name: str, analysis: Any, targets: Sequence[Any], where: str, options: argparse.Namespace
) -> Outcome:
    found = loosest_ranges(analysis, where, defects=targets, seconds=options.seconds)
    chosen = chosen_places(analysis.context, where)
    reached = [reaching(analysis.context, chosen, target) for target in targets]
    places = [place for place in chosen if any(place in one for one in reached)]
    others = None
    is_settled = found.left and all(one.is_impossible for one in found.left)
    if options.compare and places and not is_settled:
        others = _descents(analysis, targets, places, options.descent_seconds)
    if found.left:
        shown = all(one.is_impossible for one in found.left)
        how = ", ".join(dict.fromkeys(one.how for one in found.left))
        verdict = "impossible" if shown else "not found"
        return Outcome(name, where, verdict, how, (), found.seconds, others)
    kept = {one.name: one.log_share for one in found.kept}
    widths = tuple(kept.get(place.name, 1.0) for place in places)
    problem = _problem(found, targets)
    verdict = f"not verified: {problem}" if problem else "found"
    return Outcome(name, where, verdict, "", widths, found.seconds, others, _words(found))


def _problem(found: Ranges, targets: Sequence[Any]) -> str:
    """What the program still has, within the ranges; "" if it is cured."""
    verified = found.verify()
    if verified.problem:
        return verified.problem
    if verified.new:
        return f"new: {verified.new[0]}"
    left = {(one.op, one.source.line, one.source.node) for one in verified.remaining}
    bad = [one for one in targets if (one.op, one.source.line, one.source.node) in left]
    return str(bad[0]) if bad else ""


def _descents(
    analysis: Any, targets: Sequence[Any], places: Sequence[Place], seconds: float
) -> dict[str, tuple[tuple[float, ...] | None, float]]:
    others = [one for one in analysis.defects if all(one is not target for target in targets)]
    results = {}
    for name, descend in DESCENTS.items():
        trial = Trial(analysis.context, places, targets, others=others)
        ended: Descended = descend(trial, seconds)
        widths = None if ended.box is None else tuple(shares(places, ended.box))
        results[name] = (widths, ended.seconds)
    return results


def _as_ranum(built: Built) -> Any:
    """The ranges RANUM takes: inputs in [-50, 50], weights as wide again to either side.

    Weights that are all alike range over [-50, 50], or [-10, 10] if they are nearly 0; a weight of
    one element stays what it is.
    """
    weights = {name: _ranum_range(_array(weight)) for name, weight in built.weights.items()}
    inputs = {name: (-50.0, 50.0) for name in built.inputs if _is_float(built.inputs[name])}
    return ranum.analyze(built.target, *built.inputs.values(), inputs=inputs, weights=weights)


def _ranum_range(weight: Any) -> tuple[float, float]:
    low, high = float(weight.min()), float(weight.max())
    if weight.size == 1:
        return low, high
    if low == high:
        reach = 10.0 if abs(low) < 1e-3 else 50.0
        return -reach, reach
    return low - (high - low), high + (high - low)


def _array(tensor: Any) -> Any:
    return tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor)


def _is_float(tensor: Any) -> bool:
    return bool(np.issubdtype(_array(tensor).dtype, np.floating))


def _words(found: Ranges) -> str:
    return "; ".join(f"{one.name} [{one.lower:.3g}, {one.upper:.3g}]" for one in found.kept)


def geometric(widths: Sequence[float]) -> float:
    """The geometric mean; 0 if a range is given up."""
    if min(widths) <= 0:
        return 0.0
    return math.exp(fmean(map(math.log, widths)))


def _width(widths: Sequence[float] | None) -> str:
    return "" if not widths else f"{geometric(widths):.3f} ({fmean(widths):.3f})"


def row(one: Outcome, *, ranges: bool) -> list[str]:
    """The table's row of one outcome."""
    verdict = one.verdict + (f" ({one.how})" if one.how else "")
    cells = [one.case, one.where, verdict, _width(one.widths), f"{one.seconds:.2f}"]
    for name in DESCENTS:
        widths, seconds = (one.others or {}).get(name, ((), 0.0))
        cells += ["not found" if widths is None else _width(widths), f"{seconds:.2f}"]
    return [*cells, one.ranges] if ranges else cells


def summary(found: Sequence[Outcome], where: str) -> str:
    """Totals of one place."""
    own = [one for one in found if one.where == where and one.verdict != "no defect"]
    good = [one for one in own if one.verdict == "found"]
    shown = [one for one in own if one.verdict == "impossible"]
    text = f"{where}: {len(good)} of {len(own)} found, {len(shown)} shown to be impossible"
    text += f", {len(own) - len(good) - len(shown)} neither"
    if good:
        text += (
            f"; width kept {fmean(geometric(one.widths) for one in good):.3f}"
            f" ({fmean(fmean(one.widths) for one in good):.3f})"
        )
    if own:
        spent = [one.seconds for one in own]
        text += f"; {fmean(spent):.2f} s on average, {median(spent):.2f} s in the middle, "
        text += f"{max(spent):.1f} s at most"
    for name in DESCENTS:
        pairs = [(one, one.others[name]) for one in own if one.others is not None]
        both = [
            (one.widths, widths) for one, (widths, _) in pairs if widths is not None and one.widths
        ]
        if pairs:
            text += f"\n  {name}: {sum(p[1][0] is not None for p in pairs)} of {len(pairs)} found"
            text += f", {fmean(p[1][1] for p in pairs):.2f} s on average"
        if both:
            text += (
                f"; width kept where both found one: {fmean(geometric(b) for _, b in both):.3f} "
                f"({fmean(fmean(b) for _, b in both):.3f}), ours "
                f"{fmean(geometric(a) for a, _ in both):.3f} "
                f"({fmean(fmean(a) for a, _ in both):.3f})"
            )
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grist.preconditions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="cases; all 79 by default")
    parser.add_argument("--framework", choices=("torch", "tensorflow"), help="only its cases")
    parser.add_argument(
        "--where", type=lambda text: text.split(","), default=PLACES, help="weights,inputs,all"
    )
    parser.add_argument(
        "--ranges",
        choices=("documented", "ranum"),
        default="documented",
        help="inputs as documented and weights of any size, or the ranges RANUM takes",
    )
    parser.add_argument("--compare", action="store_true", help="run the plain descents too")
    parser.add_argument("--seconds", type=float, default=30.0, help="wall time per search")
    parser.add_argument("--descent-seconds", type=float, default=30.0, help="CPU time per descent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print the ranges as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = load(arguments.framework)
    found: list[Outcome] = []
    started = time.process_time()
    for name in arguments.names or cases:
        for one in outcomes(cases[name], arguments.seed, arguments):
            found.append(one)
            print("  ".join(row(one, ranges=True)), file=sys.stderr, flush=True)
    columns = ["case", "place", "ranges", "width kept", "s"]
    columns += [text for name in DESCENTS for text in (name, "s")]
    rows = [row(one, ranges=arguments.show) for one in found]
    if arguments.show:
        columns.append("kept")
    print(f"\n{heading()}.\n\n{table(columns, rows)}\n")
    for where in arguments.where:
        print(summary(found, where))
    print(f"{time.process_time() - started:.0f} s of CPU time in all.")
    bad = [one for one in found if one.verdict not in ("found", "impossible", "no defect")]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
