"""The benchmark of training runs tells a run from what is none."""

from dataclasses import replace

import pytest
import torch

from benchmarks.grist import training
from benchmarks.grist.case import load
from benchmarks.grist.score import analyze
from ranum.analysis.confirm.training import train_into


@pytest.fixture(scope="module")
def found():
    case = load("torch")["32"]
    (defect,) = analyze(case, case.build(0)).defects
    witness, _ = train_into(defect, training.optimizer(case.training, "torch"), seconds=20)
    return case, witness


def test_a_run_counts(found):
    case, witness = found
    assert training.checked(case, case.targets[0], 0, witness) == ""
    run = training.train(case, 0, 20.0)
    assert run.problem == ""
    assert training.row(case, [run])[2] == "1/1"


def test_a_run_cut_short_does_not(found):
    case, witness = found
    assert witness.steps
    short = replace(witness, order=witness.order[-1:])
    assert "does not fail" in training.checked(case, case.targets[0], 0, short)


@pytest.mark.parametrize(
    ("name", "value", "problem"), [("x", 9.0, "x leaves"), ("y", 0.5, "y is not one-hot")]
)
def test_data_that_are_not_allowed_do_not(found, name, value, problem):
    case, witness = found
    shape = case.build(0).inputs[name].shape
    bad = ({**witness.batches[0], name: torch.full(shape, value)}, *witness.batches[1:])
    found_problem = training.checked(case, case.targets[0], 0, replace(witness, batches=bad))
    assert problem in found_problem
