"""What is done about a fault: a ladder of remedies, mildest first."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ranum.errors import ArgumentError, RanumWarning
from ranum.guards.health import is_finite
from ranum.guards.symptoms import CODES
from ranum.guards.types import Culprit, Finding, Reading

if TYPE_CHECKING:
    from ranum.guards.base import GuardBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A step that must not be taken.

    Attributes:
        finding: The symptom that decided.
        reading: What was measured.
        step: Step that is withheld.
        epoch: Counting from 0.
        culprit: None where the replay found none, or there was nothing to replay.
        is_transient: The whole step was run again, on the same numbers, and was finite, or had
            other gradients: the hardware or chance did it, not the data nor the weights.
        was_taken: The step has changed the weights already: to leave it out means to go back.
    """

    finding: Finding
    reading: Reading
    step: int
    epoch: int = 0
    culprit: Culprit | None = None
    is_transient: bool = False
    was_taken: bool = False

    @property
    def is_of_run(self) -> bool:
        """True if leaving out this batch cannot help: it is about the run, not a step."""
        return self.finding.severity == "warning" or CODES[self.finding.code].is_of_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a remedy did.

    Attributes:
        action: Name of the remedy.
        detail: One sentence on what it did.
        back_to: Step of the snapshot gone back to; None if none was.
        patch: Unified diff of a live patch that was inserted; "" if none.
        stop: Training should end.
        restart: Training should start over from a new configuration.
        proceed: The gradients have been mended: the step is taken after all.
    """

    action: str
    detail: str
    back_to: int | None = None
    patch: str = ""
    stop: bool = False
    restart: bool = False
    proceed: bool = False


@runtime_checkable
class Remedy(Protocol):
    """Something that can be done about a fault.

    By the time a remedy is asked, the guard has withheld the step, dropped its gradients and
    put buffers and torch's random numbers back to before the batch. A remedy with a
    `state_dict` and a `load_state_dict` of plain data is saved with the guard.
    """

    @property
    def name(self) -> str:
        """Word for incidents and reports: "skip"."""

    def apply(self, fault: Fault, guard: GuardBase) -> Outcome | None:
        """Acts; None, with nothing changed, if it does not fit this fault or is used up."""


class Retry:
    """Trains on the batch once more: the result is that of a run without the fault.

    Fits a fault that did not come again when the step was replayed (a flipped bit, a race),
    where the batch can come again. Twice in a row it does not fit.

    Args:
        limit: Most retries within `apart` steps; hardware that goes on failing needs a person.
        apart: Steps after which a retry is forgotten.

    Raises:
        ArgumentError: If an argument is not a positive integer.
    """

    name = "retry"

    def __init__(self, limit: int = 3, apart: int = 100) -> None:
        _require_positive_int(limit=limit, apart=apart)
        self.limit = limit
        self.apart = apart
        self._recent: list[int] = []

    def __repr__(self) -> str:
        return f"Retry(limit={self.limit}, apart={self.apart})"

    def apply(self, fault: Fault, guard: GuardBase) -> Outcome | None:
        """Asks for the batch again; None if it does not fit."""
        recent = [step for step in self._recent if fault.step - step <= self.apart]
        is_again = bool(recent) and fault.step == recent[-1] + 1
        if not fault.is_transient or is_again or len(recent) >= self.limit or not guard.retry():
            return None
        self._recent = [*recent, fault.step]
        return Outcome(
            action=self.name,
            detail=(
                "the step had ordinary gradients when it was run again"
                if is_finite(fault.reading)
                else "the step was finite when it was run again"
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a `state_dict` back."""
        self._recent = [int(step) for step in state["recent"]]


class Skip:
    """Leaves the batch out: weights, moments and statistics are as if it had never come.

    Of a step that accumulates the gradients of several micro-batches, only the bad ones are left
    out, and the others weigh more, where they can be run again one by one.

    Fits a fault whose culprit is the batch itself, and a fault without a culprit that comes
    alone. Not an operator's: the weights that led there would lead there again. Nor one that
    is about the run rather than a step (`Symptom.is_of_run`).

    Args:
        limit: Most steps left out in a row; a data set that is bad throughout must not be
            skipped to its end.
        apart: Steps without a fault before one that has no culprit counts as alone.

    Raises:
        ArgumentError: If an argument is not a positive integer.
    """

    name = "skip"

    def __init__(self, limit: int = 3, apart: int = 20) -> None:
        _require_positive_int(limit=limit, apart=apart)
        self.limit = limit
        self.apart = apart
        self._last = -1
        self._row = 0

    def __repr__(self) -> str:
        return f"Skip(limit={self.limit}, apart={self.apart})"

    def apply(self, fault: Fault, guard: GuardBase) -> Outcome | None:
        """Does nothing more: the guard has left no trace of the batch."""
        culprit = fault.culprit
        if fault.is_of_run or fault.was_taken:
            return None
        if culprit is None:
            incidents = [one for one in guard.history.incidents if one.action != Retry.name]
            if incidents and fault.step - incidents[-1].step <= self.apart:
                return None
            detail = "left the batch out: a single fault whose origin was not found"
        elif culprit.cause == "data":
            detail = f"left the batch out: {culprit.outcome} in {culprit.name}"
        else:
            return None
        row = self._row + 1 if fault.step == self._last + 1 else 1
        if row > self.limit:
            return None
        self._last, self._row = fault.step, row
        parts = guard.leave_out_parts()
        if parts is not None:
            return Outcome(
                action="skip part",
                detail=f"left {parts} out; the others weigh more",
                proceed=True,
            )
        return Outcome(action=self.name, detail=detail)

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"last": self._last, "row": self._row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a `state_dict` back."""
        self._last, self._row = int(state["last"]), int(state["row"])


PAST = 16
"""Norms that a run's usual gradient is taken from, at least."""


class ClipGradients:
    """Clips gradients for a while, at a level from the run's own past.

    Fits a gradient that explodes and is finite, in a run whose loss was as usual until then: what
    is far off already needs to go back. The batch comes once more, and its gradient is clipped
    like all others; where it cannot come again it is left out. While it clips, and for as long
    again, it does not fit a second time.

    Args:
        factor: Level over the median of the last 100 norms. Pascanu et al. (2013, section 3.2)
            find 0.5 to 10 times the average norm to do equally well.
        steps: How long gradients are clipped.

    Raises:
        ArgumentError: If an argument is out of range.

    References:
        Pascanu, Mikolov, Bengio: On the difficulty of training recurrent neural networks, 2013,
        https://arxiv.org/abs/1211.5063
    """

    name = "clip_gradients"

    def __init__(self, factor: float = 2.0, steps: int = 200) -> None:
        if isinstance(factor, bool) or not 0 < factor < math.inf:
            raise ArgumentError(f"factor must be positive and finite; got {factor!r}.")
        _require_positive_int(steps=steps)
        self.factor = factor
        self.steps = steps
        self._since: int | None = None

    def __repr__(self) -> str:
        return f"ClipGradients(factor={self.factor}, steps={self.steps})"

    def apply(self, fault: Fault, guard: GuardBase) -> Outcome | None:
        """Sets the level; None if the gradient is not finite, or there is no past to go by."""
        norm = fault.reading.grad_norm
        is_fit = fault.finding.symptom == "ExplodingGradient" and guard.can_limit_gradients
        if not is_fit or fault.was_taken or norm is None or not math.isfinite(norm):
            return None
        if self._since is not None and fault.step - self._since <= 2 * self.steps:
            return None
        past = [one for one in guard.history.readings[-101:] if one.step < fault.step]
        norms = _finite(one.grad_norm for one in past)
        losses = _finite(one.loss for one in past)
        usual = median(norms) if norms else 0.0
        is_far_off = losses and median(losses[-8:]) > median(losses) + abs(median(losses))
        if len(norms) < PAST or is_far_off or not 0 < usual * self.factor < norm:
            return None
        level = float(f"{usual * self.factor:.3g}")
        self._since = fault.step
        guard.limit_gradients(level, steps=self.steps)
        what = "the batch comes again" if guard.retry() else "the batch is left out"
        return Outcome(
            action=self.name,
            detail=f"gradients are clipped to norm {level:g} for {self.steps} steps; {what}",
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a `state_dict` back."""
        self._since = None if state["since"] is None else int(state["since"])


class Rollback:
    """Goes back to a good snapshot, and on with smaller learning rates for a while.

    The first fault goes back to the newest snapshot, and to its batches where they can come
    again and are not to blame. Each further fault within `patience` steps of the rollback before
    goes one deeper: an older snapshot, in the end the first state of the run; the data goes on
    then, for the same batches have led there twice. Where weights or moments were not finite
    while every gradient had been (a flipped bit), the first way back leaves the learning rates
    alone.

    Learning rates come back up after a while; each time that they have to be lowered again they
    stay down twice as long. A warning that is acted on (`Guard(act_on=...)`) is not its business.

    Args:
        learning_rate_factor: What learning rates are multiplied by, each time; in (0, 1].
            AutoTrainer and entrenar halve or decimate; a half costs least where the rate was
            not the reason.
        limit: Most rollbacks in a chain, each within `patience` steps of the one before;
            then it is used up until so many steps have passed. A first one that goes back to its
            batches is not counted: it costs nothing but time.
        patience: Steps without a fault after which a rollback counts as a success.
        lasts: Steps for which learning rates stay down the first time; None for good.

    Raises:
        ArgumentError: If an argument is out of range.
    """

    name = "rollback"

    def __init__(
        self,
        learning_rate_factor: float = 0.5,
        limit: int = 3,
        patience: int = 200,
        lasts: int | None = 1000,
    ) -> None:
        if not 0 < learning_rate_factor <= 1:
            raise ArgumentError(
                f"learning_rate_factor must be in (0, 1]; got {learning_rate_factor!r}. "
                "1 keeps the learning rates."
            )
        _require_positive_int(limit=limit, patience=patience)
        if lasts is not None:
            _require_positive_int(lasts=lasts)
        self.learning_rate_factor = learning_rate_factor
        self.limit = limit
        self.patience = patience
        self.lasts = lasts
        self._cuts = 0
        self._recent: list[int] = []
        self._was_rewound = False

    def __repr__(self) -> str:
        return (
            f"Rollback(learning_rate_factor={self.learning_rate_factor}, limit={self.limit}, "
            f"patience={self.patience}, lasts={self.lasts})"
        )

    def apply(self, fault: Fault, guard: GuardBase) -> Outcome | None:
        """Goes back; None if it went back too often, or there is no snapshot."""
        if fault.finding.severity == "warning":
            return None
        is_over = not self._recent or fault.step - self._recent[-1] > self.patience
        recent = [] if is_over else self._recent
        if len(recent) >= self.limit + (self._was_rewound and not is_over):
            return None
        is_data = fault.culprit is not None and fault.culprit.cause == "data"
        back_to = guard.go_back(len(recent), rewind=not recent and not is_data)
        if back_to is None:
            return None
        if not recent:
            self._was_rewound = guard.is_rewound
        self._recent = [*recent, fault.step]
        detail = f"went back to step {back_to}"
        detail += " and its batches" if guard.is_rewound else ""
        # Numbers that were damaged at rest say nothing about the learning rate; twice they do.
        is_damage = fault.culprit is not None and fault.culprit.cause == "weights"
        if self.learning_rate_factor < 1 and not (is_damage and len(self._recent) == 1):
            steps = None if self.lasts is None else self.lasts * 2**self._cuts
            guard.scale_learning_rates(self.learning_rate_factor, steps=steps)
            self._cuts += 1
            detail += f"; learning rate x {self.learning_rate_factor:.2g}"
            detail += "" if steps is None else f" for {steps} steps"
        return Outcome(action=self.name, detail=detail, back_to=back_to)

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "recent": list(self._recent),
            "was_rewound": self._was_rewound,
            "cuts": self._cuts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a `state_dict` back."""
        self._recent = [int(step) for step in state["recent"]]
        self._was_rewound = bool(state.get("was_rewound", False))
        self._cuts = int(state.get("cuts", 0))


class Stop:
    """Ends training; with the newest snapshot's weights if those of now are not finite."""

    name = "stop"

    def __repr__(self) -> str:
        return "Stop()"

    def apply(self, fault: Fault, guard: GuardBase) -> Outcome | None:
        """Fits every fault, and no warning."""
        if fault.finding.severity == "warning":
            return None
        back_to = None
        if fault.culprit is not None and fault.culprit.cause == "weights":
            back_to = guard.go_back(rewind=False)
        what = "training ends: " + fault.finding.message
        if back_to is not None:
            what += f" The weights are those of step {back_to}."
        return Outcome(action=self.name, detail=what, back_to=back_to, stop=True)


_BY_NAME: dict[str, Callable[[], Remedy]] = {
    "retry": Retry,
    "skip": Skip,
    "clip_gradients": ClipGradients,
    "rollback": Rollback,
    "stop": Stop,
}


class Ladder:
    """Remedies in the order in which they are tried.

    Args:
        remedies: Objects, or names of built-in ones ("retry", "skip", "clip_gradients",
            "rollback", "stop").
        strict: Raise what a remedy raises, instead of switching it off.

    Raises:
        ArgumentError: If something is neither a remedy nor the name of one.
    """

    def __init__(self, remedies: Iterable[Remedy | str], *, strict: bool = False) -> None:
        self.remedies: Sequence[Remedy] = tuple(_remedy(remedy) for remedy in remedies)
        self.strict = strict
        self.internal_faults: list[str] = []
        self._active = list(self.remedies)

    def __repr__(self) -> str:
        return f"Ladder({list(self.remedies)!r}, strict={self.strict})"

    def apply(self, fault: Fault, guard: GuardBase) -> Outcome | None:
        """Lets the first remedy that fits act; None if none does."""
        for remedy in list(self._active):
            try:
                outcome = remedy.apply(fault, guard)
            except Exception as error:
                if self.strict:
                    raise
                self._active.remove(remedy)
                self._report(remedy, error)
                continue
            if outcome is not None:
                return outcome
        return None

    def _report(self, remedy: Remedy, error: Exception) -> None:
        line = f"remedy {remedy.name!r} is switched off: {type(error).__name__}: {error}"
        self.internal_faults.append(line)
        warnings.warn(f"{line}. The next one is tried.", RanumWarning, stacklevel=2)


def default_remedies() -> tuple[Remedy, ...]:
    """Retry, skip, clip gradients, roll back, stop."""
    return (Retry(), Skip(), ClipGradients(), Rollback(), Stop())


def go_back(guard: GuardBase, fault: Fault) -> int | None:
    """Goes back to the newest snapshot, for remedies that then change something else.

    Returns:
        The step gone back to; None, with nothing changed, if there is no snapshot.
    """
    return guard.go_back()


def scale_learning_rates(guard: GuardBase, factor: float) -> None:
    """Multiplies all learning rates, so that it persists under schedulers and rollbacks."""
    guard.scale_learning_rates(factor)


def _remedy(remedy: Any) -> Remedy:
    if isinstance(remedy, str):
        if remedy not in _BY_NAME:
            known = ", ".join(repr(name) for name in _BY_NAME)
            raise ArgumentError(f"remedies must be objects or among {known}; got {remedy!r}.")
        return _BY_NAME[remedy]()
    if isinstance(remedy, type) or not isinstance(remedy, Remedy):
        raise ArgumentError(
            f"remedies must have a name and an apply method; got {remedy!r}. "
            "Pass objects, as in Rollback()."
        )
    return remedy


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _require_positive_int(**arguments: Any) -> None:
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name} must be a positive integer; got {value!r}.")
