"""What a symptom is: a pure rule over a bounded window of readings, run by a monitor."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean, median
from typing import Any, ClassVar, Literal, TypeVar

from ranum.errors import ArgumentError, RanumWarning
from ranum.guards.types import Finding, Reading, Severity

START = 16
"""Readings that define what the untrained model's loss is like."""
_RECENT = 256
_SUMMARY = 128
_SAMPLES = 16
_VALIDATIONS = 256
_FIRST_NORMS = 8
_BLOCKS = 64
_AGAIN = 200


@dataclass(frozen=True, slots=True)
class Summary:
    """Statistics of some values.

    Attributes:
        count: Values summarised.
        mean: Arithmetic mean.
        deviation: Standard deviation, dividing by `count`.
        median: Middle value.
        upper: Largest value.
    """

    count: int
    mean: float
    deviation: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary | None:
        """Summarises finite values; None if there are none."""
        if not values:
            return None
        ordered = sorted(values)
        # Scaled, so that values near the float range do not overflow when squared.
        scale = max(abs(ordered[0]), abs(ordered[-1])) or 1.0
        scaled = [value / scale for value in values]
        mean = fmean(scaled)
        deviation = math.sqrt(fmean([(value - mean) ** 2 for value in scaled]))
        middle = ordered[len(ordered) // 2]
        return cls(len(ordered), mean * scale, deviation * scale, middle, ordered[-1])


@dataclass(frozen=True, slots=True)
class Start:
    """The loss of the untrained model.

    Attributes:
        level: Median of the first 16 losses; the very first one where it is the lowest or the
            highest of them, because then training has already changed it.
        scale: What counts as a large change of this loss: the size of the level, or three
            standard deviations of the first losses where these are larger (a loss that can
            be negative may start anywhere).
        crosses_zero: The first losses have both signs.
        first: The very first loss, which no update had a part in.
        median: Of the first 16 losses; less noisy than `level` where training changes nothing.
    """

    level: float
    scale: float
    crosses_zero: bool = False
    first: float = 0.0
    median: float = 0.0


class Recent:
    """The last 256 finite values of a quantity; its summary is at most 16 values old."""

    __slots__ = ("_age", "_steps", "_summary", "_values")

    def __init__(self) -> None:
        self._steps: deque[int] = deque(maxlen=_RECENT)
        self._values: deque[float] = deque(maxlen=_RECENT)
        self._summary: Summary | None = None
        self._age = 0

    def __len__(self) -> int:
        return len(self._values)

    def push(self, step: int, value: float) -> None:
        """Adds a value; the oldest one leaves when there is no room."""
        self._steps.append(step)
        self._values.append(value)
        self._age += 1

    def forget(self, to_step: int) -> None:
        """Drops the values of `to_step` and later."""
        while self._steps and self._steps[-1] >= to_step:
            self._steps.pop()
            self._values.pop()
        self._summary = None

    def last(self, count: int) -> list[float]:
        """The newest values, oldest first; fewer if there are not as many."""
        values = self._values
        return [values[i] for i in range(max(0, len(values) - count), len(values))]

    @property
    def summary(self) -> Summary | None:
        """Statistics of the last 128 values; None if there are none."""
        if self._summary is None or self._age * 8 >= min(len(self._values), _SUMMARY):
            self._summary = Summary.of(self.last(_SUMMARY))
            self._age = 0
        return self._summary


class Trend:
    """The whole run as at most 64 block means; blocks double in length when they are full."""

    __slots__ = ("_count", "_ends", "_size", "_sum", "means")

    def __init__(self) -> None:
        self.means: list[float] = []
        self._ends: list[int] = []
        self._size = 1
        self._count = 0
        self._sum = 0.0

    def push(self, step: int, value: float) -> None:
        """Adds a value to the open block."""
        self._sum += value / self._size
        self._count += 1
        if self._count < self._size:
            return
        self.means.append(self._sum)
        self._ends.append(step)
        self._sum, self._count = 0.0, 0
        if len(self.means) == _BLOCKS:
            pairs = zip(self.means[::2], self.means[1::2], strict=True)
            self.means = [a / 2 + b / 2 for a, b in pairs]
            self._ends = self._ends[1::2]
            self._size *= 2

    def forget(self, to_step: int) -> None:
        """Drops the blocks that reach `to_step`, and the open one."""
        while self._ends and self._ends[-1] >= to_step:
            self._ends.pop()
            self.means.pop()
        self._sum, self._count = 0.0, 0

    @property
    def count(self) -> int:
        """Values in closed blocks."""
        return len(self.means) * self._size


@dataclass(frozen=True, slots=True)
class Validation:
    """A validation, next to the training of its time.

    Attributes:
        step: Of the first reading after it.
        loss: On data that is not trained on.
        training: Median of the last 32 training losses.
    """

    step: int
    loss: float
    training: float


class Window:
    """Readings so far, in bounded memory.

    The statistics hold finite values only and cover the readings *before* the latest one, so
    that a value is compared with a past it is not part of.

    Attributes:
        losses: Recent losses.
        norms: Recent global gradient norms.
        trend: The losses of the whole run.
        validations: The last 256 validations whose loss was finite, oldest first, that of the
            latest reading included.
        count: Readings seen, the latest one included.
    """

    __slots__ = (
        "_first",
        "_first_norms",
        "_latest",
        "_samples",
        "_start",
        "count",
        "losses",
        "norms",
        "trend",
        "validations",
    )

    def __init__(self) -> None:
        self.validations: deque[Validation] = deque(maxlen=_VALIDATIONS)
        self.losses = Recent()
        self.norms = Recent()
        self.trend = Trend()
        self.count = 0
        self._samples: deque[Reading] = deque(maxlen=_SAMPLES)
        self._first: list[tuple[int, float]] = []
        self._first_norms: list[tuple[int, float]] = []
        self._start: Start | None = None
        self._latest: Reading | None = None

    @property
    def latest(self) -> Reading:
        """The reading to be judged.

        Raises:
            LookupError: If there is none yet.
        """
        if self._latest is None:
            raise LookupError("the window has no reading yet.")
        return self._latest

    @property
    def samples(self) -> tuple[Reading, ...]:
        """The last 16 sampled readings, the latest one included, oldest first."""
        return tuple(self._samples)

    @property
    def start(self) -> Start | None:
        """The untrained model's loss.

        None before 16 readings, and in a run whose beginning was not seen (its first reading
        is later than step 16: resumed from a checkpoint).
        """
        if self._start is None and len(self._first) == START and self._first[0][0] <= START:
            self._start = _start([loss for _, loss in self._first])
        return self._start

    @property
    def crosses_zero(self) -> bool:
        """True if the first losses or the recent ones have both signs.

        Then the loss is no distance to anything (a critic's, a policy gradient's surrogate, or a
        likelihood on its way through zero), and neither its level nor its swings say how well
        training goes.
        """
        recent, start = self.losses.last(_RECENT), self.start
        return bool(recent and min(recent) < 0 < max(recent)) or (
            start is not None and start.crosses_zero
        )

    @property
    def first_norm(self) -> float | None:
        """Median of the run's first eight gradient norms; None if there are none."""
        norms = self._first_norms
        return median(norm for _, norm in norms) if norms else None

    @property
    def progress(self) -> float | None:
        """How far the loss has fallen from its start, in units of the start's scale.

        0 is no progress; 1 is a loss of zero for a loss that cannot be negative. The loss of
        now is the median of the last 32. None if it is not known.
        """
        start = self.start
        if start is None or not len(self.losses):
            return None
        return (start.level - median(self.losses.last(32))) / start.scale

    def add(self, reading: Reading) -> None:
        """Makes the reading the latest one, and the one before it part of the past."""
        before = self._latest
        if before is not None:
            self._fold(before)
        self._latest = reading
        self.count += 1
        if reading.is_sampled:
            self._samples.append(reading)
        validation = reading.validation_loss
        if validation is not None and math.isfinite(validation) and len(self.losses):
            training = median(self.losses.last(32))
            self.validations.append(Validation(reading.step, validation, training))

    def reset(self, to_step: int) -> None:
        """Forgets the readings of `to_step` and later: training continues from there.

        The start of the run, once known, stays known.
        """
        if self._latest is not None:
            self._fold(self._latest)
            self._latest = None
        self.losses.forget(to_step)
        self.norms.forget(to_step)
        self.trend.forget(to_step)
        while self._samples and self._samples[-1].step >= to_step:
            self._samples.pop()
        while self.validations and self.validations[-1].step >= to_step:
            self.validations.pop()
        if self.start is None:
            self._first = [(step, loss) for step, loss in self._first if step < to_step]
        self._first_norms = [(step, norm) for step, norm in self._first_norms if step < to_step]

    def _fold(self, reading: Reading) -> None:
        loss, norm = reading.loss, reading.grad_norm
        if loss is not None and math.isfinite(loss):
            self.losses.push(reading.step, loss)
            self.trend.push(reading.step, loss)
            if len(self._first) < START:
                self._first.append((reading.step, loss))
        if norm is not None and math.isfinite(norm):
            self.norms.push(reading.step, norm)
            if len(self._first_norms) < _FIRST_NORMS:
                self._first_norms.append((reading.step, norm))


def _start(losses: list[float]) -> Start:
    first, level = losses[0], median(losses)
    middle = level
    if first == min(losses) and level > 2 * abs(first) > 0:
        # Training blew up at once: the spread says nothing about the untrained model.
        return Start(first, abs(first), first=first, median=middle)
    if first in (min(losses), max(losses)):
        level = first
    center = fmean(losses)
    spread = math.sqrt(fmean(min(abs(loss - center), 1e150) ** 2 for loss in losses))
    crosses = min(losses) < 0 < max(losses)
    return Start(level, max(abs(level), 3 * spread) or 1.0, crosses, first, middle)


def so_far(progress: float) -> str:
    """How far the loss has come, in words: the progress of `Window.progress`."""
    if progress < -1:
        return "the loss is far above its start"
    return f"the loss has made {progress:.0%} of its way"


@dataclass(frozen=True, slots=True)
class Symptom:
    """A rule over readings; its fields are its thresholds.

    A subclass is a frozen dataclass with a `check` that depends on the window alone, and a
    docstring with the headings What it finds, Why it matters, Thresholds and their source,
    Known misses, Remedies, Example, References. `register` puts it under its code.
    """

    code: ClassVar[str]
    severity: ClassVar[Severity]
    needs: ClassVar[Literal["step", "sample"]] = "step"
    """"step": can judge every reading; "sample": only those with per-layer statistics."""
    every: ClassVar[int] = 1
    """Readings between two checks; more than 1 for rules over slow trends."""
    is_of_run: ClassVar[bool] = False
    """True if leaving out one batch cannot help: the finding is about the run, not a step."""

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        raise NotImplementedError

    def find(self, window: Window, message: str, *, where: str = "", **evidence: float) -> Finding:
        """A finding of this symptom for the latest reading; evidence is kept where finite."""
        return Finding(
            code=self.code,
            symptom=type(self).__name__,
            step=window.latest.step,
            severity=self.severity,
            message=message,
            where=where,
            evidence={name: value for name, value in evidence.items() if math.isfinite(value)},
        )

    def require(self, *names: str, above: float = 0.0, to: float = math.inf) -> None:
        """Checks that the fields are numbers in (above, to].

        Raises:
            ArgumentError: If one is not.
        """
        for name in names:
            value = getattr(self, name)
            rule = f"greater than {above:g}" + ("" if to == math.inf else f" and at most {to:g}")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ArgumentError(f"{name} must be a number {rule}; got {value!r}.")
            if not above < value <= to:
                raise ArgumentError(f"{name} must be {rule}; got {value!r}.")

    def require_count(self, *names: str, to: int) -> None:
        """Checks that the fields are integers from 1 to `to`.

        Raises:
            ArgumentError: If one is not.
        """
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= to:
                raise ArgumentError(f"{name} must be an integer from 1 to {to}; got {value!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data: code, name and thresholds."""
        thresholds = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"code": self.code, "symptom": type(self).__name__, **thresholds}


CODES: dict[str, type[Symptom]] = {}
"""Every symptom by its code."""

_S = TypeVar("_S", bound=type[Symptom])


def register(symptom: _S) -> _S:
    """Class decorator: enters a symptom under its code.

    Raises:
        ArgumentError: If the code is not "RN2" (training) or "RN3" (data and configuration) and
            two digits, is taken, or the class has no docstring.
    """
    code = getattr(symptom, "code", "")
    if len(code) != 5 or not code.startswith(("RN2", "RN3")) or not code[3:].isdigit():
        raise ArgumentError(
            f"code of {symptom.__name__} must be RN2 or RN3 and two digits; got {code!r}."
        )
    if code in CODES:
        raise ArgumentError(f"code {code} is taken by {CODES[code].__name__}; choose a new one.")
    if not symptom.__doc__ or symptom.__doc__.startswith(f"{symptom.__name__}("):
        raise ArgumentError(f"{symptom.__name__} has no docstring; it is the page of {code}.")
    CODES[code] = symptom
    return symptom


class Monitor:
    """Runs symptoms over a stream of readings.

    Faults are reported every time. A warning is reported once for a place and again only
    after it had been away for 200 readings. A symptom that raises is reported once, as a
    `RanumWarning` and in `internal_faults`, and not asked again.

    Args:
        symptoms: The rules to run.
        strict: Raise what a symptom raises, instead of switching it off.

    Raises:
        ArgumentError: If something in `symptoms` is not a symptom.
    """

    def __init__(self, symptoms: Iterable[Symptom], *, strict: bool = False) -> None:
        self.symptoms: tuple[Symptom, ...] = tuple(symptoms)
        for symptom in self.symptoms:
            if not isinstance(symptom, Symptom):
                raise ArgumentError(
                    f"symptoms must be Symptom instances; got {symptom!r}. "
                    "Pass objects, as in NonFinite()."
                )
        self.strict = strict
        self.window = Window()
        self.internal_faults: list[str] = []
        self._active = list(self.symptoms)
        self._seen: dict[tuple[str, str], int] = {}

    def __repr__(self) -> str:
        return f"Monitor({list(self.symptoms)!r}, strict={self.strict})"

    def silence(self, code: str) -> None:
        """Runs the symptoms of a code no more."""
        self._active = [symptom for symptom in self._active if symptom.code != code]

    def observe(self, reading: Reading) -> tuple[Finding, ...]:
        """Takes up a reading and returns what is new about it, faults first."""
        window = self.window
        window.add(reading)
        findings: list[Finding] = []
        broken: list[Symptom] = []
        for symptom in self._active:
            if symptom.needs == "sample":
                if not reading.is_sampled:
                    continue
            elif symptom.every > 1 and window.count % symptom.every:
                continue
            try:
                finding = symptom.check(window)
            except Exception as error:
                if self.strict:
                    raise
                broken.append(symptom)
                self._report(symptom, error)
                continue
            if finding is not None and self._is_new(finding):
                findings.append(finding)
        if broken:
            self._active = [s for s in self._active if not any(s is b for b in broken)]
        return tuple(sorted(findings, key=lambda finding: finding.severity != "fault"))

    def reset(self, to_step: int) -> None:
        """Forgets the readings of `to_step` and later, as after a rollback to it."""
        self.window.reset(to_step)

    def _is_new(self, finding: Finding) -> bool:
        key, now = (finding.code, finding.where), self.window.count
        before = self._seen.get(key)
        self._seen[key] = now
        return finding.severity == "fault" or before is None or now - before > _AGAIN

    def _report(self, symptom: Symptom, error: Exception) -> None:
        name = type(symptom).__name__
        line = f"{name} ({symptom.code}) is switched off: {type(error).__name__}: {error}"
        self.internal_faults.append(line)
        warnings.warn(f"{line}. Training is not affected.", RanumWarning, stacklevel=3)
