"""The search for a course of training that ends in a defect.

Each round tries some data on the real training, for as many steps as the horizon holds, and goes
on with what brought the defect nearest; data that keep helping are trained on again and again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from torch import Tensor

from ranum.analysis.confirm.goals import Goal
from ranum.analysis.confirm.search import Budget
from ranum.analysis.confirm.training.again import Agrees, Course, Taken, length, trained_again
from ranum.analysis.confirm.training.aim import Aim
from ranum.analysis.confirm.training.data import Batch, Slot
from ranum.analysis.confirm.training.menu import HELD, Menu
from ranum.analysis.confirm.training.proposals import Cycle, Matcher
from ranum.analysis.confirm.training.quick import quick
from ranum.analysis.confirm.training.rows import view
from ranum.analysis.confirm.training.trainer import State, Trainer
from ranum.analysis.result import Context, Defect

LATER = 4
"""A goal gets all of the time that is left but one part in so many, which is for later goals."""
TRIALS = 4
"""Data tried in a round at least, however long it takes."""
KINDS = 12
"""Contrasts that there should be time for."""
SLICES = 32
"""Parts of the time in which the tracks take turns."""
RARER = 2
"""Times as much time that the track nearest to the goal gets as any other."""
MOST_TRACKS = 4
"""Tracks at most; a track of contrasts that hardly gets on is joined by one that begins anew."""
ROUNDS = 8
"""Parts of the time: once a round took one, it makes do with what it has found."""
LONGEST = 4096
"""Steps looked ahead, and trained on the same data before the goal is looked at again, at most."""
HOPELESS = LONGEST + 1
"""The horizon of a search that no data help within the steps that there is time for."""
_STAGES = {
    False: "batches matched to the gradient wanted, trained on while they help",
    True: "contrasts: batches that hardly differ, labelled differently",
}
LONGER = 4
"""Times as many steps are looked ahead once no data help in fewer."""
FIRST_ROUNDS = 10
"""Times three gradients taken for the failing batch before the first step."""
NO_GAIN = 0.01
"""Share of the distance below which three more gradients have brought nothing."""
AHEAD = 8
"""Share of a round that slowed down which the next one looks ahead, one in so many."""
SLOWING = 0.5
"""Share of the first gain below which other data are looked for."""
EVERYTHING = 4
"""Every so many rounds look at all kinds of data; others take the first that helps as usual."""
POOR = 0.25
"""Share of what a step has brought so far below which the next round looks at all kinds."""
ONWARD = 0.06
"""Share of the time left after which a round that goes on looks around again."""
AFRESH = 2
"""Failures that did not happen again after which a track begins anew."""
MARGIN = 3.0
"""How much nearer, in logarithms, a failure must be that other random numbers have refuted."""
PATIENCE = 4
"""Longer courses tried after one whose failure did not happen when it was run again."""
MOVES = 2
"""Gradients taken for the failing batch after each trial."""
CONTRASTS_FIRST = 64
"""Steps looked ahead first for contrasts of labels: data that can hardly be told apart are slow."""
MILDER, MILDEST = 0.3, 1e-3
"""A run's last step that leads too far is tried with data so much nearer to the recorded ones, and
so on down to that share: there is no later one to come back by."""
PROMISING = 0.3
"""Share of the best gain so far that data must bring before the failing batch is moved for them."""
COMPARABLE = 0.3
"""Share of the best gain of a round above which a kind of data counts as a help."""
LEAST_GAIN = 1e-3
"""Share of the distance that a round must bring at least."""
SMALL_GAIN = 1e-2
"""A round that brings less looks further ahead the next time."""


@dataclass(slots=True, eq=False)
class _Track:
    """One way of searching, and where it stands.

    Attributes:
        state: Of the run.
        point: The failing batch.
        horizon: Steps it looks ahead.
        contrasts: It tries nothing but contrasts.
        distance: To the goal.
        accepted: The data trained on so far, with the number of steps.
        attempts: Failures that did not happen when they were run again.
        seconds: Taken so far.
        usual: What a step of the last round brought; 0 where the next looks at everything.
        rounds: Taken so far.
        wanted: Distance before which it is not worth while to train again.
    """

    state: State
    point: dict[str, Tensor]
    horizon: int
    contrasts: bool
    distance: float
    accepted: Taken = field(default_factory=list)
    attempts: int = 0
    seconds: float = 0.0
    usual: float = 0.0
    rounds: int = 0
    wanted: float = math.inf


class Search:
    """The search for one defect.

    Args:
        context: Of the analysis.
        defect: To be reached.
        trainer: Runs the steps.
        slots: The inputs that training data may change.
        normalises: The optimizer looks at signs.
        budget: Ends the search.
        most: Steps a run may take.
        start: Weights that begin elsewhere than recorded, by name.
        agrees: Told the batches and their order, says whether they fail in the framework that
            the step was lowered from.
        tried: Told what is tried, in words.
    """

    def __init__(
        self,
        context: Context,
        defect: Defect,
        trainer: Trainer,
        slots: tuple[Slot, ...],
        *,
        normalises: bool,
        budget: Budget,
        most: int,
        start: Mapping[str, Tensor] | None = None,
        agrees: Agrees | None = None,
        tried: list[str] | None = None,
    ) -> None:
        self._context = context
        self._trainer = trainer
        self._budget = budget
        self._most = most
        self._start = dict(start or {})
        self._agrees = agrees
        self._tried = [] if tried is None else tried
        node = context.graph.nodes[defect.node]
        self._is_guess = trainer.is_random and agrees is not None
        draws = trainer.draws() if trainer.is_random and not self._is_guess else []
        self._view = view(context, slots, (defect.operand, *node.operands), draws)
        self._matcher = Matcher(context.program, slots, self._view)
        self._menu = Menu(self._matcher, normalises)
        self._accepted: Taken = []
        self._attempts = 0
        self._step_seconds = 0.0
        self._usual, self._rounds = 0.0, 0
        self._first = self._here = 0.0
        self._is_poor = False
        self._only_contrasts = False
        self._most_seconds = 0.0
        self._is_hastened = False
        self._wanted = math.inf
        self._truth: tuple[State, Taken] | None = None

    def run(self, goals: Sequence[Goal]) -> Course | None:
        """A course towards the first goal that can be reached, each in its share of the time."""
        by_cost = sorted(goals, key=lambda goal: goal.way == "steep")
        for position, goal in enumerate(by_cost):
            left = len(goals) - position
            with self._budget.share(1.0 if left == 1 else LATER / (LATER - 1)):
                course = self.toward(goal)
            if course is not None or self._budget.is_spent:
                return course
        return None

    def toward(self, goal: Goal) -> Course | None:
        """A course towards one goal, or None."""
        self._say(f"inputs alone, operand {goal.way}")
        aim = Aim(goal, self._view, self._budget)
        self._begin()
        aim.consider(self._trainer.weights, aim.ends())
        here = aim.distance(self._trainer.weights)
        for _ in range(FIRST_ROUNDS):
            before, here = here, aim.move(self._trainer.weights, 3)
            found = self._verified(aim)
            if found is not None or here is None or not self._context.program.parameters:
                return found
            if before is None or before - here < NO_GAIN * abs(here):
                break
        self._hasten()
        here = math.inf if here is None else here
        self._first = here
        first = CONTRASTS_FIRST if self._matcher.has_labels else 2 * HELD
        begun = self._trainer.snapshot(), aim.point
        tracks = [
            _Track(*begun, 1, contrasts=False, distance=here),
            _Track(*begun, first, contrasts=True, distance=here),
        ]
        slice_ = self._budget.left / SLICES
        self._most_seconds = self._budget.left / ROUNDS
        while tracks and not self._budget.is_spent:
            nearest = min(tracks, key=lambda one: one.distance)
            track = min(tracks, key=lambda one: one.seconds * (1 if one is nearest else RARER))
            found = self._followed(aim, track, slice_)
            if found is not None:
                return found
            if track.contrasts and self._is_poor and len(tracks) < MOST_TRACKS:
                tracks.append(_Track(*begun, first, contrasts=True, distance=here))
            if track.attempts > PATIENCE or track.horizon > LONGEST:
                tracks.remove(track)
        return None

    def _hasten(self) -> None:
        """Lets the search train by the recorded forward pass, where that gives the same."""
        trainer = self._trainer
        if trainer.quick is None and not self._is_hastened:
            self._is_hastened = True
            compared = self._matcher.comparable()
            trainer.quick = quick(self._context, self._view, compared)
            self._matcher.quick = trainer.quick

    def _be_exact(self) -> None:
        """From now on trains on all rows, which rounds as the step itself does."""
        trainer = self._trainer
        if trainer.quick is not None:
            trainer.quick = quick(self._context, None, self._matcher.comparable())

    def _followed(self, aim: Aim, track: _Track, seconds: float) -> Course | None:
        """Goes on where a track stands, for a while."""
        self._say(_STAGES[track.contrasts])
        self._trainer.restore(track.state)
        self._accepted, self._attempts = track.accepted, track.attempts
        self._usual, self._rounds, self._wanted = track.usual, track.rounds, track.wanted
        self._here = track.distance
        self._only_contrasts = track.contrasts
        aim.point = track.point if track.state.steps else aim.point
        begun = self._budget.left
        self._is_poor = False
        found, track.horizon = self._course(aim, track.horizon, begun - seconds)
        track.seconds += begun - self._budget.left
        track.state, track.point = self._trainer.snapshot(), aim.point
        track.accepted, track.attempts = self._accepted, self._attempts
        track.usual, track.rounds, track.wanted = self._usual, self._rounds, self._wanted
        track.distance = self._here
        return found

    def _say(self, stage: str) -> None:
        if stage not in self._tried:
            self._tried.append(stage)

    def _begin(self) -> None:
        self._trainer.begin(self._start)
        self._accepted, self._attempts = [], 0

    def _course(self, aim: Aim, horizon: int, until: float) -> tuple[Course | None, int]:
        """Rounds until it fails or no more than so much time is left; the horizon then."""
        trainer = self._trainer
        while not self._is_over and self._budget.left > until and horizon <= LONGEST:
            here = aim.move(trainer.weights, MOVES)  # what training did not bring does not count
            if here is None:
                return None, HOPELESS
            begun, steps = here, trainer.steps
            ahead = min(horizon, self._reach, self._most - trainer.steps)
            best = self._best(aim, here, ahead, self._usual)
            if isinstance(best, Course):
                return best, horizon
            if self._is_corrected():
                continue
            if best is None:
                horizon = horizon * LONGER if ahead == horizon else HOPELESS
                continue
            here, cycle = best
            found = self._verified(aim)
            if found is not None:
                return found, horizon
            outcome = self._onward(aim, cycle, here, (begun - here) / ahead, ahead)
            if isinstance(outcome, Course):
                return outcome, horizon
            if self._is_corrected():
                continue
            here = self._here = outcome
            taken = max(trainer.steps - steps, 1)
            rate = (begun - here) / taken
            if begun - here < SMALL_GAIN * abs(begun):
                horizon = max(horizon * LONGER, min(taken // AHEAD, LONGEST))
                rate = 0.0  # the next round looks at everything
            self._rounds += 1
            mean = (self._first - here) / max(trainer.steps, 1)
            self._is_poor = rate < POOR * mean
            goes_on = self._rounds % EVERYTHING and not self._is_poor
            self._usual = rate if goes_on else 0.0
        return None, horizon if trainer.steps < self._most else HOPELESS

    @property
    def _is_over(self) -> bool:
        return (
            self._budget.is_spent or self._trainer.steps >= self._most or self._attempts > PATIENCE
        )

    @property
    def _reach(self) -> int:
        """Steps that there is time to look ahead."""
        tried = KINDS if self._only_contrasts else TRIALS
        return max(int(self._budget.left / (tried * self._step_seconds + 1e-9)), 1)

    # --- a round ----------------------------------------------------------------------------

    def _best(
        self, aim: Aim, here: float, horizon: int, usual: float
    ) -> tuple[float, Cycle] | Course | None:
        """The data that bring the goal nearest within the horizon; they have been trained on."""
        trainer = self._trainer
        before = trainer.snapshot()
        point = aim.point
        wanted = here - LEAST_GAIN * max(abs(here), 1.0)
        best: tuple[float, Cycle, int] | None = None
        kept: tuple[State, dict[str, Tensor]] | None = None
        chosen = ""
        reached: dict[str, float] = {}
        accepted = [one for one, _ in self._accepted]
        offers = self._menu.offers(aim, trainer.weights, horizon, accepted, self._only_contrasts)
        until = self._budget.left - self._most_seconds
        is_last = self._most - trainer.steps == 1
        milder: list[tuple[str, Cycle, float]] = []  # grows while it is gone through
        whole = ((kind, cycle, 1.0) for kind, cycle in offers)
        for number, (kind, cycle, share) in enumerate(chain(whole, milder), 1):
            trainer.restore(before)
            aim.point = point
            if self._is_over:
                break
            taken = self._train(aim, cycle, horizon)
            if isinstance(taken, Course):
                return taken
            promised = math.inf if best is None else here - PROMISING * (here - best[0])
            if self._truth is not None:
                return None
            distance = aim.move(trainer.weights, MOVES, promised) if taken else None
            if distance is not None:
                reached[kind] = max(distance, reached.get(kind, distance))
            else:
                self._menu.helped(kind, False)
                milder += self._milder(kind, cycle, share * MILDER) if is_last else ()
            if distance is not None and distance < (wanted if best is None else best[0]):
                state, moved = trainer.snapshot(), aim.point
                is_end = is_last or aim.fails(trainer.weights)
                if not is_end and trainer.step(cycle[0]) != "stepped":
                    continue  # a dead end: another operator fails next
                best, kept, chosen = (distance, cycle, taken), (state, moved), kind
                if (here - distance) / taken >= SLOWING * usual > 0:
                    break  # as good as it was: no need to look for better
            if number >= TRIALS and self._budget.left < until:
                break
        for kind, distance in reached.items():
            near = wanted if best is None else here - COMPARABLE * (here - best[0])
            self._menu.helped(kind, distance <= near)
        if best is None or kept is None:
            trainer.restore(before)
            aim.point = point
            return None
        trainer.restore(kept[0])
        aim.point = kept[1]
        self._menu.chose(chosen)
        self._accepted.append((best[1], best[2]))
        return best[0], best[1]

    def _milder(self, kind: str, cycle: Cycle, share: float) -> Iterator[tuple[str, Cycle, float]]:
        """The same data nearer to the recorded ones, unless they are nearly those."""
        if share > MILDEST:
            nearer = tuple(self._matcher.milder(batch, MILDER) for batch in cycle)
            yield kind, nearer, share

    def _onward(
        self, aim: Aim, cycle: Cycle, here: float, usual: float, horizon: int
    ) -> float | Course:
        """Trains on as long as it helps as much as at first."""
        trainer = self._trainer
        count = horizon
        until = self._budget.left * (1 - ONWARD)
        while not self._is_over:
            before, point = trainer.snapshot(), aim.point
            taken = self._train(aim, cycle, count)
            if isinstance(taken, Course):
                return taken
            distance = aim.move(trainer.weights, MOVES) if taken else None
            rate = 0.0 if distance is None else (here - distance) / taken
            if distance is None or here - distance < LEAST_GAIN * max(abs(here), 1.0):
                trainer.restore(before)
                aim.point = point
                return here
            here = distance
            self._accepted.append((cycle, taken))
            found = self._verified(aim)
            if found is not None:
                return found
            if rate < SLOWING * usual or self._budget.left < until:
                return here
            count = min(2 * count, LONGEST)
        return here

    def _train(self, aim: Aim, cycle: Cycle, count: int) -> int | Course:
        """Steps on a cycle of batches; how many were taken, 0 if one went wrong elsewhere."""
        trainer = self._trainer
        count = min(-(-count // len(cycle)) * len(cycle), self._most - trainer.steps)
        started = time.process_time()
        for number in range(count):
            batch = cycle[number % len(cycle)]
            ended = trainer.step(batch)
            if ended != "stepped":
                if ended != "refused" and trainer.failure(batch) is not None:
                    order = [*self._accepted, (cycle, number)]
                    course = self._confirmed(order, batch)
                    if course is not None:
                        return course
                    if trainer.quick is not None and trainer.steps == length(order):
                        self._be_exact()  # it has led elsewhere: go on from what is true
                        self._truth = trainer.snapshot(), order
                return 0
            if self._budget.is_spent:
                return number + 1
        self._step_seconds = (time.process_time() - started) / count
        return count

    def _is_corrected(self) -> bool:
        """Goes to where a failure that did not happen again has led, if there was one."""
        if self._truth is None:
            return False
        state, order = self._truth
        self._trainer.restore(state)
        self._accepted = [(cycle, count) for cycle, count in order if count]
        self._truth = None
        return True

    # --- the proof --------------------------------------------------------------------------

    def _verified(self, aim: Aim) -> Course | None:
        trainer = self._trainer
        if not aim.fails(trainer.weights):
            return None
        distance = aim.distance(trainer.weights) if self._is_guess else None
        if distance is not None and distance > self._wanted:
            return None
        state = trainer.snapshot()
        course = self._confirmed(self._accepted, aim.batch(), aim)
        if course is not None:
            return course
        if trainer.steps == state.steps and not aim.fails(trainer.weights):
            self._be_exact()  # rounding on fewer rows has led elsewhere: go on from what is true
            return None
        if distance is not None:  # it does with other random numbers than were assumed
            self._wanted = distance - MARGIN
            trainer.restore(state)
            return None
        self._attempts += 1
        if self._attempts % AFRESH:
            trainer.restore(state)
        else:  # a run that rounding decides is not mended by going on
            trainer.begin(self._start)
            self._accepted, self._usual = [], 0.0
        return None

    def _confirmed(self, taken: Taken, failing: Batch, aim: Aim | None = None) -> Course | None:
        """Trains again from the beginning."""
        return trained_again(
            self._trainer, self._start, taken, failing, aim=aim, agrees=self._agrees
        )
