"""What a search for a configuration says, as values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ranum.errors import RanumError

State = Literal["complete", "pruned", "failed"]
Phase = Literal["faulty", "diagnosis", "search", "minimize", "confirm"]
Direction = Literal["minimize", "maximize"]


class Pruned(RanumError):  # noqa: N818 - a signal rather than an error, as optuna.TrialPruned
    """Ends a training that is not worth going on with; let it pass through your function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One training of one configuration.

    Attributes:
        number: Counting from 0, in the order of training; 0 is the faulty configuration.
        configuration: All values the training was given.
        score: What the training returned; the worst value there is (inf, or -inf if the
            score is maximized) if it returned no finite number.
        state: "complete", "pruned" (stopped early, or its score was not finite) or "failed"
            (it raised).
        reason: Why it was pruned or failed; "" if it is complete.
        phase: What it was for: "faulty", "diagnosis" (an edit the symptoms suggest), "search"
            (Optuna's choice), "minimize" (a changed value set back), "confirm" (fresh seed).
        seed: The seed the training was asked to use.
        values: What it reported, by step, in order.
        seconds: Wall clock time of the training.
    """

    number: int
    configuration: Mapping[str, Any]
    score: float
    state: State
    reason: str = ""
    phase: Phase = "search"
    seed: int = 0
    values: Mapping[int, float] = field(default_factory=dict, repr=False)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite become None."""
        return {
            "number": self.number,
            "configuration": dict(self.configuration),
            "score": _finite(self.score),
            "state": self.state,
            "reason": self.reason,
            "phase": self.phase,
            "seed": self.seed,
            "values": {str(step): _finite(value) for step, value in self.values.items()},
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairResult:
    """What `repair_configuration` found.

    Attributes:
        faulty: The configuration it was given.
        configuration: The best one found, after minimization; the faulty one if nothing was
            clearly better.
        score: Score of `configuration` in the search.
        faulty_score: Score of the faulty configuration.
        is_repaired: True if `configuration` reaches the target (see `repair_configuration`)
            and the confirmation runs, if there were any, do so too.
        reason: Why the search ended and what came of it, in one or two sentences.
        names: The values that were searched over.
        trials: Every training, in order.
        confirmations: Scores of `configuration` when trained again with fresh seeds.
        direction: "minimize" if a lower score is better, else "maximize".
        target: The score that was asked for; None if none was.
        seconds: Wall clock time of the whole search.
    """

    faulty: Mapping[str, Any]
    configuration: Mapping[str, Any]
    score: float
    faulty_score: float
    is_repaired: bool
    reason: str
    names: tuple[str, ...]
    trials: tuple[TrialRecord, ...] = field(repr=False)
    confirmations: tuple[float, ...] = ()
    direction: Direction = "minimize"
    target: float | None = None
    seconds: float = 0.0

    @property
    def patch(self) -> dict[str, tuple[Any, Any]]:
        """The values to change: old and new, by name."""
        return {
            name: (self.faulty[name], self.configuration[name])
            for name in self.names
            if self.faulty[name] != self.configuration[name]
        }

    @property
    def complexity(self) -> float:
        """Changed values as a share of those searched over, in [0, 1]."""
        return len(self.patch) / len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite become None."""
        return {
            "faulty": dict(self.faulty),
            "configuration": dict(self.configuration),
            "patch": {name: list(pair) for name, pair in self.patch.items()},
            "complexity": self.complexity,
            "score": _finite(self.score),
            "faulty_score": _finite(self.faulty_score),
            "is_repaired": self.is_repaired,
            "reason": self.reason,
            "names": list(self.names),
            "trials": [trial.to_dict() for trial in self.trials],
            "confirmations": [_finite(score) for score in self.confirmations],
            "direction": self.direction,
            "target": self.target,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        head = "repaired" if self.is_repaired else "not repaired"
        lines = [
            f"{head}: score {self.faulty_score:.4g} -> {self.score:.4g} in {len(self.trials)} "
            f"training(s), {self.seconds:.1f} s; {len(self.patch)} of {len(self.names)} "
            "value(s) changed"
        ]
        lines += [f"  {name}: {old!r} -> {new!r}" for name, (old, new) in self.patch.items()]
        return "\n".join([*lines, f"  {self.reason}"])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
