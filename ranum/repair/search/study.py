"""The search: the faulty configuration first, then edits, then Optuna, then undoing."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, cast, get_args

from ranum.errors import ArgumentError, MissingExtraError
from ranum.guards.types import Finding
from ranum.repair.search.budget import Budget
from ranum.repair.search.diagnosis import edits, order, verdict
from ranum.repair.search.minimize import minimize
from ranum.repair.search.reporter import Reporter, to_float
from ranum.repair.search.result import Direction, Phase, Pruned, RepairResult, State, TrialRecord
from ranum.repair.search.space import SearchSpace

_log = logging.getLogger(__name__)

IMPROVEMENT = 0.01
"""A score is clearly better if it gains this share of the old one; the margin, in accuracy,
with which a symptom-guided search found most repairs in few trials in our experiments."""

REPAIRED = 0.1
"""Without a target, a configuration counts as repaired if it gains this share of the faulty
score. Ours: several times the spread between runs of one configuration."""

DIAGNOSIS_SHARE = 2 / 3
"""Share of the search that edits may take, unless they still gain. Optuna gets the rest: in our
experiments edits won on most faults, a global search on one with four faulty values at once."""

PRUNE_AFTER = 0.25
"""Share of the longest training so far that a trial may take before it is compared."""

_ATTEMPTS = 20  # proposals of Optuna that were known before it counts as out of ideas

_UNDO_LAST = (
    "normalization",
    "gradient_clip",
    "batch_size",
    "initialization",
    "activation",
    "optimizer",
    "learning_rate",
)

Train = Callable[[dict[str, Any], Reporter], float]


def repair_configuration(
    train: Train,
    configuration: Mapping[str, Any],
    space: SearchSpace | None = None,
    *,
    budget: int | str = 20,
    findings: Sequence[Finding] = (),
    target: float | None = None,
    direction: Direction = "minimize",
    patience: int = 5,
    tolerance: float = 0.05,
    confirm_runs: int = 1,
    seed: int = 0,
    timeout: float | None = None,
    on_trial: Callable[[TrialRecord], None] | None = None,
    storage: Any = None,
) -> RepairResult:
    """Finds a configuration that trains, close to one that does not.

    The faulty configuration is trained first; all else is measured against it. Then come the
    edits that its symptoms suggest, each improvement being diagnosed anew; then Optuna's TPE
    sampler, which knows everything tried so far; then every changed value is set back if the
    score allows it, so that the patch is small; then the result is trained again with a fresh
    seed, and the search goes on if it was only lucky. Trials that go non-finite, or gain
    nothing while they are behind the median, are ended early.

    The same `seed` and a deterministic `train` give the same result, unless the budget or the
    timeout is one of time.

    Args:
        train: `train(configuration, report)` trains from scratch and returns a score. It calls
            `report(step, value)` as it goes, takes its seed from `report.seed`, and lets
            `ranum.repair.search.Pruned` pass through. Any other exception counts as a failed
            trial.
        configuration: The faulty one, plain values by name. It is never changed.
        space: What may change, and to what. Default: `SearchSpace()`.
        budget: Number of trainings, all phases included; or "<k>x", k times the seconds that
            the faulty configuration takes (or, if that ended early, the first training that did
            not). A quarter of it at most is kept for setting values back and for confirming.
        findings: What a guard saw in the faulty configuration, if it did. Without any, the
            reported values must do.
        target: The score that counts as repaired; the search ends there. Give one if you can.
            Default: a finite score that is better by `REPAIRED` than the faulty one; if that
            is not finite, than the first value a training reports. Either is weak: a model that
            does little better than guessing may pass.
        direction: "minimize" if a lower score is better, as a loss; "maximize" for an accuracy.
        patience: Without a target, the search ends this many trials after it last became
            clearly better, once repaired.
        tolerance: Share of the gain that setting a value back may cost, in [0, 1].
        confirm_runs: Trainings of the result with fresh seeds, at most; the best of many
            trials is partly luck.
        seed: Of the sampler, and of every trial.
        timeout: Seconds; no trial starts later, and one that reports is ended. None: no limit.
        on_trial: Called with each `TrialRecord`.
        storage: Optuna storage, or its URL, to keep the trials in. Each call is a new study.

    Raises:
        ArgumentError: If an argument is not what it must be.
        MissingExtraError: If Optuna is not installed.

    References:
        Bergstra, Bardenet, Bengio, Kégl: Algorithms for Hyper-Parameter Optimization, NeurIPS
        2011 (TPE); Golovin et al.: Google Vizier, KDD 2017 (median pruning).
    """
    _require(callable(train), "train must be a function of configuration and report", train)
    _require(
        isinstance(configuration, Mapping) and all(isinstance(name, str) for name in configuration),
        "configuration must map names to values",
        configuration,
    )
    _require(isinstance(space, SearchSpace | None), "space must be a SearchSpace or None", space)
    _require(
        isinstance(findings, Sequence) and all(isinstance(found, Finding) for found in findings),
        "findings must be a list of ranum.guards.types.Finding",
        findings,
    )
    _require(
        target is None or math.isfinite(target), "target must be a finite score or None", target
    )
    _require(
        direction in get_args(Direction), "direction must be 'minimize' or 'maximize'", direction
    )
    _require(_is_whole(patience, 1), "patience must be a whole number of at least 1", patience)
    _require(0 <= tolerance <= 1, "tolerance must be a share, in [0, 1]", tolerance)
    _require(
        _is_whole(confirm_runs, 0),
        "confirm_runs must be a whole number of at least 0",
        confirm_runs,
    )
    _require(_is_whole(seed, 0) and seed < 2**31, "seed must be a whole number in [0, 2**31)", seed)
    limit = Budget(budget, timeout)
    faulty = copy.deepcopy(dict(configuration))
    space = SearchSpace() if space is None else space
    names = tuple(space.within(faulty))
    with _quiet_optuna() as optuna:
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=5),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_min_trials=3),
            direction=direction,
            storage=storage,
        )
        search = _Search(
            optuna=optuna,
            study=study,
            train=train,
            faulty=faulty,
            space=space,
            names=names,
            budget=limit,
            target=target,
            direction=direction,
            seed=seed,
            on_trial=on_trial,
        )
        return search.run(order(findings), patience, tolerance, confirm_runs)


@dataclass(kw_only=True, eq=False)
class _Search:
    """One call's state: the trials so far and the best of them."""

    optuna: Any
    study: Any
    train: Train
    faulty: dict[str, Any]
    space: SearchSpace
    names: tuple[str, ...]
    budget: Budget
    target: float | None
    direction: Direction
    seed: int
    on_trial: Callable[[TrialRecord], None] | None
    trials: list[TrialRecord] = field(default_factory=list)
    known: dict[tuple[Any, ...], TrialRecord] = field(default_factory=dict)
    confirmations: dict[int, list[TrialRecord]] = field(default_factory=dict)  # by trial number
    best: TrialRecord = field(init=False)
    last_gain: int = 0  # number of the trial that was last clearly better

    @property
    def sign(self) -> float:
        return 1.0 if self.direction == "minimize" else -1.0

    def run(
        self, symptoms: tuple[str, ...], patience: int, tolerance: float, confirm_runs: int
    ) -> RepairResult:
        total = self.budget.total
        reserve = min(confirm_runs + len(self.names), total // 4)
        to_confirm = min(confirm_runs, reserve)
        self.best = first = self._enqueue(self.faulty, "faulty")
        while True:
            ended = self._search(symptoms, patience, reserve, to_confirm)
            chosen = self._minimize(self.best, tolerance, to_confirm)
            if not self._is_refuted(chosen, confirm_runs):
                break
            symptoms, self.best = (), min(self.known.values(), key=self._cost)
        confirmations = self.confirmations.get(chosen.number, [])
        return RepairResult(
            faulty=self.faulty,
            configuration=dict(chosen.configuration),
            score=chosen.score,
            faulty_score=first.score,
            is_repaired=self._is_repaired(chosen),
            reason=self._reason(chosen, ended, confirm_runs),
            names=self.names,
            trials=tuple(self.trials),
            confirmations=tuple(trial.score for trial in confirmations),
            direction=self.direction,
            target=self.target,
            seconds=time.monotonic() - self.budget.started,
        )

    def _search(
        self, symptoms: tuple[str, ...], patience: int, reserve: float, to_confirm: float
    ) -> str:
        """Tries edits, then Optuna's choices; says why it ended."""

        def is_gaining() -> bool:
            return len(self.trials) - 1 - self.last_gain < patience

        def ended() -> str:
            if self._is_repaired(self.best):
                if self.target is not None:
                    return f"the target of {self.target:.4g} was reached"
                if not is_gaining():
                    return f"the last {patience} trials brought nothing better"
            if time.monotonic() > self.budget.deadline:
                return "time was up"
            # Without a repair there is nothing to set back.
            kept = reserve if self._is_repaired(self.best) else to_confirm
            if not self.budget.allows(self.trials, kept):
                return "the budget was used up"
            return ""

        searchable = self.budget.total - reserve
        for_optuna = reserve + (1 - DIAGNOSIS_SHARE) * searchable
        current, queue = self.best, self._edits(self.best, symptoms)
        while queue and not ended():
            if not is_gaining() and not self.budget.allows(self.trials, for_optuna):
                break
            candidate = queue.pop(0)
            if self._key(candidate) not in self.known:
                self._enqueue(candidate, "diagnosis")
            if self.best is not current:
                current, queue = self.best, self._edits(self.best, ())
        while not ended():
            if not self._propose():
                return "every configuration of the space was tried"
        return ended()

    def _edits(self, trial: TrialRecord, symptoms: tuple[str, ...]) -> list[dict[str, Any]]:
        lower = self.direction == "minimize"
        shown = verdict(list(trial.values.values()), trial.score, lower_is_better=lower)
        return [
            *edits(trial.configuration, self.space, (*symptoms, shown)),
            *self.space.neighbours(trial.configuration),
        ]

    def _minimize(self, best: TrialRecord, tolerance: float, reserve: float) -> TrialRecord:
        changed = [name for name in self.names if best.configuration[name] != self.faulty[name]]
        if not self._is_repaired(best) or len(changed) < 2:
            return best
        costs = [self._cost(trial) for trial in self.trials if math.isfinite(trial.score)]
        start, end = self._cost(self.trials[0]), self._cost(best)
        gain = (start if math.isfinite(start) else max(costs)) - end
        allowed = end + tolerance * (gain or abs(end))

        def is_good(configuration: dict[str, Any]) -> bool:
            trial = self.known.get(self._key(configuration))
            if trial is None:
                if not self.budget.allows(self.trials, reserve):
                    return False
                trial = self._enqueue(configuration, "minimize")
            return self._cost(trial) <= allowed and self._is_repaired(trial)

        first = [name for name in changed if name not in _UNDO_LAST]
        last = [name for name in _UNDO_LAST if name in changed]
        return self.known[
            self._key(minimize(best.configuration, self.faulty, first + last, is_good))
        ]

    def _is_refuted(self, chosen: TrialRecord, runs: int) -> bool:
        """Trains again with fresh seeds; True if the configuration was only lucky."""
        if chosen is self.trials[0] or chosen.number in self.confirmations:
            return False
        again = self.confirmations.setdefault(chosen.number, [])
        while len(again) < runs and self._is_repaired(chosen) and self.budget.allows(self.trials):
            again.append(self._evaluate(chosen.configuration, "confirm", len(again) + 1))
        return bool(again) and not self._is_repaired(chosen)

    def _enqueue(self, configuration: Mapping[str, Any], phase: Phase) -> TrialRecord:
        self.study.enqueue_trial({name: configuration[name] for name in self.names})
        return self._run(self.study.ask(), configuration, phase)

    def _propose(self) -> bool:
        """Trains what Optuna suggests; False if it suggests nothing new."""
        for _ in range(_ATTEMPTS):
            trial = self.study.ask()
            configuration = self.space.sample(trial, self.faulty)
            known = self.known.get(self._key(configuration))
            if known is None:
                self._run(trial, configuration, "search")
                return True
            self._tell(trial, known)
        return False

    def _run(self, trial: Any, configuration: Mapping[str, Any], phase: Phase) -> TrialRecord:
        if phase != "search":
            self.space.sample(trial, self.faulty)
        try:
            record = self._evaluate(configuration, phase, trial=trial)
        except BaseException:
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
            raise
        self._tell(trial, record)
        self.known[self._key(configuration)] = record
        if phase == "faulty" or self._is_better(record):
            self.best, self.last_gain = record, record.number
        return record

    def _evaluate(
        self, configuration: Mapping[str, Any], phase: Phase, run: int = 0, trial: Any = None
    ) -> TrialRecord:
        """Trains once; whatever the training does comes back as a record."""
        seed = self.seed + run
        longest = max((len(past.values) for past in self.trials), default=0)
        report = Reporter(
            seed,
            trial,
            prune_after=PRUNE_AFTER * longest if phase in ("diagnosis", "search") else math.inf,
            sign=self.sign,
            deadline=self.budget.deadline,
        )
        score, state, reason = self.sign * math.inf, "complete", ""
        started = time.monotonic()
        try:
            returned = to_float(self.train(copy.deepcopy(dict(configuration)), report))
        except Pruned as stop:
            state, reason = "pruned", report.reason or str(stop)
        except Exception as error:
            _log.debug("Trial %d failed.", len(self.trials), exc_info=True)
            state, reason = "failed", f"{type(error).__name__}: {error}"
        else:
            if report.reason:
                state, reason = "pruned", report.reason
            elif not math.isfinite(returned):
                state, reason = "pruned", f"its score was {returned}"
            else:
                score = returned
        record = TrialRecord(
            number=len(self.trials),
            configuration=dict(configuration),
            score=score,
            state=cast("State", state),
            reason=reason,
            phase=phase,
            seed=seed,
            values=report.values,
            seconds=time.monotonic() - started,
        )
        self.trials.append(record)
        if self.on_trial is not None:
            self.on_trial(record)
        return record

    def _tell(self, trial: Any, record: TrialRecord) -> None:
        """Hands a result to Optuna; what failed too, or the sampler would ask for it again."""
        trial.set_user_attr("phase", record.phase)
        if record.state == "complete":
            self.study.tell(trial, record.score)
        else:
            trial.set_user_attr("reason", record.reason)
            self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)

    def _key(self, configuration: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(configuration[name] for name in self.names)

    def _cost(self, trial: TrialRecord) -> float:
        """The worst score of a configuration, turned so that lower is better; inf if none."""
        again = self.confirmations.get(trial.number, [])
        return max(self.sign * record.score for record in (trial, *again))

    def _is_better(self, trial: TrialRecord) -> bool:
        """True if a trial is clearly better than the best, or the first to reach the target."""
        if self.target is not None and self._is_repaired(trial) > self._is_repaired(self.best):
            return True
        return _gains(self._cost(trial), self._cost(self.best), IMPROVEMENT)

    def _is_repaired(self, trial: TrialRecord) -> bool:
        cost, faulty = self._cost(trial), self._cost(self.trials[0])
        if self.target is not None:
            return cost <= self.sign * self.target
        if math.isfinite(faulty):
            return _gains(cost, faulty, REPAIRED)
        # Nothing to compare with but what trials reported before they had learned much.
        firsts = list(filter(math.isfinite, map(self._first_cost, self.trials)))
        baseline = max(self._first_cost(trial), median(firsts) if firsts else math.inf)
        return _gains(cost, baseline, REPAIRED)

    def _first_cost(self, trial: TrialRecord) -> float:
        return self.sign * next(iter(trial.values.values()), self.sign * math.inf)

    def _reason(self, chosen: TrialRecord, ended: str, confirm_runs: int) -> str:
        is_first, is_repaired = chosen is self.trials[0], self._is_repaired(chosen)
        if is_first and is_repaired:
            return "The configuration reaches the target as it is."
        said = [f"The search ended as {ended}."]
        lucky = sum(not self._is_repaired(self.trials[number]) for number in self.confirmations)
        if lucky:
            said.append(f"{lucky} result(s) did not hold with a fresh seed.")
        missing = confirm_runs - len(self.confirmations.get(chosen.number, []))
        causes = Counter(trial.reason for trial in self.trials if trial.state != "complete")
        if is_repaired and missing:
            said.append(f"{missing} confirmation run(s) found no budget.")
        elif causes.total() == len(self.trials):
            listed = "; ".join(f"{cause} ({n} times)" for cause, n in causes.most_common(3))
            said.append(f"No training came to an end: {listed}.")
        elif is_first:
            said.append("Nothing was clearly better than the configuration given.")
        elif not is_repaired:
            said.append("The best is better than the configuration given, but not repaired.")
        return " ".join(said)


def _gains(new: float, old: float, share: float) -> bool:
    return new < old - share * abs(old) if math.isfinite(old) else new < old


@contextmanager
def _quiet_optuna() -> Iterator[Any]:
    """Optuna, logging warnings only for as long as this lasts."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", "repair", "The search for a configuration") from error
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(verbosity)


def _require(holds: bool, rule: str, got: Any) -> None:
    if not holds:
        raise ArgumentError(f"{rule}; got {got!r}.")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
