"""The cure by ranges: what each place keeps, as one diff and as one live patch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ranum.analysis.defects import find_defects
from ranum.analysis.interval import Interval, format_number
from ranum.analysis.propagate import Clips
from ranum.analysis.result import Analysis, Context, Defect
from ranum.errors import ArgumentError, PatchError
from ranum.repair.patch import AppliedPatch, Edit, apply_edits, merged_diff
from ranum.repair.preconditions.hooks import hook_clamps, outside
from ranum.repair.preconditions.impossible import Uncured
from ranum.repair.preconditions.places import Kind, Pair
from ranum.repair.preconditions.trial import clips_of
from ranum.repair.verify import Verification, verified, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRange:
    """The range that one input, weight or output of a module keeps.

    Attributes:
        name: Of the input or parameter, or path of the module.
        kind: "input", "weight" or "output".
        lower: Its lower end.
        upper: Its upper end.
        analysed: The range it had in the analysis.
        share: The part of that range's width that is kept.
        log_share: The same on a scale that is logarithmic beyond the size that the tensor has
            now: asinh(x / size).
        removes: Defects that come back without it, while all the others are kept.
        outside: How many elements of the weight, or of the example input, lie outside; of an
            output 1 if any did in the recorded step.
        edit: The clamp as a line of the user's step; None if there is none.
        reason: Why there is no edit; "" if there is one.
    """

    name: str
    kind: Kind
    lower: float
    upper: float
    analysed: Pair
    share: float
    log_share: float
    removes: tuple[Defect, ...]
    outside: int = 0
    edit: Edit | None = None
    reason: str = ""

    @property
    def is_found(self) -> bool:
        """True: ranges are only made if they remove what they are for."""
        return True

    @property
    def clamp(self) -> Pair:
        """Both ends; infinite where nothing needs to be cut off."""
        lower, upper = self.analysed
        return (
            -math.inf if self.lower == lower else self.lower,
            math.inf if self.upper == upper else self.upper,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "kind": self.kind,
            "lower": self.lower,
            "upper": self.upper,
            "analysed": list(self.analysed),
            "share": self.share,
            "log_share": self.log_share,
            "removes": [str(defect) for defect in self.removes],
            "outside": self.outside,
            "diff": "" if self.edit is None else self.edit.diff(),
            "reason": self.reason,
        }

    def __str__(self) -> str:
        kept, whole = _shown((self.lower, self.upper)), _shown(self.analysed)
        part = f", {self.share:.2g} of the width" if self.share >= 1e-3 else ""
        codes = ", ".join(dict.fromkeys(f"{d.code} at {d.source.location}" for d in self.removes))
        text = f"{self.kind} {self.name} kept in {kept} of {whole}{part}"
        text += f": removes {codes}" if codes else ""
        if self.outside:
            now = {"weight": "elements of it", "input": "elements of the example"}
            what = (
                f"{self.outside} {now[self.kind]}" if self.kind in now else "some of what it gave"
            )
            text += f" ({what} lie outside, and would be moved)"
        return text


def _shown(pair: Pair) -> str:
    return f"[{format_number(pair[0])}, {format_number(pair[1])}]"


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of inputs and weights that remove defects: one diff, and one live patch.

    Attributes:
        kept: The places that are narrowed; all others keep the range they have.
        left: Defects that no range of these places removes, or none that was found.
        analysis: What they cure.
        seconds: CPU time of the search.
        is_loosest: False if time ran out before every end had been moved outwards.
    """

    kept: tuple[KeptRange, ...]
    left: tuple[Uncured, ...] = ()
    analysis: Analysis | None = field(default=None, repr=False, compare=False)
    seconds: float = 0.0
    is_loosest: bool = True

    def __iter__(self) -> Iterator[KeptRange | Uncured]:
        return iter((*self.kept, *self.left))

    def __len__(self) -> int:
        return len(self.kept) + len(self.left)

    @property
    def cured(self) -> tuple[Defect, ...]:
        """The defects that are gone within the ranges."""
        left = {id(one.defect) for one in self.left}
        defects = () if self.analysis is None else self.analysis.defects
        return tuple(defect for defect in defects if id(defect) not in left)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits of all ranges that have one; of lines at one place the last comes first."""
        return tuple(one.edit for one in reversed(self.kept) if one.edit is not None)

    def diff(self) -> str:
        """All edits as one unified diff that `git apply` takes; "" if there are none."""
        return merged_diff(self.edits) if self.edits else ""

    def ranges(self) -> dict[int, Interval]:
        """The interval of every leaf of the graph with them."""
        context = self._context
        start = dict(context.start)
        leaves = [one for one in self.kept if one.kind != "output"]
        pairs = {(one.kind == "input", one.name): one.clamp for one in leaves}
        for value in context.graph.leaves("input", "parameter"):
            pair = pairs.get((value.kind == "input", value.name))
            if pair is not None:
                start[value.index] = start[value.index].intersect(*pair)
        return start

    def clips(self) -> Clips | None:
        """The clamps of what modules return."""
        graph = self._context.graph
        outputs = {one.name: one.clamp for one in self.kept if one.kind == "output"}
        return clips_of(graph, {graph.module_outputs[name]: p for name, p in outputs.items()})

    def apply(self, model: torch.nn.Module | None = None, *, project: bool = False) -> AppliedPatch:
        """Clamps in the running program, until the patch is undone or its `with` block ends.

        Each clamp is a line at the entry of the step, or a hook of the model where the step's
        source is out of reach. Optimizers, state dict and parameters stay the same objects.

        Args:
            model: The module to hook; by default the one that was analysed.
            project: Also if weights lie outside their range now; the next step moves them
                inside, and undoing the patch does not bring them back.

        Raises:
            PatchError: If weights lie outside, or a clamp cannot be applied; nothing is
                changed then.
        """
        program = self._context.program
        if not self.kept:
            raise PatchError("there is no range to keep: nothing was changed.")
        if not project:
            self._check_weights(model)
        hooked = [one for one in self.kept if one.edit is None]
        applied: list[AppliedPatch] = []

        def undo() -> None:
            for patch in reversed(applied):
                patch.undo()

        try:
            if hooked:
                target: Any = program.target if model is None else model
                if not isinstance(target, torch.nn.Module):
                    raise PatchError(hooked[0].reason)
                ranges = {(one.kind, one.name): one.clamp for one in hooked}
                applied.append(hook_clamps(target, program.argument_names, ranges))
            if self.edits:
                applied.append(apply_edits(self.edits))
        except BaseException:
            undo()
            raise
        functions = tuple(name for patch in applied for name in patch.functions)
        is_pending = any(patch.is_pending for patch in applied)
        return AppliedPatch(undo, functions=functions, edits=self.edits, is_pending=is_pending)

    def verify(self) -> Verification:
        """Applies the clamps for a moment; records, analyses and runs the patched program.

        A graph that is no torch code is analysed again, from end to end, for the ranges.

        Raises:
            ArgumentError: If there is nothing to verify: no range, or no analysis.
        """
        if self.analysis is None or not self.kept:
            raise ArgumentError("ranges must hold one, and come from ranum.fix(analysis, where).")
        context, defects = self._context, self.analysis.defects
        target = context.program.target
        if any(one.edit is None for one in self.kept) and not isinstance(target, torch.nn.Module):
            remaining, _ = find_defects(context.graph, self.ranges(), clips=self.clips())
            return verified(defects, remaining)
        witnesses = [defect.witness for defect in self.cured if defect.witness is not None]
        return verify(
            context, self.edits, defects, witnesses, patch=lambda: self.apply(project=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "kept": [one.to_dict() for one in self.kept],
            "left": [one.to_dict() for one in self.left],
            "seconds": self.seconds,
            "loosest": self.is_loosest,
        }

    def __str__(self) -> str:
        lines = [str(one) for one in self]
        if not self.is_loosest:
            lines.append("time ran out: some ranges may be wider")
        return "\n".join(lines)

    @property
    def _context(self) -> Context:
        context = None if self.analysis is None else self.analysis.context
        if context is None:
            raise ArgumentError("the ranges must come from ranum.fix(analysis, where).")
        return context

    def _check_weights(self, model: torch.nn.Module | None) -> None:
        parameters: Mapping[str, torch.Tensor] = self._context.program.parameters
        if model is not None:
            parameters = dict(model.named_parameters())
        moved = [
            f"{count} elements of {one.name} ({_shown((one.lower, one.upper))})"
            for one in _weights(self.kept)
            if one.name in parameters and (count := outside(parameters[one.name], one.clamp))
        ]
        if moved:
            raise PatchError(
                f"{', '.join(moved)} lie outside of what the cure keeps: clamping would change "
                "what the model gives. Pass project=True if that is meant; nothing was changed."
            )


def _weights(kept: Sequence[KeptRange]) -> list[KeptRange]:
    return [one for one in kept if one.kind == "weight"]
