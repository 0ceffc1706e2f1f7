"""Symptoms to edits."""

from __future__ import annotations

import math

import pytest

from ranum.guards.symptoms import default_symptoms
from ranum.guards.types import Finding
from ranum.repair.search import SearchSpace
from ranum.repair.search.diagnosis import EDITS, edits, order, verdict
from ranum.repair.search.minimize import minimize
from ranum.repair.search.normalization import NORMALIZATIONS
from ranum.repair.search.surgery import ACTIVATIONS, INITIALIZATIONS, OPTIMIZERS

FAULTY = {
    "learning_rate": 0.05,
    "optimizer": "SGD",
    "batch_size": 32,
    "initialization": "keep",
    "activation": "Tanh",
}
SPACE = SearchSpace()


def finding(symptom, severity="fault", step=1):
    return Finding(code="RN200", symptom=symptom, step=step, severity=severity, message="")


def changed(configuration):
    return {name: configuration[name] for name in FAULTY if configuration[name] != FAULTY[name]}


@pytest.mark.parametrize("symptom", EDITS)
def test_edits_stay_in_the_space_are_few_changes_and_come_once(symptom):
    found = edits(FAULTY, SPACE, [symptom])
    assert found
    assert all(SPACE.contains(edited) for edited in found)
    assert len(changed(found[0])) == 1
    assert sum(len(changed(edited)) > 2 for edited in found) <= 1
    assert len({tuple(edited.items()) for edited in found}) == len(found)


@pytest.mark.parametrize("symptom", EDITS)
def test_edits_are_of_a_kind_that_the_surgery_knows(symptom):
    known = {
        "activation": ACTIVATIONS,
        "initialization": INITIALIZATIONS,
        "normalization": NORMALIZATIONS,
        "optimizer": OPTIMIZERS,
        "gradient_clip": SearchSpace().gradient_clip,
    }
    for change in (change for edit in EDITS[symptom] for change in edit):
        assert (
            change.factor is not None
            or change.name == "learning_rate"
            or (change.value in known[change.name])
        )


@pytest.mark.parametrize(
    ("symptom", "first"),
    [
        ("NonFinite", {"learning_rate": 0.005}),
        ("ExplodingGradient", {"learning_rate": 0.005}),
        ("LossSpike", {"learning_rate": 0.005}),
        ("OscillatingLoss", {"learning_rate": 0.005}),
        ("VanishingGradient", {"activation": "SELU"}),
        ("DyingReLU", {"activation": "LeakyReLU"}),
        ("SlowConvergence", {"learning_rate": 0.1}),
    ],
)
def test_the_first_edit_is_the_one_the_symptom_calls_for(symptom, first):
    assert changed(edits(FAULTY, SPACE, [symptom])[0]) == first


NOT_IN_A_CONFIGURATION = {
    "BadInput",  # the data
    "BadLabels",
    "OutputMismatch",  # the code of model and loss
    "BatchNormStatistics",  # momentum, mode, how batches are drawn
    "ShrinkingWeights",  # weight decay
    "Overfitting",  # more data, or less of a model
}


def test_every_symptom_of_the_guards_has_edits():
    names = {type(symptom).__name__ for symptom in default_symptoms()}
    assert names - set(EDITS) == NOT_IN_A_CONFIGURATION


def test_a_rate_far_outside_goes_to_the_end_of_the_range_once():
    found = edits({"learning_rate": 50.0}, SPACE, ["NonFinite"])
    assert [edited["learning_rate"] for edited in found] == [0.1, 0.001]


def test_optimizer_and_rate_change_together():
    assert {**FAULTY, "optimizer": "Adam", "learning_rate": 1e-3} in edits(
        FAULTY, SPACE, ["NonFinite"]
    )


def test_faults_that_come_together_get_all_usual_values_at_once():
    fresh = {"learning_rate": 1e-3, "optimizer": "Adam", "initialization": "default"}
    assert {**FAULTY, **fresh, "activation": "ReLU"} in edits(FAULTY, SPACE, ["stuck"])


def test_what_is_not_searched_is_not_edited():
    space = SearchSpace(learning_rate=None, optimizer=None)
    for edited in edits(FAULTY, space, EDITS):
        assert set(changed(edited)) <= {"batch_size", "initialization", "activation"}
    assert edits({"learning_rate": 0.05, "activation": None}, SPACE, ["VanishingGradient"]) == (
        {"learning_rate": 0.001, "activation": None},
        {"learning_rate": 0.1, "activation": None},
    )


def test_an_unknown_symptom_suggests_nothing():
    assert edits(FAULTY, SPACE, ["Bored"]) == ()


def test_faults_come_before_warnings_and_each_symptom_once():
    found = [
        finding("SlowConvergence", "warning", 1),
        finding("NonFinite", step=9),
        finding("ExplodingGradient", step=5),
        finding("NonFinite", step=12),
        finding("Bored"),
    ]
    assert order(found) == ("ExplodingGradient", "NonFinite", "SlowConvergence")


@pytest.mark.parametrize(
    ("values", "score", "said"),
    [
        ([2.3, math.nan], 1.0, "diverged"),
        ([2.3, 2.0], math.inf, "diverged"),
        ([2.3, 4.0], 4.0, "diverged"),
        ([2.3, 2.305, 2.3], 2.3, "stuck"),
        ([2.3, 1.5], 1.5, "slow"),
        ([], 1.5, "slow"),
        ([2.3], 2.3, "slow"),
        ([2.0, 1.4] * 10 + [1.0, 1.6] * 10, 1.3, "slow"),  # the last batch alone is a hard one
    ],
)
def test_a_run_says_how_it_went(values, score, said):
    assert verdict(values, score) == said
    if math.isfinite(score):
        flipped = [-value for value in values]
        assert verdict(flipped, -score, lower_is_better=False) == said


def test_minimize_undoes_what_is_not_needed():
    faulty = {"a": 0, "b": 0, "c": 0}
    asked = []

    def is_good(configuration):
        asked.append(configuration)
        return configuration["b"] == 1

    assert minimize({"a": 1, "b": 1, "c": 1}, faulty, "abc", is_good) == {"a": 0, "b": 1, "c": 0}
    assert asked == [{"a": 0, "b": 1, "c": 1}, {"a": 0, "b": 0, "c": 1}, {"a": 0, "b": 1, "c": 0}]


def test_minimize_never_asks_for_the_faulty_configuration():
    def is_good(configuration):
        raise AssertionError(configuration)

    assert minimize({"a": 1, "b": 0}, {"a": 0, "b": 0}, "ab", is_good) == {"a": 1, "b": 0}
