"""What to train on next: kinds of data, in the order of what has helped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from ranum.analysis.confirm.training.aim import Aim
from ranum.analysis.confirm.training.proposals import Cycle, Matcher, Wanted

LABELLED = (1.0, 0.3, 0.1)
"""Shares of the way to the failing batch at which labels are chosen and nothing else."""
DIMMED = (0.3, 0.1, 0.03)
"""Shares of that way where matches begin as well."""
CORNERS = (2, 2, 8)
"""Random batches in each of the cycles of such that are tried in a round."""
HELD = 16
"""Steps in a row that a batch is trained on in slow cycles: an optimizer's momentum settles."""
BESIDE = 2
"""Random batches that are tried beside the failing one."""
HELD_CORNERS = (2, 2, 4)
"""Batches in such cycles."""
AGAIN = 3
"""The data accepted last that are tried once more."""
FAILURES = 2
"""Times in a row that a kind of data has not helped before it is tried less often."""

Maker = Callable[[], Cycle | None]
"""Makes the data when their turn has come; None if there are none of the kind."""


class Menu:
    """Offers data of all kinds, and remembers which kinds helped.

    Args:
        matcher: Makes the data.
        normalises: The optimizer looks at signs.
    """

    def __init__(self, matcher: Matcher, normalises: bool) -> None:
        self._matcher = matcher
        self._normalises = normalises
        self._rounds = 0
        self._chosen: dict[str, int] = {}
        self._failures: dict[str, int] = {}

    def helped(self, kind: str, really: bool) -> None:
        """Told whether a kind has brought the goal nearer."""
        self._failures[kind] = 0 if really else self._failures.get(kind, 0) + 1

    def chose(self, kind: str) -> None:
        """Told which kind a round went on with."""
        self._chosen[kind] = self._rounds

    def offers(
        self,
        aim: Aim,
        weights: Mapping[str, Tensor],
        horizon: int,
        accepted: Sequence[Cycle],
        only_contrasts: bool,
    ) -> Iterator[tuple[str, Cycle]]:
        """Data for one round, with their kinds: what was chosen last comes first.

        Kinds that have not helped for long are left out more and more often.

        Args:
            aim: The goal.
            weights: As they are now.
            horizon: Steps that each is trained on.
            accepted: What the run has been trained on so far.
            only_contrasts: Nothing but contrasts and slow cycles.
        """
        self._rounds += 1
        slope = aim.slope(weights)
        if not slope:
            for cycle in ((aim.batch(),), ({},), self._matcher.corners(1)):
                yield "no slope", cycle
            return
        kinds: dict[str, Maker] = {
            f"again {number}": partial(_same, cycle)
            for number, cycle in enumerate(reversed(accepted[-AGAIN:]))
        }
        if not only_contrasts:
            kinds.update(self._plain(aim, slope, horizon))
        kinds.update(self._cycles(aim, slope, horizon))
        seen: set[int] = set()
        for kind in sorted(kinds, key=lambda kind: -self._chosen.get(kind, 0)):
            failures = self._failures.get(kind, 0)
            is_new = "corners" in kind  # drawn anew each time
            if failures >= FAILURES and self._rounds % failures and not is_new:
                continue
            made = kinds[kind]()
            if made is not None and id(made) not in seen:
                seen.add(id(made))
                yield kind, made

    def _plain(
        self, aim: Aim, slope: Mapping[str, Tensor], horizon: int
    ) -> Iterator[tuple[str, Maker]]:
        """Batches that are made for the slope, the quick ones first, and random ones."""
        matcher, wanted = self._matcher, Wanted(slope, self._normalises)
        for share in LABELLED if matcher.has_labels else ():
            yield f"labelled {share}", partial(matcher.labelled, wanted, aim, share)
        for number, length in enumerate(CORNERS):
            yield f"corners {number}", partial(matcher.corners, min(horizon, length))
        yield "failing", lambda: (aim.batch(),)
        yield "recorded", lambda: ({},)
        matches = [("matched", wanted)]
        if self._normalises:  # a large gradient counts for long in the second moments
            matches.append(("by size", Wanted(slope, normalises=False)))
        for turn, (way, each) in enumerate(matches):
            for number, (name, start) in enumerate(self._starts(aim, horizon)):
                kind = f"{way} {name}"  # they are slow: each round tries half of them
                if kind in self._chosen or (number + turn + self._rounds) % 2:
                    yield kind, partial(matcher.matched_from, each, start)

    def _cycles(
        self, aim: Aim, slope: Mapping[str, Tensor], horizon: int
    ) -> Iterator[tuple[str, Maker]]:
        """Data that take many steps."""
        if horizon > 1:
            for number in range(BESIDE):
                yield f"beside corners {number}", lambda: self._matcher.beside(aim.batch())
        if horizon >= 2 * HELD:
            for number, count in enumerate(HELD_CORNERS):
                yield f"held corners {number}", partial(self._matcher.corners, count, HELD)
        if horizon > 1:
            yield from self._matcher.contrasts(Wanted(slope, self._normalises), aim.far())

    def _starts(
        self, aim: Aim, horizon: int
    ) -> Iterator[tuple[str, Callable[[], Mapping[str, Tensor]]]]:
        """Where matches begin: as recorded, at the failing batch and the ends, and between."""
        yield "recorded", dict
        yield "failing", aim.far
        for number in range(2):
            yield f"end {number}", partial(aim.corner, number)
        for share in DIMMED if horizon > 1 else ():
            yield f"at {share}", partial(self._dimmed, aim, share)

    def _dimmed(self, aim: Aim, share: float) -> Mapping[str, Tensor]:
        return self._matcher.dimmed(aim.far(), share)


def _same(cycle: Cycle) -> Cycle:
    return cycle
