"""The readings of a run in bounded memory, as symptoms look at them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from ranum.guards.types import Reading

START = 16
"""Readings that define what the untrained model's loss is like."""
_RECENT = 256
_SUMMARY = 128
_SAMPLES = 16
_VALIDATIONS = 256
_FIRST_NORMS = 8
_BLOCKS = 64


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
