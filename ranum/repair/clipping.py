"""Cures of defects: rewritings where there is a better spelling, else the smallest clip.

A clip clamps the operand of a defective operator. The loosest clamp is searched for which
the operator, and the backward operators that belong to it, stay finite for every operand in
the clipped interval; then the whole graph is analysed again with the clip in place, and it
counts only if the defect is gone and no new one came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import torch

from ranum.analysis.graph import Ref
from ranum.analysis.result import Analysis, Context, Defect
from ranum.errors import ArgumentError, PatchError
from ranum.repair._clamps import clamp_bounds, distance_from_zero
from ranum.repair._places import placed
from ranum.repair.patch import AppliedPatch, Edit, apply_edits, away_edit, clip_edit, merged_diff
from ranum.repair.preconditions import Ranges, loosest_ranges
from ranum.repair.rewriting import Proposal, proposals
from ranum.repair.verify import Verification, place, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One clamp in front of one operator.

    Attributes:
        defect: What it removes.
        lower: Smallest operand let through; None if there is no lower clamp.
        upper: Largest operand let through; None if there is no upper clamp.
        distance: Smallest magnitude let through of an operand of either sign, which keeps it;
            None if it is clamped at its ends.
        edit: The clamp as an edit of the user's expression; None if there is none.
        reason: Why there is no clip, or no edit; "" if there is one.
    """

    defect: Defect
    lower: float | None = None
    upper: float | None = None
    distance: float | None = None
    edit: Edit | None = None
    reason: str = ""

    @property
    def is_found(self) -> bool:
        """True if bounds were found that remove the defect."""
        return not (self.lower is None and self.upper is None and self.distance is None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "code": self.defect.code,
            "source": self.defect.source.to_dict(),
            "lower": self.lower,
            "upper": self.upper,
            "distance": self.distance,
            "diff": "" if self.edit is None else self.edit.diff(),
            "reason": self.reason,
        }

    def __str__(self) -> str:
        if not self.is_found:
            return f"no clip for {self.defect.code} at {self.defect.source}: {self.reason}"
        if self.distance is not None:
            return (
                f"the operand of {self.defect.op} kept {self.distance:g} away from 0, on its own "
                f"side, at {self.defect.source}"
            )
        bounds = ", ".join(
            f"{name}={value:g}"
            for name, value in (("min", self.lower), ("max", self.upper))
            if value is not None
        )
        return f"clamp({bounds}) on the operand of {self.defect.op} at {self.defect.source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """Another way to write an expression, without the defect.

    Attributes:
        defect: What it was looked for.
        edit: The change of the user's expression.
        why: Why it is better, half a sentence.
        cures: All defects that are gone with it.
        verification: What the patched program did.
    """

    defect: Defect
    edit: Edit
    why: str
    cures: tuple[Defect, ...]
    verification: Verification

    @property
    def reason(self) -> str:
        """Why there is no edit: there is one."""
        return ""

    @property
    def is_found(self) -> bool:
        """True: only rewritings that were verified are offered."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "code": self.defect.code,
            "source": self.defect.source.to_dict(),
            "old": self.edit.old,
            "new": self.edit.new,
            "why": self.why,
            "cures": [str(defect) for defect in self.cures],
            "diff": self.edit.diff(),
            "verification": self.verification.to_dict(),
        }

    def __str__(self) -> str:
        return f"{self.edit.new} instead of {self.edit.old} at {self.edit.source.location}: " + (
            self.why
        )


@dataclass(frozen=True, slots=True)
class Clips:
    """The cures for an analysis: one diff, and one live patch.

    Attributes:
        clips: A rewriting or a clip for each defect, in the order of the defects; what an
            earlier rewriting cures has none of its own.
        analysis: What they cure.
    """

    clips: tuple[Clip | Rewrite, ...]
    analysis: Analysis | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[Clip | Rewrite]:
        return iter(self.clips)

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits of all clips that have one."""
        return tuple(clip.edit for clip in self.clips if clip.edit is not None)

    def diff(self) -> str:
        """All edits as one unified diff that `git apply` takes; "" if there are none."""
        return merged_diff(self.edits) if self.edits else ""

    def apply(self, model: torch.nn.Module | None = None) -> AppliedPatch:
        """Patches the running code, until the patch is undone or its `with` block ends.

        Args:
            model: Accepted for symmetry with clips that live on a model; code patches reach
                every instance of the patched class.

        Raises:
            PatchError: If one of the edits cannot be applied; none is then.
        """
        return apply_edits(self.edits)

    def verify(self) -> Verification:
        """Applies all edits for a moment; records, analyses and runs the patched program.

        Raises:
            ArgumentError: If there is nothing to verify: no edit, or no analysis.
        """
        context = None if self.analysis is None else self.analysis.context
        if self.analysis is None or context is None or not self.edits:
            raise ArgumentError("clips must hold an edit, and come from ranum.fix(analysis).")
        defects = self.analysis.defects
        witnesses = [defect.witness for defect in defects if defect.witness is not None]
        return verify(context, self.edits, defects, witnesses)


@overload
def fix(
    analysis: Analysis, where: Literal["operators"] = "operators", *, rewrite: bool = True
) -> Clips: ...


@overload
def fix(
    analysis: Analysis, where: str, *, rewrite: bool = True, seconds: float = 30.0
) -> Clips | Ranges: ...


def fix(
    analysis: Analysis, where: str = "operators", *, rewrite: bool = True, seconds: float = 30.0
) -> Clips | Ranges:
    """Removes the defects of an analysis, with as little change as can be.

    Where a developer would write the expression differently (`log_softmax` instead of the
    logarithm of a softmax), that is offered first; elsewhere the smallest clip. A rewriting is
    offered only if the patched program, recorded and analysed again, is without the defect and
    has no new one, if the witness stays finite in it, and if loss and gradients of the example
    batch change by no more than `Verification.tolerance`.

    At other places than the operators, the loosest ranges of inputs and weights are searched
    for which the analysis finds no defect; what no range can remove is shown to be so.

    Args:
        analysis: A result of `analyze`.
        where: "operators": at each defective operator. "inputs", "weights", "all", or the name
            (or a pattern) of inputs and weights: their ranges. The path (or a pattern) of
            modules: the ranges of what they return.
        rewrite: False for clips only, at the operators.
        seconds: For the search of ranges, wall clock.

    Raises:
        ArgumentError: If `where` is not a known place.
    """
    if where != "operators":
        return loosest_ranges(analysis, where, seconds=seconds)
    chosen: list[Clip | Rewrite] = []
    cured: set[int] = set()
    for number, defect in enumerate(analysis.defects):
        if number in cured:
            continue
        better = _rewriting(analysis, defect, chosen) if rewrite else None
        if better is not None:
            chosen.append(better)
            ids = {id(one) for one in better.cures}
            cured |= {n for n, one in enumerate(analysis.defects) if id(one) in ids}
            continue
        clip = smallest_clip(defect)
        if clip.edit is not None and not _fits(clip.edit, chosen):
            clip = replace(
                clip, edit=None, reason="its expression is rewritten for another defect already"
            )
        chosen.append(clip)
    for number, one in enumerate(chosen if rewrite else ()):
        # What a rewriting lays bare may be what another edit cures: try them together.
        if isinstance(one, Clip) and len(chosen) > 1:
            others = [*chosen[:number], *chosen[number + 1 :]]
            better = _rewriting(analysis, one.defect, others, together=True)
            if better is not None:
                chosen[number] = better
    return Clips(tuple(chosen), analysis)


def best_cure(analysis: Analysis, defect: Defect) -> Clip | Rewrite:
    """For one defect alone: a rewriting that passes its verification, else the smallest clip."""
    return _rewriting(analysis, defect, []) or smallest_clip(defect)


def _rewriting(
    analysis: Analysis,
    defect: Defect,
    chosen: Sequence[Clip | Rewrite],
    *,
    together: bool = False,
) -> Rewrite | None:
    """The rewriting that cures most, alone or together with those chosen; None if none passes."""
    context = defect.context
    if context is None:
        return None
    others = [one.edit for one in chosen if one.edit is not None] if together else []
    best: Rewrite | None = None
    tried: set[str] = set()
    # What replaces most is likely to cure most; then the others need not be tried.
    for proposal in sorted(proposals(defect), key=lambda one: -len(one.nodes)):
        if str(proposal.edit) in tried or not _fits(proposal.edit, chosen):
            continue
        tried.add(str(proposal.edit))
        witnesses = [] if defect.witness is None else [defect.witness]
        found = verify(context, [*others, proposal.edit], analysis.defects, witnesses)
        cures = _cured(analysis, defect, proposal, found)
        # Another defect may make the witness fail as well, until it is cured too.
        only_others_fail = found.is_finite is False and bool(found.remaining)
        clean = replace(found, is_finite=None) if only_others_fail else found
        if any(one is defect for one in cures) and clean.is_clean:
            if best is None or len(cures) > len(best.cures):
                best = Rewrite(
                    defect=defect,
                    edit=proposal.edit,
                    why=proposal.why,
                    cures=cures,
                    verification=found,
                )
            if together or not found.remaining:
                break
    return replace(best, cures=(defect,)) if together and best is not None else best


def _cured(
    analysis: Analysis, defect: Defect, proposal: Proposal, found: Verification
) -> tuple[Defect, ...]:
    """The defects that are gone.

    Of defects with one code on one line it is only known how many are left. The one asked
    for counts as gone first, then those whose operator is replaced.
    """
    gone = Counter(place(one) for one in analysis.defects)
    gone.subtract(Counter(place(one) for one in found.remaining))
    replaced = [one for one in analysis.defects if one.node in proposal.nodes]
    cures: list[Defect] = []
    for one in (defect, *replaced, *analysis.defects):
        if gone[place(one)] > 0 and all(one is not other for other in cures):
            gone[place(one)] -= 1
            cures.append(one)
    return tuple(cures)


def _fits(edit: Edit, chosen: Sequence[Clip | Rewrite]) -> bool:
    """True if an edit does not overlap with those that were chosen."""
    others = [one.edit for one in chosen if one.edit is not None and one.edit.file == edit.file]
    try:
        merged_diff([*others, edit])
    except PatchError:
        return False
    return True


def smallest_clip(defect: Defect) -> Clip:
    """The loosest clamp of the defect's operand that removes it, verified on the whole graph."""
    context = defect.context
    if context is None:
        raise ArgumentError("defect must come from an Analysis; this one has lost its context.")
    bounds = clamp_bounds(defect, context)
    if bounds is None:
        distance = distance_from_zero(defect, context)
        if distance is not None:
            return _guard(defect, context, distance)
        return Clip(
            defect=defect,
            reason="no clamp of the operand keeps it away from the bad values "
            "without cutting the range in two or to nothing",
        )
    lower, upper = bounds
    if defect.source.node and defect.source.line < 1:
        return Clip(
            defect=defect,
            lower=lower,
            upper=upper,
            reason=f"{defect.source.node} belongs to a graph that no line of yours made; clamp its "
            f"operand there: minimum {lower}, maximum {upper}",
        )
    try:
        source = placed(context.graph, context.graph.nodes[defect.node])
        edit = clip_edit(
            source, defect.op, lower=lower, upper=upper, argument=_position(defect, context)
        )
    except PatchError as error:
        return Clip(defect=defect, lower=lower, upper=upper, reason=str(error))
    return Clip(defect=defect, lower=lower, upper=upper, edit=edit)


def _guard(defect: Defect, context: Context, distance: float) -> Clip:
    """The operand kept away from 0 on either side, as an edit where there is code."""
    try:
        source = placed(context.graph, context.graph.nodes[defect.node])
        edit = away_edit(source, defect.op, distance, argument=_position(defect, context))
    except PatchError as error:
        return Clip(defect=defect, distance=distance, reason=str(error))
    return Clip(defect=defect, distance=distance, edit=edit)


def _position(defect: Defect, context: Context) -> int:
    """Which of the operator's tensor arguments is clipped, counting from 0."""
    node = context.graph.nodes[defect.node]
    names = list(node.arguments)
    for position, name in enumerate(names):
        argument = node.arguments[name]
        if isinstance(argument, Ref) and argument.value == defect.operand:
            return position
    return 0


def unified_diff(clips: Sequence[Clip]) -> str:
    """One diff for several clips; "" if none has an edit."""
    return Clips(tuple(clips)).diff()
