"""Is a change a cure? The patched program is recorded, analysed and run again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ranum.analysis.capture.program import Program
from ranum.analysis.defects import find_defects
from ranum.analysis.graph import Graph
from ranum.analysis.interval import Interval
from ranum.analysis.ranges import starting_ranges
from ranum.analysis.result import Context, Defect, Witness
from ranum.errors import RanumError
from ranum.repair._diff import edits_by_file
from ranum.repair._splice import merge
from ranum.repair.patch import AppliedPatch, Edit, apply_edits

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""By how much results and gradients of the example batch may change, relative to the largest."""

Key = tuple[str, str, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What the patched program does.

    Attributes:
        remaining: Defects that it still has.
        new: Those of them that it did not have before.
        change: Largest change of the example batch's loss and gradients, relative to the
            largest element of each (or a thousandth of the largest of all); NaN if they were
            not finite before.
        tolerance: What it may be.
        is_finite: Whether the witnesses now give a finite loss and finite gradients; None if
            there are none.
        problem: Why the program could not be analysed again; "" if it could.
    """

    remaining: tuple[Defect, ...] = ()
    new: tuple[Defect, ...] = ()
    change: float = 0.0
    tolerance: float = 1e-4
    is_finite: bool | None = None
    problem: str = ""

    @property
    def is_clean(self) -> bool:
        """True if nothing new came, witnesses stay finite, and the example gives the same."""
        changed = self.change > self.tolerance
        return not (self.problem or self.new or self.is_finite is False or changed)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "remaining": [str(defect) for defect in self.remaining],
            "new": [str(defect) for defect in self.new],
            "change": self.change,
            "tolerance": self.tolerance,
            "finite": self.is_finite,
            "problem": self.problem,
        }

    def __str__(self) -> str:
        if self.problem:
            return f"not verified: {self.problem}"
        left = f"{len(self.remaining)} defects left" if self.remaining else "no defect left"
        parts = [left + (f", {len(self.new)} of them new" if self.new else "")]
        if self.is_finite is not None:
            parts.append("the witness " + ("stays finite" if self.is_finite else "still fails"))
        if not math.isnan(self.change):
            parts.append(
                f"the example's loss and gradients change by {self.change:.1g} "
                f"(allowed: {self.tolerance:g})"
            )
        return "; ".join(parts)


def verify(
    context: Context,
    edits: Sequence[Edit],
    before: Sequence[Defect],
    witnesses: Sequence[Witness] = (),
    *,
    patch: Callable[[], AppliedPatch] | None = None,
) -> Verification:
    """Applies edits for a moment, and looks at the patched program.

    Args:
        context: Of the analysis that the edits come from.
        edits: What is changed.
        before: The defects of that analysis.
        witnesses: Inputs and weights that made the program fail.
        patch: What applies them; `apply_edits` by default.
    """
    floats = [t.dtype for t in (*context.program.parameters.values(), *_floats(context))]
    tolerance = max((TOLERANCE.get(dtype, 1e-4) for dtype in floats), default=1e-4)
    program = context.program
    plain, plain_own = _results(program), _own_results(program)
    try:
        with apply_edits(edits) if patch is None else patch():
            if edits and program.retrace is not None:
                program = program.retrace()
            changed, changed_own = _results(program), _own_results(program)
            left = _defects(context, program)
            finite = [_is_finite(program, witness) for witness in witnesses]
    except RanumError as error:
        return Verification(problem=str(error), tolerance=tolerance)
    except Exception as error:
        return Verification(
            problem=f"the patched program raises {type(error).__name__}: {error}",
            tolerance=tolerance,
        )
    return replace(
        verified(before, _as_before(left, edits)),
        change=_change([*plain, *plain_own], [*changed, *changed_own]),
        tolerance=tolerance,
        is_finite=all(finite) if finite else None,
    )


def verified(before: Sequence[Defect], left: Sequence[Defect]) -> Verification:
    """What is left, and which of it is new, on the lines of the text before."""
    known = Counter(place(defect) for defect in before)
    new = []
    for defect in left:
        known[place(defect)] -= 1
        if known[place(defect)] < 0:
            new.append(defect)
    return Verification(remaining=tuple(left), new=tuple(new), change=math.nan)


def place(defect: Defect) -> Key:
    """What a defect is known by while the columns of its line change."""
    return defect.code, defect.op, defect.source.file, defect.source.line


def _as_before(defects: Sequence[Defect], edits: Sequence[Edit]) -> list[Defect]:
    """The same, on the lines that they have in the text without the edits."""
    merged = {file: merge(*parts) for file, parts in edits_by_file(edits).items()}
    texts = {edit.file: edit.text for edit in edits}
    moved = []
    for defect in defects:
        source = defect.source
        if source.file in merged and source.line > 0:
            offset = merged[source.file].text.offset(source.line, 0)
            offset = merged[source.file].original(offset, is_end=False)
            if offset >= 0:
                line = texts[source.file].line(offset)
                end = source.end_line + line - source.line
                source = replace(source, line=line, end_line=end)
        moved.append(replace(defect, source=source))
    return moved


def _floats(context: Context) -> list[Tensor]:
    return [one for one in context.program.inputs.values() if one.is_floating_point()]


def _defects(context: Context, program: Program) -> list[Defect]:
    """The defects of the program as it is now, for the ranges of the analysis."""
    graph = program.capture(observe=False, varying=context.varying)
    graph.execution = context.graph.execution
    found, _ = find_defects(graph, _start(graph, context))
    return list(found)


def _start(graph: Graph, context: Context) -> dict[int, Interval]:
    ranges: dict[int, Interval] = dict(starting_ranges(graph))
    known: Mapping[tuple[str, str], Interval] = {
        (value.kind, value.name): context.start[number]
        for number, value in context.graph.values.items()
        if value.name and number in context.start
    }
    for value in graph.leaves("input", "derived", "parameter"):
        if (value.kind, value.name) in known:
            ranges[value.index] = known[value.kind, value.name]
    return ranges


def _own_results(program: Program) -> list[Tensor]:
    """The same from the framework itself, where the step is a lowering of its function."""
    found = None if program.origin is None else program.origin.results(program.inputs)
    return found or []


def _results(program: Program) -> list[Tensor]:
    """What the step returns on the example batch, and the gradients of all parameters."""
    with program.substituted({}):
        torch.manual_seed(0)
        result = program.step(*program.arguments)
        found = [one.detach().clone() for one in tree_leaves(result) if isinstance(one, Tensor)]
        if program.backward and isinstance(result, Tensor) and result.requires_grad:
            found += _gradients(result, program.parameters.values())
    return found


def _gradients(result: Tensor, tensors: Iterable[Tensor]) -> list[Tensor]:
    """Of a result with respect to tensors; none where the step went backward itself."""
    leaves = [one for one in tensors if one.requires_grad]
    if not leaves:
        return []
    found: tuple[Tensor | None, ...]
    try:
        found = torch.autograd.grad(result.sum(), leaves, allow_unused=True)
    except RuntimeError:  # the graph is gone: the step ran its own backward pass
        found = tuple(one.grad for one in leaves)
    return [one.detach().clone() for one in found if one is not None]


def _change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest change, each tensor relative to its own largest element.

    Gradients that are 0 but for roundings are measured by a thousandth of the largest of all.
    """
    worst = 0.0
    finite = [one for one in before if one.numel() and one.is_floating_point()]
    largest = max((float(one.abs().nan_to_num(0.0).max()) for one in finite), default=1.0)
    least = 1e-3 * max(largest, 1.0)
    for old, new in zip(before, after, strict=False):
        if not bool(old.isfinite().all()):
            return math.nan
        if old.shape != new.shape:
            return math.inf
        if old.numel() and old.is_floating_point():
            scale = max(float(old.abs().max()), least)
            difference = float((old.double() - new.double()).abs().max()) / scale
            worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


def _is_finite(program: Program, witness: Witness) -> bool:
    """True if the patched program gives a finite loss and gradients for a witness."""
    batch = {
        name: tensor.detach().clone().requires_grad_(tensor.is_floating_point())
        for name, tensor in ({**program.inputs, **witness.inputs}).items()
    }
    with program.substituted(witness.weights):
        torch.manual_seed(witness.seed)
        result = program.step(*program.batch(batch))
        parts = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        finite = all(bool(one.isfinite().all()) for one in parts)
        if finite and program.backward and isinstance(result, Tensor) and result.requires_grad:
            leaves = [*program.parameters.values(), *batch.values()]
            finite = all(bool(one.isfinite().all()) for one in _gradients(result, leaves))
    return finite
