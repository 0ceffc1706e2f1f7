"""Training data to try next: batches whose update points where the goal lies.

A batch whose gradient matches a wanted one is found by descending on the batch through the
gradient itself, as in Zhu, Liu and Han, Deep Leakage from Gradients (NeurIPS 2019); the match is
measured along the direction, as in Geiping et al., Inverting Gradients (NeurIPS 2020), since an
optimizer chooses the length.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from ranum.analysis.capture.program import Program
from ranum.analysis.confirm.training.aim import Aim
from ranum.analysis.confirm.training.data import Batch, Slot, own
from ranum.analysis.confirm.training.quick import Quick
from ranum.analysis.confirm.training.rows import View

LENGTHS = (2.0, 0.5, 0.1)
"""Steps of a batch up the match, in sizes of the input: to the ends of its range first."""
ROUNDS = 2
"""Times a batch that is matched is moved at most."""
LITTLE = 0.02
"""Share of a match that a move must bring for another one."""
CONTRASTS = (0.5, 0.2, 0.05, 0.01)
"""How near two batches of different labels lie, in shares of the way to the failing batch."""
DIRECTIONS = 3
"""In which two such batches lie: from either end of the ranges, and across their middle."""
BLUR = 1e-3
"""Where an optimizer looks at signs: the size of a gradient, in mean sizes, that counts as none."""

Point = dict[str, Tensor]
Cycle = tuple[Batch, ...]
"""Batches that are trained on in turn, over and over."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where the weights should go.

    Attributes:
        slope: Gradient of the goal by the weights, by name.
        normalises: The optimizer looks at signs.
    """

    slope: Mapping[str, Tensor]
    normalises: bool

    def match(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """How far a step by these gradients goes in the wanted direction."""
        terms = []
        for name, slope in self.slope.items():
            g = gradients.get(name)
            if g is None:
                continue
            g = g.to(torch.float64)
            if self.normalises:
                g = g / (g.abs() + BLUR * g.abs().mean() + 1e-30)
            terms.append((slope * g).sum())
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)


class Matcher:
    """Finds batches whose training step goes where it is wanted.

    Args:
        program: What is trained.
        slots: The inputs that training data may change.
        view: What the search looks at, perhaps one row.
    """

    def __init__(self, program: Program, slots: tuple[Slot, ...], view: View) -> None:
        self._program = program
        self._slots = {one.name: one for one in slots}
        self._view = view
        self._generator = torch.Generator().manual_seed(0)
        self._floats = {name: one for name, one in self._slots.items() if one.variable is not None}
        self._near = self._slots
        self._near_floats = self._floats
        self._quick: Quick | None = None

    @property
    def quick(self) -> Quick | None:
        """The step's gradients by its recorded forward pass, of a row where that is enough."""
        return self._quick

    @quick.setter
    def quick(self, given: Quick | None) -> None:
        self._quick = given
        if given is not None and (given.rows or given.sample):
            self._near = {one.name: one for one in self._view.slots}
            self._near_floats = {
                n: one for n, one in self._near.items() if one.variable is not None
            }

    def matched(
        self, wanted: Wanted, start: Mapping[str, Tensor], still: Collection[str] = ()
    ) -> Cycle | None:
        """A batch that matches well; None where the step has no second gradient.

        Args:
            wanted: Direction of the update.
            start: Where to begin; inputs that are missing begin as recorded.
            still: Inputs that stay where they begin.
        """
        floats = self._near_floats
        point = self._begun(start)
        choices = dict(self._best_choices(wanted, point))
        try:
            score = self._match(wanted, point, choices)
            for _ in range(ROUNDS):
                slopes = self._slopes(wanted, point, choices)
                before = score
                liked = {n: self._liked(floats[n], x, slopes.get(n)) for n, x in point.items()}
                if any(not torch.equal(liked[name], x) for name, x in point.items()):
                    better = self._match(wanted, liked, choices)
                    if better > score:
                        point, score = liked, better
                for length in LENGTHS:
                    moved = {
                        n: x if n in still else self._moved(floats[n], x, slopes.get(n), length)
                        for n, x in point.items()
                    }
                    better = self._match(wanted, moved, choices)
                    if better > score:
                        point, score = moved, better
                        break
                if score - before <= LITTLE * abs(before):
                    break
        except RuntimeError:
            return None
        return (self._whole({**own(floats, point), **choices}),)

    def _begun(self, start: Mapping[str, Tensor]) -> Point:
        """The floats of a batch, as recorded where it has none; its first row if one is enough."""
        return {
            name: start[name][: len(one.recorded)] if name in start and one.recorded.dim()
            else start.get(name, one.recorded)
            for name, one in self._near_floats.items()
        }  # fmt: skip

    def _whole(self, batch: Batch) -> Batch:
        return self._view.whole(batch) if self._near is not self._slots else batch

    def matched_from(
        self, wanted: Wanted, start: Callable[[], Mapping[str, Tensor]]
    ) -> Cycle | None:
        """The same; the start is made when it is needed."""
        return self.matched(wanted, start())

    def labelled(self, wanted: Wanted, aim: Aim, share: float) -> Cycle | None:
        """A batch on the way to the failing one, with the labels that match best; None without."""
        point = self.dimmed(aim.far(), share)
        best, _ = self.labels(wanted, point)
        if not best:
            return None
        return (self._with_labels(point, best),)

    def _liked(self, one: Slot, x: Tensor, slope: Tensor | None) -> Tensor:
        """The labels that a slope likes best."""
        if slope is None or not one.is_label:
            return x
        return one.legal(slope) if one.kind == "one-hot" else one.legal((slope > 0).to(slope.dtype))

    def _moved(self, one: Slot, x: Tensor, slope: Tensor | None, length: float) -> Tensor:
        """A step up a slope, of so many sizes of the input."""
        if slope is None or one.is_label:
            return x
        assert one.variable is not None
        return one.legal(x + length * one.variable.size * slope.sign())

    def _match(self, wanted: Wanted, point: Mapping[str, Tensor], choices: Batch) -> float:
        """How far a step on a batch goes in the wanted direction."""
        batch = {name: self._near_floats[name].own(x).detach() for name, x in point.items()}
        with torch.enable_grad():
            named = self._gradients(wanted, {**batch, **choices}, twice=False)
        return float(wanted.match(named))

    def _slopes(
        self,
        wanted: Wanted,
        point: Mapping[str, Tensor],
        choices: Batch,
        labels_only: bool = False,
    ) -> dict[str, Tensor]:
        """Gradients of the match by the inputs, through the step's own gradient."""
        floats = self._near_floats
        leaves = {name: floats[name].own(x).detach().clone() for name, x in point.items()}
        for name, leaf in leaves.items():
            leaf.requires_grad_(not labels_only or floats[name].is_label)
        with torch.enable_grad():
            score = wanted.match(self._gradients(wanted, {**leaves, **choices}, twice=True))
            leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
            if not score.requires_grad or not leaves:
                return {}
            found = torch.autograd.grad(score, list(leaves.values()), allow_unused=True)
        return {
            name: slope.detach().to(torch.float64)
            for name, slope in zip(leaves, found, strict=True)
            if slope is not None and bool(slope.isfinite().all()) and bool(slope.any())
        }

    def _gradients(self, wanted: Wanted, batch: Batch, *, twice: bool) -> dict[str, Tensor]:
        parameters = {
            name: one for name, one in self._program.parameters.items() if name in wanted.slope
        }
        found = torch.autograd.grad(
            self._loss(batch), list(parameters.values()), create_graph=twice, allow_unused=True
        )
        return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}

    def _loss(self, batch: Batch) -> Tensor:
        if self._quick is not None:
            known = {one.name: one.own(one.recorded) for one in self._near.values()}
            return self._quick.loss({**self._quick.inputs, **known, **batch})
        loss = self._program.step(*self._program.batch(batch))
        assert loss is not None
        return loss.sum()

    def _best_choices(
        self, wanted: Wanted, point: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Integer inputs: the number that matches best when it stands everywhere."""
        for one in self._near.values():
            if one.choice is None:
                continue
            scored = []
            for number in range(min(one.classes, 16)):
                try:
                    score = self._match(wanted, point, {one.name: one.labelled(number)})
                except RuntimeError:
                    continue
                scored.append((score, number))
            if scored:
                yield one.name, one.labelled(max(scored)[1])

    @property
    def has_labels(self) -> bool:
        """True if some input is a label."""
        return any(one.is_label for one in self._slots.values())

    def milder(self, batch: Batch, share: float) -> Batch:
        """The same batch, with free inputs so much nearer to the recorded ones.

        Args:
            batch: Any.
            share: Of the way from there that is left.
        """
        found = dict(batch)
        for name, tensor in batch.items():
            slot = self._slots.get(name)
            if slot is not None and slot.kind == "free" and tensor.shape == slot.recorded.shape:
                mixed = slot.recorded + share * (tensor.to(slot.recorded.dtype) - slot.recorded)
                found[name] = slot.own(slot.legal(mixed))
        return found

    def beside(self, batch: Batch) -> Cycle:
        """A batch and a random one in turn."""
        return batch, self._corner()

    def comparable(self) -> Cycle:
        """A random batch of two kinds of rows, and one of one kind.

        Numbers that stand alone, such as a share that is kept, are at their upper ends.
        """
        alone = {
            name: one.own(one.legal(torch.full_like(one.recorded, torch.inf)))
            for name, one in self._slots.items()
            if one.kind == "free" and not one.recorded.dim()
        }
        first, second = {**self._corner(), **alone}, {**self._corner(), **alone}
        return (*self._mixed(first, second), first)

    def corners(self, count: int, held: int = 1) -> Cycle:
        """Random batches of equal rows at the ends of the ranges, each for so many steps."""
        batches = [self._corner() for _ in range(count)]
        return tuple(batch for batch in batches for _ in range(held))

    def _corner(self) -> Batch:
        point = {}
        for name, one in self._slots.items():
            if one.is_label:
                number = int(torch.randint(one.classes, (), generator=self._generator))
                point[name] = one.labelled(number)
                continue
            x = one.recorded
            row = torch.rand(x.shape[1:] if x.dim() else (), generator=self._generator) < 0.5
            point[name] = one.legal(
                torch.where(row, torch.full_like(x, torch.inf), torch.full_like(x, -torch.inf))
            )
        return own(self._slots, point)

    def dimmed(self, far: Mapping[str, Tensor], share: float) -> Point:
        """A part of the way from the middle, or the nearer end, to the failing batch."""
        found = {}
        for name, one in self._slots.items():
            if one.kind != "free" or name not in far or one.variable is None:
                continue
            zero = one.legal(torch.zeros_like(one.recorded))
            found[name] = one.legal(zero.lerp(far[name], share))
        return found

    def labels(
        self, wanted: Wanted, point: Mapping[str, Tensor]
    ) -> tuple[dict[str, int], dict[str, int]]:
        """For each label, the number that matches best in a batch, and the one that does least."""
        best: dict[str, int] = {}
        worst: dict[str, int] = {}
        floats = self._begun(point)
        try:
            slopes = self._slopes(wanted, floats, {}, labels_only=True)
        except RuntimeError:
            slopes = {}
        for name, one in self._near.items():
            if one.kind == "one-hot" and name in slopes:
                totals = slopes[name].transpose(one.dim, -1).reshape(-1, one.classes).sum(0)
                best[name], worst[name] = int(totals.argmax()), int(totals.argmin())
            elif one.kind == "binary" and name in slopes:
                best[name] = int(slopes[name].sum() > 0)
                worst[name] = 1 - best[name]
            elif one.choice is not None and one.classes <= 16:
                scores = []
                for number in range(one.classes):
                    try:
                        score = self._match(wanted, floats, {name: one.labelled(number)})
                    except RuntimeError:
                        continue
                    scores.append((score, number))
                if scores:
                    best[name], worst[name] = max(scores)[1], min(scores)[1]
        return best, worst

    def contrasts(
        self, wanted: Wanted, far: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Callable[[], Cycle | None]]]:
        """Batches that lie close together and are labelled differently.

        What tells them apart is a steep slope, and it goes on rising behind them, up to the
        failing batch: fitted data give no gradient, but data that can hardly be told apart do.
        Where an optimizer looks at signs they share a batch: in turn, they would cancel.

        Args:
            wanted: Direction of the update.
            far: The failing batch.
        """
        if not self.has_labels:
            yield from self._faint(wanted, far)
            return

        @cache
        def known() -> tuple[list[tuple[Point, Point]], tuple[dict[str, int], dict[str, int]]]:
            return list(self._directions(far)), self.labels(wanted, far)

        def contrast(share: float, number: int) -> Cycle | None:
            directions, (best, worst) = known()
            base, end = directions[number]
            near = {name: base[name].lerp(end[name], share) for name in base}
            if not best or all(torch.equal(base[name], near[name]) for name in base):
                return None
            first, second = self._with_labels(near, best), self._with_labels(base, worst)
            return self._mixed(first, second) if wanted.normalises else (first, second)

        for share in CONTRASTS:
            for number in range(DIRECTIONS):
                yield f"contrast {share} {number}", partial(contrast, share, number)

    def _with_labels(self, point: Point, labels: Mapping[str, int]) -> Batch:
        legal = {name: self._slots[name].legal(x) for name, x in point.items()}
        chosen = {name: self._slots[name].labelled(number) for name, number in labels.items()}
        return own(self._slots, {**legal, **chosen})

    def _mixed(self, first: Batch, second: Batch) -> Cycle:
        """Both in one batch, half and half; in turn where they have no rows in common."""
        lengths = {len(x) for x in (*first.values(), *second.values()) if x.dim()}
        if len(lengths) != 1 or max(lengths) < 2:
            return first, second
        half = max(lengths) // 2
        return (
            {
                name: torch.cat([x[:half], second[name][half:]]) if x.dim() else x
                for name, x in first.items()
            },
        )

    def _faint(
        self, wanted: Wanted, far: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Callable[[], Cycle | None]]]:
        """Where there are no labels: batches that are hardly anything, alone and beside nothing."""
        nothing = {
            name: one.legal(torch.zeros_like(one.recorded))
            for name, one in self._slots.items()
            if one.kind == "free"
        }

        @cache
        def matched(share: float) -> Cycle | None:
            return self.matched(wanted, {**nothing, **self.dimmed(far, share)}, still=far)

        def beside(share: float) -> Cycle | None:
            cycle = matched(share)
            return None if cycle is None else (*cycle, own(self._slots, nothing))

        for share in CONTRASTS:
            yield f"faint {share}", partial(matched, share)
            yield f"faint {share} beside", partial(beside, share)

    def _directions(self, far: Mapping[str, Tensor]) -> Iterator[tuple[Point, Point]]:
        """Where the two batches of a contrast lie when they coincide, and where they part to."""
        free = {
            name: one for name, one in self._slots.items() if one.kind == "free" and name in far
        }
        for end in (-torch.inf, torch.inf):
            base = {n: one.legal(torch.full_like(one.recorded, end)) for n, one in free.items()}
            yield base, {name: far[name] for name in free}
        generator = self._generator
        least, most = ({}, {})
        for name, one in free.items():
            low = one.legal(torch.full_like(one.recorded, -torch.inf))
            high = one.legal(torch.full_like(one.recorded, torch.inf))
            row = torch.rand(low.shape[1:] if low.dim() else (), generator=generator) < 0.5
            least[name], most[name] = torch.where(row, low, high), torch.where(row, high, low)
        yield {name: (least[name] + most[name]) / 2 for name in free}, most
