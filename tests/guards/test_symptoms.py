from __future__ import annotations

import json
import math
import pickle
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import ClassVar

import pytest
from guard_runs.runs import CORRUPT_STEP, HEALTHY, SICK, SPIKE_STEP, Run
from guard_runs.shown import SHOWN

from ranum import explain
from ranum.errors import ArgumentError, RanumWarning
from ranum.guards.symptoms import (
    CODES,
    DyingReLU,
    ExplodingGradient,
    LossSpike,
    Monitor,
    NonFinite,
    OscillatingLoss,
    SlowConvergence,
    Symptom,
    VanishingGradient,
    Window,
    default_symptoms,
    register,
)
from ranum.guards.types import ActivationReading, Finding, Reading

HEADINGS = (
    "What it finds:",
    "Why it matters:",
    "Thresholds and their source:",
    "Known misses:",
    "Remedies:",
    "Example:",
    "References:",
)


def findings(run: Run, seed: int) -> list[Finding]:
    monitor = Monitor(default_symptoms(), strict=True)
    return [finding for reading in run.readings(seed) for finding in monitor.observe(reading)]


def reading(step: int, loss: float | None = 1.0, norm: float | None = 1.0, **rest) -> Reading:
    return Reading(step=step, loss=loss, grad_norm=norm, **rest)


def wobble(step: int) -> float:
    """Deterministic noise in [-1, 1]."""
    return math.sin(12.9898 * step)


# --- contract: every registered symptom ----------------------------------------------------


@pytest.mark.parametrize("symptom", CODES.values(), ids=lambda s: s.__name__)
class TestContract:
    def test_is_a_default(self, symptom):
        assert symptom in {type(default) for default in default_symptoms()}

    def test_page_has_every_heading(self, symptom):
        page = explain(symptom.code)
        positions = [page.index(heading) for heading in HEADINGS]
        assert positions == sorted(positions)
        assert explain(symptom.__name__) == page

    def test_is_a_value(self, symptom):
        one = symptom()
        assert one == symptom()
        assert hash(one) == hash(symptom())
        assert pickle.loads(pickle.dumps(one)) == one
        assert eval(repr(one), {symptom.__name__: symptom}) == one
        with pytest.raises((FrozenInstanceError, TypeError)):
            one.code = "RN999"

    def test_says_itself_as_plain_data(self, symptom):
        data = json.loads(json.dumps(symptom().to_dict()))
        assert data["code"] == symptom.code
        assert {field.name for field in fields(symptom)} <= data.keys()

    def test_thresholds_are_validated(self, symptom):
        for field in fields(symptom):
            for bad in (0, -1.0, math.nan, "many", True, None):
                with pytest.raises(ArgumentError, match=rf"{field.name} must be .*; got"):
                    symptom(**{field.name: bad})

    def test_says_nothing_about_little(self, symptom):
        window = Window()
        for one in (
            reading(0, None, None),
            reading(1, 1.0, None),
            reading(2, None, 1.0),
            reading(3, 0.0, 0.0),
            reading(4, grad_norms={"w": 0.0}, weight_norms={"w": 0.0}),
            reading(5, activations={"relu": ActivationReading(lower=0.0, upper=0.0, dead=1.0)}),
        ):
            window.add(one)
            assert symptom().check(window) is None

    def test_has_a_run_that_shows_it(self, symptom):
        assert symptom.code in SICK or symptom.code in SHOWN


CASES = [(code, run) for code, runs in SICK.items() for run in runs]


@pytest.mark.parametrize(("code", "run"), CASES, ids=[f"{c}-{r.name}" for c, r in CASES])
def test_sick_run_shows_its_symptom(code, run):
    found = {finding.code: finding for finding in findings(run, seed=0)}
    assert code in found
    finding = found[code]
    assert finding.symptom == CODES[code].__name__
    assert finding.severity == CODES[code].severity
    assert finding.message.endswith(".")
    json.dumps(finding.to_dict(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("code", "run"), CASES, ids=[f"{c}-{r.name}" for c, r in CASES])
def test_sick_run_shows_its_symptom_for_other_seeds(code, run, seed):
    assert code in {finding.code for finding in findings(run, seed)}


@pytest.mark.parametrize("run", HEALTHY, ids=lambda run: run.name)
def test_healthy_run_is_quiet(run):
    assert findings(run, seed=0) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("run", HEALTHY, ids=lambda run: run.name)
def test_healthy_run_is_quiet_for_other_seeds(run, seed):
    assert findings(run, seed) == []


# --- single symptoms -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "norm", "words"),
    [
        (math.nan, 1.0, "loss is nan"),
        (1.0, math.inf, "gradient norm is inf"),
        (-math.inf, math.nan, "loss is -inf and the gradient norm is nan"),
        (None, math.nan, "gradient norm is nan"),
        (math.nan, None, "loss is nan"),
    ],
)
def test_non_finite_names_what_is_bad(loss, norm, words):
    window = Window()
    window.add(reading(0, loss, norm))
    finding = NonFinite().check(window)
    assert finding is not None
    assert words in finding.message
    assert all(math.isfinite(value) for value in finding.evidence.values())


def test_gradient_spike_is_found_in_its_step():
    run = SICK["RN202"][0]
    found = findings(run, seed=0)
    assert [(finding.code, finding.step) for finding in found] == [("RN202", SPIKE_STEP)]
    assert found[0].evidence["ratio"] > 1e7


def test_corrupt_batch_is_found_in_its_step():
    found = findings(SICK["RN207"][0], seed=0)
    assert {finding.step for finding in found if finding.code == "RN207"} == {CORRUPT_STEP}


@pytest.mark.parametrize(
    ("norms", "fires"),
    [
        ([1.0] * 20 + [9e3], False),
        ([1.0] * 20 + [2e4], True),
        ([1.0] * 8 + [1e-9] * 200 + [9e3], False),  # converged, then one hard example
        ([1e-9] * 20 + [1e-3], False),  # beneath the floor
        ([0.0] * 20 + [5.0], False),
        ([1.0, 2e4], True),
        ([1e14, 2e15], True),
        ([2e15], True),
        ([1e6], False),  # one step alone says nothing
    ],
)
def test_exploding_gradient_without_a_loss(norms, fires):
    window = Window()
    for step, norm in enumerate(norms):
        window.add(reading(step, None, norm))
    assert (ExplodingGradient().check(window) is not None) is fires


@pytest.mark.parametrize(("loss", "fires"), [(1.0, False), (5.0, False), (50.0, True)])
def test_moderate_growth_needs_a_worse_loss(loss, fires):
    window = Window()
    for step in range(40):
        window.add(reading(step, 1.0 + 0.1 * wobble(step), 1.0))
    window.add(reading(40, loss, 300.0))
    assert (ExplodingGradient().check(window) is not None) is fires


def sampled(step: int, early: float, late: float = 1.0, loss: float = 1.0) -> Reading:
    names = ["a.weight", "a.bias", "b.weight", "c.weight", "d.weight", "d.bias"]
    norms = dict.fromkeys(names, late) | {"a.weight": early, "a.bias": 0.0}
    return reading(step, loss, grad_norms=norms, weight_norms=dict.fromkeys(names, 1.0))


@pytest.mark.parametrize(
    ("early", "late", "fires"),
    [(1e-7, 1.0, True), (0.0, 1.0, True), (1e-3, 1.0, False), (1e-7, 1e-6, False), (0, 0, False)],
)
def test_vanishing_gradient_compares_first_and_last_weights(early, late, fires):
    window = Window()
    for sample in range(5):
        assert VanishingGradient().check(window) is None if sample else True
        window.add(sampled(10 * sample, early, late))
    finding = VanishingGradient().check(window)
    assert (finding is not None) is fires
    assert finding is None or finding.where == "a.weight"


def test_vanishing_gradient_spares_biases_before_batchnorm():
    window = Window()
    for sample in range(6):
        window.add(sampled(10 * sample, early=0.5))
    assert VanishingGradient().check(window) is None


def test_vanishing_gradient_is_quiet_once_the_loss_is_near_zero():
    window = Window()
    for step in range(200):
        window.add(sampled(step, 1e-7, loss=1.0 if step < 16 else 1e-4))
    assert VanishingGradient().check(window) is None


@pytest.mark.parametrize(
    ("dead", "fall", "fires"),
    [
        (lambda step: 1.0, 0.0, True),
        (lambda step: 0.7, 0.0, False),  # the level of healthy sparse layers
        (lambda step: 1.0, 0.5, False),  # learns all the same
        (lambda step: 0.93 + 0.03 * (-1) ** step, 0.0, False),  # moves
        (lambda step: 0.95 + 0.01 * (-1) ** step, 0.0, True),
        (lambda step: None, 0.0, False),
    ],
)
def test_dying_relu_needs_level_stillness_and_harm(dead, fall, fires):
    window = Window()
    for step in range(100):
        one = ActivationReading(lower=0.0, upper=1.0, dead=dead(step))
        loss = 1.0 + 0.05 * wobble(step) - fall * (step >= 16)
        window.add(reading(step, loss, activations={"relu": one}))
    finding = DyingReLU().check(window)
    assert (finding is not None) is fires
    assert finding is None or finding.where == "relu"


@pytest.mark.parametrize(
    ("loss", "fires"),
    [
        (lambda s: 1.0 + 0.5 * (1 if s % 64 < 32 else -1) * (s > 16), True),
        (lambda s: 1.0 + 0.8 * math.sin(s), False),  # noise within a few steps
        (lambda s: 1.0 + 0.05 * math.sin(s / 10), False),  # small swings
        (lambda s: 0.2 + 0.8 * (s < 16) + 0.1 * math.sin(s / 10), False),  # has learned
        (lambda s: 3.0 - s / 150 + 0.5 * math.sin(s / 10), False),  # swings on its way down
        (lambda s: -2.0 + 1.5 * math.sin(s / 10) * (s > 16), True),
        (lambda s: 1.5 * math.sin(s / 10) * (s > 16), False),  # of both signs: a critic's
    ],
)
def test_oscillating_loss_reads_the_smoothed_series(loss, fires):
    window = Window()
    for step in range(300):
        window.add(reading(step, loss(step) + 0.01 * wobble(step)))
    assert (OscillatingLoss().check(window) is not None) is fires


@pytest.mark.parametrize(
    ("loss", "fires"),
    [
        (lambda s: 2.3, True),
        (lambda s: 2.3 + 0.1 * wobble(s), True),
        (lambda s: 2.3 + s / 1000, True),  # gets worse
        (lambda s: 2.3 * math.exp(-s / 50), False),  # converged
        (lambda s: 2.3 - s / 2000, False),  # slow, but on its way
        (lambda s: 0.1 * wobble(s) - s / 300, False),  # may be negative, and falls
        (lambda s: -5.0 + 0.1 * wobble(s), True),
        (lambda s: 2.3 + 5 * wobble(s), False),  # too noisy to say
        (lambda s: 0.1 + 0.3 * wobble(s), False),  # of both signs: a policy gradient's surrogate
    ],
)
def test_slow_convergence_asks_for_progress(loss, fires):
    window = Window()
    for step in range(700):
        window.add(reading(step, loss(step)))
    assert (SlowConvergence().check(window) is not None) is fires


@pytest.mark.parametrize("symptom", [SlowConvergence(), OscillatingLoss(), DyingReLU()])
def test_resumed_runs_are_not_judged_by_their_start(symptom):
    window = Window()
    dead = {"relu": ActivationReading(lower=0.0, upper=0.0, dead=1.0)}
    for step in range(5000, 5700):
        window.add(reading(step, 1.0 + 0.5 * (step % 64 < 32), activations=dead))
    assert symptom.check(window) is None


@pytest.mark.parametrize(
    ("tail", "fires"),
    [
        ([20.0], True),  # far worse than untrained
        ([2.0], False),  # one hard example
        ([2.0, 2.0], False),
        ([2.0, 2.0, 2.0], True),
        ([1.2], False),
        ([math.inf], False),  # NonFinite's case
    ],
)
def test_loss_spike_tells_spikes_from_hard_examples(tail, fires):
    window = Window()
    for step in range(150):
        window.add(reading(step, 1.0 + 0.05 * wobble(step)))
    for step, loss in enumerate(tail, start=150):
        window.add(reading(step, loss))
    assert (LossSpike().check(window) is not None) is fires


# --- window --------------------------------------------------------------------------------


def test_values_that_are_not_finite_stay_out_of_the_statistics():
    window = Window()
    for step in range(100):
        window.add(reading(step, math.nan if step % 2 else 1.0, math.inf if step % 2 else 2.0))
    assert window.losses.summary is not None
    assert (window.losses.summary.mean, window.losses.summary.deviation) == (1.0, 0.0)
    assert window.norms.summary is not None
    assert window.norms.summary.upper == 2.0


def test_statistics_do_not_hold_the_latest_reading():
    window = Window()
    window.add(reading(0, 1.0))
    assert len(window.losses) == 0
    window.add(reading(1, 1e9))
    assert window.losses.last(5) == [1.0]


def test_statistics_survive_the_ends_of_the_float_range():
    window = Window()
    for step in range(600):
        window.add(reading(step, 1e308 * (-1) ** step, 1e308))
    summary = window.norms.summary
    assert summary is not None
    assert summary.mean == pytest.approx(1e308)
    assert all(math.isfinite(mean) for mean in window.trend.means)
    assert all(symptom.check(window) is None or True for symptom in default_symptoms())


def test_memory_is_bounded():
    monitor = Monitor(default_symptoms(), strict=True)
    sizes = []
    for step in range(6000):
        names = {f"layer{i}.weight": 1.0 for i in range(5)}
        one = {"relu": ActivationReading(lower=0.0, upper=1.0, dead=0.0)}
        monitor.observe(
            reading(step, 2.0 / (step + 1), grad_norms=names, weight_norms=names, activations=one)
        )
        if step in (3000, 5999):
            sizes.append(len(pickle.dumps(monitor.window.samples)))
            assert len(monitor.window.losses) <= 256
            assert len(monitor.window.trend.means) < 64
            assert len(monitor.window.samples) <= 16
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    assert monitor.window.trend.means[0] > monitor.window.trend.means[-1]


def test_reset_forgets_a_step_and_what_came_after():
    run = [reading(step, 1.0 + 0.1 * wobble(step), 1.0 + step) for step in range(40)]
    kept, whole = Window(), Window()
    for one in run[:30]:
        kept.add(one)
    for one in run:
        whole.add(one)
    kept.reset(30)
    whole.reset(30)
    assert whole.losses.last(99) == kept.losses.last(99)
    assert whole.norms.summary == kept.norms.summary
    assert whole.start == kept.start
    with pytest.raises(LookupError):
        _ = whole.latest
    whole.reset(5)
    assert whole.start == kept.start  # of the untrained model: known for good
    assert len(whole.losses) == 5
    short = Window()
    for one in run[:10]:
        short.add(one)
    short.reset(5)
    for one in run[10:20]:
        short.add(one)
    assert short.start is None  # 14 readings in the past: 5 kept, 9 new ones


# --- monitor -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Broken(Symptom):
    code: ClassVar[str] = "RN298"
    severity: ClassVar = "warning"

    def check(self, window: Window) -> Finding | None:
        if window.count < 3:
            return None
        raise ZeroDivisionError("no idea")


@dataclass(frozen=True, slots=True)
class LossIsTwo(Symptom):
    code: ClassVar[str] = "RN299"
    severity: ClassVar = "warning"

    def check(self, window: Window) -> Finding | None:
        return self.find(window, "Two.", where="here") if window.latest.loss == 2.0 else None


def test_a_symptom_that_raises_is_reported_once_and_switched_off():
    monitor = Monitor([Broken(), NonFinite()])
    with pytest.warns(RanumWarning, match=r"Broken \(RN298\) is switched off.*no idea") as caught:
        found = [monitor.observe(reading(step, math.nan)) for step in range(20)]
    assert len(caught) == 1
    assert len(monitor.internal_faults) == 1
    assert all(len(each) == 1 for each in found)


def test_strict_raises_what_a_symptom_raises():
    monitor = Monitor([Broken()], strict=True)
    monitor.observe(reading(0))
    monitor.observe(reading(1))
    with pytest.raises(ZeroDivisionError):
        monitor.observe(reading(2))


def test_warnings_come_once_until_they_have_been_away():
    monitor = Monitor([LossIsTwo()])
    found = [
        step
        for step in range(800)
        if monitor.observe(reading(step, 2.0 if step < 50 or step > 400 else 1.0))
    ]
    assert found == [0, 401]


def test_faults_come_every_time_and_first():
    monitor = Monitor([LossIsTwo(), NonFinite()])
    found = [monitor.observe(reading(step, 2.0, math.nan)) for step in range(3)]
    assert [[finding.code for finding in each] for each in found] == [
        ["RN201", "RN299"],
        ["RN201"],
        ["RN201"],
    ]


def test_sample_symptoms_are_asked_in_sampled_steps_only():
    @dataclass(frozen=True, slots=True)
    class Counts(LossIsTwo):
        needs: ClassVar = "sample"

    monitor = Monitor([Counts()])
    assert monitor.observe(reading(0, 2.0)) == ()
    assert len(monitor.observe(reading(1, 2.0, grad_norms={"w": 1.0}))) == 1


def test_monitor_forgets_after_a_rollback():
    monitor = Monitor(default_symptoms(), strict=True)
    for step in range(50):
        monitor.observe(reading(step))
    monitor.reset(20)
    assert monitor.observe(reading(20)) == ()
    assert len(monitor.window.losses) == 20


@pytest.mark.parametrize("bad", [[NonFinite], ["RN201"], [None]])
def test_monitor_takes_symptoms_only(bad):
    with pytest.raises(ArgumentError, match="symptoms must be Symptom instances"):
        Monitor(bad)


def test_monitor_shows_its_symptoms():
    assert "NonFinite()" in repr(Monitor([NonFinite()]))


# --- registry ------------------------------------------------------------------------------


def test_registry_refuses_a_taken_code():
    with pytest.raises(ArgumentError, match="RN201 is taken by NonFinite"):
        register(NonFinite)


@pytest.mark.parametrize("code", ["RN101", "RN2", "RN2xx", ""])
def test_registry_refuses_a_foreign_code(code):
    with pytest.raises(ArgumentError, match="must be RN2 or RN3 and two digits"):
        register(type("Strange", (Symptom,), {"code": code, "__slots__": ()}))


def test_registry_refuses_a_symptom_without_a_page():
    with pytest.raises(ArgumentError, match="has no docstring"):
        register(LossIsTwo)
    assert "RN299" not in CODES


def test_explain_lists_the_known_codes():
    with pytest.raises(ArgumentError, match=r"RN201, RN202.*got 'RN999'"):
        explain("RN999")


def test_default_codes_are_stable():
    assert [(symptom.code, type(symptom).__name__) for symptom in default_symptoms()] == [
        ("RN201", "NonFinite"),
        ("RN202", "ExplodingGradient"),
        ("RN203", "VanishingGradient"),
        ("RN204", "DyingReLU"),
        ("RN205", "OscillatingLoss"),
        ("RN206", "SlowConvergence"),
        ("RN207", "LossSpike"),
        ("RN208", "Diverged"),
        ("RN209", "SaturatedActivation"),
        ("RN210", "NotLearning"),
        ("RN211", "BadInitialisation"),
        ("RN212", "SmallUpdate"),
        ("RN213", "LargeUpdate"),
        ("RN214", "BatchNormStatistics"),
        ("RN215", "Overfitting"),
        ("RN216", "ShrinkingWeights"),
        ("RN301", "BadInput"),
        ("RN302", "BadLabels"),
        ("RN303", "OutputMismatch"),
    ]


def test_thresholds_change_the_verdict():
    window = Window()
    for step in range(20):
        window.add(reading(step, None, 1.0))
    window.add(reading(20, None, 50.0))
    assert ExplodingGradient().check(window) is None
    assert replace(ExplodingGradient(), spike=10.0).check(window) is not None
