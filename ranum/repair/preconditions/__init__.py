"""Cures by ranges: the loosest inputs, weights or module outputs without a defect."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ranum.analysis.result import Analysis, Context, Defect
from ranum.errors import ArgumentError, PatchError
from ranum.repair.patch import Edit
from ranum.repair.preconditions.centre import inner_box
from ranum.repair.preconditions.entry import entry_edit
from ranum.repair.preconditions.growth import Growth
from ranum.repair.preconditions.hooks import outside
from ranum.repair.preconditions.impossible import Uncured, shown_impossible
from ranum.repair.preconditions.places import Box, Pair, Place, chosen_places
from ranum.repair.preconditions.ranges import KeptRange, Ranges
from ranum.repair.preconditions.trial import Trial, key_of, reaching

__all__ = ["KeptRange", "Ranges", "Uncured", "loosest_ranges"]


def loosest_ranges(
    analysis: Analysis,
    where: str,
    *,
    defects: Sequence[Defect] | None = None,
    seconds: float = 30.0,
    seed: int = 0,
) -> Ranges:
    """The loosest ranges of inputs or weights that provably remove defects.

    Ranges only get narrower than those of the analysis, and hold what the tensors hold now
    wherever that is possible. Every one was accepted by the analysis itself. A defect that
    cannot be removed at the chosen places is shown to be so, where a proof is found.

    Args:
        analysis: A result of `analyze`.
        where: "inputs", "weights", "all"; the name (or a pattern) of inputs and weights; or the
            path (or a pattern) of modules, for what they return.
        defects: Those to remove; all by default.
        seconds: For the search, wall clock.
        seed: Of its random numbers.

    Raises:
        ArgumentError: If nothing is meant by `where`, there is no time, or the analysis has lost
            its context.
    """
    if not seconds > 0:
        raise ArgumentError(f"seconds must be positive; got {seconds!r}.")
    context = analysis.context
    if context is None:
        raise ArgumentError("analysis must come from analyze; this one has lost its context.")
    started, deadline = time.process_time(), time.monotonic() + seconds
    places = chosen_places(context, where)
    wanted = analysis.defects if defects is None else tuple(defects)
    left: list[Uncured] = []
    possible: list[Defect] = []
    for defect in wanted:
        shown = shown_impossible(context, places, defect, deadline=deadline)
        if shown is None:
            possible.append(defect)
        else:
            left.append(shown)
    used = [p for p in places if any(p in reaching(context, places, d) for d in possible)]
    found = None
    if possible:
        found = _together(analysis, context, used, possible, deadline=deadline, seed=seed)
    kept: tuple[KeptRange, ...] = ()
    is_loosest = True
    found = None if found is None else _grown(*found, seed)
    if found is not None:
        trial, box = found
        kept, is_loosest = _kept(analysis, trial, box), not trial.is_spent
        possible = [one for one in possible if all(one is not done for done in trial.targets)]
    reason = "no such range was found, nor a proof that there is none"
    left += [Uncured(defect=one, how="not found", reason=reason) for one in possible]
    return Ranges(kept, tuple(left), analysis, time.process_time() - started, is_loosest)


def _together(
    analysis: Analysis,
    context: Context,
    places: Sequence[Place],
    defects: Sequence[Defect],
    *,
    deadline: float,
    seed: int,
) -> tuple[Trial, Box] | None:
    """A box in which as many of the defects as possible are gone, and the trial of it."""
    chosen = list(defects)

    def attempt(targets: Sequence[Defect]) -> tuple[Trial, Box] | None:
        others = [one for one in analysis.defects if all(one is not each for each in targets)]
        trial = Trial(context, places, targets, others=others, deadline=deadline)
        box = inner_box(trial, seed)
        return None if box is None else (trial, box)

    found = attempt(chosen)
    if found is not None or len(chosen) == 1:
        return found
    best: tuple[Trial, Box] | None = None
    kept: list[Defect] = []
    for defect in chosen:
        tried = attempt([*kept, defect])
        if tried is not None:
            best = tried
            kept.append(defect)
    return best


def _grown(trial: Trial, inner: Box | None, seed: int) -> tuple[Trial, Box] | None:
    """The loosest box, also of defects that come to light once those before them are gone."""
    for _ in range(_ROUNDS):
        if inner is None:
            break
        growth = Growth(trial, inner)
        more = trial.uncovered(growth.roughly())
        if not more:
            box = growth.loosest()
            more = trial.uncovered(box)
            if not more:
                return trial, box
        trial = trial.with_targets(more)
        inner = inner if trial.holds(inner) else inner_box(trial, seed)
    return None


_ROUNDS = 4


def _kept(analysis: Analysis, trial: Trial, box: Box) -> tuple[KeptRange, ...]:
    kept = []
    for number, (place, pair) in enumerate(zip(trial.places, box, strict=True)):
        if pair == place.full:
            continue
        without = (*box[:number], place.full, *box[number + 1 :])
        back = trial.left(without)
        removed = [one for one in trial.targets if key_of(one) in back]
        edit, reason = _edit(trial.context, place, pair)
        kept.append(
            KeptRange(
                name=place.name,
                kind=place.kind,
                lower=pair[0],
                upper=pair[1],
                analysed=place.full,
                share=place.linear_share(pair),
                log_share=place.share(pair),
                removes=tuple(one for one in removed if any(one is d for d in analysis.defects)),
                outside=_outside(trial.context, place, pair),
                edit=edit,
                reason=reason,
            )
        )
    return tuple(kept)


def _outside(context: Context, place: Place, pair: Pair) -> int:
    program = context.program
    if place.kind == "output":
        return int(place.recorded[0] < pair[0] or place.recorded[1] > pair[1])
    own = program.parameters if place.kind == "weight" else program.inputs
    return outside(own[place.name], pair) if place.name in own else 0


def _edit(context: Context, place: Place, pair: Pair) -> tuple[Edit | None, str]:
    try:
        return entry_edit(context.program, place, pair), ""
    except PatchError as error:
        return None, str(error)
