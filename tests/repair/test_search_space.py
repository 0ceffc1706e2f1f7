"""The space: what it admits, refuses, samples and steps to."""

from __future__ import annotations

import math

import pytest

from ranum.errors import ArgumentError
from ranum.repair.search import SearchSpace
from ranum.repair.search.space import Range

FAULTY = {
    "learning_rate": 5.0,
    "optimizer": "SGD",
    "batch_size": 32,
    "initialization": "keep",
    "activation": "ReLU",
}


class FirstOrLow:
    """Suggests the first choice and the low end, and remembers what it was offered."""

    def __init__(self):
        self.offered = {}

    def suggest_float(self, name, low, high, *, log=False):
        self.offered[name] = (low, high, log)
        return low

    suggest_int = suggest_float

    def suggest_categorical(self, name, choices):
        self.offered[name] = tuple(choices)
        return choices[0]


def only(**values):
    """A space that searches nothing but `values`."""
    nothing = dict.fromkeys(
        (
            "learning_rate",
            "optimizer",
            "batch_size",
            "initialization",
            "activation",
            "normalization",
            "gradient_clip",
        )
    )
    return SearchSpace(**{**nothing, **values})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": (1e-1, 1e-5)}, "learning_rate must end above its start"),
        ({"learning_rate": (0.0, 1.0)}, "learning_rate must start above 0"),
        ({"learning_rate": 0.1}, "learning_rate must be a pair"),
        ({"learning_rate": (1e-3, math.nan)}, "high of learning_rate must be a finite number"),
        ({"learning_rate": ("1e-3", 1.0)}, "low of learning_rate must be a finite number"),
        ({"optimizer": "Adam"}, r"optimizer must be a list of names; got 'Adam'\. Write \['Adam'"),
        ({"optimizer": ("Adam", "Adam")}, "optimizer must hold each choice once"),
        ({"activation": ("ReLU", 3)}, "activation must be a list of names; got 3 in it"),
        ({"batch_size": (0, 16)}, "batch_size must be at least 1; got 0"),
        ({"batch_size": (16.5,)}, "batch_size must be a list of whole numbers; got 16.5"),
        ({"extra": ["dropout"]}, "extra must map your names"),
        ({"extra": {"optimizer": ["a"]}}, "extra holds names of your own.*'optimizer'"),
        ({"extra": {"": [1]}}, "extra holds names of your own"),
        ({"extra": {"dropout": {"low": 0.0}}}, "dropout must be a range with low and high"),
        ({"extra": {"d": {"low": 0, "high": 1, "step": 1}}}, "d must be a range with low and high"),
        ({"extra": {"d": {"low": 0.0, "high": 1.0, "log": 1}}}, "log of d must be true or false"),
        ({"extra": {"d": {"low": 0.0, "high": 1.0, "log": True}}}, "d must start above 0"),
        ({"extra": {"layers": [[1], [2]]}}, "a choice of layers must be None, a number"),
        ({"extra": {"layers": []}}, "layers must hold at least one choice"),
        ({"extra": {"layers": 3}}, "layers must be a list of choices"),
    ],
)
def test_a_space_that_is_none_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        SearchSpace(**arguments)


def test_a_space_of_nothing_is_refused():
    with pytest.raises(ArgumentError, match="must have something to search"):
        only(optimizer=())


def test_lists_as_yaml_writes_them_are_taken():
    space = SearchSpace(learning_rate=[1e-4, 1], optimizer=["Adam"], batch_size=[8, 16])
    assert space == SearchSpace(learning_rate=(1e-4, 1), optimizer=("Adam",), batch_size=(8, 16))


def test_the_space_keeps_its_own_copy_of_extra():
    extra = {"dropout": [0.0, 0.5]}
    space = SearchSpace(extra=extra)
    extra["other"] = [1]
    assert "other" not in space.names()


def test_only_what_the_configuration_holds_is_searched():
    space = SearchSpace(extra={"dropout": {"low": 0.0, "high": 0.5}})
    within = space.within({"optimizer": "SGD", "activation": None, "dropout": 0.1})
    assert list(within) == ["optimizer", "dropout"]


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({}, "must hold something to search.*it holds nothing"),
        ({"layers": 3, "activation": None}, "it holds 'layers', 'activation'"),
        ({"learning_rate": 0.0}, r"configuration\['learning_rate'\] must be a positive number"),
        ({"learning_rate": "fast"}, "must be a positive number.*'fast'"),
        ({"learning_rate": math.inf}, "must be a positive number"),
        ({"optimizer": ["SGD"]}, r"configuration\['optimizer'\] must be None, a number"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(configuration, message):
    with pytest.raises(ArgumentError, match=message):
        SearchSpace().within(configuration)


def test_a_name_in_extra_must_be_in_the_configuration():
    with pytest.raises(ArgumentError, match=r"extra searches over 'dropout'.*does not hold"):
        SearchSpace(extra={"dropout": [0.1]}).within(FAULTY)


def test_the_faulty_value_is_admitted_though_it_lies_outside():
    space = SearchSpace(optimizer=("Adam",), batch_size=(16,))
    trial = FirstOrLow()
    space.sample(trial, FAULTY)
    assert trial.offered["learning_rate"] == (1e-5, 5.0, True)
    assert trial.offered["optimizer"] == ("Adam", "SGD")
    assert trial.offered["batch_size"] == (16, 32)
    assert not space.contains(FAULTY)
    assert space.contains({**FAULTY, "learning_rate": 1e-3, "optimizer": "Adam", "batch_size": 16})


def test_a_sample_keeps_what_is_not_searched_and_the_configuration():
    faulty = {**FAULTY, "epochs": 3, "activation": None}
    before = dict(faulty)
    sampled = SearchSpace().sample(FirstOrLow(), faulty)
    assert sampled == {**faulty, "learning_rate": 1e-5, "optimizer": "Adam", "batch_size": 16}
    assert faulty == before


@pytest.mark.parametrize(
    ("suggested", "faulty", "sampled"),
    [
        (0.00317239, 5.0, 0.00317),  # a patch is read by a person
        (0.123456789, 0.123456789, 0.123456789),  # the faulty value is kept to the last digit
        (1.2345e-5, 5.0, 1.2345e-5),  # rounding does not leave the range
    ],
)
def test_sampled_numbers_are_short(suggested, faulty, sampled):
    class One(FirstOrLow):
        def suggest_float(self, name, low, high, *, log=False):
            return suggested

    space = only(learning_rate=(1.2345e-5, 0.1))
    assert space.sample(One(), {"learning_rate": faulty})["learning_rate"] == sampled


@pytest.mark.parametrize(
    ("space", "value", "others"),
    [
        ({"learning_rate": (1e-5, 1e-1)}, 5.0, [0.1]),
        ({"learning_rate": (1e-5, 1e-1)}, 1e-3, [1e-4, 1e-2]),
        ({"learning_rate": (1e-5, 1e-1)}, 1e-5, [1e-4]),
        ({"optimizer": ("Adam", "SGD")}, "SGD", ["Adam"]),
        ({"optimizer": ("Adam", "SGD")}, "Lion", ["Adam", "SGD"]),
        ({"batch_size": (16, 32, 64)}, 32, [16, 64]),
        ({"batch_size": (16, 32, 64)}, 1797, [64]),
        ({"extra": {"x": {"low": 0.0, "high": 1.0}}}, 0.5, [0.25, 0.75]),
        ({"extra": {"x": {"low": 1, "high": 3}}}, 2, [1, 3]),
        ({"extra": {"x": {"low": 1, "high": 1000, "log": True}}}, 10, [1, 100]),
        ({"extra": {"x": [None, "cosine"]}}, None, ["cosine"]),
        ({"extra": {"x": [True, False]}}, True, [False]),
    ],
)
def test_neighbours_are_one_change_away(space, value, others):
    name = next(iter(space)) if "extra" not in space else "x"
    configuration = {name: value, "fixed": 1}
    found = only(**space).neighbours(configuration)
    assert found == tuple({name: other, "fixed": 1} for other in others)


def test_every_neighbour_of_a_space_lies_inside_it():
    space = SearchSpace(extra={"dropout": {"low": 0.0, "high": 0.5}, "schedule": ["none", "cos"]})
    start = {**FAULTY, "learning_rate": 1e-3, "dropout": 0.2, "schedule": "none"}
    found = space.neighbours(start)
    assert all(space.contains(neighbour) for neighbour in found)
    assert all(sum(neighbour[k] != start[k] for k in start) == 1 for neighbour in found)
    assert len({tuple(neighbour.values()) for neighbour in found}) == len(found)


@pytest.mark.parametrize(
    ("value", "holds"),
    [(1, True), (3, True), (0, False), (1.5, False), (True, False), ("1", False)],
)
def test_a_range_of_whole_numbers_holds_only_those(value, holds):
    assert Range(1, 3, integer=True).holds(value) is holds


def test_a_whole_range_refuses_a_faulty_fraction():
    space = only(extra={"layers": {"low": 1, "high": 4}})
    with pytest.raises(ArgumentError, match="must be a finite whole number"):
        space.within({"layers": 2.5})
