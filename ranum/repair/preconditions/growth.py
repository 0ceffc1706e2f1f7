"""From ranges in which all is well to the loosest ones around them.

What the analysis finds for some ranges it also finds for wider ones, so along any way outwards
there is one point at which a defect comes back, and bisection finds it. Which way to take is a
question of proportion. Each end of each range keeps a share of its way outwards, and the product
of all shares is made as large as it can be: no range is given up for the others. Gradients of the
margin say what an end costs; they are differences, for the analysis rounds outward.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ranum.repair.preconditions.places import Box, Pair, Place
from ranum.repair.preconditions.trial import Trial

LEAST = 2.0**-40
"""The smallest share of its way that an end is drawn in to, of a seed that is a single number."""
HALVINGS = 10
"""Of the way along one direction."""
ROUNDS = 5
"""Gradients taken."""
STEPS = (2.0, 0.7, 0.25)
"""Lengths tried along a gradient, in powers of two of the shares."""
PROBE = 0.05
"""By how many powers of two an end is drawn in to see what it costs."""
GAIN = 0.01
"""What a step must gain to be taken, in powers of two of the mean share."""
MOST = 64
"""Places above which proportions stay equal: a gradient costs two runs per place."""
FEW = 32
"""Ends up to which a rough box has its proportions looked for as well."""
STRIDES = (0.25, 0.5, 1.0, math.inf, math.inf)
"""How far one end may go in each sweep over all of them, in powers of two of its share."""
ENOUGH = 0.01
"""What a sweep must gain for another, in powers of two of one share."""


@dataclass(frozen=True, slots=True)
class _End:
    """One end of one place's range.

    Attributes:
        place: Number of the place.
        is_upper: Which end.
        near: Where the seed has it.
        far: Where it may go at most.
        middle: The middle of the seed, from where its way is measured, on the place's scale.
        least: Power of two of the share of the way at which it stands in the seed.
    """

    place: int
    is_upper: bool
    near: float
    far: float
    middle: float
    least: float


class Growth:
    """The search outwards from one box.

    Args:
        trial: What holds.
        seed: A box that holds.
        outer: How far to go at most; to the ranges of the analysis by default.
    """

    def __init__(self, trial: Trial, seed: Box, outer: Box | None = None) -> None:
        self._trial = trial
        self._places = trial.places
        self._seed = seed
        self._outer = outer or tuple(place.full for place in trial.places)
        self._ends = tuple(self._all_ends())

    def loosest(self) -> Box:
        """A box that holds, and of which no end can be moved outwards by much."""
        if not self._ends:
            return self._seed
        least = [end.least for end in self._ends]
        shares = self._freed(self._between(least, [0.0] * len(least)))
        if len(self._places) <= MOST:
            shares = self._improved(shares)
        return self._rounded(self._near_zero(self._box(self._polished(shares))))

    def roughly(self) -> Box:
        """A box that holds and is not much smaller than the loosest, in a few runs."""
        if not self._ends:
            return self._seed
        least = [end.least for end in self._ends]
        shares = self._freed(self._between(least, [0.0] * len(least)))
        if len(self._ends) <= FEW:
            shares = self._improved(shares)
        return self._box(self._polished(shares, (math.inf,)))

    def _all_ends(self) -> Iterable[_End]:
        for number, place in enumerate(self._places):
            pair, outer = self._seed[number], self._outer[number]
            middle = place.height(pair[0] / 2 + pair[1] / 2)
            for is_upper in (False, True):
                near, far = pair[is_upper], outer[is_upper]
                if not (near < far if is_upper else near > far):
                    continue
                share = (place.height(near) - middle) / (place.height(far) - middle)
                least = math.log2(max(share, LEAST))
                yield _End(number, is_upper, near, far, middle, least)

    # --- shares, as powers of two ---------------------------------------------------------------

    def _box(self, shares: Sequence[float]) -> Box:
        pairs = [list(pair) for pair in self._seed]
        for end, share in zip(self._ends, shares, strict=True):
            pairs[end.place][end.is_upper] = self._value(end, share)
        return tuple((low, high) for low, high in pairs)

    def _value(self, end: _End, share: float) -> float:
        if share <= end.least or share >= 0.0:
            return end.near if share <= end.least else end.far
        place = self._places[end.place]
        way = place.height(end.far) - end.middle
        value = place.size * math.sinh(end.middle + 2.0**share * way)
        low, high = min(end.near, end.far), max(end.near, end.far)
        return min(max(value, low), high)

    def _holds(self, shares: Sequence[float]) -> bool:
        return self._trial.holds(self._box(shares))

    def _between(self, inner: Sequence[float], outer: Sequence[float]) -> list[float]:
        """The last shares that hold on the way from some that do: the outer ones less so much."""
        if self._holds(outer):
            return list(outer)
        low, high = 0.0, max(o - i for i, o in zip(inner, outer, strict=True))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self._holds(self._less(outer, middle)):
                high = middle
            else:
                low = middle
        return self._less(outer, high)

    def _less(self, shares: Sequence[float], by: float) -> list[float]:
        return [max(s - by, end.least) for s, end in zip(shares, self._ends, strict=True)]

    # --- proportions --------------------------------------------------------------------------

    def _freed(self, shares: list[float]) -> list[float]:
        """Ends that cost nothing are let out at once."""
        for number, share in enumerate(shares):
            if share < 0.0 and not self._trial.is_spent:
                free = [*shares[:number], 0.0, *shares[number + 1 :]]
                if self._holds(free):
                    shares = free
        return shares

    def _improved(self, shares: list[float]) -> list[float]:
        least = [end.least for end in self._ends]
        for _ in range(ROUNDS):
            if self._trial.is_spent:
                break
            direction = self._direction(shares)
            if direction is None:
                break
            for step in STEPS:
                pairs = zip(shares, direction, strict=True)
                moved = [min(share + step * slope, 0.0) for share, slope in pairs]
                moved = self._between(least, self._less(moved, 0.0))
                if math.fsum(moved) > math.fsum(shares) + GAIN * len(shares):
                    break
            else:
                break
            shares = moved
        return shares

    def _direction(self, shares: Sequence[float]) -> list[float] | None:
        """Uphill in the product of the shares, without changing the margin; largest slope 1."""
        costs = self._costs(shares)
        square = math.fsum(cost * cost for cost in costs)
        if square == 0.0:
            return None
        price = math.fsum(costs) / square
        slopes = [1.0 - price * cost for cost in costs]
        slopes = [
            0.0 if (share >= 0.0 and slope > 0) or (share <= end.least and slope < 0) else slope
            for share, slope, end in zip(shares, slopes, self._ends, strict=True)
        ]
        most = max(map(abs, slopes))
        return None if most == 0.0 else [slope / most for slope in slopes]

    def _costs(self, shares: Sequence[float]) -> list[float]:
        """What each end takes from the margin: its gradient, by differences."""
        here = self._trial.margin(self._box(shares))
        costs = []
        for number, share in enumerate(shares):
            inward = list(shares)
            inward[number] = share - PROBE
            gained = self._trial.margin(self._box(inward)) - here
            costs.append(max(gained, 0.0) / PROBE if math.isfinite(gained) else 0.0)
        return costs

    # --- end by end ---------------------------------------------------------------------------

    def _polished(self, shares: list[float], strides: Sequence[float] = STRIDES) -> list[float]:
        """Moves each end outwards as far as it goes, again and again."""
        for stride in strides:
            before = shares
            for number in range(len(shares)):
                if self._trial.is_spent:
                    return shares
                shares = self._moved(shares, number, stride)
            gained = max(new - old for new, old in zip(shares, before, strict=True))
            if stride == math.inf and gained < ENOUGH:
                break
        return shares

    def _moved(self, shares: list[float], number: int, stride: float) -> list[float]:
        def with_share(share: float) -> list[float]:
            return [*shares[:number], share, *shares[number + 1 :]]

        low, high = shares[number], min(shares[number] + stride, 0.0)
        if low == high or self._holds(with_share(high)):
            return with_share(high)
        if not self._holds(with_share(min(low + ENOUGH, high))):
            return shares
        while high - low > ENOUGH:
            middle = (low + high) / 2
            if self._holds(with_share(middle)):
                low = middle
            else:
                high = middle
        return with_share(low)

    def _near_zero(self, box: Box) -> Box:
        """Where only zero and what lies behind it does harm: the power of two next to it."""
        for end in self._ends:
            here = box[end.place][end.is_upper]
            if here == 0.0 or here * end.far > 0.0 or self._trial.is_spent:
                continue
            if not self._trial.holds(_with(box, end, here / 16)):
                continue
            sign, dtype = math.copysign(1.0, here), self._places[end.place].start.dtype
            first = math.ceil(math.log2(torch.finfo(dtype).smallest_normal))
            last = math.floor(math.log2(abs(here))) - 4
            while first < last:
                middle = (first + last) // 2
                if self._trial.holds(_with(box, end, sign * 2.0**middle)):
                    last = middle
                else:
                    first = middle + 1
            nearer = _with(box, end, sign * 2.0**last)
            box = nearer if self._trial.holds(nearer) else box
        return box

    def _rounded(self, box: Box) -> Box:
        """Three digits, inwards, where that still holds and leaves the seed inside."""
        for end in self._ends:
            here = box[end.place][end.is_upper]
            if here in (end.far, end.near):
                continue
            short = _short(here, up=not end.is_upper)
            is_inside = short >= end.near if end.is_upper else short <= end.near
            if is_inside and self._trial.holds(_with(box, end, short)):
                box = _with(box, end, short)
        for end in self._ends:  # what the rounding has left free
            freed = _with(box, end, end.far)
            if freed != box and self._trial.holds(freed):
                box = freed
        return box


def _with(box: Box, end: _End, value: float) -> Box:
    low, high = box[end.place]
    pair: Pair = (low, value) if end.is_upper else (value, high)
    return (*box[: end.place], pair, *box[end.place + 1 :])


def _short(value: float, *, up: bool) -> float:
    """Three significant digits, rounded up or down."""
    if value == 0.0 or not math.isfinite(value):
        return value
    exponent = math.floor(math.log10(abs(value))) - 2
    digits = (math.ceil if up else math.floor)(value / 10.0**exponent)
    return float(f"{digits}e{exponent}")


def mean_share(places: Sequence[Place], box: Box) -> float:
    """The part of the width that is kept, by the places' scales: the geometric mean.

    A range that is given up counts as nothing kept at all.
    """
    shares = [place.share(pair) for place, pair in zip(places, box, strict=True)]
    if not shares or min(shares) <= 0.0:
        return 0.0 if shares else 1.0
    return math.exp(math.fsum(map(math.log, shares)) / len(shares))
