"""The remedies that need the upper floors: patching the code, and repairing the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ranum.callbacks._session import Session
from ranum.guards.recovery import Fault, Outcome, go_back, scale_learning_rates
from ranum.repair.clipping import Rewrite

if TYPE_CHECKING:
    from ranum.guards.base import GuardBase
    from ranum.repair.patch import AppliedPatch, Edit
    from ranum.source import Source

CLIP_LIMIT = 8
"""Live patches per run; a program that needs more has another problem."""


class InsertClip:
    """Goes back to the last good snapshot and cures the culprit's expression.

    Fits faults whose culprit is an operator that the analysis has a cure for: a rewriting that
    was verified on this very step, else the smallest clip. The learning rate is lowered as by a
    rollback: the operand drifted to the edge of its domain under it. If anything after the patch
    fails, the patch is undone; and so it is if the same expression fails again, which is then left
    to the next remedy.

    Args:
        session: Holds the analysis and keeps the patches, so that they are undone at the end.
        learning_rate_factor: In (0, 1].
    """

    name = "clip"

    def __init__(self, session: Session, *, learning_rate_factor: float) -> None:
        self._session = session
        self._factor = learning_rate_factor
        self._tried: list[tuple[Edit, AppliedPatch]] = []

    def apply(self, fault: Fault, guard: GuardBase) -> Outcome | None:
        """Patches the code; None if there is no cure for this fault."""
        culprit = fault.culprit
        if culprit is None or culprit.cause != "operator":
            return None
        shift = sum(abs(_lines_added(edit)) for edit, patch in self._tried if patch.is_active)
        for edit, patch in self._tried:
            if _is_there(culprit.source, edit, shift):
                return self._take_out(patch, guard, fault)
        if len(self._session.patches) >= CLIP_LIMIT:
            return None
        cure = self._session.cure_for(culprit)
        if cure is None or cure.edit is None:
            return None
        diff = cure.edit.diff()
        patch = cure.edit.apply()  # before going back: if it is refused, nothing has changed
        try:
            back_to = go_back(guard, fault)
            if back_to is None:
                patch.undo()
                return None
            scale_learning_rates(guard, self._factor)
        except BaseException:
            patch.undo()
            raise
        self._session.patches.append(patch)
        self._tried.append((cure.edit, patch))
        what = "wrote" if isinstance(cure, Rewrite) else "inserted"
        return Outcome(
            action=self.name,
            detail=f"{what} {cure} as a live patch; learning rate x {self._factor:.2g}",
            back_to=back_to,
            patch=diff,
        )

    def _take_out(self, patch: AppliedPatch, guard: GuardBase, fault: Fault) -> Outcome | None:
        """Undoes a patch that has not helped, and goes back; None if that was done before."""
        if not patch.is_active:
            return None
        patch.undo()
        self._session.patches.remove(patch)
        back_to = go_back(guard, fault)
        if back_to is None:
            return None
        return Outcome(
            action="undo",
            detail="took the live patch out again: the same expression failed with it",
            back_to=back_to,
        )


def _is_there(source: Source, edit: Edit, shift: int) -> bool:
    """True if a place is that of an edit, in a file whose lines have moved by `shift` at most."""
    old = edit.source
    is_near = old.line - shift <= source.line <= old.end_line + shift
    return source.file == old.file and source.function == old.function and is_near


def _lines_added(edit: Edit) -> int:
    lines = edit.diff().splitlines()
    return sum(line.startswith("+") for line in lines) - sum(line.startswith("-") for line in lines)


class RepairConfiguration:
    """Searches a configuration that trains, and asks for a restart from it. Fits once.

    Args:
        search: Runs the search; a sentence on the configuration it found, None if it found none.
    """

    name = "repair"

    def __init__(self, search: Callable[[Fault], str | None]) -> None:
        self._search = search
        self._used = False

    def apply(self, fault: Fault, guard: GuardBase) -> Outcome | None:
        """Runs the search; None if it was used up or found nothing."""
        if self._used:
            return None
        self._used = True
        detail = self._search(fault)
        if detail is None:
            return None
        return Outcome(action=self.name, detail=detail, restart=True)
