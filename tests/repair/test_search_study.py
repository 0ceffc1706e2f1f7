"""The search on closed-form trainings: order, budget, pruning, undoing, honesty."""

from __future__ import annotations

import copy
import json
import logging
import math
import sys

import pytest

from ranum.errors import ArgumentError, MissingExtraError
from ranum.guards.types import Finding
from ranum.repair.search import Pruned, Reporter, SearchSpace, repair_configuration

optuna = pytest.importorskip("optuna")

FAULTY = {
    "learning_rate": 5.0,
    "optimizer": "SGD",
    "batch_size": 32,
    "initialization": "keep",
    "activation": "ReLU",
}


def valley(configuration, report):
    """Diverges above 0.05; best at 1e-3; SGD stops at 1."""
    rate = configuration["learning_rate"]
    speed = math.exp(-abs(math.log10(rate) + 3))
    value = 2.3
    for epoch in range(5):
        value = 2.3 * math.exp(-speed * (epoch + 1))
        if configuration["optimizer"] == "SGD":
            value = max(value, 1.0)
        report(epoch, math.nan if rate > 0.05 and epoch else value)
    return value


def coupled(configuration, report):
    """Trains only if optimizer and activation change together; no single edit helps."""
    good = configuration["optimizer"] == "RMSprop" and configuration["activation"] == "GELU"
    return 0.1 if good else 2.3


def test_a_hopeless_configuration_is_repaired():
    result = repair_configuration(valley, FAULTY, target=0.1)
    assert result.is_repaired
    assert result.score <= 0.1
    assert result.patch == {"learning_rate": (5.0, 0.001), "optimizer": ("SGD", "Adam")}
    assert result.complexity == 2 / 5
    assert result.faulty_score == math.inf
    assert result.confirmations == (result.score,)


def test_the_faulty_configuration_is_trained_first_and_left_alone():
    faulty = {**FAULTY, "layers": [64, 64]}
    before = copy.deepcopy(faulty)

    def vandal(configuration, report):
        configuration["layers"].append(1)
        configuration["learning_rate"] = 0.0
        return 1.0

    result = repair_configuration(vandal, faulty, budget=4)
    assert faulty == before == result.faulty == result.trials[0].configuration
    assert [trial.phase for trial in result.trials][:2] == ["faulty", "diagnosis"]
    assert all(trial.configuration["layers"] == [64, 64] for trial in result.trials)


def test_the_findings_choose_the_first_edit():
    seen = Finding(code="RN200", symptom="DyingReLU", step=3, severity="warning", message="")
    result = repair_configuration(valley, FAULTY, findings=[seen], budget=3)
    assert result.trials[1].configuration == {**FAULTY, "activation": "LeakyReLU"}


def test_the_same_seed_gives_the_same_result_and_another_may_not():
    def tried(seed):
        result = repair_configuration(valley, FAULTY, seed=seed, target=1e-9, budget=25)
        return [(trial.configuration, trial.score) for trial in result.trials]

    assert tried(3) == tried(3)
    assert tried(3) != tried(4)


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("train", [valley, coupled])
def test_the_budget_holds_for_all_phases_together(train, budget):
    seen = []
    result = repair_configuration(train, FAULTY, budget=budget, on_trial=seen.append)
    assert tuple(seen) == result.trials
    assert len(seen) <= budget
    assert [trial.number for trial in seen] == list(range(len(seen)))


def test_optuna_finds_what_no_single_edit_does():
    space = SearchSpace(learning_rate=None, batch_size=None, initialization=None)
    result = repair_configuration(coupled, FAULTY, space, target=0.5, budget=60)
    assert result.is_repaired
    assert set(result.patch) == {"optimizer", "activation"}
    assert any(trial.phase == "search" for trial in result.trials)


def test_minimization_makes_the_patch_smaller():
    def rate_only(configuration, report):
        return 0.1 if configuration["learning_rate"] <= 2e-3 else 2.3

    space = SearchSpace(learning_rate=(1e-5, 1e3))
    faulty = {**FAULTY, "learning_rate": 900.0}
    result = repair_configuration(rate_only, faulty, space, target=0.2, budget=40)
    first = next(trial for trial in result.trials if trial.score <= 0.2)
    differs = [name for name in FAULTY if first.configuration[name] != faulty[name]]
    assert len(differs) > 1
    assert list(result.patch) == ["learning_rate"]
    assert any(trial.phase == "minimize" for trial in result.trials)


def test_a_change_that_the_score_needs_is_kept():
    result = repair_configuration(valley, FAULTY, target=0.1)
    undone = [trial.configuration for trial in result.trials if trial.phase == "minimize"]
    assert {**FAULTY, "optimizer": "Adam"} in undone
    assert result.patch.keys() == {"learning_rate", "optimizer"}


def test_an_accuracy_is_maximized():
    def accuracy(configuration, report):
        score = 0.9 if configuration["optimizer"] == "Adam" else 0.1
        report(0, score)
        return score

    result = repair_configuration(accuracy, FAULTY, target=0.8, direction="maximize")
    assert result.is_repaired
    assert (result.faulty_score, result.score) == (0.1, 0.9)
    assert list(result.patch) == ["optimizer"]


def test_a_failed_accuracy_counts_as_the_worst():
    result = repair_configuration(
        lambda configuration, report: math.nan, FAULTY, direction="maximize", budget=3
    )
    assert [trial.score for trial in result.trials] == [-math.inf] * 3


def test_a_value_that_is_not_finite_ends_the_trial_there():
    def train(configuration, report):
        report(0, 1.0)
        report(1, math.inf)
        raise AssertionError("went on")

    trial = repair_configuration(train, FAULTY, budget=1).trials[0]
    assert (trial.state, trial.reason) == ("pruned", "reported inf at step 1")
    assert trial.score == math.inf
    assert dict(trial.values) == {0: 1.0, 1: math.inf}


def test_a_training_that_swallows_the_end_is_pruned_all_the_same():
    def stubborn(configuration, report):
        try:
            report(0, math.nan)
        except Pruned:
            return 0.0

    result = repair_configuration(stubborn, FAULTY, budget=2)
    assert {trial.state for trial in result.trials} == {"pruned"}
    assert not result.is_repaired


def test_a_trial_behind_the_median_is_ended_early():
    worse = iter(range(1, 100))

    def train(configuration, report):
        level = next(worse)
        for step in range(5):
            report(step, level)
        return level

    result = repair_configuration(train, FAULTY, budget=8)
    assert result.trials[0].state == "complete"
    assert "worse than half of the trials before" in result.trials[3].reason
    assert list(result.trials[3].values) == [0, 1]


def test_a_trial_that_learns_is_not_ended_though_it_is_behind():
    def train(configuration, report):
        is_fresh = configuration["initialization"] != "keep"
        for step in range(8):
            value = 3.0 * 0.7**step if is_fresh else 0.7
            report(step, value)
        return value

    result = repair_configuration(train, FAULTY, target=0.3, budget=40)
    assert result.is_repaired
    assert list(result.patch) == ["initialization"]


def test_if_every_training_fails_the_result_says_why():
    def broken(configuration, report):
        raise RuntimeError("no such file")

    result = repair_configuration(broken, FAULTY, budget=6)
    assert not result.is_repaired
    assert result.configuration == FAULTY
    assert result.patch == {}
    assert {trial.state for trial in result.trials} == {"failed"}
    assert "RuntimeError: no such file (5 times)" in result.reason


def test_if_nothing_is_better_the_configuration_stays():
    result = repair_configuration(lambda configuration, report: 1.0, FAULTY, budget=6)
    assert not result.is_repaired
    assert result.configuration == FAULTY
    assert result.reason.endswith("Nothing was clearly better than the configuration given.")


def test_a_configuration_that_reaches_the_target_is_left_as_it_is():
    result = repair_configuration(lambda configuration, report: 0.1, FAULTY, target=0.5)
    assert result.is_repaired
    assert len(result.trials) == 1
    assert result.reason == "The configuration reaches the target as it is."


def test_better_than_the_faulty_one_is_not_yet_the_target():
    result = repair_configuration(valley, FAULTY, target=1e-9, budget=12)
    assert not result.is_repaired
    assert result.patch
    assert "The best is better than the configuration given, but not repaired" in result.reason


def test_finite_is_not_yet_repaired_if_nothing_is_learned():
    def chance(configuration, report):
        for epoch in range(3):
            report(epoch, math.nan if configuration["learning_rate"] > 1 else 2.3)
        return 2.3

    result = repair_configuration(chance, FAULTY, budget=10)
    assert not result.is_repaired


def test_without_a_target_the_search_ends_when_nothing_gets_better():
    result = repair_configuration(valley, FAULTY, budget=100, patience=4)
    assert result.is_repaired
    assert "the last 4 trials brought nothing better" in result.reason
    assert len(result.trials) < 20


def test_luck_that_does_not_hold_with_a_fresh_seed_is_no_repair():
    def lucky(configuration, report):
        good = configuration["learning_rate"] < 1 and report.seed == 7
        return 0.1 if good else 2.0

    result = repair_configuration(lucky, FAULTY, seed=7, target=0.5, budget=4)
    assert [trial.seed for trial in result.trials] == [7, 7, 8]
    assert not result.is_repaired
    assert "1 result(s) did not hold with a fresh seed" in result.reason
    assert repair_configuration(lucky, FAULTY, seed=7, target=0.5, confirm_runs=0).is_repaired


def test_after_bad_luck_the_search_goes_on():
    def lucky_or_adam(configuration, report):
        if configuration["optimizer"] == "Adam":
            return 0.3
        return 0.1 if configuration["learning_rate"] < 1 and report.seed == 0 else 2.0

    result = repair_configuration(lucky_or_adam, FAULTY, target=0.5, budget=40)
    assert result.is_repaired
    assert result.patch == {"optimizer": ("SGD", "Adam")}
    assert result.confirmations == (0.3,)


def test_a_small_space_is_searched_once():
    space = SearchSpace(
        learning_rate=None, batch_size=None, initialization=None, activation=None,
        optimizer=("Adam", "SGD"),
    )  # fmt: skip
    result = repair_configuration(lambda configuration, report: 1.0, FAULTY, space)
    assert len(result.trials) == 2
    assert "every configuration of the space was tried" in result.reason


def test_your_own_values_are_searched():
    def train(configuration, report):
        return abs(configuration["dropout"] - 0.1)

    space = SearchSpace(extra={"dropout": {"low": 0.0, "high": 0.9}})
    result = repair_configuration(train, {**FAULTY, "dropout": 0.9}, space, target=0.1, budget=40)
    assert result.is_repaired
    assert list(result.patch) == ["dropout"]


class Clock:
    """Time that passes only when a training says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def test_a_budget_of_costs_is_spent_in_seconds(monkeypatch):
    clock = Clock(monkeypatch)

    def train(configuration, report):
        clock.now += 10.0 if configuration == FAULTY else 20.0
        return 1.0

    result = repair_configuration(train, FAULTY, budget="9x", confirm_runs=0)
    assert 90 <= result.seconds < 90 + 20


def test_a_faulty_run_that_died_early_does_not_set_the_cost(monkeypatch):
    clock = Clock(monkeypatch)

    def train(configuration, report):
        clock.now += 0.001 if configuration == FAULTY else 10.0
        return math.nan if configuration == FAULTY else 1.0

    result = repair_configuration(train, FAULTY, budget="5x", target=0.0)
    assert len(result.trials) == 1 + 4


def test_a_budget_of_costs_ends_though_no_training_does():
    result = repair_configuration(lambda configuration, report: math.nan, FAULTY, budget="2x")
    assert len(result.trials) <= 20


def test_a_timeout_ends_the_search_and_the_training_in_it(monkeypatch):
    clock = Clock(monkeypatch)

    def train(configuration, report):
        for epoch in range(10):
            clock.now += 1.0
            report(epoch, 1.0)
        return 1.0

    result = repair_configuration(train, FAULTY, timeout=25.5)
    assert [trial.state for trial in result.trials] == ["complete", "complete", "pruned"]
    assert result.trials[2].reason == "time was up at step 5"
    assert "time was up" in result.reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 3}, "train must be a function.*got 3"),
        ({"configuration": [1]}, r"configuration must map names to values; got \[1\]"),
        ({"configuration": {}}, "configuration must hold something to search"),
        ({"space": {"optimizer": ["Adam"]}}, "space must be a SearchSpace or None"),
        ({"budget": 0}, "budget must be at least 1 training.*got 0"),
        ({"budget": 2.5}, "budget must be at least 1 training"),
        ({"budget": True}, "budget must be at least 1 training"),
        ({"budget": "20"}, "budget must be a number of trainings or '<k>x'.*got '20'"),
        ({"budget": "0.5x"}, "k at least 1.*got '0.5x'"),
        ({"timeout": 0}, "timeout must be positive, in seconds, or None; got 0"),
        ({"findings": ["RN201"]}, "findings must be a list of"),
        ({"target": math.nan}, "target must be a finite score or None; got nan"),
        ({"direction": "up"}, "direction must be 'minimize' or 'maximize'; got 'up'"),
        ({"patience": 0}, "patience must be a whole number of at least 1; got 0"),
        ({"tolerance": 1.5}, r"tolerance must be a share, in \[0, 1\]; got 1.5"),
        ({"confirm_runs": -1}, "confirm_runs must be a whole number of at least 0; got -1"),
        ({"seed": -1}, r"seed must be a whole number in \[0, 2\*\*31\); got -1"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_trained(arguments, message):
    def never(configuration, report):
        raise AssertionError("trained")

    with pytest.raises(ArgumentError, match=message):
        repair_configuration(**{"train": never, "configuration": FAULTY, **arguments})


def test_a_step_must_be_a_whole_number():
    report = Reporter(seed=0)
    for step in (-1, 0.5, None):
        with pytest.raises(ArgumentError, match="step must be a whole number of at least 0"):
            report(step, 1.0)


def test_a_step_reported_twice_keeps_the_last_value():
    def train(configuration, report):
        report(0, 2.0)
        report(0, 1.0)
        return 1.0

    result = repair_configuration(train, FAULTY, budget=1)
    assert dict(result.trials[0].values) == {0: 1.0}


def test_optuna_keeps_its_voice_and_the_interrupt_passes():
    optuna.logging.set_verbosity(optuna.logging.DEBUG)

    def interrupted(configuration, report):
        assert optuna.logging.get_verbosity() == logging.WARNING
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            repair_configuration(interrupted, FAULTY)
        assert optuna.logging.get_verbosity() == logging.DEBUG
    finally:
        optuna.logging.set_verbosity(optuna.logging.INFO)


def test_the_trials_are_kept_in_the_storage():
    storage = optuna.storages.InMemoryStorage()
    result = repair_configuration(valley, FAULTY, budget=6, confirm_runs=0, storage=storage)
    (study,) = optuna.get_all_study_names(storage)
    kept = optuna.load_study(study_name=study, storage=storage).trials
    assert len(kept) == len(result.trials)
    assert kept[0].params == FAULTY
    assert kept[0].user_attrs == {"phase": "faulty", "reason": "reported nan at step 1"}


def test_without_optuna_the_message_holds_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ranum\[repair\]'"):
        repair_configuration(valley, FAULTY)


def test_a_result_is_plain_data_and_reads_well():
    result = repair_configuration(valley, FAULTY, target=0.1)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["patch"]["optimizer"] == ["SGD", "Adam"]
    assert data["faulty_score"] is None
    assert str(result).splitlines()[1] == "  learning_rate: 5.0 -> 0.001"
