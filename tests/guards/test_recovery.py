"""The ladder: order, exhaustion, remedies that fail; what each remedy fits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ranum.errors import ArgumentError, RanumWarning
from ranum.guards.recovery import (
    ClipGradients,
    Fault,
    Ladder,
    Outcome,
    Remedy,
    Retry,
    Rollback,
    Skip,
    Stop,
    default_remedies,
    go_back,
    scale_learning_rates,
)
from ranum.guards.types import Culprit, Finding, Reading
from ranum.source import UNKNOWN


class FakeGuard:
    """Remembers what remedies ask of it."""

    def __init__(self, steps=(100, 50, 0)):
        self.steps = steps
        self.history = SimpleNamespace(incidents=[], readings=[])
        self.asked = []
        self.lasts = []

    is_rewound = False
    can_come_again = True
    bad_parts = None

    def go_back(self, depth=0, *, rewind=True):
        if not self.steps:
            return None
        self.asked.append(depth)
        self.rewinds = rewind
        return self.steps[min(depth, len(self.steps) - 1)]

    def scale_learning_rates(self, factor, *, steps=None):
        self.asked.append(factor)
        self.lasts.append(steps)

    can_limit_gradients = True

    def limit_gradients(self, norm, *, steps):
        self.asked.append((norm, steps))

    def retry(self):
        return self.can_come_again

    def leave_out_parts(self):
        return self.bad_parts


def fault(step=120, cause=None, is_transient=False):
    finding = Finding(
        code="RN201", symptom="NonFinite", step=step, severity="fault", message="The loss is nan."
    )
    culprit = cause and Culprit(
        op="log", phase="forward", source=UNKNOWN, cause=cause, name="batch[0]"
    )
    reading = Reading(step=step, loss=float("nan"), grad_norm=None)
    return Fault(
        finding=finding,
        reading=reading,
        step=step,
        culprit=culprit,
        is_transient=is_transient,
    )


class Does:
    def __init__(self, name, result):
        self.name = name
        self.result = result
        self.calls = 0

    def apply(self, fault, guard):
        self.calls += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


OUTCOME = Outcome(action="b", detail="did b")


def test_the_first_that_fits_acts():
    a, b, c = Does("a", None), Does("b", OUTCOME), Does("c", OUTCOME)
    assert Ladder([a, b, c]).apply(fault(), FakeGuard()) is OUTCOME
    assert (a.calls, b.calls, c.calls) == (1, 1, 0)


def test_nothing_left():
    assert Ladder([Does("a", None)]).apply(fault(), FakeGuard()) is None
    assert Ladder([]).apply(fault(), FakeGuard()) is None


def test_failing_remedy_is_switched_off_and_the_next_tried():
    broken, good = Does("broken", OSError("disk")), Does("b", OUTCOME)
    ladder = Ladder([broken, good])
    with pytest.warns(RanumWarning, match="'broken' is switched off: OSError: disk"):
        assert ladder.apply(fault(), FakeGuard()) is OUTCOME
    assert ladder.apply(fault(), FakeGuard()) is OUTCOME
    assert broken.calls == 1
    assert len(ladder.internal_faults) == 1


def test_strict_raises():
    with pytest.raises(OSError, match="disk"):
        Ladder([Does("broken", OSError("disk"))], strict=True).apply(fault(), FakeGuard())


@pytest.mark.parametrize(
    ("remedies", "message"),
    [
        (["leap"], "among 'retry', 'skip', .*, 'rollback', 'stop'; got 'leap'"),
        ([3], "must have a name and an apply method; got 3"),
        ([Skip], "Pass objects"),
    ],
)
def test_ladder_arguments(remedies, message):
    with pytest.raises(ArgumentError, match=message):
        Ladder(remedies)


def test_built_in_remedies_by_name():
    ladder = Ladder(["retry", "skip", "clip_gradients", "rollback", "stop"])
    kinds = [Retry, Skip, ClipGradients, Rollback, Stop]
    assert [type(remedy) for remedy in ladder.remedies] == kinds
    assert repr(ladder) == f"Ladder({list(default_remedies())!r}, strict=False)"
    assert all(isinstance(remedy, Remedy) for remedy in default_remedies())


# --- retry --------------------------------------------------------------------------------------


def test_retry_fits_what_did_not_come_again():
    guard = FakeGuard()
    assert Retry().apply(fault(is_transient=True), guard).action == "retry"
    assert Retry().apply(fault(is_transient=False), guard) is None
    guard.can_come_again = False
    assert Retry().apply(fault(is_transient=True), guard) is None


def test_retry_is_limited():
    retry, guard = Retry(limit=2, apart=100), FakeGuard()
    assert retry.apply(fault(10, is_transient=True), guard)
    assert retry.apply(fault(11, is_transient=True), guard) is None  # it came again
    assert retry.apply(fault(20, is_transient=True), guard)
    assert retry.apply(fault(110, is_transient=True), guard) is None
    assert retry.apply(fault(111, is_transient=True), guard)  # the first is forgotten


# --- skip ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "fits"), [("data", True), (None, True), ("operator", False), ("weights", False)]
)
def test_skip_fits(cause, fits):
    outcome = Skip().apply(fault(cause=cause), FakeGuard())
    assert (outcome is not None) is fits
    if cause == "data":
        assert outcome.detail == "left the batch out: NaN in batch[0]"


def test_skip_leaves_out_only_what_is_bad():
    guard = FakeGuard()
    guard.bad_parts = "micro-batch 1 of the step"
    outcome = Skip().apply(fault(cause="data"), guard)
    assert (outcome.action, outcome.proceed) == ("skip part", True)
    assert outcome.detail == "left micro-batch 1 of the step out; the others weigh more"


def test_skip_is_limited_in_a_row():
    skip, guard = Skip(limit=2), FakeGuard()
    assert skip.apply(fault(10, "data"), guard)
    assert skip.apply(fault(11, "data"), guard)
    assert skip.apply(fault(12, "data"), guard) is None
    assert skip.apply(fault(14, "data"), guard)  # a good step in between


@pytest.mark.parametrize(("step", "fits"), [(120, False), (121, True)])
def test_fault_without_culprit_must_come_alone(step, fits):
    guard = FakeGuard()
    guard.history.incidents.append(SimpleNamespace(step=100, action="rollback"))
    assert (Skip(apart=20).apply(fault(step), guard) is not None) is fits


def test_a_batch_that_fails_again_after_a_retry_is_left_out():
    guard = FakeGuard()
    guard.history.incidents.append(SimpleNamespace(step=119, action="retry"))
    assert Skip(apart=20).apply(fault(120), guard) is not None


# --- rollback -----------------------------------------------------------------------------------


def test_rollback_goes_deeper_and_is_used_up():
    rollback, guard = Rollback(0.1, limit=3, patience=100), FakeGuard()
    outcomes = [rollback.apply(fault(step), guard) for step in (120, 130, 140, 150)]
    assert [outcome and outcome.back_to for outcome in outcomes] == [100, 50, 0, None]
    assert guard.asked == [0, 0.1, 1, 0.1, 2, 0.1]
    assert guard.lasts == [1000, 2000, 4000]
    assert not guard.rewinds  # twice the same batches led there: the data goes on
    assert outcomes[0].detail == "went back to step 100; learning rate x 0.1 for 1000 steps"
    assert rollback.apply(fault(240), guard) is None  # still within patience of the last one
    assert rollback.apply(fault(241), guard).back_to == 100  # a new chain
    assert Rollback(1).apply(fault(), guard).detail == "went back to step 100"


def test_a_way_back_to_the_same_batches_is_not_counted():
    rollback, guard = Rollback(1.0, limit=2), FakeGuard()
    guard.is_rewound = True
    outcomes = [rollback.apply(fault(step), guard) for step in (120, 130, 140, 150)]
    assert [outcome and outcome.back_to for outcome in outcomes] == [100, 50, 0, None]


def test_bad_data_do_not_come_again():
    guard = FakeGuard()
    Rollback().apply(fault(cause="data"), guard)
    assert not guard.rewinds
    Rollback().apply(fault(cause="operator"), guard)
    assert guard.rewinds


def test_damage_says_nothing_about_the_learning_rate_until_it_comes_twice():
    rollback, guard = Rollback(0.1, patience=100, lasts=None), FakeGuard()
    first = rollback.apply(fault(120, "weights"), guard)
    second = rollback.apply(fault(130, "weights"), guard)
    assert first.detail == "went back to step 100"
    assert second.detail == "went back to step 50; learning rate x 0.1"


def test_rollback_needs_a_snapshot():
    assert Rollback().apply(fault(), FakeGuard(())) is None


@pytest.mark.parametrize("remedy", [Retry(), Skip(), Rollback()])
def test_remedy_state_is_plain(remedy):
    guard = FakeGuard()
    remedy.apply(fault(9, "data", is_transient=True), guard)
    state = json.loads(json.dumps(remedy.state_dict()))
    other = type(remedy)()
    other.load_state_dict(state)
    assert other.state_dict() == remedy.state_dict() != type(remedy)().state_dict()
    assert repr(other) == repr(remedy)


@pytest.mark.parametrize("remedy", [Retry(), Skip(), ClipGradients(), Rollback(), Stop()])
def test_a_warning_is_not_the_business_of_the_built_in_remedies(remedy):
    warning = replace(fault().finding, severity="warning", symptom="DyingReLU", code="RN204")
    assert remedy.apply(replace(fault(), finding=warning), FakeGuard()) is None


# --- clipped gradients --------------------------------------------------------------------------


def explosion(step=120, norm=1e6, losses=(), norms=(2.0,) * 20, guard=None):
    """An exploding gradient in a run with such losses and norms before it."""
    guard = guard or FakeGuard()
    losses = losses or (1.0,) * len(norms)
    guard.history.readings = [
        Reading(step=step - len(norms) + number, loss=loss, grad_norm=before)
        for number, (loss, before) in enumerate(zip(losses, norms, strict=True))
    ]
    reading = Reading(step=step, loss=1.0, grad_norm=norm)
    guard.history.readings.append(reading)
    finding = replace(fault(step).finding, code="RN202", symptom="ExplodingGradient")
    return Fault(finding=finding, reading=reading, step=step), guard


def test_gradients_are_clipped_at_a_level_of_their_past():
    exploding, guard = explosion(norms=(1.0, 2.0, 3.0) * 7)
    outcome = ClipGradients(steps=50).apply(exploding, guard)
    assert outcome.action == "clip_gradients"
    assert guard.asked == [(4.0, 50)]
    expected = "gradients are clipped to norm 4 for 50 steps; the batch comes again"
    assert outcome.detail == expected
    assert not outcome.proceed
    guard.can_come_again = False
    assert ClipGradients().apply(exploding, guard).detail.endswith("the batch is left out")


def test_clipping_does_not_fit_twice_in_a_row():
    remedy = ClipGradients(steps=50)
    exploding, guard = explosion()
    assert remedy.apply(exploding, guard)
    assert remedy.apply(explosion(220, guard=guard)[0], guard) is None
    assert remedy.apply(explosion(221, guard=guard)[0], guard)


@pytest.mark.parametrize(
    "state",
    [
        {"norm": math.inf},
        {"norm": None},
        {"norm": 3.9},  # below the level
        {"norms": ()},
        {"norms": (2.0,) * 15},  # too few to go by
        {"norms": (math.nan,) * 9},
        {"losses": (1.0,) * 12 + (9.0,) * 8},  # the run is far off already
    ],
)
def test_what_clipping_does_not_fit(state):
    assert ClipGradients().apply(*explosion(**state)) is None


def test_clipping_needs_a_guard_that_can():
    exploding, guard = explosion()
    guard.can_limit_gradients = False
    assert ClipGradients().apply(exploding, guard) is None
    assert ClipGradients().apply(fault(), FakeGuard()) is None


# --- stop ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cause", "back_to"), [("weights", 100), ("operator", None), (None, None)])
def test_stop(cause, back_to):
    outcome = Stop().apply(fault(cause=cause), FakeGuard())
    assert outcome.stop
    assert outcome.back_to == back_to
    assert "The loss is nan." in outcome.detail


def test_helpers_for_other_remedies():
    guard = FakeGuard()
    assert go_back(guard, fault()) == 100
    scale_learning_rates(guard, 0.5)
    assert guard.asked == [0, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Retry(limit=0), "limit must be a positive integer; got 0"),
        (lambda: Skip(limit=0), "limit must be a positive integer; got 0"),
        (lambda: Skip(apart=1.5), "apart must be a positive integer; got 1.5"),
        (lambda: ClipGradients(0), r"factor must be positive and finite; got 0"),
        (lambda: ClipGradients(steps=0), r"steps must be a positive integer; got 0"),
        (lambda: Rollback(lasts=0), r"lasts must be a positive integer; got 0"),
        (lambda: Rollback(0), r"learning_rate_factor must be in \(0, 1\]; got 0"),
        (lambda: Rollback(1.5), r"got 1.5"),
        (lambda: Rollback(limit=True), "limit must be a positive integer; got True"),
        (lambda: Rollback(patience=-1), "patience must be a positive integer; got -1"),
    ],
)
def test_arguments(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
