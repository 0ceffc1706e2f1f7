"""How numbers, intervals and actions are put into words, the same in every report."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ranum.analysis.interval import Interval
from ranum.analysis.ranges import LEVELS, WeightLevel
from ranum.analysis.result import Analysis, Defect, TrainingWitness, Witness
from ranum.guards.types import Culprit, History, Incident
from ranum.source import UNKNOWN, Source

ACTIONS = {
    "retry": "Trained on the batch once more",
    "skip": "Skipped the batch",
    "skip part": "Skipped a micro-batch",
    "clip_gradients": "Clips gradients",
    "rollback": "Rolled back",
    "clip": "Patched the code",
    "undo": "Took the patch out",
    "repair": "Repaired the configuration",
    "stop": "Stopped the run",
    "go on": "Went on",
}
"""What a remedy did, by its name; other names are shown as they are."""

REACHES: Mapping[WeightLevel, str] = {
    "initial": "with the weights as initialised",
    "envelope": "once weights move within the training envelope",
    "anything": "only once weights move beyond the training envelope",
}
"""What the level at which a defect first occurs is called in a heading."""


def number(value: float | None) -> str:
    """A number as a person would write it: three or four digits, `NaN`, `Inf`, `-Inf`."""
    if value is None:
        return "unknown"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def span(lower: float, upper: float) -> str:
    """A closed range, `[0, 1]`; a single number where both ends are shown alike."""
    low, high = number(lower), number(upper)
    return low if lower == upper else f"[{low}, {high}]"


def interval(bounds: Interval) -> str:
    """An interval with its flag: `[0, Inf] or NaN`."""
    text = f"[{number(bounds.low)}, {number(bounds.high)}]"
    return f"{text} or NaN" if bounds.may_nan else text


def setting(value: Any) -> str:
    """A value of a training configuration."""
    if isinstance(value, float):
        return number(value)
    return clean(str(value))


def count(amount: int, noun: str, nouns: str | None = None) -> str:
    """`1 step`, `2 steps`, `3,000 steps`."""
    return f"{amount:,} {noun if amount == 1 else nouns or noun + 's'}"


def listed(names: Sequence[str], limit: int = 3) -> str:
    """`a, b and c`, or `a, b, c and 4 more`."""
    shown = list(names[:limit])
    if len(names) > limit:
        shown.append(f"{len(names) - limit} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def largest(values: Sequence[float]) -> str:
    """The largest finite value and how many are not finite: `8.4e7 and 2 not finite`."""
    finite = [value for value in values if math.isfinite(value)]
    bad = len(values) - len(finite)
    texts = [number(max(finite))] if finite else []
    return " and ".join([*texts, f"{bad} not finite"] if bad else texts)


def seconds(value: float) -> str:
    """A duration: `140 ms`, `2.5 s`, `3 min 10 s`."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


def clean(text: str) -> str:
    """Text safe to show: tabs become spaces, control characters and surrogates a mark.

    A model's source or a parameter's name may hold anything, an escape sequence that would
    repaint the user's terminal included.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character == "\n" or unicodedata.category(character) not in {"Cc", "Cs", "Co", "Cn"}
        else "\N{REPLACEMENT CHARACTER}"
        for character in text.expandtabs(4)
    )


def module(path: str | None) -> str:
    """A module path; the root has none of its own."""
    return clean(path) if path else "model"


def action(incident: Incident) -> str:
    """What was done, with the step gone back to: `Rolled back to step 100`."""
    done = ACTIONS.get(incident.action, clean(incident.action))
    if incident.back_to is None:
        return done
    if incident.action == "rollback":
        return f"{done} to step {incident.back_to:,}"
    return f"{done}, went back to step {incident.back_to:,}"


def culprit(found: Culprit) -> str:
    """The culprit without its place: `log gave -Inf`, `the batch held NaN: x`."""
    if found.cause == "data":
        return f"the batch was not finite: {found.outcome} in {clean(found.name) or 'an input'}"
    if found.cause == "weights":
        return f"the weights were not finite before the step: {found.outcome} in {found.name}"
    op = f"the gradient of {found.op}" if found.phase == "backward" else found.op
    return f"{op} gave {found.outcome}"


def operands(found: Culprit) -> str:
    """The operator's operands with their extremes."""
    return "; ".join(clean(str(operand)) for operand in found.operands)


def witness(proof: Witness, op: str) -> str:
    """A proof in one line: what was set, what the operator met, what came out."""
    chosen = [*proof.inputs, *proof.weights]
    start = f"With {listed(chosen)} set inside their ranges" if chosen else "With the first batch"
    loss = "" if proof.loss is None else f" and the loss was {number(proof.loss)}"
    return clean(
        f"{start}, the operand was in {span(*proof.operand)}, {op} gave {proof.outcome}{loss}; "
        f"found in {count(proof.evaluations, 'run')}, then run again to be sure."
    )


def training(run: TrainingWitness, op: str) -> str:
    """A failing training run in one line."""
    distinct = count(len(run.batches), "batch", "batches")
    return clean(
        f"{run.optimizer} on {distinct} inside the ranges: {op} gave {run.outcome} after "
        f"{count(run.steps, 'step')}; found in {count(run.steps_tried, 'training step')}, then "
        "trained again from the beginning."
    )


def prospect(defect: Defect) -> str:
    """What a proof, or its absence, means for the next run, as a sentence."""
    text = defect.prospect
    return clean(f"{text[:1].upper()}{text[1:]}.") if text else ""


def grouped(analysis: Analysis) -> tuple[list[tuple[Defect, int]], list[tuple[Defect, int]]]:
    """Certain and possible defects, each with how often its expression has it.

    A loop records its expression once per turn; a reader wants to see it once. The first
    of each expression stands for the others, a certain one before possible ones.
    """
    groups: dict[tuple[str, Source], list[Defect]] = {}
    for defect in analysis.defects:
        place = defect.source if defect.source.is_known else replace(UNKNOWN, line=-defect.node)
        groups.setdefault((defect.code, place), []).append(defect)
    certain: list[tuple[Defect, int]] = []
    possible: list[tuple[Defect, int]] = []
    for defects in groups.values():
        proven = [defect for defect in defects if defect.severity == "certain"]
        shown = min(proven or defects, key=lambda defect: LEVELS.index(defect.reach))
        (certain if proven else possible).append((shown, len(defects)))
    return certain, possible


def by_reach(
    defects: Sequence[tuple[Defect, int]],
) -> list[tuple[str, list[tuple[Defect, int]]]]:
    """Defects under the heading of the weights with which they first occur, nearest first."""
    groups = {level: [entry for entry in defects if entry[0].reach == level] for level in LEVELS}
    return [(REACHES[level], group) for level, group in groups.items() if group]


def changes(patch: Mapping[str, tuple[Any, Any]]) -> list[tuple[str, str, str]]:
    """Name, old and new value of every changed setting."""
    return [(clean(name), setting(old), setting(new)) for name, (old, new) in patch.items()]


def settings(repair: Any) -> dict[str, Any]:
    """The faulty configuration without what there was nothing to choose for."""
    return {
        name: value
        for name, value in repair.faulty.items()
        if value is not None or name in repair.patch
    }


def steps_seen(history: History) -> int:
    """Steps between the first and the last reading; readings themselves may be thinned."""
    steps = [reading.step for reading in history.readings]
    return max(steps) - min(steps) + 1 if steps else 0
