"""Symptoms of layers, updates, data and validation, on readings made by hand."""

from __future__ import annotations

import math

import pytest
from guard_runs.shown import SHOWN

from benchmarks.symptoms.broken import BROKEN
from benchmarks.symptoms.judge import run
from ranum.guards.symptoms import (
    BadInitialisation,
    BadInput,
    BadLabels,
    BatchNormStatistics,
    LargeUpdate,
    Monitor,
    NotLearning,
    OutputMismatch,
    Overfitting,
    SaturatedActivation,
    ShrinkingWeights,
    SmallUpdate,
    Symptom,
    Window,
    default_symptoms,
)
from ranum.guards.types import (
    ActivationReading,
    Finding,
    InputReading,
    LossReading,
    NormalizationReading,
    Reading,
)

NAMES = ("a.weight", "b.weight", "c.weight")


def wobble(step: int) -> float:
    """Deterministic noise in [-1, 1]."""
    return math.sin(12.9898 * step)


def sample(step: int, loss: float | None = 1.0, **fields) -> Reading:
    ones = dict.fromkeys(NAMES, 1.0)
    given = {"grad_norms": ones, "weight_norms": ones} | fields
    return Reading(step=step, loss=loss, grad_norm=1.0, **given)


def first_finding(symptom: Symptom, readings) -> Finding | None:
    """The first thing a monitor says about readings."""
    monitor = Monitor([symptom], strict=True)
    for reading in readings:
        for finding in monitor.observe(reading):
            assert finding.message.endswith(".")
            assert all(math.isfinite(value) for value in finding.evidence.values())
            return finding
    return None


def run_of(count: int, fields, loss=lambda step: 1.0 + 0.01 * wobble(step), every: int = 10):
    """Readings 0 to `count`, sampled every tenth step with `fields(step)`."""
    for step in range(count):
        if step % every:
            yield Reading(step=step, loss=loss(step), grad_norm=1.0)
        else:
            yield sample(step, loss(step), **fields(step))


def falling(step: int) -> float:
    return math.exp(-step / 20)


# --- updates -------------------------------------------------------------------------------


def updates(*ratios: float):
    return {"updates": dict(zip(NAMES, ratios, strict=False))}


@pytest.mark.parametrize(
    ("ratios", "loss", "step"),
    [
        ((1e-6, 1e-6, 1e-6), None, 50),
        ((1e-6, 1e-6, 1e-2), None, 50),  # most weights
        ((1e-3, 1e-3, 1e-6), None, None),
        ((0.0, 0.0, 1e-3), None, None),  # those that do not move at all are another case
        ((0.0, 0.0, 0.0), None, None),
        ((1e-6, 1e-6, 1e-6), falling, None),  # converged
        ((1e-6, 1e-6, 1e-6), lambda s: 1.0 - 0.004 * s, None),  # on its way
        # batches differ by more than the fall
        ((1e-6, 1e-6, 1e-6), lambda s: 2.0 + 1.5 * wobble(7 * s) + 0.15 * (s < 16), 50),
        ((2e-5, 2e-5, 2e-5), None, None),  # fine-tuning at the floor
    ],
)
def test_small_update(ratios, loss, step):
    given = {} if loss is None else {"loss": loss}
    found = first_finding(SmallUpdate(), run_of(120, lambda _: updates(*ratios), **given))
    assert (found.step if found else None) == step


def test_updates_that_become_small_are_another_case():
    readings = run_of(120, lambda step: updates(*[0.5 if step <= 20 else 1e-7] * 3))
    assert first_finding(SmallUpdate(), readings) is None


def test_small_update_waits_while_the_rate_rises():
    def fields(step: int):
        return {**updates(1e-6, 1e-6), "learning_rate": 1e-9 * (step + 1)}

    assert first_finding(SmallUpdate(), run_of(120, fields)) is None


@pytest.mark.parametrize(
    ("ratios", "loss", "step"),
    [
        (lambda s: 1.0 if s == 10 else 0.01, None, 30),
        (lambda s: 0.5 if s == 10 else 0.01, None, None),  # raw units under Adam
        (lambda s: 0.2 if s <= 20 else 0.01, None, 30),
        (lambda s: 0.2 if s == 20 else 0.01, None, None),
        (lambda s: 1.0 if s == 10 else 0.01, falling, None),
        # blown up at first, and better than ever since
        (
            lambda s: 1.0 if s == 10 else 0.01,
            lambda s: 1.0 + 50 * (0 < s < 9) - 0.3 * (s > 9),
            None,
        ),
    ],
)
def test_large_update(ratios, loss, step):
    given = {} if loss is None else {"loss": loss}
    found = first_finding(LargeUpdate(), run_of(150, lambda s: updates(*[ratios(s)] * 3), **given))
    assert (found.step if found else None) == step


@pytest.mark.parametrize(
    ("size", "step"), [(lambda s: 0.978**s, 60), (lambda s: 0.998**s, None), (lambda s: 1.0, None)]
)
def test_shrinking_weights(size, step):
    def fields(s: int):
        norms = dict.fromkeys(NAMES, size(s)) | {"head.bias": 1.0}
        return {**updates(0.01, 0.01, 0.01), "weight_norms": norms}

    found = first_finding(ShrinkingWeights(), run_of(400, fields))
    assert (found.step if found else None) == step


@pytest.mark.parametrize(("symptom", "ratio"), [(SmallUpdate(), 1e-7), (LargeUpdate(), 1.0)])
def test_updates_are_not_judged_without_a_loss(symptom, ratio):
    window = Window()
    for reading in run_of(20, lambda _: {}):
        window.add(reading)
    window.reset(0)  # the start stays known, the losses do not
    for step in range(0, 100, 10):
        window.add(sample(step, None, **updates(ratio, ratio, ratio)))
        assert symptom.check(window) is None


# --- not learning --------------------------------------------------------------------------


def test_weights_that_never_change_are_found():
    readings = run_of(60, lambda _: updates(0.0, 0.0, 0.0))
    assert first_finding(NotLearning(), readings).step == 40


@pytest.mark.parametrize(
    "fields",
    [
        lambda step: updates(0.0, 0.0, 1e-9),
        lambda step: updates(*[0.0 if step < 30 else 1e-3] * 3),  # a warm-up from zero
        lambda step: {},
        # players that take turns: the step after a sample is always the other's
        lambda step: {**updates(0.0, 0.0), "weight_norms": dict.fromkeys(NAMES, 1.0 + step)},
    ],
)
def test_weights_that_change_are_left_alone(fields):
    assert first_finding(NotLearning(), run_of(40, fields)) is None


def test_a_converged_run_may_stand_still():
    readings = run_of(200, lambda step: updates(*[1e-3 * (step < 100)] * 3), loss=falling)
    assert first_finding(NotLearning(), readings) is None


def test_a_cut_graph_is_found_by_its_parameters():
    found = first_finding(NotLearning(), run_of(60, lambda _: {"cut_off": ("a.weight",)}))
    assert (found.step, found.where) == (40, "a.weight")
    moving = run_of(
        60,
        lambda step: {
            "cut_off": ("a.weight",),
            "weight_norms": {"a.weight": 1.0 + step},
        },
    )
    assert first_finding(NotLearning(), moving) is None
    at_times = run_of(60, lambda step: {"cut_off": ("a.weight",) if step % 20 else ()})
    assert first_finding(NotLearning(), at_times) is None


# --- activations and initialisation ------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "loss", "fires"),
    [
        (0.9, None, True),
        (0.6, None, False),
        (0.95, falling, False),  # an output that has become sure of itself
        (None, None, False),
    ],
)
def test_saturated_activation(share, loss, fires):
    one = ActivationReading(lower=-1.0, upper=1.0, saturated=share)
    given = {} if loss is None else {"loss": loss}
    readings = run_of(100, lambda step: {"activations": {"tanh": one}} if step else {}, **given)
    found = first_finding(SaturatedActivation(), readings)
    assert (found is not None) is fires
    assert found is None or (found.where, found.step) == ("tanh", 50)


def layers(sizes, spreads=()):
    spreads = spreads or [1.0] * len(sizes)
    return {
        str(place): ActivationReading(lower=0.0, upper=size, spread=spread)
        for place, (size, spread) in enumerate(zip(sizes, spreads, strict=True))
    }


GIVEN = InputReading(where="0", lower=-3.0, upper=3.0, deviation=1.0, spread=5.0)


@pytest.mark.parametrize(
    ("sizes", "fires"),
    [
        ((8, 30, 1e2, 1e3, 1e4), True),
        ((2, 2, 1, 1, 0.3), False),
        ((2, 2, 1, 1, 4e3), False),  # a head in raw units
        ((2, 5e3, 8, 30, 30), False),  # a large inner activation
    ],
)
def test_wide_initialisation(sizes, fires):
    first = sample(0, inputs=GIVEN, activations=layers(sizes))
    assert (first_finding(BadInitialisation(), [first]) is not None) is fires


def test_wide_initialisation_compares_with_the_input():
    wide = InputReading(where="0", lower=0.0, upper=255.0, mean=80.0, deviation=90.0, spread=255.0)
    first = sample(0, inputs=wide, activations=layers((800, 800, 2000, 2000, 5000)))
    assert first_finding(BadInitialisation(), [first]) is None


@pytest.mark.parametrize(
    ("spreads", "given", "fires"),
    [
        ((1.0, 1e-3, 1e-6, 1e-9, 1e-9), GIVEN, True),
        ((0.0, 0.0, 0.0, 0.0, 0.0), GIVEN, True),
        ((2.0, 2.0, 1.0, 1.0, 0.0), GIVEN, False),  # a head from zero
        ((0.0,), GIVEN, False),
        ((0.0, 0.0, 0.0, 0.0), InputReading(where="0", lower=1.0, upper=1.0, mean=1.0), False),
        ((3.0, 1e-6, 1e-6, 1e-6), None, True),  # tokens: compared with the first module
        ((None, None, None, None), GIVEN, False),  # one example
    ],
)
def test_narrow_initialisation(spreads, given, fires):
    first = sample(0, inputs=given, activations=layers([1.0] * len(spreads), spreads))
    assert (first_finding(BadInitialisation(), [first]) is not None) is fires


def test_units_that_stay_alike():
    always = run_of(60, lambda _: {"alike": ("a.weight",)})
    assert first_finding(BadInitialisation(), always).step == 20
    head = run_of(60, lambda step: {"alike": ("a.weight",) if step == 0 else ()})
    assert first_finding(BadInitialisation(), head) is None
    frozen = run_of(60, lambda _: {"alike": ("d.weight",)})  # has no gradient
    assert first_finding(BadInitialisation(), frozen) is None


def test_a_resumed_run_is_not_judged_by_its_initialisation():
    readings = [
        sample(step, inputs=GIVEN, activations=layers((8, 30, 1e4, 1e4, 1e4)), alike=("a.weight",))
        for step in range(5000, 5100, 10)
    ]
    assert first_finding(BadInitialisation(), readings) is None


# --- BatchNorm -----------------------------------------------------------------------------


def norm(**values):
    return {"normalizations": {"bn": NormalizationReading(**{"shift": 0.0, "ratio": 1.0} | values)}}


@pytest.mark.parametrize(
    ("fields", "step"),
    [
        (lambda s: norm(ratio=1.2), None),
        (lambda s: norm(ratio=10.0), 40),
        (lambda s: norm(ratio=0.1), 40),
        (lambda s: norm(ratio=10.0, momentum=0.01), 300),  # has to follow first
        (lambda s: norm(ratio=10.0, momentum=0.0), 40),
        (lambda s: norm(ratio=10.0 if s < 30 else 1.1, momentum=0.1), None),
        (lambda s: norm(ratio=1e-6 if s >= 100 else 1.0, momentum=0.001), 120),
        (lambda s: norm(ratio=1e6 if s == 100 else 1.0), None),  # the batch, not the statistics
        (lambda s: norm(momentum=1.0, count=4), 40),
        (lambda s: norm(momentum=1.0, count=256), None),
        (lambda s: norm(momentum=0.1, count=4), None),
    ],
)
def test_batch_norm_statistics(fields, step):
    found = first_finding(BatchNormStatistics(), run_of(400, fields))
    assert (found.step if found else None) == step


# --- overfitting ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("validation", "training", "fires"),
    [
        (lambda s: 1.0 - s / 400 if s < 200 else 0.5 + (s - 200) / 400, falling, True),
        (lambda s: 1.0 - s / 400 if s < 200 else 0.1, falling, False),  # level, and low
        (lambda s: 1.0 - s / 400 if s < 200 else 0.5, falling, True),  # level, far above
        (lambda s: 1.0 - s / 400 if s < 200 else 0.5, lambda s: 0.4, False),
        (lambda s: 1.0 - s / 400 if s < 200 else 0.5 + (s - 200) / 400, lambda s: 1.0, False),
        (lambda s: 0.15 + falling(s) + 0.02 * wobble(s), falling, False),  # noise
        (lambda s: 0.010 + (s >= 200) * 0.005, falling, False),  # nobody's concern
        (lambda s: None, falling, False),
    ],
)
def test_overfitting(validation, training, fires):
    readings = [
        Reading(
            step=step,
            loss=training(step),
            grad_norm=1.0,
            validation_loss=validation(step) if step % 20 == 0 else None,
        )
        for step in range(500)
    ]
    found = first_finding(Overfitting(), readings)
    assert (found is not None) is fires
    assert found is None or 200 < found.step <= 400


def test_validations_are_forgotten_after_a_rollback():
    window = Window()
    for step in range(100):
        value = 1.0 if step % 10 == 0 else None
        window.add(Reading(step=step, loss=1.0, grad_norm=1.0, validation_loss=value))
    window.add(Reading(step=100, loss=1.0, grad_norm=1.0, validation_loss=math.nan))
    assert [one.step for one in window.validations] == list(range(10, 100, 10))
    window.reset(50)
    assert [one.step for one in window.validations] == [10, 20, 30, 40]


# --- data and configuration --------------------------------------------------------------------


def inputs(**values):
    base = {"where": "0", "lower": -3.0, "upper": 3.0, "deviation": 1.0, "spread": 5.0}
    return {"inputs": InputReading(**base | values), "activations": layers((200, 200, 70, 30))}


@pytest.mark.parametrize(
    ("fields", "step"),
    [
        (lambda s: inputs(), None),
        (lambda s: inputs(lower=math.nan, upper=math.nan), 0),
        (lambda s: inputs(upper=math.inf) if s == 30 else inputs(), 30),
        (lambda s: inputs(spread=0.0), 20),
        (lambda s: inputs(spread=0.0) if s == 20 else inputs(), None),
        (lambda s: inputs(spread=None), None),  # one example
        (lambda s: inputs(mean=80.0, deviation=90.0, upper=255.0), 0),
        (lambda s: inputs(mean=80.0, deviation=90.0, is_normalized=True), None),
        (
            lambda s: {**inputs(mean=80.0, deviation=90.0), "activations": layers((200, 4, 3, 1))},
            None,  # normalized away after the first layer
        ),
        (lambda s: inputs(deviation=50.0) if s == 60 else inputs(), 60),
        (lambda s: inputs(deviation=5.0) if s == 60 else inputs(), None),
        (lambda s: {}, None),
    ],
)
def test_bad_input(fields, step):
    found = first_finding(BadInput(), run_of(120, fields))
    assert (found.step if found else None) == step


def losses(*terms: LossReading):
    return {"loss_terms": terms}


def entropy(**values) -> LossReading:
    return LossReading(**{"kind": "cross entropy", "upper": 9.0, "count": 32} | values)


@pytest.mark.parametrize(
    ("fields", "step"),
    [
        (lambda s: losses(entropy()), None),
        (lambda s: losses(entropy(ignored=1.0)) if s == 30 else losses(entropy()), 30),
        (lambda s: losses(entropy(ignored=0.97)), None),
        (lambda s: losses(entropy(lower=s // 20, upper=s // 20)), 20),
        (lambda s: losses(entropy(lower=s // 20, upper=s // 20, count=4)), None),
        (lambda s: losses(entropy(lower=1.0, upper=1.0)), None),  # one positive in thousands
        (lambda s: losses(LossReading(kind="binary cross entropy", outside=0.2, count=9)), 0),
        (lambda s: losses(LossReading(kind="squared error", outside=0.2, count=9)), 0),
        (lambda s: losses(LossReading(kind="squared error", outside=0.005, count=9)), None),
        (lambda s: losses(entropy(), LossReading(kind="Huber", outside=0.9, count=9)), 0),
    ],
)
def test_bad_labels(fields, step):
    found = first_finding(BadLabels(), run_of(60, fields))
    assert (found.step if found else None) == step


@pytest.mark.parametrize(
    ("kind", "activation", "peak", "fires"),
    [
        ("cross entropy", "", None, False),
        ("cross entropy", "softmax", None, True),
        ("cross entropy", "relu", None, True),
        ("binary cross entropy with logits", "", None, False),
        ("binary cross entropy with logits", "sigmoid", None, True),
        ("binary cross entropy", "sigmoid", None, False),
        ("squared error", "sigmoid", None, False),
        ("negative log likelihood", "softmax", None, True),
        ("negative log likelihood", "", -0.1, False),
        ("negative log likelihood", "", 0.9, True),
        ("negative log likelihood", "", None, False),
    ],
)
def test_output_mismatch(kind, activation, peak, fires):
    term = LossReading(kind=kind, activation=activation, count=8, peak=peak)
    found = first_finding(OutputMismatch(), [sample(0, **losses(entropy(), term))])
    assert (found is not None) is fires


# --- real runs -----------------------------------------------------------------------------

CASES = {case.name: case for case in BROKEN}


@pytest.mark.parametrize(("code", "name"), SHOWN.items())
def test_a_real_run_shows_it(code, name):
    case = CASES[name]
    outcome = run(case, seed=0)
    steps = {verdict.codes[0]: verdict.first for verdict in outcome.verdicts}
    assert steps[code] <= case.within
    rules = [rule for rule in default_symptoms() if rule.code != code]
    assert code not in {v.codes[0] for v in run(case, 0, symptoms=rules).verdicts}
