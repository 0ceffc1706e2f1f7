"""Compares our cures with what the developers did, for the cases whose history shows it.

    python -m benchmarks.grist.developers           # all that are known
    python -m benchmarks.grist.developers 9a 28c

Both cures are made in the same program and pass through the same verification. Compared are, in
this order: whether the published defect is gone and no new one came; at how many points on the
way into it a finite gradient still reaches the weights, not just roundings; by how much loss and
gradients of an ordinary batch change. Nothing is asserted: the verdict follows from the numbers.
"""

from __future__ import annotations

import argparse
import ast
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

import ranum
from benchmarks.grist.case import Case, Flaw, load
from benchmarks.grist.score import analyze, matches
from benchmarks.grist.watch import apply
from benchmarks.measure import heading, table
from ranum.repair._splice import read_text
from ranum.repair.patch import Edit, apply_edits, rewrite_edit
from ranum.repair.verify import Verification, verify
from ranum.source import Source

BUGS = "ForeverZyh/TensorFlow-Program-Bugs"
STUDY = "this study's next variant of the program"
SIZES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of a flaw's witness at which the gradient is looked at."""
SAME = 1e-5
"""Changes up to this are roundings."""


@dataclass(frozen=True, slots=True)
class Fix:
    """What the developers did.

    Attributes:
        words: In words.
        seen: Where their version was read.
        edits: The same in our program: expressions and what takes their place; empty where they
            changed no expression.
    """

    words: str
    seen: str
    edits: Mapping[str, str]


P, Q = "tf.math.log(p)", "tf.math.log(1 - p)"
CLIP = "tf.math.log(tf.clip_by_value(p, 1e-10, 1.0))"
_PAIR = {P: CLIP, Q: "tf.math.log(tf.clip_by_value(1 - p, 1e-10, 1.0))"}
_REST, _HIT = "tf.math.log(1e-10 + 1 - m)", "tf.math.log(m + 1e-10)"
_LOGITS = "tf.nn.log_softmax(tf.nn.dropout(h, 1 - keep) @ output + b6)"
_EPS = {
    "(x @ w) / total": "(x @ w) / (total + 1e-7)",
    "s / most": "s / (most + 1e-7)",
    "(most * total) / gain": "(most * total) / (gain + 1e-7)",
}
_SAFE = {
    _HIT: "tf.math.log(tf.clip_by_value(m, 1e-6, 1.0))",
    _REST: "tf.math.log(tf.clip_by_value(1 - m, 1e-6, 1.0))",
}
_VARIANT = Fix("clip p and 1 - p to [1e-6, 1]", f"{STUDY}, b", _SAFE)
_EPS_FIX = Fix("1e-7 beside every divisor", f"{STUDY}, 28a", _EPS)

FIXES = {
    "1": Fix("softmax_cross_entropy_with_logits", f"{BUGS}, Github/IPS-1", {P: _LOGITS}),
    "2a": Fix("clip p and 1 - p at 1e-10", f"{BUGS}, Github/IPS-6", _PAIR),
    "2b": Fix("clip p and 1 - p at 1e-10", f"{BUGS}, Github/IPS-6", _PAIR),
    "3": Fix("log(p + 1e-8)", f"{BUGS}, Github/IPS-9", {P: "tf.math.log(p + 1e-8)"}),
    "6": Fix("clip p to [1e-10, 1]", f"{BUGS}, StackOverflow/IPS-1", {P: CLIP}),
    "7": Fix("log(p + 1e-9)", f"{BUGS}, StackOverflow/IPS-2", {P: "tf.math.log(p + 1e-9)"}),
    "8": Fix("clip p to [1e-10, 1]", f"{BUGS}, StackOverflow/IPS-6", {P: CLIP}),
    "9a": Fix("clip p and 1 - p to [1e-10, 1]", f"{BUGS}, StackOverflow/IPS-7", _PAIR),
    "9b": Fix("clip p and 1 - p to [1e-10, 1]", f"{BUGS}, StackOverflow/IPS-7", _PAIR),
    "10": Fix("a smaller learning rate", f"{BUGS}, StackOverflow/IPS-14", {}),
    "11c": Fix(
        "clip p to [1e-6, 1], the numerator's exponent to [-87, 87]",
        f"{STUDY}, 11a",
        {P: "tf.math.log(tf.clip_by_value(p, 1e-6, 1.0))"},
    ),
    "12": Fix(
        "log(p + eps), eps of the dtype",
        "skorch-dev/skorch, NeuralNetClassifier.get_loss",
        {"torch.log(p)": "torch.log(p + torch.finfo(p.dtype).eps)"},
    ),
    "16b": Fix(
        "log(abs(p) + 1e-6)",
        f"{STUDY}, 16c",
        {"tf.math.log(tf.abs(p))": "tf.math.log(tf.abs(p) + 1e-6)"},
    ),
    "17": Fix(
        "take the maximum off before exp",
        "jakeret/tf_unet, pixel_wise_softmax",
        {"tf.exp(z)": "tf.exp(z - tf.reduce_max(z, 3, keepdims=True))"},
    ),
    "28b": _EPS_FIX,
    "28c": _EPS_FIX,
    "28d": _EPS_FIX,
    **dict.fromkeys(("35a", "36a", "39a", "43a", "49a"), _VARIANT),
}
"""Fixes that were seen. Of all other cases no fixed version was found."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a cure is.

    Attributes:
        problem: Why the published defect is not cured; "" if it is.
        alive: At how many of `SIZES` a finite gradient reaches the weights that is more than
            a thousandth of the largest of them.
        change: Of the batch's loss and gradients, relative.
    """

    problem: str
    alive: int
    change: float

    def __str__(self) -> str:
        state = self.problem or "gone"
        change = "" if math.isnan(self.change) else f", change {self.change:.1g}"
        return f"{state}, gradient at {self.alive} of {len(SIZES)}{change}"


def verdict(ours: Quality, theirs: Quality) -> str:
    """Ours is "better", "equal" or "worse"."""
    for mine, other in (
        (not ours.problem, not theirs.problem),
        (ours.alive, theirs.alive),
        (-_visible(ours.change), -_visible(theirs.change)),
    ):
        if mine != other:
            return "better" if mine > other else "worse"
    return "equal"


def _visible(change: float) -> float:
    return 0.0 if math.isnan(change) or change <= SAME else change


def compare(case: Case, seed: int = 0) -> tuple[Quality, Quality]:
    """Our cure of a case, and the developers'."""
    built = case.build(seed)
    torch.manual_seed(seed)
    analysis = analyze(case, built)
    targets = [d for d in analysis.defects if any(matches(flaw, d) for flaw in case.targets)]
    ours = ranum.fix(analysis)
    theirs = _edits(analysis, FIXES[case.name])
    return (
        _quality(case, seed, ours.edits, ours.verify() if ours.edits else None, targets),
        _quality(
            case,
            seed,
            theirs,
            verify(analysis.context, theirs, analysis.defects) if theirs else None,
            targets,
        ),
    )


def _edits(analysis: Any, fix: Fix) -> list[Edit]:
    """The developers' change, wherever the defective functions hold its expressions."""
    found: dict[str, Edit] = {}
    for defect in analysis.defects:
        for old, new in fix.edits.items():
            for place in _places(defect.source, old):
                found[str(place)] = rewrite_edit(place, new)
    if fix.edits and not found:
        raise LookupError(f"none of {list(fix.edits)} stands near {analysis.defects[0].source}.")
    return list(found.values())


def _places(source: Source, words: str) -> list[Source]:
    text = read_text(source.file)
    tree = ast.parse(text.content)
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.lineno <= source.line <= (node.end_lineno or 0)
    ]
    wanted = ast.unparse(ast.parse(words, mode="eval"))
    return [
        replace(
            source,
            line=node.lineno,
            end_line=node.end_lineno or 0,
            column=node.col_offset,
            end_column=node.end_col_offset or 0,
        )
        for node in (ast.walk(functions[-1]) if functions else ())
        if isinstance(node, ast.expr) and ast.unparse(node) == wanted
    ]


def _quality(
    case: Case, seed: int, edits: Sequence[Edit], found: Verification | None, targets: Sequence[Any]
) -> Quality:
    with apply_edits(edits) if edits else nullcontext():
        norms = [_norm_at(case, seed, size) for size in SIZES]
    alive = sum(norm > 1e-3 * max(norms) for norm in norms)
    if found is None:
        return Quality("still there", alive, 0.0)
    left = {(one.op, one.source.line) for one in found.remaining}
    problem = found.problem or ("a new defect" if found.new else "")
    if not problem and any((one.op, one.source.line) in left for one in targets):
        problem = "still there"
    return Quality(problem, alive, found.change)


def _norm_at(case: Case, seed: int, size: float) -> float:
    """The largest gradient at a share of the way to the witness."""
    built = case.build(seed)
    flaw: Flaw = case.targets[0]
    witness = {
        name: replace(setting, value=setting.value * size) for name, setting in flaw.witness.items()
    }
    built = apply(built, witness)
    torch.manual_seed(seed)
    return _norm(case, built)


def _norm(case: Case, built: Any) -> float:
    """The largest size of a gradient of the loss; 0 where one is not finite."""
    inputs, weights = list(built.inputs.values()), list(built.weights.values())
    if case.framework == "torch":
        taken = torch.autograd.grad(built.target(*inputs), weights, allow_unused=True)
        sizes = [float(one.abs().max()) for one in taken if one is not None]
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            output = built.target(*inputs)
            loss = output["loss"] if isinstance(output, dict) else output
        taken = tape.gradient(loss, weights)
        sizes = [float(tf.reduce_max(tf.abs(one))) for one in taken if one is not None]
    return max(sizes) if all(math.isfinite(size) for size in sizes) else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grist.developers")
    parser.add_argument("names", nargs="*", help="cases; all whose history is known by default")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = load()
    rows, verdicts = [], dict.fromkeys(("better", "equal", "worse"), 0)
    for name in arguments.names or FIXES:
        ours, theirs = compare(cases[name], arguments.seed)
        verdicts[verdict(ours, theirs)] += 1
        fix = FIXES[name]
        rows.append([name, fix.words, fix.seen, str(theirs), str(ours), verdict(ours, theirs)])
        print(*rows[-1], sep=" | ", flush=True)
    columns = ("case", "developers", "seen in", "theirs", "ours", "ours is")
    print(f"\n{heading()}.\n\n{table(columns, rows)}\n")
    print(", ".join(f"{count} {word}" for word, count in verdicts.items()) + ".")
    none = [name for name in cases if name not in FIXES]
    print(f"No fixed version was found of {len(none)} cases: {', '.join(none)}.")
    return 1 if verdicts["worse"] else 0


if __name__ == "__main__":
    sys.exit(main())
