"""The contract of the table of transfer functions, for every rule in it."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transfer_cases.harness import Arg, Case, N, Sketch, check, check_twin, tables

import ranum.analysis.transfer as _table
from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.propagate import twin_intervals
from ranum.analysis.transfer.registry import Twin, rule_for, rules, twins

WANTED = os.environ.get("RANUM_EXAMPLES", "")
"""Boxes for each operator; if given, others in every run. Few and always the same by default."""
EXAMPLES = int(WANTED or 16)

CASES = {
    f"{table}-{number}-{case.op}": case
    for table, cases in tables().items()
    for number, case in enumerate(cases, 1)
}
_RULED = {name: case for name, case in CASES.items() if rule_for(case.op) is not None}


def _each(wanted=lambda case: True):
    chosen = {name: case for name, case in _RULED.items() if wanted(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


each_case = _each()
each_wild_case = _each(lambda case: case.wild)
each_resizable_case = _each(lambda case: case.sizes_vary)


def _function(case):
    return rule_for(case.op).function


SKETCH = st.builds(
    Sketch,
    seed=st.integers(0, 10_000),
    radius=st.sampled_from([0.0, 1e-6, 1e-2, 0.3, 3.0, 100.0]),
    merged=st.sampled_from([(), (), (0,), (1,), (0, 1), (0, 1, 2, 3)]),
    infinite=st.sampled_from([(False, False)] * 3 + [(True, False), (False, True), (True, True)]),
    edges=st.booleans(),
    huge=st.sampled_from([False, False, False, True]),
    nan=st.sampled_from([False, False, True]),
)


def test_every_rule_has_a_case_and_every_case_a_rule():
    covered = {case.op for case in CASES.values()}
    own = {op for op in rules() if "::" in op}  # of one way in, where its tests are
    missing = sorted(set(rules()) - covered - own)
    assert not missing, f"rules without a case in tests/transfer_cases: {', '.join(missing)}"
    assert covered <= set(rules()), f"cases without a rule: {sorted(covered - set(rules()))}"


@each_case
def test_known_data_is_contained(case):
    for dtype in case.floating:
        for seed in range(2):
            check(case, _function(case), [Sketch(seed), Sketch(seed + 50)], dtype)


@each_wild_case
def test_values_up_to_the_limits_of_the_dtype(case):
    for dtype in case.floating:
        for seed, radius in ((1, 0.0), (2, 1.0)):
            huge = Sketch(seed, radius, huge=True, edges=True)
            check(case, _function(case), [huge, Sketch(seed, huge=True)], dtype)


@each_wild_case
def test_infinities_and_nan(case):
    for seed, infinite in enumerate(((True, False), (False, True), (True, True))):
        for radius, nan in ((0.0, True), (0.5, False), (0.5, True)):
            sketch = Sketch(seed, radius, infinite=infinite, nan=nan, edges=True)
            other = Sketch(seed + 9, radius, infinite=infinite)
            check(case, _function(case), [sketch, other])


@each_resizable_case
def test_empty_tensors(case):
    for sketch in (Sketch(), Sketch(radius=0.5), Sketch(radius=0.5, merged=(0, 1))):
        check(case, _function(case), [sketch], size=0)


@pytest.mark.parametrize("op", sorted({case.op for case in _RULED.values()}))
@settings(
    max_examples=EXAMPLES,
    derandomize=not WANTED,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(boxes=st.tuples(SKETCH, SKETCH), data=st.data())
def test_results_lie_in_the_interval(op, boxes, data):
    case = data.draw(st.sampled_from([case for case in _RULED.values() if case.op == op]))
    dtype = data.draw(st.sampled_from(case.floating))
    if not case.wild:
        boxes = [Sketch(b.seed, min(b.radius, 3.0), b.merged) for b in boxes]
    check(case, _function(case), boxes, dtype)


# --- one pair of bounds per tensor ---------------------------------------------------------

_TWINNED = sorted({case.op for case in _RULED.values() if rule_for(case.op).twin is not None})
_ORDINARY = st.builds(
    Sketch,
    seed=st.integers(0, 10_000),
    radius=st.sampled_from([0.0, 1e-6, 1e-2, 0.3, 3.0, 100.0]),
    edges=st.booleans(),
    huge=st.sampled_from([False, False, False, False, True]),
)


def test_every_twin_has_a_case():
    assert set(twins()) <= set(_TWINNED), sorted(set(twins()) - set(_TWINNED))


@pytest.mark.parametrize("op", _TWINNED)
def test_twins_contain_the_results_and_agree_with_the_rule(op):
    rule, answered = rule_for(op), 0
    for case in (case for case in _RULED.values() if case.op == op):
        for dtype in case.floating:
            for seed, radius in enumerate((0.0, 1e-3, 0.3, 3.0)):
                sketches = [Sketch(seed, radius, edges=seed % 3 == 0), Sketch(seed + 50, radius)]
                answered += check_twin(case, rule.twin, rule.function, sketches, dtype)
    assert answered, f"the twin of {op} never answered"


@pytest.mark.parametrize("op", _TWINNED)
@settings(
    max_examples=EXAMPLES // 3,
    derandomize=not WANTED,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(boxes=st.tuples(_ORDINARY, _ORDINARY), data=st.data())
def test_twins_contain_the_results_of_any_box(op, boxes, data):
    case = data.draw(st.sampled_from([case for case in _RULED.values() if case.op == op]))
    dtype = data.draw(st.sampled_from(case.floating))
    if not case.wild:
        boxes = [Sketch(b.seed, min(b.radius, 3.0)) for b in boxes]
    rule = rule_for(op)
    check_twin(case, rule.twin, rule.function, boxes, dtype)


_WIDE = sorted({case.op for case in _RULED.values() if case.wild} & {
    op for op, twin in twins().items() if twin.wide
})  # fmt: skip
_WILD = [
    Sketch(seed, radius, infinite=infinite, nan=nan, edges=True, huge=huge)
    for seed, (infinite, radius, nan, huge) in enumerate(
        [
            ((False, False), 0.3, True, False),
            ((False, False), 3.0, False, True),
            ((True, False), 0.3, False, False),
            ((True, False), 3.0, True, True),
            ((False, True), 3.0, False, False),
            ((False, True), 0.3, False, True),
            ((True, True), 0.3, False, False),
            ((True, True), 3.0, True, True),
        ]
    )
]


@pytest.mark.parametrize("op", _WIDE)
def test_wide_twins_contain_infinities_and_nan(op):
    _check_wide(op, _WILD[3:7], 1)


@pytest.mark.slow  # 60 s
@pytest.mark.parametrize("op", _WIDE)
def test_wide_twins_contain_infinities_and_nan_in_every_dtype(op):
    _check_wide(op, _WILD, None)


def _check_wide(op, wild, dtypes):
    rule, answered = rule_for(op), 0
    for case in (case for case in _RULED.values() if case.op == op and case.wild):
        for dtype in case.floating[:dtypes]:
            for sketch in wild:
                other = replace(_WILD[3 * sketch.seed % len(_WILD)], seed=sketch.seed + 99)
                sketches = [sketch, other]
                answered += check_twin(case, rule.twin, rule.function, sketches, dtype)
    assert answered, f"the twin of {op} never answered"


def test_a_twin_that_forgets_nan_is_caught():
    twin = Twin(lambda out, x, other: (-torch.inf, torch.inf, False), *[frozenset()] * 2, wide=True)
    sketches = [Sketch(seed, radius=0.5, infinite=(True, True)) for seed in range(20)]
    with pytest.raises(AssertionError, match="may_nan=False"):
        _check_twins(twin, sketches)


def _check_twins(twin, sketches):
    for sketch in sketches:
        check_twin(_ADD, twin, rule_for("add").function, [sketch, sketch])


_ENDS = (0.0, 1.0, -1.0, 5.0, 3e38, -3e38, 1e-40, -1e-30, 1e20)


@pytest.mark.parametrize(
    ("op", "names", "shapes"),
    [
        ("div", ("x", "other"), ((2, 3), (3,), (2, 3))),
        ("mm", ("x", "mat2"), ((2, 3), (3, 4), (2, 4))),
    ],
)
def test_a_twin_gives_up_on_what_the_rule_gives_up_on(op, names, shapes):
    rule, lost = rule_for(op), 0
    pairs = [(low, high) for low in _ENDS for high in _ENDS if low <= high]
    values = [Value(index=0, shape=shapes[2], dtype=torch.float32, kind="result")]
    for each in itertools.product(pairs, pairs):
        bounds = [
            Interval.full(*ends, shape, torch.float32)
            for ends, shape in zip(each, shapes, strict=False)
        ]
        arguments = dict(zip(names, bounds, strict=True))
        given = twin_intervals(rule.twin, arguments, values, whole=False)
        if given is not None and not given[0].is_finite:
            lost += 1
            expected = rule.function(**arguments)
            found = [(one.low, one.high, one.may_nan) for one in (given[0], expected)]
            assert found[0] == found[1], each
    assert lost > 50


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda out, x, other, alpha=1: (x.low, x.high), "outside"),
        (lambda out, x, other, alpha=1: (-1e3, 1e3), "the transfer function"),
    ],
)
def test_a_wrong_twin_is_caught(wrong, message):
    twin = Twin(wrong, frozenset(), frozenset())
    with pytest.raises(AssertionError, match=message):
        check_twin(_ADD, twin, rule_for("add").function, [Sketch(1, radius=0.5)])


# --- the harness itself can fail -----------------------------------------------------------

_ADD = Case("add", {"x": Arg((N, 3)), "other": Arg((3,))})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, other: x, "outside"),
        (lambda x, other: Interval.full(-99, 99, (3,), x.dtype), "shape .3,. for"),
        (lambda x, other: Interval.full(-99, 99, x.shape, torch.float64), "torch.float64 with"),
        (lambda x, other: None, "for a tensor"),
        (lambda x, other: (x, x), "2 intervals"),
    ],
)
def test_a_wrong_rule_is_caught(wrong, message):
    with pytest.raises(AssertionError, match=message):
        check(_ADD, wrong, [Sketch(1, radius=0.5)])


def test_a_rule_that_forgets_nan_is_caught():
    with pytest.raises(AssertionError, match="may_nan=False"):
        _check_infinite(_wide)


def test_a_right_rule_passes():
    _check_infinite(rule_for("add").function)


def _check_infinite(function):
    for seed in range(20):
        check(_ADD, function, [Sketch(seed, radius=0.5, infinite=(True, True))])


def _wide(x, other):
    return Interval.full(-torch.inf, torch.inf, (2, 3), x.dtype)


def test_importing_the_package_fills_the_table():
    assert _table.rules is rules
    assert rules()
